"""No way of writing a bad word is open, and nothing else is closed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pellucid.inference.bad_words import BadWords
from pellucid.inference.vocabulary import Vocabulary
from tests.inference.words import TOKENIZER

words = st.text("abcé", min_size=1, max_size=4)
DRAWN = [token for token in range(TOKENIZER.vocab_size) if token != TOKENIZER.vocab_size - 2]  # without the hole


def oracle(text: bytes, bad: list[str], free: set[int]) -> list[int]:
    """The tokens after which some bad word stands in the text that was not in it before."""
    return [
        token
        for token in DRAWN
        if token not in free
        and any(
            (text + TOKENIZER.token_bytes(token)).count(word.encode())
            and (text + TOKENIZER.token_bytes(token)).rfind(word.encode()) + len(word.encode()) > len(text)
            for word in bad
        )
    ]


@given(st.lists(words, min_size=1, max_size=4), st.lists(st.sampled_from(DRAWN), max_size=12))
def test_what_would_complete_a_bad_word_is_forbidden_and_no_more(bad: list[str], tokens: list[int]) -> None:
    state = BadWords(bad, TOKENIZER, free=[TOKENIZER.end])
    text = b""
    for token in [*tokens, 0]:
        assert state.forbidden().tolist() == oracle(text, bad, {TOKENIZER.end})
        assert state.forbidden().tolist() == state.forbidden().tolist()  # what is kept is what was found
        state.advance(token)
        text += TOKENIZER.token_bytes(token)


def test_a_stop_token_writes_nothing_and_is_free() -> None:
    assert TOKENIZER.end not in BadWords(["end"], TOKENIZER, free=[TOKENIZER.end]).forbidden()
    assert TOKENIZER.end in BadWords(["end"], TOKENIZER).forbidden()


def test_half_a_surrogate_is_no_question_mark() -> None:
    assert not len(BadWords(["\ud800"], TOKENIZER).forbidden())


@given(st.sampled_from(["a", "ab", "abc", "c", "é", "0", "end", "zz"]))
def test_a_vocabulary_finds_by_beginning_and_by_part(text: str) -> None:
    vocabulary, part = Vocabulary.of(TOKENIZER), text.encode()
    assert Vocabulary.of(TOKENIZER) is vocabulary
    pieces = {token: TOKENIZER.token_bytes(token) for token in DRAWN}
    starting = [token for token, piece in pieces.items() if piece.startswith(part)]
    assert sorted(vocabulary.beginning_with(part).tolist()) == starting
    assert vocabulary.containing(part).tolist() == [token for token, piece in pieces.items() if part in piece]


@given(st.text('abcé{":', max_size=12))
def test_a_vocabulary_spells_a_text_in_its_longest_tokens(text: str) -> None:
    ids = Vocabulary.of(TOKENIZER).spell(text.encode())
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == b"".join(
        bytes([byte]) for byte in text.encode() if bytes([byte]) in TOKENIZER.tokens
    )
    assert TOKENIZER.end not in ids


def test_the_longest_token_goes_first() -> None:
    spelt = Vocabulary.of(TOKENIZER).spell(b"abcab")
    assert [TOKENIZER.token_bytes(token) for token in spelt] == [b"abc", b"ab"]
