"""Loss, perplexity and bits per byte, against transformers' loss and sums done by hand; shares of processes add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers

from pellucid.checkpoints.save import save
from pellucid.data.examples import IGNORE, Examples
from pellucid.layers.batch import PADDING
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.evaluate import byte_counts, evaluate
from pellucid.training.ranks import Ranks
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.training.tiny_run import SHAPE, Counting


@dataclass
class Documents:
    """A row for each pair of documents, with padding behind; every third target is not learnt from."""

    documents: list[list[int]]
    context: int = 64
    log: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.documents) // 2

    def read(self, indices: Sequence[int]) -> Examples:
        self.log.extend(indices)
        tokens, targets, positions, numbers = (
            torch.full((len(indices), self.context), fill) for fill in (0, IGNORE, 0, PADDING)
        )
        for row, index in enumerate(indices):
            start = 0
            for number, ids in enumerate(self.documents[2 * index : 2 * index + 2]):
                place = slice(start, start + len(ids))
                tokens[row, place] = torch.tensor(ids)
                targets[row, place] = torch.tensor([*labels(ids)[1:], IGNORE])
                positions[row, place] = torch.arange(len(ids))
                numbers[row, place] = number
                start += len(ids)
        return Examples(tokens, targets, positions, numbers)


def labels(ids: list[int]) -> list[int]:
    return [IGNORE if place % 3 == 2 else token for place, token in enumerate(ids)]


def test_it_is_transformers_loss_of_each_document_alone(tmp_path: Path) -> None:
    model, tokenizer = random_model(CONFIGS["llama"]), tiny_tokenizer()
    save(model, tokenizer, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(3)
    texts = [torch.randint(256, (length,), generator=draw).tolist() for length in (20, 31, 7, 44, 12, 12)]
    nats, tokens, size = 0.0, 0, 0
    for ids in texts:
        wanted = torch.tensor([labels(ids)])
        counted = int((wanted[:, 1:] != IGNORE).sum())
        with torch.no_grad():
            nats += counted * float(theirs(torch.tensor([ids]), labels=wanted).loss)
        tokens += counted
        size += sum(len(tokenizer.token_bytes(token)) for token in wanted[0, 1:].tolist() if token != IGNORE)
    for together in (1, 2, 8):
        found = evaluate(model, tokenizer, Documents(texts), 100, together=together)
        assert found.loss == pytest.approx(nats / tokens, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def uniform(vocab_size: int = 272) -> Decoder:
    """A model to which every token is as likely as any other."""
    model = Decoder(ModelConfig(**SHAPE | {"vocab_size": vocab_size}))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    return model


def test_bits_per_byte_by_hand() -> None:
    """ "<|im_start|>on the thin<|endoftext|>": the first token is given, the last one stands for no text."""
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer.encode("on the thin", add_bos=True), tokenizer.special_tokens["<|endoftext|>"]]
    pieces = [tokenizer.token_bytes(token) for token in ids[1:-1]]
    assert pieces == [b"on", b" the", b" ", b"th", b"in"]

    class One(Documents):
        def read(self, indices: Sequence[int]) -> Examples:
            rows = super().read(indices)
            learnt = torch.tensor([*ids[1:], *[IGNORE] * (self.context - len(ids) + 1)])[None]
            return Examples(rows.tokens, learnt, rows.positions, rows.documents)

    found = evaluate(uniform(), tokenizer, One([ids, []]), 1)
    assert found.loss == pytest.approx(math.log(272)) and found.perplexity == pytest.approx(272)
    assert found.bits_per_byte == pytest.approx((len(ids) - 1) * math.log2(272) / 11)  # 11 letters and blanks


def test_bytes_of_tokens() -> None:
    tokenizer = tiny_tokenizer()
    sizes = byte_counts(tokenizer)
    assert sizes.shape == (tokenizer.vocab_size,)
    for text in ("the one", "pellucid", "größer 东"):
        assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
    assert sizes[list(tokenizer.special_tokens.values())].sum() == 0


def test_the_first_rows_are_measured_at_most_an_epoch_of_them() -> None:
    rows = Counting()
    evaluate(uniform(), tiny_tokenizer(), rows, 5, together=2)
    assert rows.log == [0, 1, 2, 3, 4]
    rows.log.clear()
    evaluate(uniform(), tiny_tokenizer(), rows, 1000, together=7)
    assert rows.log == list(range(50))


def test_text_without_targets_has_no_loss() -> None:
    class Nothing(Counting):
        def read(self, indices: Sequence[int]) -> Examples:
            rows = super().read(indices)
            return Examples(rows.tokens, torch.full_like(rows.targets, IGNORE), rows.positions, rows.documents)

    found = evaluate(uniform(), tiny_tokenizer(), Nothing(), 3)
    assert math.isnan(found.loss) and found.bits_per_byte is None


@dataclass(frozen=True)
class Alone(Ranks):
    """One of several processes, whose sums are kept instead of sent."""

    kept: list[torch.Tensor] = field(default_factory=list)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self.kept.append(value.clone())
        return value


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_shares_of_all_processes_add_up(world: int) -> None:
    model, tokenizer, rows = random_model(CONFIGS["llama"]), tiny_tokenizer(), Counting()
    whole = evaluate(model, tokenizer, rows, 5)
    rows.log.clear()
    shares = [Alone(rank, world) for rank in range(world)]
    for share in shares:
        evaluate(model, tokenizer, rows, 5, ranks=share)
    nats, tokens, size = sum(share.kept[0] for share in shares).tolist()
    assert nats / tokens == pytest.approx(whole.loss, rel=1e-6)
    assert nats / math.log(2) / size == pytest.approx(whole.bits_per_byte, rel=1e-6)
    assert sorted(rows.log) == [0, 1, 2, 3, 4]


def test_the_model_is_left_as_it_was() -> None:
    model = random_model(CONFIGS["llama"])
    evaluate(model, tiny_tokenizer(), Counting(), 4)
    assert all(parameter.grad is None for parameter in model.parameters())
