"""A manifest tells a whole folder from any that has been changed."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.checkpoints.manifest import MANIFEST, checkpoints, checksum, damage, write_manifest

FILES = {"a": b"", "b.bin": bytes(range(256)), "deep/c": b"x" * 1000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    fill(path)
    write_manifest(path)
    return path


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def test_a_whole_folder_is_whole(folder: Path) -> None:
    assert damage(folder, contents=True) is None and damage(folder, contents=False) is None


@given(st.sampled_from(["b.bin", "deep/c"]), st.integers(0, 255), st.integers(1, 255))
def test_any_changed_byte_is_seen(folder: Path, name: str, place: int, change: int) -> None:
    content = bytearray(FILES[name])
    content[place] ^= change
    (folder / name).write_bytes(content)
    assert damage(folder, contents=True) == f"{name} is not what was written (its checksum differs)"
    fill(folder)


@given(st.sampled_from(["b.bin", "deep/c"]), st.integers(0, 255))
def test_any_cut_is_seen_without_reading(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes(FILES[name][:size])
    assert damage(folder, contents=False) == f"{name} has {size} bytes instead of {len(FILES[name]):,}"
    fill(folder)


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "a").unlink()
    assert damage(folder, contents=False) == "a is missing"
    fill(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"files": {"a": {}}}', b'{"files": []}', b"\xff", b'{"fil'])
def test_a_broken_manifest_is_damage(content: bytes, tmp_path: Path) -> None:
    assert damage(tmp_path, contents=False) == "manifest.json is missing"
    (tmp_path / MANIFEST).write_bytes(content)
    assert damage(tmp_path, contents=False) == "manifest.json is not what was written"


@given(st.binary(max_size=100_000))
def test_the_checksum_is_that_of_zlib_however_it_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "checksum"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pellucid.checkpoints.manifest.CHUNK", 997)
        assert checksum(path) == zlib.crc32(data)


def test_checkpoints_are_sorted_by_their_steps(tmp_path: Path) -> None:
    for name in ("step-9", "step-100", "step-20", ".step-30.partial-here-1", "step-x", "step-1.old", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints/step-7").touch()
    assert [step for step, _ in checkpoints(tmp_path)] == [100, 20, 9]
    assert checkpoints(tmp_path / "nowhere") == []
