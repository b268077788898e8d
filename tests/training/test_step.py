"""The gradient of a batch, however it is cut, is PyTorch's of the mean over its tokens (D2), in little memory (D4)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pellucid.data.examples import IGNORE, Examples
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training import loss as loss_module
from pellucid.training.loss import next_token_loss
from pellucid.training.optimizers import make_optimizer
from pellucid.training.recipe import OptimRecipe
from pellucid.training.setting import checkpoint_blocks
from pellucid.training.step import Measured, clip, take_gradient
from tests.checkpoints.tiny import CONFIGS, random_model
from tests.training.tiny_run import SHAPE, Counting


def gradients(model: Decoder) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def reference(model: Decoder, examples: Examples) -> tuple[float, list[torch.Tensor]]:
    """All logits at once, PyTorch's mean over the targets that count."""
    model.zero_grad()
    logits = model(examples.tokens, examples.batch)
    loss = F.cross_entropy(logits.flatten(0, 1), examples.targets.flatten(), ignore_index=IGNORE)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("micro_batch", [None, 8, 4, 3, 1])
def test_however_a_batch_is_cut_its_gradient_is_that_of_the_mean_over_its_tokens(micro_batch: int | None) -> None:
    """With 1 to 14 tokens a row that count, a mean of the rows' means would be far off."""
    model, examples = Decoder(ModelConfig(**SHAPE)), Counting().read(range(8))
    per_row = (examples.targets != IGNORE).sum(1)
    assert per_row.max() >= 10 * per_row.min()
    loss, wanted = reference(model, examples)
    model.zero_grad()
    taken = take_gradient(model, examples, next_token_loss, micro_batch=micro_batch)
    # The sums are the same but for their order: float32 rounds at 6e-8, and some hundred terms are added.
    assert taken.loss == pytest.approx(loss, rel=1e-6)
    assert taken.norm == pytest.approx(float(torch.cat([g.flatten() for g in wanted]).norm()), rel=1e-5)
    torch.testing.assert_close(gradients(model), wanted, rtol=1e-4, atol=1e-7)
    assert (taken.learnt, taken.real) == (int(per_row.sum()), int((examples.documents >= 0).sum()))


def test_cut_or_not_the_weights_stay_together_over_many_steps() -> None:
    """eps is large enough for Adam's quotient to be smooth where a gradient is near 0."""
    optim = OptimRecipe(lr=0.01, eps=1e-3, warmup=0)
    trained = []
    for micro_batch in (None, 4, 1):
        model = Decoder(ModelConfig(**SHAPE))
        optimizers = make_optimizer(model, optim)
        losses = []
        for step in range(30):
            rows = Counting().read(range(8 * step, 8 * step + 8))
            taken = take_gradient(model, rows, next_token_loss, micro_batch=micro_batch)
            clip(model, taken.norm, optim.clip)
            optimizers.step()
            optimizers.zero_grad()
            losses.append(taken.loss)
        trained.append([torch.tensor(losses), *(parameter.detach() for parameter in model.parameters())])
    assert trained[0][0][-1] < 0.5 * trained[0][0][0]
    for other in trained[1:]:
        torch.testing.assert_close(other, trained[0], rtol=1e-3, atol=1e-4)


def test_a_batch_of_which_nothing_is_learnt_has_no_gradient() -> None:
    model, rows = Decoder(ModelConfig(**SHAPE)), Counting().read(range(2))
    nothing = Examples(rows.tokens, torch.full_like(rows.targets, IGNORE), rows.positions, rows.documents)
    taken = take_gradient(model, nothing, next_token_loss)
    assert (taken.loss, taken.norm, taken.learnt) == (0.0, 0.0, 0) and taken.real == rows.real


