"""The chunked loss against PyTorch's own, and what it holds in memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from pellucid.data.examples import IGNORE, Examples
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.operations import softmax
from pellucid.training import loss as loss_module
from pellucid.training.loss import cross_entropy, next_token_loss


def expected(hidden, weight, targets, softcap):
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(0, 40),
    vocab=st.integers(2, 70),
    chunk=st.integers(1, 500),
    softcap=st.sampled_from([None, 3.0]),
    native=st.booleans(),
)
def test_loss_and_gradients_are_pytorchs_whatever_the_chunk_and_the_kernel(n, vocab, chunk, softcap, native):
    generator = torch.Generator().manual_seed(n * 1000 + vocab)
    hidden, weight = torch.randn(n, 8, generator=generator), torch.randn(vocab, 8, generator=generator)
    targets = torch.randint(vocab, (n,), generator=generator)
    results = []
    before, loss_module.CHUNK, loss_module.ROWS = (loss_module.CHUNK, loss_module.ROWS), chunk, 1
    why_not = softmax.why_not
    if not native:
        softmax.why_not = lambda *_: "switched off"
    try:
        for function in (cross_entropy, expected):
            h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
            value = function(h, w, targets, softcap)
            (value * 0.3).backward()
            results.append((value.detach(), h.grad, w.grad))
    finally:
        loss_module.CHUNK, loss_module.ROWS = before
        softmax.why_not = why_not
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_softmax_stays_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32), torch.randn(500, 32) * 0.1
    targets = torch.randint(500, (64,))
    exact = expected(hidden.double(), weight.double(), targets, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = cross_entropy(hidden, weight, targets)
    assert ours.dtype == torch.float32
    assert abs(float(ours - exact)) / float(exact) < 2e-3  # products round to 8 bits, their errors average out


def model(**fields):
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    return Decoder(ModelConfig(**sizes, max_positions=64, **fields))


@pytest.mark.parametrize("tied", [True, False])
def test_the_models_loss_is_that_of_its_logits(tied):
    decoder = model(tie_embeddings=tied, logit_softcap=5.0)
    tokens = torch.randint(97, (3, 20))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = IGNORE
    targets[1, :7] = IGNORE
    positions = torch.arange(20).expand(3, 20)
    examples = Examples(tokens, targets, positions, torch.zeros_like(tokens))
    gradients = []
    for ours in (True, False):
        decoder.zero_grad()
        if ours:
            value = next_token_loss(decoder, examples)
        else:
            logits = decoder(tokens, examples.batch)
            value = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE)
        value.backward()
        gradients.append([value.detach()] + [p.grad.clone() for p in decoder.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_nothing_of_the_size_of_the_logits_is_kept(monkeypatch):
    """What autograd keeps for a batch grows with tokens + vocabulary, not with their product."""
    monkeypatch.setattr(loss_module, "CHUNK", 2000)
    monkeypatch.setattr(loss_module, "ROWS", 1)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    hidden = torch.randn(400, 8, requires_grad=True)
    weight = torch.randn(1000, 8, requires_grad=True)
    kept = []
    with Watch(), saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        cross_entropy(hidden, weight, torch.randint(1000, (400,))).backward()
    assert largest <= 8000 < 400 * 1000  # the head's weight, four times a chunk
    assert sum(kept) <= 400 * 8 + 1000 * 8


def test_without_gradients_none_is_computed(monkeypatch):
    """An evaluation needs half of the head's products, and no memory of the head's size."""
    wanted = []
    forward = loss_module._CrossEntropy.forward
    monkeypatch.setattr(
        loss_module._CrossEntropy,
        "forward",
        staticmethod(lambda ctx, *given: wanted.append(ctx.needs_input_grad[:2]) or forward(ctx, *given)),
    )
    decoder, tokens = model(), torch.randint(97, (2, 8))
    examples = Examples(tokens, tokens, torch.arange(8).expand(2, 8), torch.zeros_like(tokens))
    with torch.no_grad():
        alone = next_token_loss(decoder, examples)
    assert alone == next_token_loss(decoder, examples)
    assert wanted == [(False, False), (True, True)]
