"""Promise T4: the pieces of a stream, joined, are the decoded whole; for any ids, in any vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.vocabularies import tokenizer

KINDS = ("smollm2", "gpt-2", "llama-spm", "phi-3", "gemma-4", "bert-bge", "nomic-bert-moe", "qwen2")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("skip_special", [False, True])
def test_joined_pieces_are_the_whole(name: str, skip_special: bool) -> None:
    ours = tokenizer(name)
    some = st.integers(0, ours.vocab_size - 1)
    # Bytes on their own are where streams go wrong: half characters, wrong ones, over and over.
    single = [token for token in range(min(ours.vocab_size, 5000)) if len(ours.token_bytes(token)) == 1]
    control = list(ours.special_tokens.values())

    @given(st.lists(st.one_of(some, st.sampled_from(single), st.sampled_from(control)), max_size=30))
    @settings(max_examples=200)
    def exact(ids: list[int]) -> None:
        stream = ours.stream_decoder(skip_special=skip_special)
        pieces = [*map(stream.push, ids), stream.finish()]
        whole = ours.decode(ids, skip_special=skip_special)
        assert "".join(pieces) == whole
        assert sum(piece.count("\ufffd") for piece in pieces) == whole.count("\ufffd")
        for cut in range(len(ids) + 1):  # what was told is never taken back
            assert whole.startswith("".join(pieces[:cut]))

    exact()


@pytest.mark.parametrize("name", KINDS)
def test_characters_arrive_whole(name: str) -> None:
    ours = tokenizer(name)
    text = "naïve café 👩‍👩‍👧 在 tail" if name != "bert-bge" else "naive cafe tail"
    stream = ours.stream_decoder()
    pieces = [*map(stream.push, ours.encode(text)), stream.finish()]
    assert "".join(pieces) == ours.decode(ours.encode(text))
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_waits_and_is_told_at_the_end() -> None:
    ours = tokenizer("gpt-2")
    first, *_ = ours.encode("在")
    stream = ours.stream_decoder()
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(ours.encode("Hi")[0]) == "Hi"  # afterwards it is as new
    assert stream.push(first) == "" and stream.push(ours.encode("Hi")[0]) == "\ufffdHi"
    assert stream.finish() == ""


def test_the_first_space_of_sentencepiece_falls_away_once() -> None:
    ours = tokenizer("llama-spm")
    hello = ours.vocab["▁Hello"]
    stream = ours.stream_decoder()
    assert [stream.push(hello), stream.push(hello), stream.finish()] == ["Hello", " Hello", ""]
    assert stream.push(hello) == "Hello"
    under_way = ours.stream_decoder(begun=True)
    assert [under_way.push(hello), under_way.push(hello)] == [" Hello", " Hello"]
    skipping = ours.stream_decoder(skip_special=True)
    assert [skipping.push(1), skipping.push(hello)] == ["", "Hello"]
