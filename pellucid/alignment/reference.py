"""What the reference policy says of every pair, computed once and kept in the run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pellucid.checkpoints.adapters import open_adapter
from pellucid.checkpoints.atomic import atomic_file
from pellucid.checkpoints.source import STATE_FILES, find_source
from pellucid.data.mismatched import mismatched
from pellucid.data.pairs import Floats, PairExamples, Pairs
from pellucid.models.adapters import adapter_off
from pellucid.models.decoder import Decoder
from pellucid.training.log_probs import sequence_log_probs

Progress = Callable[[str, int, int | None], None]


def files_of(base: str) -> list[tuple[str, int, int]]:
    """The name, size and time of change of each file that a model is read from; of an adapter its base's too."""
    source = find_source(base)
    files = sorted(source.path.iterdir()) if source.path.is_dir() else [source.path]
    stats = [(file.name, file.stat()) for file in files if file.is_file() and file.name not in STATE_FILES]
    found = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return found + files_of(open_adapter(source.path).base) if source.kind == "adapter" else found


@torch.no_grad()
def answer_log_probs(model: Decoder, examples: PairExamples, autocast: torch.dtype | None = None) -> torch.Tensor:
    """log pi(y | x) of both answers of each pair, (P, 2) in float32."""
    with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
        found = sequence_log_probs(model, examples.tokens, examples.targets, examples.batch, examples.sequences)
    return found.view(-1, 2)


def reference_log_probs(
    model: Decoder,
    pairs: Pairs,
    *,
    rows: int = 8,
    autocast: torch.dtype | None = None,
    file: Path | None = None,
    made_from: str = "",
    others: bool = False,
    progress: Progress | None = None,
) -> Floats:
    """log ref(y | x) of both answers of every pair, (P, 2) in float32, `rows` rows at a time.

    model: the policy before its first step; with its adapter off it is the reference.
    file: where they are kept, and found again if `made_from` (whatever beside the pairs they depend on) is the same.
    others: a third column has the log-probability of another pair's better answer, for KTO's point of reference.
    """
    key = hashlib.sha256(json.dumps([pairs.content, made_from, others]).encode()).hexdigest()
    found = _kept(file, key) if file is not None else None
    if found is None:
        with adapter_off(model):
            columns = [_own(model, pairs, rows, autocast, progress)]
            if others:
                columns.append(_others(model, pairs, rows, autocast, progress))
        found = np.concatenate(columns, 1)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as temporary:
                save_file({"log_probs": found}, temporary, {"made_from": key})
    return found


def _own(model: Decoder, pairs: Pairs, rows: int, autocast: torch.dtype | None, progress: Progress | None) -> Floats:
    found = np.empty((pairs.num_pairs, 2), np.float32)
    for part in _parts(len(pairs), rows, "reference", progress):
        examples = pairs.read(part).to(model.device)  # the rows of an epoch, in whatever order
        found[examples.numbers.cpu().numpy()] = answer_log_probs(model, examples, autocast).cpu().numpy()
    return found


@torch.no_grad()
def _others(model: Decoder, pairs: Pairs, rows: int, autocast: torch.dtype | None, progress: Progress | None) -> Floats:
    found = np.empty((pairs.num_pairs, 1), np.float32)
    for part in _parts(pairs.num_pairs, rows, "reference of other answers", progress):
        numbers = np.asarray(part, np.int64)
        found[numbers, 0] = other_log_probs(model, pairs, numbers, autocast).cpu().numpy()
    return found


@torch.no_grad()
def other_log_probs(
    model: Decoder, pairs: Pairs, numbers: np.ndarray[tuple[int], np.dtype[np.int64]], autocast: torch.dtype | None
) -> torch.Tensor:
    """log pi of the better answer of another pair after the prompt of each of these, (P,)."""
    examples = mismatched(pairs, numbers).to(model.device)
    rows = torch.arange(len(numbers), device=model.device)
    with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
        return sequence_log_probs(
            model, examples.tokens, examples.targets, examples.batch, torch.stack([rows, torch.zeros_like(rows)], 1)
        )


def _parts(count: int, together: int, phase: str, progress: Progress | None) -> Iterator[range]:
    for start in range(0, count, together):
        yield range(start, min(start + together, count))
        if progress is not None:
            progress(phase, min(start + together, count), count)


def _kept(file: Path, key: str) -> Floats | None:
    """What was computed before, if it was of the same."""
    try:
        with safe_open(file, "numpy") as kept:
            if (kept.metadata() or {}).get("made_from") == key:
                found: Floats = kept.get_tensor("log_probs")
                return found
    except (FileNotFoundError, SafetensorError):
        pass
    return None
