"""A decoder with a small head in place of the large one: labels of a text, or one number that says how good it is.

Reward models and value models are such (Ouyang et al. 2022, section 3.5). B batch, T tokens, E hidden size, L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.layers.batch import Batch
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder


class Classifier(Decoder):
    """A decoder whose head `score` reads the last token of a text, which has seen all of it. It writes no text.

    config: of the decoder; there is no head over the vocabulary, so `tie_embeddings` is true whatever it was.
    `model(tokens, batch)` gives the scores of all labels, (B, T, L).
    """

    def __init__(self, config: ModelConfig, labels: int = 1, seed: int = 0):
        super().__init__(self.config_of(config), seed)
        self.score = new_score(config.hidden_size, labels, self.device, seed)

    @staticmethod
    def config_of(config: ModelConfig) -> ModelConfig:
        """The config of a classifier on the decoder of this one."""
        return ModelConfig(**{**config.model_dump(exclude_unset=True), "tie_embeddings": True})

    @classmethod
    def of(cls, model: Decoder, labels: int = 1, seed: int = 0) -> Classifier:
        """One that reads what `model` reads: its modules are taken over, nothing is copied. seed: of the new head."""
        with torch.device("meta"):
            made = cls(model.config, labels)
        for name, part in model.named_children():
            if name not in ("head", "score"):
                setattr(made, name, part)
        made.score = new_score(model.config.hidden_size, labels, model.device, seed).to(model.dtype)
        return made.train(model.training)

    @property
    def labels(self) -> int:
        """L."""
        return len(self.score.weight)

    def scores(self, tokens: Tensor, batch: Batch | None = None) -> Tensor:
        """tokens: (B, T) -> the first label's score at every token, (B, T): a reward, or a value."""
        scores: Tensor = self(tokens, batch)[..., 0]
        return scores

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., E) -> (..., L)."""
        scores: Tensor = self.score(hidden)
        return scores


def new_score(hidden_size: int, labels: int, device: torch.device, seed: int) -> nn.Linear:
    """The head before its first step: N(0, 1 / (E + 1)), by which scores begin near 0 with a spread near 1 (Stiennon
    et al. 2020, appendix B.1). The same seed gives the same weights; on the meta device there are none."""
    score = nn.Linear(hidden_size, labels, bias=False, device="meta")
    if device.type == "meta":
        return score
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(labels, hidden_size).normal_(0.0, (hidden_size + 1) ** -0.5, generator=generator)
    score.weight = nn.Parameter(weight.to(device))
    return score
