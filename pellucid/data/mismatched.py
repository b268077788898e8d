"""Prompts with answers to other prompts: what KTO measures a policy's distance from its reference on.

z_0 = max(0, mean over pairs of log pi(y' | x) / ref(y' | x)),  y' an answer to another prompt  (Ethayarajh et al. 2024)
"""

from __future__ import annotations

import numpy as np
import torch

from pellucid.data.examples import IGNORE, Examples
from pellucid.data.order import permutation
from pellucid.data.packing import Ints
from pellucid.data.pairs import Pairs
from pellucid.layers.batch import PADDING

MOST = 64  # pairs that are tried


def partner(pairs: Pairs, numbers: Ints) -> Ints:
    """The pair whose better answer each of these gets: all pairs stand in a ring, in a drawn order, and it is the next
    one that has another prompt.

    So every pair has another one than itself (if there is another), the same one always; one with its own prompt only
    where the `MOST` that follow it all have that.
    """
    order = permutation(pairs.num_pairs, "partner", pairs.seed)(np.arange(pairs.num_pairs))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    following = np.arange(1, min(MOST, len(order)) + 1)
    found = order[(place[numbers] + 1) % len(order)]
    for row, number in enumerate(numbers.tolist()):
        own = pairs.prompt(number)
        ring = order[(place[number] + following) % len(order)].tolist()
        found[row] = next((other for other in ring if pairs.prompt(other) != own), found[row])
    return found


def mismatched(pairs: Pairs, numbers: Ints) -> Examples:
    """The prompt of each of these pairs with the better answer of its partner, a row each, cut where it is too long.

    Only the answer is learnt from. (P, the tokens of the longest).
    """
    rows = []
    for number, other in zip(numbers.tolist(), partner(pairs, numbers).tolist(), strict=True):
        (own, said), (theirs, meant) = pairs.answers(number)[0], pairs.answers(other)[0]
        prompt, answer = own[: said.argmax()], theirs[meant.argmax() :]
        rows.append((np.concatenate([prompt, answer])[: pairs.length], len(prompt)))
    width = max((len(ids) for ids, _ in rows), default=1)
    tokens = np.zeros((len(rows), width), np.int64)
    targets, documents = np.full_like(tokens, IGNORE), np.full_like(tokens, PADDING)
    for row, (ids, start) in enumerate(rows):
        tokens[row, : len(ids)] = ids
        targets[row, start - 1 : len(ids) - 1] = ids[start:]
        documents[row, : len(ids)] = 0
    positions = np.where(documents == PADDING, 0, np.arange(width))
    return Examples(*map(torch.from_numpy, (tokens, targets, positions, documents)))
