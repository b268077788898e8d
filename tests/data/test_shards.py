"""Shards on disk: what is written is what is read; every kind of damage is named; splitting is by document."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.building import Document, ShardWriter, block_of, build_shards
from pellucid.data.packing import Stream, Whole
from pellucid.data.shards import Shards, open_shards, split
from pellucid.errors import InputError, PellucidError
from tests.data.made import in_memory, numbered
from tests.disk import largest_file

LENGTHS = [3, 1, 7, 7, 2, 40, 5, 1, 9, 12]
DOCUMENTS = [Document(ids, [token % 3 > 0 for token in ids], f"talk.jsonl:{ids[0]}") for ids in numbered(LENGTHS)]


def written(folder: Path, *, masked: bool = True, vocab_size: int = 100) -> Shards:
    """Three shards, of blocks of two documents."""
    writer = ShardWriter(folder, vocab_size=vocab_size, masked=masked, fingerprint="a", shard_tokens=15)
    for start in range(0, len(DOCUMENTS), 2):
        documents = [document if masked else Document(document.ids) for document in DOCUMENTS[start : start + 2]]
        writer.add(block_of(documents, vocab_size))
    return writer.finish()


@pytest.mark.parametrize("vocab_size", [100, 100_000])
@pytest.mark.parametrize("masked", [True, False])
def test_what_is_written_is_read(tmp_path: Path, masked: bool, vocab_size: int) -> None:
    written(tmp_path / "shards", masked=masked, vocab_size=vocab_size)
    shards = open_shards(tmp_path / "shards")
    assert [shard.tokens for shard in shards.index.shards] == [18, 42, 27]
    assert shards.num_documents == 10 and shards.num_tokens == sum(LENGTHS)
    for number, document in enumerate(DOCUMENTS):
        ids, supervised = shards.document(number)
        assert ids.tolist() == document.ids
        assert supervised.tolist() == (document.mask if masked else [True] * len(document.ids))
        assert shards.place(number) == (document.place if masked else f"document {number + 1}")
    names = {path.name for path in shards.folder.iterdir()}
    endings = ("tokens", "ends", "mask", "places") if masked else ("tokens", "ends")
    assert names == {"index.json", *(f"shard-0000{n}.{ending}" for n in range(3) for ending in endings)}
    width = 2 if vocab_size == 100 else 4
    assert (shards.folder / "shard-00001.tokens").stat().st_size == 42 * width


def test_rows_from_disk_are_those_from_memory(tmp_path: Path) -> None:
    disk = written(tmp_path / "shards")
    memory = in_memory([document.ids for document in DOCUMENTS], [document.mask for document in DOCUMENTS])
    for make in (Stream, Whole):
        one, other = (make(shards, 40, 3).read(range(5)) for shards in (disk, memory))
        assert one.tokens.equal(other.tokens) and one.targets.equal(other.targets)


def test_documents_given_as_plain_tuples(tmp_path: Path) -> None:
    shards = build_shards([([1, 2, 3],), ([],), ([4],)], tmp_path / "a", vocab_size=5)  # type: ignore[list-item]
    assert shards.index.counts == {"dropped: no token": 1} and shards.num_tokens == 4
    masked = build_shards([([1, 2], [0, 1])], tmp_path / "b", vocab_size=5, masked=True)  # type: ignore[list-item]
    assert masked.document(0)[1].tolist() == [False, True]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token 5 is past the vocabulary of 5"):
        build_shards([Document([1, 5])], tmp_path / "a", vocab_size=5)
    with pytest.raises(InputError, match="no mask of its own length"):
        build_shards([Document([1, 2], [True])], tmp_path / "a", vocab_size=5, masked=True)
    with pytest.raises(InputError, match=r"no document to train on \(dropped: no token: 1\): give more text"):
        build_shards([Document([])], tmp_path / "a", vocab_size=5)
    with pytest.raises(InputError, match="no document to train on: give more text"):
        build_shards([], tmp_path / "a", vocab_size=5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("of mine")
    with pytest.raises(InputError, match=r"thesis.txt is no part of token shards: choose another folder"):
        build_shards([Document([1])], tmp_path / "b", vocab_size=5)
    assert (tmp_path / "b" / "thesis.txt").read_text() == "of mine"


def test_a_disk_that_is_full_is_one_sentence(tmp_path: Path) -> None:
    said = pytest.raises(PellucidError, match=r"tokens could not be written \(.*\); make room or choose another place")
    with largest_file(1000), said:
        build_shards([Document([1] * 9000)], tmp_path / "a", vocab_size=5)
    assert build_shards([Document([1] * 9000)], tmp_path / "a", vocab_size=5).num_tokens == 9000


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("ending", ["tokens", "ends", "mask", "places"])
@pytest.mark.parametrize(
    ("damage", "seen"),
    [(flip, "the file is damaged"), (shorten, r"has \d+ bytes and the index says"), (Path.unlink, "file is missing")],
)
def test_damage_is_named(tmp_path: Path, ending: str, damage: Callable[[Path], None], seen: str) -> None:
    written(tmp_path / "shards")
    damage(tmp_path / "shards" / f"shard-00001.{ending}")
    with pytest.raises(PellucidError, match=rf"shards/shard-00001.{ending}: .*{seen}.*; remove the folder") as error:
        open_shards(tmp_path / "shards")
    assert error.value.exit_status == 1
    if damage is not flip:
        with pytest.raises(PellucidError, match=seen):
            open_shards(tmp_path / "shards", verify=False)


def test_an_index_that_is_damaged_or_of_another_version(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with pytest.raises(InputError, match=r"shards: there are no finished shards here"):
        open_shards(folder)
    index = folder / "index.json"
    written(folder)
    good = json.loads(index.read_text())
    index.write_text(json.dumps(good | {"version": 7}))
    with pytest.raises(InputError, match=r"index.json: version 7 of the format, and this program reads 1; remove"):
        open_shards(folder)
    for bad in ("", "{}", "[1]", "{", json.dumps(good | {"vocab_size": "many"})):
        index.write_text(bad)
        with pytest.raises(InputError, match=r"index.json: this is no index of shards"):
            open_shards(folder)
    shards = good["shards"]
    shards[0]["documents"] += 1
    index.write_text(json.dumps(good))
    with pytest.raises(PellucidError, match=r"shard-00000.ends: it does not fit the shard's tokens"):
        open_shards(folder)


def rewrite(path: Path) -> None:
    """In place, with equal size: only the time tells."""
    then = path.stat()
    content = path.read_bytes()
    with path.open("r+b") as stream:
        stream.write(content[::-1])
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns + 1))


def replace(path: Path) -> None:
    """By another file with the same size and time."""
    then, content = path.stat(), path.read_bytes()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(content)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, shorten, Path.unlink, replace])
@pytest.mark.parametrize("make", [Stream, Whole])
def test_a_shard_that_changes_under_a_running_job_stops_it(
    tmp_path: Path, change: Callable[[Path], None], make: type[Stream]
) -> None:
    rows = make(written(tmp_path / "shards"), 40, 0)
    rows.read([0])
    change(tmp_path / "shards" / "shard-00002.tokens")
    with pytest.raises(PellucidError, match=r"shard-00002.tokens was changed or removed while it was being read"):
        rows.read([0])


def test_a_document_that_is_too_long_is_named(tmp_path: Path) -> None:
    shards = written(tmp_path / "shards")
    said = r"talk.jsonl:20: 40 tokens, longer than the context of 16 \(1 such in all\): raise data.context, or choose"
    with pytest.raises(InputError, match=said):
        Whole(shards, 16, 0)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=200), st.floats(0.001, 0.999), st.integers(0, 9))
def test_a_split_is_by_document(lengths: list[int], fraction: float, seed: int) -> None:
    documents = numbered(lengths)
    masks = [[True] * length for length in lengths]
    training, validation = split(in_memory(documents, masks), fraction, seed)
    assert validation is not None
    D = len(lengths)
    assert validation.num_documents == min(max(round(D * fraction), 1), D - 1)
    parts = [[part.document(n)[0].tolist() for n in range(part.num_documents)] for part in (training, validation)]
    assert sorted(parts[0] + parts[1]) == documents
    assert parts[0] == sorted(parts[0]) and parts[1] == sorted(parts[1])
    again = split(in_memory(documents, masks), fraction, seed)[1]
    assert again is not None and again.starts.tolist() == validation.starts.tolist()


def test_a_split_depends_on_the_seed() -> None:
    shards = in_memory(numbered([3] * 1000))
    chosen = [set(split(shards, 0.1, seed)[1].starts.tolist()) for seed in range(2)]  # type: ignore[union-attr]
    assert 0 < len(chosen[0] & chosen[1]) < 30


def test_few_texts_are_split_within_each() -> None:
    shards = in_memory(numbered([1000, 500, 1]))
    training, validation = split(shards, 0.01, 0)
    assert validation is not None
    assert training.lengths.tolist() == [990, 495] and validation.lengths.tolist() == [10, 5, 1]
    rows = Stream(validation, 16, 0, shuffle=False).read([0])
    assert rows.tokens.tolist() == [[*range(990, 1000), *range(1495, 1501)]]
    assert rows.targets[0, 9] == rows.targets[0, 14] == -100  # the document ended there
    last = Stream(training, 495, 0, shuffle=False).read([1])
    assert last.targets[0, -1] == -100 and last.tokens[0, -1] == 989  # 990 is not to be seen in training


def test_no_validation_and_a_single_conversation() -> None:
    shards = in_memory(numbered([5]), [[True] * 5])
    assert split(shards, 0, 0) == (shards, None)
    with pytest.raises(InputError, match=r"a single conversation cannot be split: give data.validation, or"):
        split(shards, 0.01, 0)


def test_two_contents_are_told_apart_whatever_they_came_from(tmp_path: Path) -> None:
    one, same = written(tmp_path / "a"), written(tmp_path / "b")
    other = build_shards(DOCUMENTS[1:], tmp_path / "c", vocab_size=100, masked=True)
    assert one.content == same.content != other.content
    assert np.array_equal(one.tokens(one.starts), [document.ids[0] for document in DOCUMENTS])
