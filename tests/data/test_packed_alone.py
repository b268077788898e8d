"""Promise D3: logits, loss and gradients of packed rows are those of each document by itself, in every family."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.data.examples import IGNORE, Examples
from pellucid.data.packing import Stream, Whole
from pellucid.layers.batch import PADDING
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import CONFIGS, random_model
from tests.data.made import in_memory

LENGTHS = [9, 30, 3, 17, 22, 1, 12, 5, 40, 8]


def some_documents() -> tuple[list[list[int]], list[list[bool]]]:
    drawn = torch.Generator().manual_seed(3)
    documents = [torch.randint(0, 272, (length,), generator=drawn).tolist() for length in LENGTHS]
    masks = [(torch.rand(length, generator=drawn) < 0.6).tolist() for length in LENGTHS]
    return documents, masks


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def alone(model: Decoder, pieces: list[tuple[list[int], list[int]]]) -> tuple[list[Tensor], Tensor]:
    """Each piece `(tokens, targets)` in a batch of its own: its logits, and the sum of the losses."""
    logits = [model(torch.tensor([tokens])) for tokens, _ in pieces]
    losses = [loss_of(one, torch.tensor([targets])) for one, (_, targets) in zip(logits, pieces, strict=True)]
    return logits, torch.stack(losses).sum()


def assert_packed_equals_alone(family: str, examples: Examples, pieces: list[tuple[list[int], list[int]]]) -> None:
    """`pieces` are what the rows hold, row after row."""
    model = random_model(CONFIGS[family], torch.float64)
    close = 2e-5 if family.startswith("gemma") else 1e-9  # Gemma's norms are computed in float32, as it was trained
    expected, loss = alone(model, pieces)
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    for parts in (examples.split(1), [examples]):  # a row at a time, and all at once
        model.zero_grad()
        got = [model(part.tokens, part.batch) for part in parts]
        packed = torch.stack([loss_of(one, part.targets) for one, part in zip(got, parts, strict=True)]).sum()
        packed.backward()
        torch.testing.assert_close(packed, loss, atol=close, rtol=close)
        real = torch.cat(got)[examples.documents != PADDING]
        torch.testing.assert_close(real, torch.cat([one[0] for one in expected]), atol=close, rtol=close)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], atol=close, rtol=close)


@pytest.mark.parametrize("family", CONFIGS)
def test_whole_documents(family: str) -> None:
    documents, masks = some_documents()
    whole = Whole(in_memory(documents, masks, per_shard=4), 48, seed=0)
    examples = whole.read(range(len(whole)))
    assert (examples.documents == PADDING).any() and (examples.documents == 2).any()
    pieces = []
    for row, numbers in zip(examples.tokens.tolist(), examples.documents.tolist(), strict=True):
        for number in range(max(numbers) + 1):
            tokens = [token for token, here in zip(row, numbers, strict=True) if here == number]
            mask = masks[documents.index(tokens)]
            following = [token if said else IGNORE for token, said in zip(tokens[1:], mask[1:], strict=True)]
            pieces.append((tokens, [*following, IGNORE]))
    assert sorted(tokens for tokens, _ in pieces) == sorted(documents)
    assert_packed_equals_alone(family, examples, pieces)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
def test_pieces_of_a_stream(family: str) -> None:
    """A document that a row's end cuts goes on in another row as a document of its own, which begins at position 0."""
    documents, _ = some_documents()
    stream = Stream(in_memory(documents, per_shard=3), 16, seed=4)
    examples = stream.read(range(len(stream)))
    ring = [token for document in documents for token in document]
    ends = set(torch.tensor(LENGTHS).cumsum(0).tolist())
    pieces = []
    for row in examples.tokens.tolist():
        start = next(s for s in range(len(ring)) if [ring[(s + t) % len(ring)] for t in range(16)] == row)
        tokens: list[int] = []
        targets: list[int] = []
        for place in range(start, start + 16):
            place %= len(ring)
            tokens.append(ring[place])
            if place + 1 in ends:
                pieces.append((tokens, [*targets, IGNORE]))
                tokens, targets = [], []
            else:
                targets.append(ring[place + 1])
        if tokens:
            pieces.append((tokens, targets))
    assert_packed_equals_alone(family, examples, pieces)
