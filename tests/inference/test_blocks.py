"""The pool of blocks: who holds what, what is found again, what is given up first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.inference.blocks import ROOT, BlockPool


def write(pool: BlockPool, tokens: list[int], salt: object = None) -> list[int]:
    """Compute a text as the scheduler does: what is known is held, the rest taken, full blocks registered."""
    size = pool.block_size
    table = pool.match(tokens, salt, len(tokens))
    pool.hold(table)
    for start in range(len(table) * size, len(tokens), size):
        block = pool.take()
        if start + size <= len(tokens):
            parent = table[-1] if table else ROOT
            block = pool.register(block, parent, tokens[start : start + size], salt)
        table.append(block)
    return table


def test_a_prefix_is_found_again_and_shared() -> None:
    pool = BlockPool(8, 2)
    first = write(pool, [1, 2, 3, 4, 5])
    second = write(pool, [1, 2, 3, 4, 6, 7])
    assert second[:2] == first[:2] and second[2] != first[2]
    assert [pool.references[block] for block in first] == [2, 2, 1]
    assert (pool.used, pool.cached, pool.free) == (4, 0, 4)
    pool.release(first)
    pool.release(second)
    assert (pool.used, pool.cached, pool.free) == (0, 3, 5)  # the half full one holds nothing that can be found
    assert pool.match([1, 2, 3, 4, 6, 7, 8], None, 7) == second


def test_the_limit_keeps_tokens_to_compute() -> None:
    pool = BlockPool(4, 2)
    table = write(pool, [1, 2, 3, 4])
    assert [pool.match([1, 2, 3, 4], None, limit) for limit in range(5)] == [[], [], table[:1], table[:1], table]


def test_salts_share_nothing() -> None:
    pool = BlockPool(8, 2)
    plain, adapted, version = (write(pool, [1, 2, 3, 4], salt) for salt in (None, "adapter", ("weights", 7)))
    assert len({*plain, *adapted, *version}) == 6
    assert pool.match([1, 2, 3, 4], "adapter", 4) == adapted
    assert pool.match([1, 2, 3, 4], "another", 4) == []


@pytest.mark.parametrize("other", [[-2, 5], [-1, 2**61 + 4]])
def test_equal_hashes_are_not_equal_tokens(other: list[int]) -> None:
    """In CPython hash(-1) == hash(-2), and hash(2**61 - 1 + n) == hash(n)."""
    assert hash((-1, 5)) == hash(tuple(other))
    pool = BlockPool(4, 2)
    write(pool, [-1, 5])
    assert pool.match(other, None, 2) == []


def test_the_same_tokens_after_others_are_another_entry() -> None:
    pool = BlockPool(4, 2)
    first = write(pool, [1, 1, 9, 9])
    second = write(pool, [2, 2, 9, 9])
    assert first[1] != second[1]


def test_what_two_computed_at_once_is_kept_once() -> None:
    pool = BlockPool(4, 2)
    one, other = pool.take(), pool.take()  # both were let in before either was registered
    one = pool.register(one, ROOT, [1, 2], None)
    assert pool.register(other, ROOT, [1, 2], None) == one
    assert pool.references[one] == 2 and (pool.used, pool.free) == (1, 3)


def test_what_was_used_longest_ago_goes_first_and_a_chain_from_its_end() -> None:
    pool = BlockPool(6, 1)
    old, new = write(pool, [1, 2, 3]), write(pool, [7, 8, 9])
    pool.release(old)
    pool.release(new)
    pool.hold(old[:1])  # used again
    pool.release(old[:1])
    taken = [pool.take() for _ in range(6)]
    assert taken == [old[2], old[1], new[2], new[1], new[0], old[0]]
    with pytest.raises(ValueError, match="all blocks are held"):
        pool.take()


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(3, 1)
    pool.release(write(pool, [1]))
    assert pool.cached == 1
    pool.take()
    pool.take()
    assert pool.cached == 1 and pool.match([1], None, 1)
    pool.take()
    assert pool.cached == 0 and not pool.match([1], None, 1)


@pytest.mark.parametrize(("count", "size"), [(0, 16), (4, 0), (-1, 16)])
def test_a_pool_that_holds_nothing_is_refused(count: int, size: int) -> None:
    with pytest.raises(InputError, match="holds nothing"):
        BlockPool(count, size)


texts = st.lists(st.integers(0, 1), min_size=1, max_size=9)


@given(st.lists(st.tuples(texts, st.sampled_from([None, 0, "a"])), max_size=12), texts, st.integers(1, 3))
def test_exactly_what_was_computed_is_found(
    computed: list[tuple[list[int], object]], text: list[int], size: int
) -> None:
    """In a cache without end a text is known as far as some text before it, of the same salt, began alike."""
    pool = BlockPool(200, size)
    for number, (tokens, salt) in enumerate(computed):
        table = write(pool, tokens, salt)
        if number % 2:
            pool.release(table)
    for salt in (None, 0, "a"):
        alike = [shared(text, tokens) // size for tokens, its in computed if its == salt]
        assert len(pool.match(text, salt, len(text))) == max(alike, default=0)


@given(st.lists(texts, min_size=1, max_size=30), st.integers(1, 3), st.integers(9, 14))
def test_a_small_cache_forgets_and_never_errs(computed: list[list[int]], size: int, count: int) -> None:
    pool = BlockPool(count, size)
    contents: dict[int, list[int]] = {}
    for tokens in computed:
        for i, block in enumerate(pool.match(tokens, None, len(tokens))):
            assert contents[block] == tokens[: (i + 1) * size]
        table = write(pool, tokens)
        contents |= {block: tokens[: (i + 1) * size] for i, block in enumerate(table)}
        pool.release(table)
        assert pool.used == 0 and pool.free + pool.cached == count
        full = table[: len(tokens) // size]
        assert pool.match(tokens, None, len(tokens)) == full  # the youngest is there


def shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
