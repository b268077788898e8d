"""From names to records: files, folders, packed files, tables; `datasets` folders against `datasets` itself."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from pellucid.data import texts
from pellucid.data.records import Kind, Record
from pellucid.data.sources import read_records
from pellucid.errors import InputError, PellucidError

ROWS = [
    {
        "messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A number: {n}."}],
        "source": None if n % 3 else "hand",
    }
    for n in range(600)
]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def contents(*paths: Path | str, **options: Any) -> list[Any]:
    return [record.content for record in read_records(paths, **options)]


def messages(rows: list[Any]) -> list[Any]:
    return [{"messages": row["messages"]} for row in rows]


def test_a_folder_is_read_in_order_of_name_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/.hidden.txt", ".git/config", "c/d/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "c/round").symlink_to(tmp_path)
    assert contents(tmp_path) == ["text of a/z.txt", "text of b.txt", "text of c/d/e.txt"]
    assert next(read_records([tmp_path])).place == f"{tmp_path}/a/z.txt:1"
    (tmp_path / "c/none").mkdir()
    with pytest.raises(InputError, match="there is no file in the folder"):
        contents(tmp_path / "c/none")
    with pytest.raises(InputError, match=r"absent: there is no such file or folder"):
        contents(tmp_path / "absent")


def test_bundled_texts() -> None:
    assert "".join(contents("bundled:state-of-the-union")) == texts.read("state-of-the-union")
    with pytest.raises(InputError, match="did you mean 'state-of-the-union'"):
        contents("bundled:state-of-the-onion")


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)])
def test_packed_files(tmp_path: Path, ending: str, pack: Any) -> None:
    plain = write_lines(tmp_path / "rows.jsonl", ROWS).read_bytes()
    packed = tmp_path / f"rows.jsonl{ending}"
    packed.write_bytes(pack(plain))
    assert contents(packed) == messages(ROWS)
    packed.write_bytes(pack(plain)[:-30])  # cut off
    with pytest.raises(
        InputError, match=rf"rows\.jsonl\{ending}: the file cannot be unpacked .* copy or make it again"
    ):
        contents(packed)
    packed.write_bytes(plain)  # not packed at all
    with pytest.raises(InputError, match=f"cannot be unpacked as {ending}"):
        contents(packed)


def test_a_json_array_under_either_name(tmp_path: Path) -> None:
    for name in ("rows.json", "rows.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS, indent=1))
        assert contents(tmp_path / name) == messages(ROWS)
    assert contents(write_lines(tmp_path / "lines.json", ROWS)) == messages(ROWS)


def test_a_byte_order_mark_and_crlf_do_no_harm_and_are_said(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one\r\ntwo\r\n"), ("a.jsonl", '{"text": "one\\ntwo\\n"}\r\n')):
        counts: Counter[str] = Counter()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert contents(tmp_path / name, counts=counts) == ["one\ntwo\n"]
        assert counts["changed: byte-order mark left out"] == 1 == counts["kept: text"]


def parity(folder: Path, expected: Any) -> None:
    """Our records are the rows that `datasets` reads."""
    assert contents(folder, wanted="conversation") == messages(list(expected))


def test_a_datasets_folder(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    parity(tmp_path / "one", datasets.load_from_disk(tmp_path / "one"))
    whole.shuffle(seed=1).select(range(100)).save_to_disk(tmp_path / "some")  # rows in another order than on disk
    parity(tmp_path / "some", datasets.load_from_disk(tmp_path / "some"))
    datasets.DatasetDict(train=whole).save_to_disk(tmp_path / "dict")
    parity(tmp_path / "dict", whole)
    places = [record.place for record in read_records([tmp_path / "one"])]
    assert places[0] == f"{tmp_path}/one/data-00000-of-00003.arrow, record 1" and len(set(places)) == len(ROWS)


def test_a_datasets_folder_that_needs_a_word(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=whole, test=whole.select(range(3))).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match=r"the splits train, test; name one: .*/two/train or "):
        contents(tmp_path / "two")
    parity(tmp_path / "two/test", whole.select(range(3)))
    (tmp_path / "two/test/data-00000-of-00001.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00000-of-00001\.arrow of the data set is missing"):
        contents(tmp_path / "two/test")


def test_what_is_not_as_datasets_writes_it(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    (tmp_path / "one/state.json").write_text("{")
    with pytest.raises(
        InputError, match=r"state\.json: this is not what datasets writes there; save the data set again"
    ):
        contents(tmp_path / "one")


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(InputError, match=r"a\.txt: the link leads to a file that is not there"):
        contents(tmp_path)


def test_parquet(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    whole.to_parquet(tmp_path / "rows.parquet")
    parity(tmp_path / "rows.parquet", whole)
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        InputError, match=r"rows\.parquet: the file cannot be read as Parquet .* copy or write it again"
    ):
        contents(tmp_path / "rows.parquet")
    datasets.Dataset.from_list([{"txt": "a"}]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"the columns are txt \(did you mean 'text'\?\)"):
        contents(tmp_path / "other.parquet")
    datasets.Dataset.from_list([{"text": "a"}, {"text": None}]).to_parquet(tmp_path / "null.parquet")
    with pytest.raises(InputError, match=r"null\.parquet, record 2: "):
        contents(tmp_path / "null.parquet")


def test_an_arrow_file_in_the_file_format(tmp_path: Path) -> None:
    import pyarrow

    table = pyarrow.table({"text": ["one", "two"], "number": [1, 2]})
    with pyarrow.ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    assert contents(tmp_path / "rows.arrow") == ["one", "two"]
    (tmp_path / "rows.arrow").write_bytes(b"text")
    with pytest.raises(InputError, match="cannot be read as Arrow"):
        contents(tmp_path / "rows.arrow")


def test_tables_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PellucidError, match=r"rows\.parquet: .* pip install 'pellucid\[data\]'") as raised:
        contents(tmp_path / "rows.parquet", skip_bad=True)
    assert raised.value.exit_status == 1


def test_bad_records_stop_or_are_counted(tmp_path: Path) -> None:
    rows = [ROWS[0], {"messages": []}, {"text": "a"}, ROWS[1], ROWS[2]["messages"]]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    path.write_bytes(path.read_bytes() + b"{broken\n")
    with pytest.raises(InputError, match=r"rows\.jsonl:2: 'messages' is an empty list; .* with data.skip_bad=true"):
        contents(path)
    counts: Counter[str] = Counter()
    assert contents(path, skip_bad=True, counts=counts, wanted="conversation") == messages(ROWS[:2])
    assert counts == {
        "kept: messages": 2,
        "dropped: malformed messages": 1,
        "dropped: texts where conversations are wanted": 1,
        "dropped: unknown format": 1,
        "dropped: invalid JSON": 1,
    }


def test_mixed_formats_name_the_first_of_each(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [ROWS[0], ROWS[1], {"instruction": "Who?", "output": "Ada."}])
    seen = r"rows\.jsonl:3: the format is alpaca, but that of .*rows\.jsonl:1 is messages; .* split the file"
    with pytest.raises(InputError, match=seen):
        contents(path)
    assert contents(path, skip_bad=True) == messages(ROWS[:2])
    write_lines(tmp_path / "other.jsonl", [{"instruction": "Who?", "output": "Ada."}])
    assert len(contents(tmp_path / "other.jsonl", tmp_path / "rows.jsonl", skip_bad=True)) == 3  # two files may differ


@pytest.mark.parametrize("wanted", [None, "text"])
def test_nothing_left(tmp_path: Path, wanted: Kind | None) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"text": ""}, {"text": " "}])
    with pytest.raises(InputError, match=r"no record is left .*\(empty text: 2\)"):
        contents(path, skip_bad=True, wanted=wanted)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"empty\.txt: the file is empty"):
        contents(tmp_path / "empty.txt", wanted=wanted)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"binary: the byte at 0 is 0, so this is a binary file"):
        contents(tmp_path / "binary", wanted=wanted)


@pytest.mark.parametrize("name", ["big.txt.gz", "big.jsonl", "big.json", "big.parquet"])
def test_no_file_is_held_whole(tmp_path: Path, name: str) -> None:
    size, path = 40_000_000, tmp_path / name
    if name.endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=1) as stream:
            for _ in range(size // 1_000_000):
                stream.write(b"nine byte" * 111_111 + b"\n")
    elif name.endswith(".parquet"):
        datasets.Dataset.from_dict({"text": ["nine byte" * 1000] * (size // 9000)}).to_parquet(path)
    else:
        with path.open("w") as stream:
            record = json.dumps({"text": "nine byte" * 1000})
            between = "\n" if name == "big.jsonl" else ","
            stream.write("" if name == "big.jsonl" else "[")
            stream.writelines(record + between for _ in range(size // 9000))
            stream.write(record + ("" if name == "big.jsonl" else "]"))
    next(read_records([path]))  # imports what it needs
    tracemalloc.start()
    characters = sum(len(record.content) for record in read_records([path]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters > size * 0.99 and peak < 12_000_000


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [ROWS[0], {"bad": 1}])
    reader = read_records([path])
    assert isinstance(next(reader), Record)  # the bad one has not been met yet
