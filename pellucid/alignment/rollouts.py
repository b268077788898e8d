"""Answers that a policy gives in training, drawn by the engine, each token with the chance that it was drawn with.

The engine runs a copy of the policy, on the native step where there is one, and takes over the policy's weights before
each round. What is drawn from is the model at a temperature, cut to a nucleus where top-p is below 1, and the
log-probabilities are those of that very distribution: learning from them is on policy at any temperature and top-p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.inference.engine import MAX_SEQUENCES, Engine
from pellucid.inference.events import Event
from pellucid.inference.generate import drawable
from pellucid.inference.params import SamplingParams
from pellucid.layers.lora import LoRALinear, widened
from pellucid.layers.nf4 import NF4Linear
from pellucid.layers.quantised import QuantisedLinear
from pellucid.models.decoder import Decoder

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer to one prompt.

    tokens: all that were drawn, the one that ends the turn too. logprobs: ln P of each, in the distribution that it was
    drawn from. among: how many tokens that distribution had, the likeliest ones: all, or those of the nucleus.
    text: without what ended it. ended: the policy ended it, and not the limit on its length.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    among: tuple[int, ...]
    text: str
    ended: bool


class Rollouts:
    """Draws answers of `policy`, as its weights were at the last `sync`.

    longest: tokens of a prompt and its answer together, at most. together: answers under way at once.
    dtype: what the copy computes in; None: as the policy does.
    """

    def __init__(
        self,
        policy: Decoder,
        tokenizer: Tokenizer,
        longest: int,
        *,
        together: int = MAX_SEQUENCES,
        dtype: torch.dtype | None = None,
        native: bool = True,
    ) -> None:
        self.policy = policy
        self.drawable = drawable(policy, tokenizer)  # how many tokens of the vocabulary can be drawn
        with torch.device("meta"):
            self.copy = Decoder(policy.config)
        self.copy.to(dtype or policy.dtype).to_empty(device=policy.device).requires_grad_(False).eval()
        self.copy.generation_config = policy.generation_config
        self._take_weights()
        blocks = together * -(-longest // 16)
        self.engine = Engine(
            self.copy, tokenizer, num_blocks=blocks, block_size=16, max_sequences=together, native=native,
            drawn_logprobs=True,
        )  # fmt: skip

    def sync(self) -> None:
        """Takes over the weights that the policy has now."""
        self._take_weights()
        self.engine.weights_changed()

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int], *, in_chat: bool = True
    ) -> list[Rollout]:
        """`params.n` answers to each prompt of token ids, the first prompt's first; each prompt has a seed, and on a
        CPU the same one draws the same answers whatever else is drawn.

        Raises `InputError` for a prompt without room for an answer, `PellucidError` where no token can be drawn.
        """
        place: dict[int, int] = {}  # the engine's number of a request -> which prompt
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            place[self.engine.add(prompt, params.with_({"seed": seed}), in_chat=in_chat)] = number
        drawn: list[list[list[Event]]] = [[[] for _ in range(params.n)] for _ in prompts]
        try:
            while self.engine.busy:
                for event in self.engine.step():
                    if event.finish_reason == "error":
                        raise PellucidError(f"a rollout cannot go on: {event.finish_detail}")
                    drawn[place[event.id]][event.index].append(event)
        finally:
            for request in place:
                self.engine.abort(request)
        pairs = zip(prompts, drawn, strict=True)
        return [rollout_of(prompt, answer) for prompt, answers in pairs for answer in answers]

    @torch.no_grad()
    def _take_weights(self) -> None:
        weights = dict(effective_weights(self.policy))
        for name, parameter in self.copy.named_parameters():
            parameter.copy_(weights[name])


def effective_weights(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """What a plain decoder needs to compute what `model` does, by name: with its active adapter, and of whatever type
    its matrices are."""
    within: set[str] = set()
    for path, layer in model.named_modules():
        if path.rpartition(".")[0] in within:
            within.add(path)
        elif isinstance(layer, LoRALinear):
            within.add(path)
            yield f"{path}.weight", widened(layer.base) if layer.active is None else layer.merged_weight(layer.active)
            if isinstance(layer.base.bias, Tensor):
                yield f"{path}.bias", layer.base.bias
        elif isinstance(layer, QuantisedLinear | NF4Linear):
            within.add(path)
            yield f"{path}.weight", widened(layer)
            if layer.bias is not None:
                yield f"{path}.bias", layer.bias
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in within:
            yield name, parameter


def rollout_of(prompt: Sequence[int], answer: Sequence[Event]) -> Rollout:
    logprobs, among = [], []
    for event in answer:
        assert event.logprob is not None and event.among is not None  # the engine has `drawn_logprobs`
        logprobs.append(event.logprob)
        among.append(event.among)
    return Rollout(
        tuple(prompt), tuple(event.token_id for event in answer), tuple(logprobs), tuple(among),
        "".join(event.text for event in answer), answer[-1].finish_reason == "stop",
    )  # fmt: skip
