"""How far a policy has gone from its reference, in what it says itself.

KL(pi || ref) = E over y ~ pi of log pi(y | x) / ref(y | x), in nats an answer: drawn, not computed in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch

from pellucid.alignment.before_after import TOGETHER, Question
from pellucid.data.examples import IGNORE
from pellucid.data.order import random_number
from pellucid.inference.engine import Engine
from pellucid.inference.output import Outputs
from pellucid.inference.params import SamplingParams
from pellucid.layers.batch import Batch
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.log_probs import sequence_log_probs


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(pi || ref) as the mean over `answers` drawn ones, in nats an answer, and the standard error of that mean."""

    kl: float
    error: float
    answers: int


@torch.no_grad()
def sampled_divergence(
    policy: Decoder, reference: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], max_tokens: int, seed: int
) -> Divergence:
    """One answer of the policy to each question, drawn at temperature 1 from the whole distribution.

    Answers are at most `max_tokens` long: of longer ones, so much of the beginning counts.
    """
    engine = Engine(policy, tokenizer, max_sequences=TOGETHER)
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=max_tokens)
    with Outputs(engine) as outputs:
        for number, question in enumerate(questions):  # each has draws of its own, so that their errors are independent
            drawn = params.with_({"seed": random_number(2**62, "divergence", seed, number)})
            outputs.add(question.ids, drawn, in_chat=True)
        answers = [output.answers[0] for output in outputs.answered()]
    ratios = []
    for question, answer in zip(questions, answers, strict=True):
        one, other = (answer_log_prob(model, question.ids, answer.token_ids) for model in (policy, reference))
        ratios.append(one - other)
    error = stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.inf
    return Divergence(fmean(ratios), error, len(ratios))


def answer_log_prob(model: Decoder, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """log pi(answer | prompt), in nats."""
    tokens = torch.tensor([[*prompt, *answer]], device=model.device)
    targets = tokens.roll(-1, 1)
    targets[:, : len(prompt) - 1] = targets[:, -1:] = IGNORE
    positions = torch.arange(tokens.shape[1], device=model.device)[None]
    batch = Batch(positions, torch.zeros_like(tokens))
    found = sequence_log_probs(model, tokens, targets, batch, torch.zeros(1, 2, dtype=torch.int64, device=model.device))
    return float(found[0])
