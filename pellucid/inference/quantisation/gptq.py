"""GPTQ (Frantar et al. 2022, "GPTQ: Accurate post-training quantization for generative pre-trained transformers").

Rounding each weight to nearest leaves the errors of a row to chance. What counts is the layer's output, so the error
of a weight that has been rounded is made up for by those of its row that are not yet. With X the inputs (tokens, in):
    minimise |W X^T - Q X^T|^2,   whose Hessian is the same for every row:   H = 2 X^T X.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.inference.quantisation.rounding import Grid
from pellucid.operations.blocks import BLOCK, Parts, pack

# Of the mean of H's diagonal, added to the diagonal (section 3.3, step 3). The paper has 0.01 and 260,000 tokens of
# text; with the few thousand that are quick on a processor 0.1 errs less on other text: what H says of rare
# directions is then mostly noise.
DAMPING = 0.1


class Hessian:
    """X^T X of all inputs of a layer, summed up as they pass. The factor 2 changes nothing in what follows."""

    def __init__(self, inputs: int, layer: str = "a layer"):
        self.layer = layer
        self.sum = torch.zeros(inputs, inputs)

    def add(self, x: Tensor) -> None:
        """x: (..., in)."""
        x = x.detach().flatten(0, -2).float()
        self.sum.addmm_(x.T, x)

    def inverse_root(self) -> Tensor:
        """U, upper triangular, with H^-1 = U^T U. (in, in) float32

        Raises `PellucidError` where inputs were not finite.
        """
        if not bool(self.sum.isfinite().all()):
            raise PellucidError(f"{self.layer} read numbers that are not finite, so it cannot learn: use --method rtn")
        h = self.sum.double()
        diagonal = h.diagonal()
        diagonal += DAMPING * diagonal.mean()
        diagonal[diagonal == 0] = 1  # nothing ever came in there, or anywhere
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        return torch.linalg.cholesky(inverse, upper=True).float()


def gptq(weight: Tensor, root: Tensor, grid: Grid) -> Tensor:
    """Algorithm 1 with groups of 32 columns, whose scales are chosen when their turn comes.

    weight: (out, in); root: `Hessian.inverse_root` (in, in). -> blocks (out, row bytes) uint8.
    Raises `InputError` as `to_blocks` does.
    """
    left = weight.detach().float().clone()  # what is not yet rounded, with what it has to make up for
    parts = []
    for start in range(0, left.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        part, errors = _round_group(left[:, columns], root[columns, columns], grid)
        parts.append(part)
        left[:, start + BLOCK :] -= errors @ root[columns, start + BLOCK :]
    integers, scale = torch.stack([part.integers for part in parts], 1), torch.stack([part.scale for part in parts], 1)
    minima = [part.minimum for part in parts if part.minimum is not None]
    return pack(Parts(integers, scale, torch.stack(minima, 1) if minima else None), grid.format)


def _round_group(group: Tensor, root: Tensor, grid: Grid) -> tuple[Parts, Tensor]:
    """Rounds the columns of a group one after the other; what is left over of each goes to those after it.

    group: (out, 32), which is overwritten; root: its square of U, (32, 32).
    -> integers (out, 32), scale and minimum (out,), and the errors (out, 32) that are to be spread over later groups.
    """
    diagonal = root.diagonal()
    # Rounding column i costs (w - q)^2 / U_ii^2 once the columns after it have done what they can (eq. 2).
    scale, minimum = grid.fit(group.unsqueeze(1), diagonal**-2)
    d, m = scale.squeeze(1), None if minimum is None else minimum.squeeze(1)
    integers, errors = torch.empty_like(group), torch.empty_like(group)
    for i in range(BLOCK):
        q = grid.integers(group[:, i], d, m)
        rounded = q * d if m is None else q * d + m
        error = (group[:, i] - rounded) / diagonal[i]
        group[:, i + 1 :] -= torch.outer(error, root[i, i + 1 :])  # eq. 3
        integers[:, i], errors[:, i] = q, error
    return Parts(integers.to(torch.int8), d, m), errors
