"""The step of a GPU, run on the processor: tiles of many sequences, and steps whose places are fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention import flex_attention

from pellucid.inference import gpu_step, runner
from pellucid.inference.draft_model import DraftModel
from pellucid.inference.engine import Engine
from pellucid.inference.generate import generate
from pellucid.inference.gpu_step import BUCKETS, Compute, Decoding, enough, held_in, tables_of
from pellucid.inference.params import SamplingParams
from pellucid.inference.runner import Runner
from pellucid.inference.step import Chunk, Step
from pellucid.layers.nf4 import to_nf4
from pellucid.layers.slots import SlotCache
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import put_nf4
from pellucid.operations import paged_attention
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.inference.test_runner import MODELS, run_all, texts


@pytest.fixture(autouse=True, scope="module")
def as_on_a_gpu(one_thread: None) -> Iterator[None]:
    """FlexAttention without a compiler, and what would be recorded is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(paged_attention, "compiled", lambda: paged_attention.paged_attention)
        patch.setattr(runner, "why_not_tiled", lambda _device, _size: None)
        patch.setattr(runner, "recorded", lambda: lambda compute: compute)
        yield


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "alibi", "sinusoidal"])
@torch.no_grad()
def test_pieces_on_scattered_blocks_give_the_logits_of_one_forward(name: str) -> None:
    """float32, logits up to 13: both ways are up to 1e-4 away from what float64 gives."""
    model = random_model(MODELS[name])
    sequences = [tokens[:19] for tokens in texts(model, 3)]
    whole = [model(torch.tensor([tokens]))[0] for tokens in sequences]
    one = Runner(model, 16, 4)
    for most in (1, 7):
        for ours, theirs in zip(run_all(one, sequences, 1, most), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-4)
    assert one.gpu is not None and {size for _, size in one.gpu.buckets} == {
        1,
        2,
        4,
    }  # steps of single tokens went there
    assert one.how == "FlexAttention and CUDA graphs" and one.native is None


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.no_grad()
def test_a_cache_of_bytes_is_that_of_the_plain_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(MODELS[name])
    sequences = [tokens[:19] for tokens in texts(model, 3)]
    tiled = Runner(model, 16, 4, int8_cache=True)
    assert isinstance(tiled.cache, SlotCache) and "widened" in tiled.how
    monkeypatch.setattr(runner, "why_not_tiled", lambda _device, _size: "it is switched off")
    plain = Runner(model, 16, 4, native=False, int8_cache=True)
    assert tiled.cache.num_bytes() == plain.cache.num_bytes() // 16 * 17  # a block more
    for ours, theirs in zip(run_all(tiled, sequences, 1, 5), run_all(plain, sequences, 1, 5), strict=True):
        # A key on the border of two bytes may fall to either side: 1 / 254 of the largest of its head.
        assert (ours - theirs).square().mean().sqrt() < 0.01 * theirs.std()


@pytest.mark.parametrize("int8_cache", [False, True])
@torch.no_grad()
def test_what_is_copied_is_read_from_the_copy(int8_cache: bool) -> None:
    model = random_model(CONFIGS["llama"])
    [tokens] = texts(model, 1)
    one = Runner(model, 8, int8_cache=int8_cache)
    first = [0, 1, 2, 3]
    one.run(Step((Chunk(tokens[:-1], 0, first, 0),), ()))
    place = (len(tokens) - 1) // 16
    copied = [*first[:place], 7, *first[place + 1 :]]
    before = one.run(Step((Chunk(tokens[-1:], len(tokens) - 1, first, 1),), ((place, 7),))).clone()
    after = one.run(Step((Chunk(tokens[-1:], len(tokens) - 1, copied, 1),), ()))
    assert torch.equal(after, before)


