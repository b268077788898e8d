"""Training: the merges of the naive algorithm and of the `tokenizers` trainer, within memory, with errors that help."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from pellucid.errors import InputError
from pellucid.tokenizer import counting
from pellucid.tokenizer.alphabet import to_alphabet
from pellucid.tokenizer.bpe import BytePairEncoder
from pellucid.tokenizer.corpus import files_of, read_texts
from pellucid.tokenizer.counting import count_pretokens
from pellucid.tokenizer.patterns import PATTERNS, Splitter
from pellucid.tokenizer.train import BYTES, learn_merges, train_bpe
from tests.references import REFERENCES

Merges = list[tuple[bytes, bytes]]


def some_text() -> list[str]:
    """Half a megabyte of templates: text and code by many hands."""
    files = sorted((REFERENCES / "llama.cpp/models/templates").glob("*.jinja"))
    return [file.read_text("utf-8") for file in files]


def naive(words: dict[bytes, int], size: int) -> tuple[list[bytes], Merges]:
    """The oracle (minbpe's way): count all pairs anew, merge the most frequent everywhere. Ties: the lowest ids."""
    tokens, merges = list(BYTES), []
    cut = {word: [BYTES.index(bytes([byte])) for byte in word] for word in words}
    while len(tokens) < size:
        counts: Counter[tuple[int, int]] = Counter()
        for word, ids in cut.items():
            for pair in pairwise(ids):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        token = tokens[best[0]] + tokens[best[1]]
        if (merge := (tokens[best[0]], tokens[best[1]])) in merges:
            merges.remove(merge)
        merges.append(merge)
        if token not in tokens:
            tokens.append(token)
        cut = {word: merged(ids, best, tokens.index(token)) for word, ids in cut.items()}
    return tokens, merges


def merged(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    out, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            out.append(new)
            place += 2
        else:
            out.append(ids[place])
            place += 1
    return out


def by_tokenizers(texts: list[str], size: int, split: str = "gpt2") -> tuple[dict[str, int], list[tuple[str, str]]]:
    reference = tokenizers.Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(tokenizers.Regex(source), "isolated") for source in PATTERNS[split]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(texts, trainer)
    merges: list[Any] = json.loads(reference.to_str())["model"]["merges"]
    return reference.get_vocab(), [(left, right) for left, right in merges]


@given(st.dictionaries(st.text("abc", min_size=1, max_size=12).map(str.encode), st.integers(1, 5), max_size=12))
@settings(max_examples=200)
def test_merges_are_those_of_the_naive_algorithm(words: dict[bytes, int]) -> None:
    assert learn_merges(words, 290) == naive(words, 290)


@given(st.text("ab", min_size=30, max_size=200), st.integers(1, 40))
def test_repetitive_words(word: str, merges: int) -> None:
    """Overlapping pairs (aaa), and tokens that are made in two ways."""
    words = {word[:half].encode(): half for half in range(1, len(word), 7)}
    assert learn_merges(words, 256 + merges) == naive(words, 256 + merges)


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "smollm"])
def test_vocabulary_is_that_of_tokenizers(split: str) -> None:
    """On real text: the same merges in the same order, and the same ids."""
    texts = some_text()
    trained = train_bpe(texts, 2000, split=split, special_tokens=["<|endoftext|>", "<pad>"])
    vocab, merges = by_tokenizers(texts, 2000, split)
    assert [(to_alphabet(left), to_alphabet(right)) for left, right in trained.merges] == merges
    assert trained.special_tokens | {to_alphabet(token): n for token, n in trained.vocab.items()} == vocab
    assert trained.tokenizer().vocab == vocab


@given(st.lists(st.text("aé中 \n'1", max_size=40), min_size=1, max_size=6).filter(lambda texts: any(texts)))
@settings(max_examples=50)
def test_small_texts_as_tokenizers(texts: list[str]) -> None:
    counted = count_pretokens(texts, "gpt2")
    possible = len(learn_merges(counted.pretokens, 1000)[0])
    trained = train_bpe(texts, possible + 2, special_tokens=["<|endoftext|>", "<pad>"])
    _, merges = by_tokenizers(texts, possible + 2)
    assert [(to_alphabet(left), to_alphabet(right)) for left, right in trained.merges] == merges


@given(st.lists(st.text("ab é中\n\ud800", max_size=40), max_size=6), st.sampled_from(["gpt2", "o200k", r"\S+"]))
def test_counts(texts: list[str], split: str) -> None:
    whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    splitter = Splitter(split)
    parts = [part for text in whole for part in splitter.pretokens(text)]
    if parts:
        counted = count_pretokens(texts, split)
        assert counted.pretokens == Counter(part.encode() for part in parts)
        assert counted.characters == sum(map(len, texts)) and counted.dropped_pretokens == 0
    else:
        with pytest.raises(InputError, match="no text to train on"):
            count_pretokens(texts, split)


def test_processes_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_BATCH", 20_000)
    texts = some_text()
    seen: list[int] = []
    counted = count_pretokens(texts, "gpt2", workers=2, progress=lambda _phase, done, _of: seen.append(done))
    assert counted == count_pretokens(texts, "gpt2", workers=1)
    assert seen == sorted(seen) and len(seen) > 10 and seen[-1] == sum(map(len, texts))


