"""GGUF files: what we write the `gguf` package reads, what it writes we read, and what is broken is named."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.checkpoints.gguf_read import GGUF
from pellucid.checkpoints.gguf_write import write_gguf
from pellucid.errors import InputError

TENSORS = {
    "a": torch.arange(64, dtype=torch.float32).view(2, 32),
    "b": torch.arange(3, dtype=torch.float32),
    "c": torch.arange(96, dtype=torch.float32).view(3, 32) / 7,
}
KINDS = {"a": "F32", "b": "F32", "c": "F16"}


def write(path: Path, metadata: dict[str, Any], kinds: dict[str, str] = KINDS) -> Path:
    plan = [(name, tuple(TENSORS[name].shape), kind) for name, kind in kinds.items()]
    write_gguf(path, metadata, plan, ((name, TENSORS[name]) for name in kinds))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "small.gguf", {"general.architecture": "llama", "list": ["x", "yy"], "n": 7})


METADATA = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    st.one_of(
        st.text(max_size=50),
        st.booleans(),
        st.integers(-(2**31), 2**63),
        st.floats(width=32, allow_nan=False),
        st.lists(st.text(max_size=5), max_size=5),
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
        st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
        st.lists(st.booleans(), min_size=1, max_size=5),
    ),
    max_size=6,
).filter(lambda metadata: "general.alignment" not in metadata and not any(k.startswith("GGUF.") for k in metadata))


@given(METADATA)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = write(tmp_path / "any.gguf", metadata)
    ours, theirs = GGUF(path), gguf.GGUFReader(path)
    assert dict(ours.metadata) == metadata
    assert {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")} == metadata
    for tensor in theirs.tensors:
        assert torch.equal(ours.tensor(tensor.name), torch.from_numpy(np.array(tensor.data)))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_each_format_reads_as_the_gguf_package_reads_it(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "one.gguf", {}, {"a": kind, "c": kind})
    for tensor in gguf.GGUFReader(path).tensors:
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(GGUF(path).tensor(tensor.name).float(), torch.from_numpy(np.array(theirs)))


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -(2**40))
    writer.add_float64("f64", 0.1)
    writer.add_array("words", ["a", "ü", ""])
    writer.add_custom_alignment(64)
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("w", weights)
    writer.add_tensor("v", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUF(path)
    assert file.metadata["u8"] == 200 and file.metadata["i64"] == -(2**40) and file.metadata["f64"] == 0.1
    assert file.metadata["words"] == ["a", "ü", ""]
    assert torch.equal(file.tensor("w"), torch.from_numpy(weights))


def test_tensors_are_views_of_the_file_and_writing_to_one_leaves_the_file_alone(file: Path) -> None:
    before = file.read_bytes()
    GGUF(file).tensor("a").zero_()
    assert file.read_bytes() == before and torch.equal(GGUF(file).tensor("a"), TENSORS["a"])


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'w' holds numbers beyond the range of f16; write bf16 or q8_0"):
        write_gguf(tmp_path / "x", {}, [("w", (2, 1), "F16")], [("w", torch.tensor([[1e5], [1.0]]))])


def patched(file: Path, position: int, data: bytes) -> Path:
    content = bytearray(file.read_bytes())
    content[position : position + len(data)] = data
    file.write_bytes(content)
    return file


def place(file: Path, text: bytes) -> int:
    """Where `text` begins in the file."""
    return file.read_bytes().index(text)


HUGE = struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    ("position", "data", "message"),
    [
        (0, b"GGML", r"not a GGUF file: it begins with b'GGML'"),
        (4, struct.pack("<I", 1), r"GGUF version 1; versions 2 and 3 are read"),
        (4, struct.pack(">I", 3), r"big-endian"),
        (8, HUGE, r"claims 4611686018427387904 tensors, more than the file can hold"),
        (16, HUGE, r"claims 4611686018427387904 metadata entries"),
        (24, HUGE, r"the file ends inside the name of metadata entry 0: 4611686018427387904 bytes are needed"),
        (b"general.architecture", b"\xff", r"the name of metadata entry 0 at byte 32 is not UTF-8"),
        (b"llama", b"\xc3\x28", r"the value of 'general.architecture' at byte \d+ is not UTF-8"),
    ],
)
def test_a_broken_header_is_named(file: Path, position: int | bytes, data: bytes, message: str) -> None:
    start = position if isinstance(position, int) else place(file, position)
    with pytest.raises(InputError, match=message):
        GGUF(patched(file, start, data))


@pytest.mark.parametrize(
    ("skip", "data", "message"),
    [
        (0, struct.pack("<I", 99), r"the value of 'list' has the value type 99"),
        (4, struct.pack("<I", 9), r"the value of 'list' is an array of the value type 9"),
        (8, HUGE, r"the value of 'list' claims 4611686018427387904 strings"),
        (16, HUGE, r"the file ends inside the value of 'list'"),
    ],
)
def test_a_lying_array_is_named(file: Path, skip: int, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GGUF(patched(file, place(file, b"list") + 4 + skip, data))


@pytest.mark.parametrize(
    ("skip", "data", "message"),
    [
        (0, struct.pack("<I", 9), r"'c' has 9 dimensions"),
        (4, struct.pack("<Q", 0), r"'c' has the empty shape \(3, 0\)"),
        (4, struct.pack("<Q", 2**40), r"'c' ends at byte \d+ and the file at byte \d+: it is truncated"),
        (12, struct.pack("<Q", 2**63), r"'c' ends at byte"),
        (20, struct.pack("<I", 10), r"'c' has the format Q2_K; those read are F32, F16, Q4_0"),
        (20, struct.pack("<I", 4), r"'c' has the unknown format number 4"),
        (20, struct.pack("<I", 14), r"'c' has rows of 32, no multiple of Q6_K's 256"),
        (24, struct.pack("<Q", 33), r"'c' begins at 33, no multiple of 32"),
        (24, struct.pack("<Q", 2**60), r"'c' ends at byte"),
    ],
)
def test_a_lying_tensor_is_named(file: Path, skip: int, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GGUF(patched(file, place(file, b"\x01\0\0\0\0\0\0\0c") + 9 + skip, data))


def test_names_that_are_there_twice_are_named(file: Path) -> None:
    with pytest.raises(InputError, match=r"the tensor 'a' is there twice"):
        GGUF(patched(file, place(file, b"\x01\0\0\0\0\0\0\0b") + 8, b"a"))
    with pytest.raises(InputError, match=r"the metadata name 'n' is there twice"):
        GGUF(write_twice(file.with_name("twice.gguf")))


def write_twice(path: Path) -> Path:
    entry = struct.pack("<Q", 1) + b"n" + struct.pack("<II", 4, 7)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entry * 2)
    return path


def test_any_truncation_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    body = len(content) - 24  # the last tensor's bytes are padded, so the end of the padding may go
    for length in range(body):
        file.write_bytes(content[:length])
        with pytest.raises(InputError, match=str(file)):
            GGUF(file)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_an_input_error_or_harmless(file: Path, damage: list[tuple[int, int]]) -> None:
    content = bytearray(write(file, {"general.architecture": "llama", "list": ["x", "yy"], "n": 7}).read_bytes())
    for position, value in damage:
        content[position % len(content)] = value
    file.write_bytes(content)
    try:
        opened = GGUF(file)
    except InputError:
        return
    for name in opened.tensors:
        opened.tensor(name)


def test_no_file_and_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        GGUF(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InputError, match=r"shorter than a GGUF header"):
        GGUF(tmp_path / "empty.gguf")
