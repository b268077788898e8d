"""Tensors into a `Decoder`, without a second copy of them: the model is built without memory and takes the tensors over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from pellucid.errors import InputError, did_you_mean
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder

Named: TypeAlias = dict[str, Tensor]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype of that name, or None for "auto" (the checkpoint's own)."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype == "auto":
        return None
    if dtype not in DTYPES:
        names = ["auto", *DTYPES]
        raise InputError(f"dtype = {dtype!r}: it must be one of {', '.join(names)}{did_you_mean(dtype, names)}")
    return DTYPES[dtype]


def read_all(names: Iterable[str], read: Callable[[str], Named]) -> Iterator[Named]:
    """`read` of each name, in order, on as many threads as PyTorch uses (dequantising leaves the interpreter free)."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(read, names)


def assemble(config: ModelConfig, tensors: Iterable[Named], dtype: torch.dtype, device: str, where: Path) -> Decoder:
    """A `Decoder` of `config` that holds these very tensors, cast to `dtype` where they are not of it.

    Raises `InputError` that names the first tensor of `where` that is missing, spare, misshapen or there twice.
    """
    with torch.device("meta"):
        model = Decoder(config)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    state: Named = {}
    for part in tensors:
        for name, tensor in part.items():
            if name not in wanted:
                raise InputError(f"{where}: the tensor {name!r} has no place in a model of this config")
            if name in state:
                raise InputError(f"{where}: two tensors claim the place {name!r}")
            if tensor.shape != wanted[name]:
                seen, expected = tuple(tensor.shape), tuple(wanted[name])
                raise InputError(f"{where}: the tensor {name!r} has the shape {seen}; the config asks for {expected}")
            state[name] = tensor.to(device, dtype).contiguous()
    missing = [name for name in wanted if name not in state]
    if missing:
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise InputError(f"{where}: the tensor {missing[0]!r} is missing{others}")
    model.load_state_dict(state, strict=True, assign=True)
    return model
