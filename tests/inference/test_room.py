"""The cache takes no more memory than there is, and says so in numbers where that is too little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pellucid.errors import InputError
from pellucid.inference import room
from tests.checkpoints.tiny import CONFIGS

CONFIG = CONFIGS["llama"]  # 4 layers, 2 key-value heads of 16: 1,024 bytes a token in float32
CPU = torch.device("cpu")


def test_a_token_takes_what_its_keys_and_values_take() -> None:
    assert room.bytes_a_token(CONFIG, torch.float32) == 1024
    assert room.bytes_a_token(CONFIG, torch.bfloat16) == 512
    assert room.bytes_a_token(CONFIG, torch.int8) == 256 + 4 * 2 * 2 * 4  # with a scale for each key and value


def test_a_token_is_widened_in_one_layer_at_a_time() -> None:
    """2 heads of 16: bytes, bfloat16 and float32 of keys and values, the latter not both at once, twice."""
    assert room.widened_bytes_a_token(CONFIG, torch.bfloat16) == 2 * 32 * (2 * 1 + 2 * 2 + 4)


def test_half_of_the_free_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _: 2**20)
    assert room.blocks_that_fit(CONFIG, torch.float32, CPU, 16, 1000) == 32
    assert room.blocks_that_fit(CONFIG, torch.float32, CPU, 16, 10) == 10
    monkeypatch.setattr(room, "free_memory", lambda _: 100_000)
    with pytest.raises(InputError, match=r"a block of 16 tokens takes 0\.0 MiB of cache, and in half of the 0 MiB"):
        room.blocks_that_fit(CONFIG, torch.float32, CPU, 16, 1000)


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = room.free_memory(CPU)
    assert unlimited > 2**20
    monkeypatch.setattr(room, "GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert room.free_memory(CPU) == 2_000_000
    (tmp_path / "memory.current").write_text("4000000\n")
    assert room.free_memory(CPU) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert room.free_memory(CPU) > 2**20