def test_an_error_of_the_source_ends_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_BATCH", 1000)

    def source() -> Any:
        yield from some_text()[:5]
        raise InputError("the source has gone")

    with pytest.raises(InputError, match="has gone"):
        count_pretokens(source(), "gpt2", workers=2)


def test_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise T5: a stream of ever new words stays within the budget; the frequent ones are all there; it is said."""
    monkeypatch.setattr(counting, "_CHECKED_EVERY", 2000)
    random.seed(3)

    def stream() -> Any:
        for _ in range(300):
            yield "the ship " * 50 + " ".join("".join(random.choices("abcdefgh", k=9)) for _ in range(100))

    counted = count_pretokens(stream(), "gpt2", memory_budget=500_000)
    assert len(counted.pretokens) * 160 < 500_000
    assert counted.pretokens[b" ship"] == 15000 and counted.pretokens[b" the"] == 14700
    assert counted.dropped_pretokens > 20_000
    kept = sum(counted.pretokens.values())
    assert kept + counted.dropped_occurrences == 300 * 200


def test_counts_beyond_32_bits() -> None:
    """tokenizers#1681: a count that wraps around loses the most frequent pair."""
    tokens, merges = learn_merges({b"ab": 1 << 40, b"cd": 5, b"ef": (1 << 40) + 1}, 259)
    assert merges == [(b"e", b"f"), (b"a", b"b"), (b"c", b"d")] and tokens[-1] == b"cd"


def test_what_was_trained_encodes_as_it_was_merged() -> None:
    """Each pre-token of the text falls into the symbols that training left it in, so encoding is training's inverse."""
    texts = some_text()
    trained = train_bpe(texts, 1000, special_tokens=["<s>"])
    assert sorted([*trained.vocab.values(), *trained.special_tokens.values()]) == list(range(1000))
    encoder = BytePairEncoder(trained.vocab, trained.merges, trained.split, ignore_merges=False)
    ids = encoder.encode(texts[0])
    spelt = {number: token for token, number in trained.vocab.items()}
    assert b"".join(spelt[number] for number in ids).decode() == texts[0]
    assert len(ids) < len(texts[0]) / 2


def test_roles_of_special_tokens() -> None:
    tokenizer = train_bpe(some_text(), 300, special_tokens=["<|endoftext|>", "<pad>", "<|user|>"]).tokenizer()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 0, 1, 300)
    assert tokenizer.encode("<|user|>", allow_special=True) == [2] and 2 not in tokenizer.encode("<|user|>")


@pytest.mark.parametrize("pattern", [*PATTERNS, r"\w+|\W+"])
def test_saved_and_opened_by_transformers(pattern: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = train_bpe(some_text(), 500, split=pattern, special_tokens=["<|endoftext|>"]).tokenizer()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello  12345 world\n\n  isn't it? 中文 é\r\n", some_text()[3]):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("size", "special", "message"),
    [
        (255, [], "at least 256"),
        (256, ["<s>"], r"at least 257 \(256 bytes and 1 special tokens\)"),
        (2_000_000, [], "at most 1000000"),
        (300, ["a"], "'a' is an ordinary token too"),
        (300, [""], "a special token is empty"),
    ],
)
def test_impossible_vocabularies(size: int, special: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_bpe(some_text(), size, special_tokens=special)


def test_vocabulary_larger_than_the_text_allows() -> None:
    with pytest.raises(InputError, match=r"gives only 3 merges; ask for at most 259"):
        train_bpe(["abcd"], 1000)
    assert len(train_bpe(["abcd"], 259).merges) == 3


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/two.txt").write_text("two")
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "b/.hidden").write_text("no")
    (tmp_path / "b/empty.txt").touch()
    files = files_of([tmp_path])
    assert [file.name for file in files] == ["empty.txt", "two.txt", "one.txt"]
    assert list(read_texts(files)) == ["two", "one"]


@pytest.mark.parametrize(
    "line", ["The ship sailed on, and on.\n", "中文没有空格的句子。\n", "中", "x" * 97 + "\r\n\r\n  ", "é "]
)
def test_big_files_are_cut_between_words(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.tokenizer.corpus._PART", 10_000)
    file = tmp_path / "big.txt"
    file.write_bytes((line * (100_000 // len(line.encode()))).encode())
    parts = list(read_texts([file]))
    assert "".join(parts) == file.read_bytes().decode() and len(parts) > 5
    if " " in line.strip():
        assert count_pretokens(parts, "cl100k") == count_pretokens(["".join(parts)], "cl100k")


def test_corpus_that_is_no_text(tmp_path: Path) -> None:
    cases = {"zero.bin": (b"abc\0def", "byte at 3 is 0"), "latin.txt": (b"caf\xe9 au lait", "byte at 3 is 0xe9")}
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(b"a line\n" * 200_000 + content)
        with pytest.raises(InputError, match=f"{name}: the {message.replace('at 3', 'at 1400003')}"):
            list(read_texts([tmp_path / name]))
    (tmp_path / "cut.txt").write_bytes("é".encode()[:1])
    with pytest.raises(InputError, match="byte at 0 is 0xc3"):
        list(read_texts([tmp_path / "cut.txt"]))


def test_corpus_that_is_empty_or_missing(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for path, message in (
        (tmp_path / "empty.txt", "no text in it"),
        (tmp_path, "no text in it"),
        (tmp_path / "x", "no such"),
    ):
        with pytest.raises(InputError, match=message):
            files_of([path])