def decoding(model: Decoder, size: int, record: Callable[[Compute], Compute]) -> tuple[Decoding, SlotCache]:
    c = model.config
    windows = [c.layer_window(layer) for layer in range(c.num_layers)]
    cache = SlotCache(8, 16, windows, c.num_kv_heads, c.head_dim, model.dtype, model.device)
    return Decoding(model, cache, size, 4, None, record), cache


@torch.inference_mode()
def test_what_is_recorded_once_serves_other_sequences_in_other_places() -> None:
    """The computation is made once; what later steps change are numbers in the same memory."""
    model = random_model(CONFIGS["llama"])
    made: list[Compute] = []

    def record(compute: Compute) -> Compute:
        made.append(compute)
        return compute

    step, cache = decoding(model, 4, record)
    place = step.given.data_ptr()
    first = step([Chunk([5], 0, [3], 1), Chunk([9], 0, [1, 2], 1)])
    assert first.shape == (2, model.config.vocab_size)
    second = step([Chunk([7], 1, [1], 1), Chunk([6], 1, [3], 1), Chunk([5], 0, [6], 1)])
    assert len(made) == 1 and step.given.data_ptr() == place
    for row, tokens in zip(second, ([9, 7], [5, 6], [5]), strict=True):
        torch.testing.assert_close(row, model(torch.tensor([tokens]))[0, -1], rtol=1e-4, atol=3e-4)
    written = cache.keys[0].unflatten(0, (-1, 16)).abs().sum((1, 2, 3)) > 0
    assert written.nonzero().flatten().tolist() == [1, 3, 6, 8]  # 8: that of nobody


@torch.inference_mode()
def test_rows_without_a_sequence_change_nothing_and_leave_nothing() -> None:
    model = random_model(CONFIGS["llama"])
    chunks = [Chunk([5], 0, [3], 1), Chunk([9], 0, [1], 1)]
    tight, _ = decoding(model, 2, lambda compute: compute)
    wide, _ = decoding(model, 8, lambda compute: compute)
    wide([Chunk([token], 0, [token], 1) for token in range(8)])
    torch.testing.assert_close(wide(chunks), tight(chunks), rtol=1e-4, atol=1e-4)
    assert wide.given[2:, :2].eq(0).all() and wide.given[2:, 2:].eq(8).all()


@torch.no_grad()
def test_who_listens_hears_every_step() -> None:
    """A part that is listened to is computed as it is, not replayed; the pattern of attention by plain algebra."""
    model = random_model(CONFIGS["llama"])
    tokens = [5, 6, 7]
    one = Runner(model, 4)
    heard: list[Tensor] = []
    block: Any = model.blocks[0]
    for part in (block.feed_forward.down, block.attention.pattern):
        one.run(Step((Chunk(tokens, 0, [2], 1),), ()))
        handle = part.register_forward_hook(lambda _part, _given, found: heard.append(found))
        logits = one.run(Step((Chunk([8], 3, [2], 1),), ()))
        handle.remove()
        torch.testing.assert_close(logits[0], model(torch.tensor([[*tokens, 8]]))[0, -1], rtol=1e-4, atol=3e-4)
    assert [one.shape[-2:] for one in heard] == [(1, model.config.hidden_size), (1, 4)]
    assert one.gpu is not None and not one.gpu.buckets
    one.run(Step((Chunk([8], 3, [2], 1),), ()))
    assert set(one.gpu.buckets) == {(None, 1)}


@pytest.mark.parametrize("options", [{}, {"num_blocks": 9}, {"guesses": 3}, {"graphs": False}])
def test_the_engine_answers_as_the_reference_does(options: dict[str, Any]) -> None:
    model, tokenizer = random_model(CONFIGS["llama"]), tiny_tokenizer()
    greedy = SamplingParams(temperature=0, max_tokens=12)
    asked = [[3 * i + j for j in range(2 + 7 * i)] for i in range(3)]
    expected = generate(model, tokenizer, asked, greedy)
    sizes = {"num_blocks": 32, "block_size": 8, "max_tokens_per_step": 24, "max_sequences": 8}
    engine = Engine(model, tokenizer, **sizes | options)
    numbers = {engine.add(prompt, greedy): place for place, prompt in enumerate(asked)}
    found: list[list[int]] = [[] for _ in asked]
    while engine.busy:
        for event in engine.step():
            found[numbers[event.id]].append(event.token_id)
    assert found == [one.token_ids for one in expected]
    assert engine.runner.gpu is not None and bool(engine.runner.gpu.buckets) == options.get("graphs", True)


