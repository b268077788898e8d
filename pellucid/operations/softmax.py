"""The native kernels of `softmax.cpp`: loaded once, called on tensors. PyTorch's own path stands beneath them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pellucid import native

SOURCE = Path(__file__).with_name("softmax.cpp")
# torch's own OpenMP library serves both. Without errno and traps, the compiler can vectorise.
FLAGS = ("-fopenmp", "-fno-math-errno", "-fno-trapping-math")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had (`why_not` says why)."""
    loaded = native.load(SOURCE, *FLAGS)
    if loaded is not None:
        pointer, number, scale = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
        for kind in TYPES.values():
            getattr(loaded, f"attend_{kind}").argtypes = [*[pointer] * 2, *[number] * 8, scale]
            getattr(loaded, f"attend_backward_{kind}").argtypes = [*[pointer] * 3, *[number] * 8, scale]
            getattr(loaded, f"cross_entropy_{kind}").argtypes = [*[pointer] * 3, *[number] * 2]
    return loaded


def why_not(dtype: torch.dtype) -> str | None:
    """Why there are no kernels for tensors of `dtype` on the CPU, in a few words; None where there are."""
    if dtype not in TYPES:
        return f"its type is {str(dtype).removeprefix('torch.')}"
    return None if library() is not None else native.why_not(SOURCE, *FLAGS)


def attend(scores: Tensor, first: Tensor, tokens: int, start: int, skip: int, scale: float) -> None:
    """In place: scores -> softmax(scale * scores) over the keys that each query sees, 0 elsewhere.

    scores: (rows, heads, queries, keys), contiguous; query q is the token start + q % tokens of its row, which sees the
    keys from first[row, token] to itself; the first key is token number `skip`. first: (rows, T), int32, contiguous.
    """
    if why_not(scores.dtype) is not None:
        scores.copy_(_softmax(scores, first, tokens, start, skip, scale))
        return
    kernel = getattr(library(), f"attend_{TYPES[scores.dtype]}")
    kernel(scores.data_ptr(), first.data_ptr(), *scores.shape, tokens, start, skip, first.shape[1], scale)


def attend_backward(
    scores: Tensor, gradient: Tensor, first: Tensor, tokens: int, start: int, skip: int, scale: float
) -> None:
    """In place: scores -> what `attend` makes of them; the gradient of that -> the gradient of the scores."""
    if why_not(scores.dtype) is not None:
        shares = _softmax(scores, first, tokens, start, skip, scale)
        upstream = gradient.to(shares.dtype)
        # dL/ds_j = scale * p_j (g_j - sum_k p_k g_k)
        gradient.copy_(scale * shares * (upstream - (shares * upstream).sum(-1, keepdim=True)))
        scores.copy_(shares)
        return
    kernel = getattr(library(), f"attend_backward_{TYPES[scores.dtype]}")
    pointers = (scores.data_ptr(), gradient.data_ptr(), first.data_ptr())
    kernel(*pointers, *scores.shape, tokens, start, skip, first.shape[1], scale)


def _softmax(scores: Tensor, first: Tensor, tokens: int, start: int, skip: int, scale: float) -> Tensor:
    """What `attend` gives, by PyTorch, in float32 at least."""
    queries, keys = scores.shape[2:]
    token = start + torch.arange(queries) % tokens
    key = skip + torch.arange(keys)
    sees = (key >= first[:, token, None]) & (key <= token[:, None])  # (rows, queries, keys)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    return wide.masked_fill(~sees[:, None], -torch.inf).softmax(-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] of each row, (n,), and its gradient: softmax(logits) - onehot(target), (n, V).

    logits: (n, V), contiguous, which may be overwritten by the gradient; targets: (n,), int64, in [0, V). The losses
    are of float32 at least.
    """
    if logits.device.type == "cpu" and why_not(logits.dtype) is None:
        losses = torch.empty(len(logits), dtype=torch.float32)
        kernel = getattr(library(), f"cross_entropy_{TYPES[logits.dtype]}")
        kernel(logits.data_ptr(), targets.contiguous().data_ptr(), losses.data_ptr(), *logits.shape)
        return losses, logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logsum = wide.logsumexp(-1, keepdim=True)  # (n, 1)
    losses = (logsum - wide.gather(-1, targets[:, None]))[:, 0]
    gradient = (wide - logsum).exp_()
    gradient.scatter_add_(-1, targets[:, None], gradient.new_full((), -1.0).expand(len(targets), 1))
    return losses, gradient.to(logits.dtype)
