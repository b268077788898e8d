"""Chunked log-probabilities against PyTorch's own, packed against alone, and what they hold in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from pellucid.data.examples import IGNORE
from pellucid.layers.batch import Batch
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training import loss
from pellucid.training.log_probs import log_probs_and_entropy, sequence_log_probs, token_log_probs


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", 200)
    monkeypatch.setattr(loss, "ROWS", 1)


def expected(hidden, weight, targets, softcap, temperature):
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 40),
    vocab=st.integers(2, 70),
    softcap=st.sampled_from([None, 3.0]),
    temperature=st.sampled_from([1.0, 0.6, 1.3]),
    entropy=st.booleans(),
    head=st.booleans(),
)
def test_values_and_gradients_are_pytorchs_in_double_precision(n, vocab, softcap, temperature, entropy, head):
    generator = torch.Generator().manual_seed(n * 1000 + vocab)
    hidden, weight = (torch.randn(rows, 8, generator=generator).double() for rows in (n, vocab))
    targets = torch.randint(vocab, (n,), generator=generator)
    upstream = torch.randn(2, n, generator=generator).double()
    results = []
    before, loss.CHUNK, loss.ROWS = (loss.CHUNK, loss.ROWS), 200, 1
    try:
        for ours in (True, False):
            h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(head)
            given = (h, w, targets, softcap, temperature)
            if ours:
                found = log_probs_and_entropy(*given) if entropy else (token_log_probs(*given),)
            else:
                found = expected(*given)[: 1 + entropy]
            sum((value * scale).sum() for value, scale in zip(found, upstream, strict=False)).backward()
            results.append([*(value.detach() for value in found), h.grad, *([w.grad] if head else [])])
    finally:
        loss.CHUNK, loss.ROWS = before
    # The sums have at most 70 terms of the size of 10: far below 1e-9 in float64
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_in_float32_and_in_bfloat16():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32), torch.randn(500, 32) * 0.1
    targets = torch.randint(500, (64,))
    exact, _ = expected(hidden.double(), weight.double(), targets, None, 0.7)
    ours = token_log_probs(hidden, weight, targets, temperature=0.7)
    assert ours.dtype == torch.float32
    # A logit is a sum of 32 products of the size of 1: its error is below 32 * 2^-24 * sum |products| < 1e-4
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = token_log_probs(hidden, weight, targets, temperature=0.7)
    assert rough.dtype == torch.float32
    # Factors are rounded to 8 bits, and so is their sum: 3 * 2^-9 * sum |products| / 0.7 < 0.1 on both sides
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=0.2)


def decoder(**fields):
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    return Decoder(ModelConfig(**sizes, max_positions=64, **fields))


def test_packed_sequences_have_the_log_probabilities_and_gradients_that_each_has_alone(small_chunks):
    """D3: three documents in two rows, padding behind them, part of each learnt from."""
    model = decoder(logit_softcap=5.0).double()
    generator = torch.Generator().manual_seed(1)
    places = [(0, 0, 0, 9), (0, 1, 9, 16), (1, 0, 0, 12)]  # row, number in it, from, to
    tokens = torch.randint(97, (2, 16), generator=generator)
    targets, documents, positions = (torch.full((2, 16), fill) for fill in (IGNORE, -1, 0))
    for row, number, start, end in places:
        targets[row, start + 2 : end - 1] = tokens[row, start + 3 : end]
        documents[row, start:end] = number
        positions[row, start:end] = torch.arange(end - start)
    sequences = torch.tensor([[1, 0], [0, 0], [0, 1]])  # in an order of their own
    scale = torch.tensor([0.3, -1.0, 2.0])
    together = sequence_log_probs(model, tokens, targets, Batch(positions, documents), sequences)
    (together * scale).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for value, factor, number in zip(together, scale, (2, 0, 1), strict=True):
        row, _, start, end = places[number]
        own = tokens[row : row + 1, start:end]
        logits = model(own)[0, 2:-1]
        alone = logits.log_softmax(-1).gather(-1, own[0, 3:, None]).sum()
        (alone * factor).backward()
        torch.testing.assert_close(value, alone.detach(), rtol=1e-6, atol=1e-6)  # PyTorch's attention is in float32
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", [True, False])
def test_nothing_of_the_size_of_the_logits_is_kept(monkeypatch, head):
    monkeypatch.setattr(loss, "CHUNK", 2000)
    monkeypatch.setattr(loss, "ROWS", 1)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    hidden, weight = torch.randn(400, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=head)
    kept = []
    with Watch(), saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        token_log_probs(hidden, weight, torch.randint(1000, (400,))).sum().backward()
    assert largest <= 8000 < 400 * 1000  # the head's weight, four times a chunk
    assert sum(kept) <= 400 * 8 + 1000 * 8 + 400


def test_without_gradients_the_head_is_multiplied_once(monkeypatch):
    model, tokens = decoder(), torch.randint(97, (2, 8))
    targets = tokens.roll(-1, 1)
    batch = Batch(torch.arange(8).expand(2, 8), torch.zeros_like(tokens))
    sequences = torch.tensor([[0, 0], [1, 0]])
    with torch.no_grad():
        alone = sequence_log_probs(model, tokens, targets, batch, sequences)
    assert not alone.requires_grad
    assert torch.equal(alone, sequence_log_probs(model, tokens, targets, batch, sequences))
