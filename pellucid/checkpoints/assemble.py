"""Tensors into a `Decoder` without a second copy: the model is built without memory and takes the tensors over."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from pellucid.errors import InputError, did_you_mean
from pellucid.layers.nf4 import NF4, from_nf4, to_nf4
from pellucid.layers.quantised import Blocks
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import in_nf4, is_matrix, parse_scheme, put_blocks, put_nf4
from pellucid.operations.blocks import BLOCK, BYTES, to_blocks

Named: TypeAlias = Mapping[str, Tensor | Blocks]
Ready: TypeAlias = dict[str, Tensor | Blocks | NF4]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

STORED = "stored"  # matrices that lie in blocks of integers stay so
IN_NF4, AS_NF4 = "nf4", "as nf4"  # those of the blocks are rounded to NF4; the second: and widened again
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


def parse_quantize(quantize: str | None) -> str | None:
    """What `load` is asked for, with the format of a scheme in place of its name."""
    return quantize if quantize in (None, STORED, IN_NF4, AS_NF4) else parse_scheme(quantize)


def keeps(quantize: str | None, stored: str) -> bool:
    """Whether a matrix in the blocks `stored` stays as it lies."""
    return quantize in (STORED, stored) and stored in BYTES


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
    config: ModelConfig,
    names: Iterable[str],
    read: Callable[[str], Named],
    dtype: torch.dtype,
    device: str,
    quantize: str | None,
    make: Callable[[ModelConfig], Decoder] = Decoder,
) -> Decoder:
    """What `make` makes of `config`, with the tensors which `read` gives for `names`, cast to `dtype` where need be.

    quantize: a format that matrices are rounded to as they are read, "nf4" or "as nf4"; None and "stored": they are
    what `read` gives.
    Reads on as many threads as PyTorch uses: dequantising and casting leave the interpreter free.
    """
    target = quantize if quantize in BYTES else None

    def place(name: str) -> Ready:
        return {ours: ready(ours, given) for ours, given in read(name).items()}

    def ready(name: str, given: Tensor | Blocks) -> Tensor | Blocks | NF4:
        if isinstance(given, Tensor) and quantize in (IN_NF4, AS_NF4) and in_nf4(name, given):
            matrix = to_nf4(given.to(device))
            return matrix if quantize == IN_NF4 else from_nf4(matrix, dtype)
        if isinstance(given, Tensor) and target is not None and is_matrix(name, given) and not given.shape[1] % BLOCK:
            given = Blocks(to_blocks(given, target), target)
        if isinstance(given, Blocks):
            return given._replace(data=given.data.to(device).contiguous())
        return given.to(device, dtype).contiguous()

    with torch.device("meta"):
        model = make(config)
    state: dict[str, Tensor] = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for part in pool.map(place, names):
            for name, given in part.items():
                if isinstance(given, Blocks):
                    put_blocks(model, name, given, dtype)
                    state[name.removesuffix("weight") + "blocks"] = given.data
                elif isinstance(given, NF4):
                    put_nf4(model, name, given)
                    buffers = zip(NF4._fields[1:], given[1:], strict=True)
                    state |= {name.removesuffix("weight") + field: buffer for field, buffer in buffers}
                else:
                    state[name] = given
    give_back_memory()
    model.load_state_dict(state, strict=True, assign=True)
    if target is not None:
        say_what_stays(model, target)
    return model


def give_back_memory() -> None:
    """Freed memory goes back to the system, where glibc would keep it for the threads that read, which are gone."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def say_what_stays(model: Decoder, target: str) -> None:
    """A warning where rows are no whole blocks, so that their matrices could not be rounded."""
    plain = [name for name, weight in model.named_parameters() if is_matrix(name, weight)]
    if plain:
        warnings.warn(
            f"{len(plain)} matrices stay in {str(model.dtype).removeprefix('torch.')}, because their rows are no "
            f"multiple of {BLOCK} and {target} has blocks of so many ({plain[0]!r} is one)",
            stacklevel=2,
        )
