"""How far a quantised model is from the one that it was made from, token for token, and how fast each of them is.

p are the original's probabilities of the next token and q the quantised model's. V vocabulary, T tokens of a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer

LOGITS = 1 << 23  # of each model at a time: 32 MB in float32
SPEED_TOKENS = 48
SPEED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Difference:
    """kl_mean, kl_99: KL(p || q) = sum_v p_v ln(p_v / q_v) in nats a token, the mean and the 99th percentile.
    perplexities: of the text, exp(mean -ln p(token)). agreement: the part of the tokens at which both hold the same
    next token the most likely. tokens: how many were compared."""

    tokens: int
    kl_mean: float
    kl_99: float
    perplexity_before: float
    perplexity_after: float
    agreement: float


@torch.inference_mode()
def compare(
    original: Decoder, quantised: Decoder, rows: Tensor, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> Difference:
    """Both models over the same text. rows: (rows, T) token ids. progress: told of rows done, and all.

    The logits of a few tokens stand in memory at a time.
    """
    divergences, losses, agreed = [], torch.zeros(2, dtype=torch.float64), 0
    progress(0, len(rows))
    for done, row in enumerate(rows, start=1):
        hidden = [model.hidden(row[None, :-1])[0] for model in (original, quantised)]  # (T - 1, E)
        few = max(1, LOGITS // original.config.vocab_size)
        for start in range(0, len(row) - 1, few):
            targets = row[start + 1 : start + 1 + few]
            p, q = (
                model.logits(one[start : start + few]).float().log_softmax(1)
                for model, one in zip((original, quantised), hidden, strict=True)
            )  # (n, V)
            divergences.append((p.exp() * (p - q)).sum(1))
            losses -= torch.stack([one.gather(1, targets[:, None]).double().sum() for one in (p, q)])
            agreed += int((p.argmax(1) == q.argmax(1)).sum())
        progress(done, len(rows))
    kl = torch.cat(divergences).double().clamp(min=0)  # rounding takes it a little below 0 where the two are equal
    before, after = (losses / len(kl)).tolist()
    return Difference(
        tokens=len(kl),
        kl_mean=float(kl.mean()),
        kl_99=float(kl.quantile(0.99)),
        perplexity_before=math.exp(min(before, 700.0)),
        perplexity_after=math.exp(min(after, 700.0)),
        agreement=agreed / len(kl),
    )


def tokens_per_second(model: Decoder, tokenizer: Tokenizer, prompt: list[int]) -> float:
    """Tokens a second that the engine writes for one request, the faster of two rounds, after the first token."""
    engine = Engine(model, tokenizer, max_sequences=1)
    count = min(SPEED_TOKENS, model.config.max_positions - len(prompt))
    best = 0.0
    for _ in range(SPEED_ROUNDS):
        engine.add(prompt, SamplingParams(temperature=0, max_tokens=count, ignore_eos=True))
        seen, began = 0, 0.0
        while engine.busy:
            for event in engine.step():
                if event.finish_reason == "error":
                    raise PellucidError(f"the speed cannot be measured: {event.finish_detail}")
                seen += 1
            began = began or time.perf_counter()
        best = max(best, (seen - 1) / (time.perf_counter() - began))
    return best
