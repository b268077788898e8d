"""How well a model predicts text: loss, perplexity, bits per byte."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from pellucid.data.examples import IGNORE, Examples, Rows
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.loss import next_token_loss
from pellucid.training.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """loss: nats a token. perplexity: e^loss. bits_per_byte: of the text that the tokens stand for, so that models
    with different vocabularies can be compared; None where the tokens stand for no text."""

    loss: float
    perplexity: float
    bits_per_byte: float | None

    def metrics(self, prefix: str) -> dict[str, float | None]:
        return {f"{prefix}_{name}": value for name, value in asdict(self).items()}


@torch.no_grad()
def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    rows: Rows,
    count: int,
    *,
    together: int = 8,
    autocast: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """The first `count` rows (at most an epoch), `together` at a time; each process takes its share of them."""
    ranks = ranks or Ranks()
    device = model.device
    sizes = byte_counts(tokenizer).to(device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # nats, tokens, bytes
    share = ranks.share(range(min(count, len(rows))))
    with torch.compiler.set_stance("force_eager"):  # no second compilation for what runs now and then
        for start in range(share.start, share.stop, together):
            examples = rows.read(range(start, min(start + together, share.stop))).to(device)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                total = next_token_loss(model, examples)
            sums += torch.stack((total.double(), *counts(examples, sizes)))
    nats, tokens, size = ranks.sum(sums).tolist()
    loss = nats / tokens if tokens else math.nan
    return Evaluation(loss, math.exp(min(loss, 700.0)), nats / math.log(2) / size if size else None)


def counts(examples: Examples, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many targets count, and how many bytes of text they stand for; float64."""
    targets = examples.targets[examples.targets != IGNORE]
    return torch.tensor(len(targets), dtype=torch.float64, device=sizes.device), sizes[targets].sum()


def byte_counts(tokenizer: Tokenizer) -> torch.Tensor:
    """How many bytes of text each id stands for, (V,) float64; control tokens stand for none."""
    control = set(tokenizer.special_tokens.values())
    known = tokenizer.pieces.contents
    sizes = [
        len(tokenizer.token_bytes(number)) if number in known and number not in control else 0
        for number in range(tokenizer.vocab_size)
    ]
    return torch.tensor(sizes, dtype=torch.float64)