@pytest.mark.parametrize("largest", [0.01, 1e6])
def test_clipping_is_pytorchs(largest: float) -> None:
    ours, theirs = (Decoder(ModelConfig(**SHAPE)) for _ in range(2))
    for model in (ours, theirs):
        taken = take_gradient(model, Counting().read(range(4)), next_token_loss)
    clip(ours, taken.norm, largest)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), largest)
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-5, atol=0)


class Peak(TorchDispatchMode):
    """The most bytes that were alive at once of what was computed within it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self._known:
                storage = leaf.untyped_storage()
                self._known[storage] = None
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
                self.most = max(self.most, self.alive)
        return result

    def _gone(self, size: int) -> None:
        self.alive -= size


def peak_of(take: Callable[[], object]) -> int:
    """Bytes, above what there was before."""
    with Peak() as peak:
        take()
    return peak.most


def step_of(model: Decoder, rows: int, length: int) -> Callable[[], object]:
    tokens = torch.randint(model.config.vocab_size, (rows, length))
    positions = torch.arange(length).expand(rows, length).contiguous()
    examples = Examples(tokens, tokens.roll(-1, 1), positions, torch.zeros_like(tokens))
    return lambda: take_gradient(model, examples, next_token_loss)


def test_memory_has_no_term_in_vocabulary_times_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """peak(T, V) = a T + b V + c: what more tokens cost is the same for a large vocabulary as for a small one."""
    monkeypatch.setattr(loss_module, "CHUNK", 100_000)
    monkeypatch.setattr(loss_module, "ROWS", 1)

    def peak(length: int, vocab: int) -> int:
        return peak_of(step_of(Decoder(ModelConfig(**SHAPE | {"vocab_size": vocab, "max_positions": 600})), 2, length))

    few, many = (peak(500, vocab) - peak(100, vocab) for vocab in (1000, 8000))
    logits = 4 * 2 * 400 * 7000  # bytes of those that more tokens and a larger vocabulary would add
    assert abs(many - few) < 0.02 * logits
    assert few > 4 * 2 * 400 * SHAPE["hidden_size"]  # it measures something


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_activations_computed_again_give_the_same_gradient_from_less_memory(name: str) -> None:
    models = [random_model(CONFIGS[name]).train() for _ in range(2)]
    checkpoint_blocks(models[1])
    peaks = []
    for model in models:
        torch.manual_seed(0)
        peaks.append(peak_of(step_of(model, 8, 64)))
    for ours, theirs in zip(*map(gradients, models), strict=True):
        assert torch.equal(ours, theirs)
    assert peaks[1] < 0.6 * peaks[0]  # of four blocks' activations one block's is alive
    assert [name for name, _ in models[1].named_parameters()] == [name for name, _ in models[0].named_parameters()]
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(models[0](tokens), models[1](tokens))


@pytest.mark.slow
def test_activations_computed_again_go_with_compiled_blocks() -> None:
    models = [random_model(CONFIGS["llama"]).train() for _ in range(2)]
    checkpoint_blocks(models[1])
    for block in models[1].blocks:
        block.compile(dynamic=False)
    for model in models:
        torch.manual_seed(0)
        step_of(model, 4, 64)()
    torch.testing.assert_close(gradients(models[1]), gradients(models[0]), rtol=1e-3, atol=1e-5)


def test_measures_are_means_over_the_units_however_the_batch_is_cut() -> None:
    """As the loss is: summed over all micro-batches, divided once."""
    model, examples = Decoder(ModelConfig(**SHAPE)), Counting().read(range(4))

    def objective(model: Decoder, part: Examples) -> Measured:
        total = next_token_loss(model, part)
        return Measured(total, {"twice": 2 * total, "ones": torch.tensor(float(part.supervised))})

    for micro_batch in (None, 1, 3):
        taken = take_gradient(model, examples, objective, micro_batch=micro_batch, measures=("twice", "ones"))
        assert taken.measures["twice"] == pytest.approx(2 * taken.loss, rel=1e-6)
        assert taken.measures["ones"] == 1