@torch.no_grad()
def test_a_size_for_which_nothing_is_compiled_any_more_goes_through_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: Any, **_named: Any) -> Tensor:
        raise FailOnRecompileLimitHit

    model = random_model(CONFIGS["llama"])
    one = Runner(model, 4)
    monkeypatch.setattr(paged_attention, "compiled", lambda: full)
    for tokens, start in (([5, 6, 7], 0), ([8], 3)):
        logits = one.run(Step((Chunk(tokens, start, [2], 1),), ()))
    torch.testing.assert_close(logits[0], model(torch.tensor([[5, 6, 7, 8]]))[0, -1], rtol=1e-4, atol=3e-4)
    assert one.how.endswith("steps of new sizes PyTorch's: it was compiled for as many as may be")


def test_why_steps_are_not_recorded() -> None:
    model, tokenizer = random_model(CONFIGS["llama"]), tiny_tokenizer()
    guessed = Engine(model, tokenizer, num_blocks=4, graphs=False, draft=(model, tokenizer)).speculation
    assert guessed is not None and isinstance(guessed.drafter, DraftModel)
    assert "switched off" in guessed.drafter.runner.how
    assert Runner(model, 4, graphs=False).how == "FlexAttention (no CUDA graphs: they are switched off)"
    stretched = model.config.rope.model_copy(update={"scaling": "dynamic", "original_max_positions": 32})
    other = random_model(model.config.model_copy(update={"rope": stretched}))
    assert "stretch" in Runner(other, 4).how
    name = "blocks.0.feed_forward.up.weight"
    put_nf4(model, name, to_nf4(model.get_parameter(name)))
    assert "NF4" in Runner(model, 4).how


def test_tables_are_filled_up_with_the_block_of_nobody() -> None:
    _, cache = decoding(random_model(CONFIGS["llama"]), 1, lambda compute: compute)
    chunks = [Chunk([1], 15, [4, 5], 1), Chunk([1, 2], 15, [6, 7], 1)]
    assert tables_of(chunks, cache, 3, 3).tolist() == [[4, 8, 8], [6, 7, 8], [8, 8, 8]]
    assert [enough(count) for count in (1, 2, 4, 5, 16, 17, 65)] == [1, 4, 4, 16, 16, 64, 256]
    assert gpu_step.QUERIES <= paged_attention.QUERIES and list(BUCKETS) == sorted(BUCKETS)


def test_of_a_cache_of_bytes_each_block_that_is_held_is_widened_once() -> None:
    tables = np.array([[7, 2, 9], [7, 5, 5], [7, 3, 9]])
    blocks, places = held_in(tables, 9)
    assert blocks.tolist() == [2, 3, 5, 7, 9, 9, 9, 9] and (blocks[places] == tables).all()
    model = random_model(CONFIGS["llama"])
    one, widened = Runner(model, 64, 4, int8_cache=True), []
    assert isinstance(one.cache, SlotCache)
    read = one.cache.of_blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.cache, "of_blocks", lambda layer, blocks: widened.append(len(blocks)) or read(layer, blocks))
        long, short = Chunk([1] * 40, 0, list(range(10)), 1), [Chunk([1], 0, [10 + n], 1) for n in range(5)]
        one.run(Step((long, *short), ()))
    assert set(widened) == {16}  # 10 blocks, 5, and that of nobody
