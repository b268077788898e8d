"""The runner: however tokens come, in pieces, together, on whichever blocks, the logits are those of one forward."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from pellucid.inference.runner import Runner
from pellucid.inference.step import Chunk, Step
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import CONFIGS, random_model
from tests.inference.tiny import ARCHITECTURES, tiny_model

LENGTH = 60
MODELS = CONFIGS | {name: tiny_model(name).config for name in ARCHITECTURES if name not in CONFIGS}


def texts(model: Decoder, count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(model.config.vocab_size) for _ in range(rng.randrange(5, LENGTH))] for _ in range(count)]


def cut(length: int, rng: random.Random, most: int) -> list[range]:
    """A text in pieces of at most `most` tokens."""
    pieces, start = [], 0
    while start < length:
        stop = min(length, start + rng.randint(1, most))
        pieces.append(range(start, stop))
        start = stop
    return pieces


def run_all(
    runner: Runner, sequences: list[list[int]], seed: int, most: int, adapters: Sequence[str | None] = ()
) -> list[torch.Tensor]:
    """The logits at every place of every sequence, from steps that mix pieces of all of them, on scattered blocks."""
    rng, B, of = random.Random(seed), runner.cache.block_size, adapters or [None] * len(sequences)
    blocks = list(range(runner.cache.num_blocks))
    rng.shuffle(blocks)
    tables = [[blocks.pop() for _ in range(-(-len(tokens) // B))] for tokens in sequences]
    waiting = {number: cut(len(tokens), rng, most) for number, tokens in enumerate(sequences)}
    found: list[list[torch.Tensor]] = [[] for _ in sequences]
    while waiting:
        chosen = rng.sample(sorted(waiting), rng.randint(1, len(waiting)))
        pieces = [(number, waiting[number].pop(0)) for number in chosen]
        chunks = [
            Chunk(sequences[number][piece.start : piece.stop], piece.start, tables[number], len(piece), of[number])
            for number, piece in pieces
        ]
        logits = runner.run(Step(tuple(chunks), ())).clone()
        for (number, _), part in zip(pieces, logits.split([len(piece) for _, piece in pieces]), strict=True):
            found[number].append(part)
        waiting = {number: left for number, left in waiting.items() if left}
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_pieces_on_scattered_blocks_give_the_logits_of_one_forward(name: str, native: bool) -> None:
    """float32, logits up to 13: both ways are up to 1e-4 away from what float64 gives."""
    model = random_model(MODELS[name])
    sequences = texts(model, 3)
    whole = [model(torch.tensor([tokens]))[0] for tokens in sequences]
    runner = Runner(model, 16, native=native)
    assert (runner.why_not is None) == (native and name != "sinusoidal")
    for ours, theirs in zip(run_all(runner, sequences, 1, 5), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_row_of_the_native_step_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    model = random_model(CONFIGS["llama"]).to(dtype)
    sequences = texts(model, 3)
    alone = [run_all(Runner(model, 16), [tokens], 2, 1)[0] for tokens in sequences]
    for ours, theirs in zip(run_all(Runner(model, 16), sequences, 3, 5), alone, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_what_is_copied_is_read_from_the_copy() -> None:
    model = random_model(CONFIGS["llama"])
    [tokens] = texts(model, 1)
    runner = Runner(model, 8)
    first = [0, 1, 2, 3]
    runner.run(Step((Chunk(tokens[:-1], 0, first, 0),), ()))
    place = (len(tokens) - 1) // 16
    copied = [*first[:place], 7, *first[place + 1 :]]
    before = runner.run(Step((Chunk(tokens[-1:], len(tokens) - 1, first, 1),), ((place, 7),))).clone()
    after = runner.run(Step((Chunk(tokens[-1:], len(tokens) - 1, copied, 1),), ()))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("window", [None, 300])
@torch.no_grad()
def test_a_long_text_is_attended_to_in_spans_that_come_together_again(window: int | None) -> None:
    config = CONFIGS["llama"].model_copy(update={"max_positions": 700, "window": window})
    model = random_model(config)
    tokens = [random.Random(1).randrange(272) for _ in range(620)]
    whole = model(torch.tensor([tokens]))[0]
    runner = Runner(model, 48)
    [ours] = run_all(runner, [tokens], 2, 16)
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=3e-4)
    [alone] = run_all(Runner(model, 48), [tokens], 3, 1)
    assert runner.why_not is not None or torch.equal(ours, alone)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3"])
@torch.no_grad()
def test_a_cache_of_bytes_changes_the_logits_a_little(name: str, native: bool) -> None:
    """A number is off by 1 / 254 of the largest of its head at most."""
    model = random_model(MODELS[name])
    sequences = texts(model, 3)
    whole = [model(torch.tensor([tokens]))[0] for tokens in sequences]
    runner = Runner(model, 16, native=native, int8_cache=True)
    plain = Runner(model, 16).cache
    assert runner.cache.num_bytes() < 0.5 * plain.num_bytes()
    for ours, theirs in zip(run_all(runner, sequences, 1, 5), whole, strict=True):
        away = (ours - theirs).square().mean().sqrt() / theirs.std()
        assert 0 < away < 0.02


@torch.no_grad()
def test_both_ways_round_keys_and_values_to_the_same_bytes() -> None:
    model = random_model(CONFIGS["llama"]).to(torch.bfloat16)
    [tokens] = texts(model, 1)
    kept = []
    for native in (True, False):
        runner = Runner(model.float(), 8, native=native, int8_cache=True)
        runner.run(Step((Chunk(tokens, 0, list(range(8)), 1),), ()))
        kept.append(runner.cache)
    one, two = kept
    assert one.scales is not None and two.scales is not None
    torch.testing.assert_close(one.scales, two.scales, rtol=1e-4, atol=1e-6)
    assert (one.keys - two.keys).abs().max() <= 1 and (one.values - two.values).abs().max() <= 1


@torch.no_grad()
def test_what_is_kept_as_bytes_does_not_depend_on_neighbours_and_is_copied_whole() -> None:
    model = random_model(CONFIGS["llama"])
    sequences = texts(model, 3)
    alone = [run_all(Runner(model, 16, int8_cache=True), [tokens], 2, 1)[0] for tokens in sequences]
    for ours, theirs in zip(run_all(Runner(model, 16, int8_cache=True), sequences, 3, 5), alone, strict=True):
        assert torch.equal(ours, theirs)
    runner = Runner(model, 8, int8_cache=True)
    tokens = sequences[0][:10]
    runner.run(Step((Chunk(tokens[:-1], 0, [0], 0),), ()))
    before = runner.run(Step((Chunk(tokens[-1:], 9, [0], 1),), ((0, 7),))).clone()
    torch.testing.assert_close(runner.run(Step((Chunk(tokens[-1:], 9, [7], 1),), ())), before)
