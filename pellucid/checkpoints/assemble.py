"""Tensors into a `Decoder` without a second copy: the model is built without memory and takes the tensors over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from pellucid.errors import InputError, did_you_mean
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder

Named: TypeAlias = dict[str, Tensor]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

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


def check_tensors(seen: Shapes, wanted: Shapes, where: Path) -> None:
    """Compares what the headers of `where` say with what the config asks for, before anything is read.

    Raises `InputError` that names the first tensor that is missing, spare or misshapen.
    """
    missing = [name for name in wanted if name not in seen]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{where}: the tensor {missing[0]!r} is missing{others}")
    for name, shape in seen.items():
        if name not in wanted:
            raise InputError(
                f"{where}: the tensor {name!r} has no place in a model of this config{did_you_mean(name, wanted)}"
            )
        if shape != wanted[name]:
            raise InputError(f"{where}: the tensor {name!r} has the shape {shape}; the config asks for {wanted[name]}")


def assemble(
    config: ModelConfig, names: Iterable[str], read: Callable[[str], Named], dtype: torch.dtype, device: str
) -> Decoder:
    """A `Decoder` of `config` that holds the tensors which `read` gives for `names`, cast to `dtype` where need be.

    Reads on as many threads as PyTorch uses: dequantising and casting leave the interpreter free.
    """

    def place(name: str) -> Named:
        return {ours: tensor.to(device, dtype).contiguous() for ours, tensor in read(name).items()}

    with torch.device("meta"):
        model = Decoder(config)
    state: Named = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for part in pool.map(place, names):
            state |= part
    model.load_state_dict(state, strict=True, assign=True)
    return model
