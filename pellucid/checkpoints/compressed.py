"""Weights of few bits in Hugging Face folders: the layout "pack-quantized" of compressed-tensors, both ways.

transformers and vLLM open it (https://github.com/vllm-project/compressed-tensors). Beside `config.json`'s object
`quantization_config`, each matrix NAME.weight (out, in) becomes, with groups of g columns:
    NAME.weight_packed       int32 (out, in bits / 32): q - its least value, the first of them in the lowest bits
    NAME.weight_scale        (out, in / g): d
    NAME.weight_zero_point   int32 (ceil(out bits / 32), in / g): z, packed along the rows; only where it is not 0
    NAME.weight_shape        int64 (2,): out, in
and stands for w = d (q - z). As blocks (`operations/blocks.py`): Q8_0 and Q4_0 have no z, and Q4_1 has the minimum
m = -d z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.layers.quantised import Blocks
from pellucid.models.config import ModelConfig
from pellucid.models.families import Family, parameter_shapes
from pellucid.operations.blocks import BLOCK, RANGE, Parts, from_blocks, pack, unpack, values

PACKED = ".weight_packed"
BESIDE = (".weight_scale", ".weight_zero_point", ".weight_shape")


@dataclass(frozen=True, slots=True)
class Layout:
    """What a `quantization_config` says: bits of a weight, whether there are zero points, columns of a group."""

    bits: int
    symmetric: bool
    group: int = BLOCK

    @property
    def format(self) -> str:
        """The blocks that hold the same."""
        return "Q8_0" if self.bits == 8 else "Q4_0" if self.symmetric else "Q4_1"

    def shape(self, packed: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a matrix of which NAME.weight_packed has the shape `packed`. `InputError`: it is no matrix."""
        if len(packed) != 2:
            raise InputError(f"packed weights of the shape {packed} are no matrix: fetch the model again")
        return (packed[0], packed[1] * 32 // self.bits)


def layout_of(format: str) -> Layout:  # noqa: A002 (what GGUF calls it)
    """The layout of blocks of a format."""
    return Layout(8 if format == "Q8_0" else 4, format != "Q4_1")


def write_config(layout: Layout, kept: Iterable[str]) -> dict[str, Any]:
    """The object `quantization_config`. kept: the linear layers whose matrices are left as they are."""
    weights = {
        "num_bits": layout.bits, "type": "int", "symmetric": layout.symmetric, "strategy": "group",
        "group_size": layout.group, "dynamic": False, "observer": "minmax",
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"format": "pack-quantized"}},
        "ignore": sorted(kept),
        "pellucid_version": version("pellucid"),
    }


def read_config(config: Any) -> Layout:
    """The layout that a `quantization_config` tells of. Raises `InputError` for what is not read here."""
    if not isinstance(config, dict):
        raise InputError(f"quantization_config must be an object, and is {config!r}")
    method, form = config.get("quant_method"), config.get("format")
    if (method, form) != ("compressed-tensors", "pack-quantized"):
        raise InputError(
            f"the weights are quantised by {method!r} in the format {form!r}; only compressed-tensors in the format "
            "pack-quantized is read: fetch the model unquantised, or as a GGUF file"
        )
    groups = config.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    weights = groups[0].get("weights") if len(groups) == 1 and isinstance(groups[0], dict) else None
    if not isinstance(weights, dict) or groups[0].get("input_activations"):
        raise InputError("quantization_config must have one group, of weights alone, for this model to be read")
    bits, symmetric, size = weights.get("num_bits"), weights.get("symmetric", True), weights.get("group_size")
    plain = weights.get("type") == "int" and weights.get("strategy") == "group" and not weights.get("actorder")
    if plain and isinstance(size, int) and size > 0 and size % BLOCK == 0:
        for bits_read, symmetric_read in ((8, True), (4, True), (4, False)):
            if (bits, symmetric) == (bits_read, symmetric_read):
                return Layout(bits_read, symmetric_read, size)
    raise InputError(
        f"the weights are quantised to {bits} bits, symmetric = {symmetric}, in groups of {size}: what is read are "
        f"integers of 4 bits, or of 8 without zero points, in groups of a multiple of {BLOCK} columns, in order"
    )


def replace(
    config: ModelConfig,
    family: Family | None,
    state: Mapping[str, Tensor],
    blocks: Mapping[str, Blocks],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `quantization_config` and the tensors of a folder in which `blocks` stand in place of matrices.

    state: all tensors, by the family's names; blocks: by ours, all of one format.
    """
    names = names_in(config, family, blocks)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem = name.removesuffix(".weight")
        if stem in names:
            tensors |= {stem + part: value for part, value in compress(blocks[names[stem]]).items()}
        else:
            tensors[name] = tensor
    [layout] = {layout_of(one.format) for one in blocks.values()}
    kept = [stem for stem, name in names_in(config, family, linear_layers(config)).items() if name not in blocks] + (
        ["lm_head"] if config.tie_embeddings else []
    )
    return write_config(layout, kept), tensors


def linear_layers(config: ModelConfig) -> list[str]:
    """Our names of the matrices of linear layers."""
    tables = ("embedding.weight", "positions.weight")
    return [name for name, shape in parameter_shapes(config).items() if len(shape) == 2 and name not in tables]


def compress(blocks: Blocks) -> dict[str, Tensor]:
    """The tensors of a matrix, by what follows NAME. The minima of its blocks must be whole multiples of the scales.

    Scales are float16, and for readers that compute in bfloat16 they should have no more than its bits.
    """
    layout, parts = layout_of(blocks.format), unpack(blocks.data, blocks.format)
    out, groups, _ = parts.integers.shape
    least = -(1 << layout.bits - 1) if layout.symmetric else 0
    tensors = {
        PACKED: _pack((parts.integers.flatten(1).int() - least), layout.bits),
        ".weight_scale": parts.scale.half(),
        ".weight_shape": torch.tensor([out, groups * BLOCK]),
    }
    if parts.minimum is not None:
        zero = torch.where(parts.scale == 0, 0, -parts.minimum / parts.scale)
        assert bool((zero == zero.round().clamp(*RANGE["Q4_1"])).all()), "the minima are no multiples of the scales"
        tensors[".weight_zero_point"] = _pack(zero.int().T, layout.bits).T.contiguous()
    return tensors


def decompress(name: str, layout: Layout, read: Callable[[str], Tensor]) -> Blocks | Tensor:
    """The matrix NAME.weight as blocks; as float32 numbers (out, in) where float16 scales do not hold it exactly.

    read: gives a tensor by its name. Raises `InputError` where the tensors do not fit together.
    """
    packed, scale = read(name + PACKED), read(name + ".weight_scale").float()
    if packed.dtype != torch.int32:
        raise InputError(f"{name + PACKED!r} holds {packed.dtype}, and int32 is wanted: fetch the model again")
    out, columns = layout.shape(tuple(packed.shape))
    if tuple(read(name + ".weight_shape").tolist()) != (out, columns) or columns % layout.group:
        raise InputError(f"{name + PACKED!r} is of a matrix of {(out, columns)}, which its shape or its groups deny")
    if tuple(scale.shape) != (out, columns // layout.group):
        raise InputError(f"{name}.weight_scale has the shape {tuple(scale.shape)}: a scale for each group is wanted")
    least = -(1 << layout.bits - 1) if layout.symmetric else 0
    integers = (_unpack(packed, layout.bits) + least).to(torch.int8).unflatten(1, (-1, BLOCK))
    minimum = None
    if not layout.symmetric:
        zero = _unpack(read(name + ".weight_zero_point").T.contiguous(), layout.bits).T[:out]
        if zero.shape != scale.shape:
            raise InputError(f"{name}.weight_zero_point does not hold {tuple(scale.shape)} numbers: fetch it again")
        minimum = (-zero * scale).repeat_interleave(layout.group // BLOCK, 1)
    parts = Parts(integers, scale.repeat_interleave(layout.group // BLOCK, 1), minimum)
    exact = all(torch.equal(part.half().float(), part) for part in parts[1:] if part is not None)
    return Blocks(pack(parts, layout.format), layout.format) if exact else values(parts)


def split_rows(
    family: Family, config: ModelConfig, name: str, columns: int, matrix: Blocks | Tensor
) -> dict[str, Blocks | Tensor]:
    """A matrix (out, columns) that the family calls `name`, by our name; by ours where it holds several in one."""
    data = matrix.data if isinstance(matrix, Blocks) else matrix
    ours = family.to_ours(config, name, torch.empty(len(data), columns, device="meta"))
    parts = zip(ours, data.split([len(rows) for rows in ours.values()]), strict=True)
    return {ours: matrix._replace(data=part) if isinstance(matrix, Blocks) else part for ours, part in parts}


def widened(matrix: Blocks | Tensor) -> Tensor:
    """The numbers of a matrix, float32."""
    return from_blocks(matrix.data, matrix.format) if isinstance(matrix, Blocks) else matrix


def names_in(config: ModelConfig, family: Family | None, matrices: Iterable[str]) -> dict[str, str]:
    """What the family calls these matrices of ours, without ".weight": {theirs: our parameter}.

    Raises `InputError` where it keeps one of them together with others or turned, which the layout cannot say.
    """
    if family is None:
        return {name.removesuffix(".weight"): name for name in matrices}
    meta = {name: torch.empty(shape, device="meta") for name, shape in parameter_shapes(config).items()}
    ours = {id(meta[name]): name for name in matrices}
    theirs = {theirs: ours[id(one)] for theirs, one in family.to_theirs(config, meta).items() if id(one) in ours}
    if lost := set(ours.values()) - set(theirs.values()):
        raise InputError(
            f"the layout of {family.model_type} folders has no place for {min(lost)!r} in few bits: "
            "write a GGUF file (a name that ends in .gguf)"
        )
    return {name.removesuffix(".weight"): one for name, one in theirs.items()}


def _pack(numbers: Tensor, bits: int) -> Tensor:
    """Numbers from 0 on, `32 / bits` of them in an int32. (rows, columns) -> (rows, ceil(columns bits / 32))"""
    each = 32 // bits
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % each)).unflatten(1, (-1, each)).long()
    words = (padded << torch.arange(0, 32, bits)).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _unpack(words: Tensor, bits: int) -> Tensor:
    """The reverse of `_pack`: (rows, n) int32 -> (rows, n 32 / bits) int32, what was padded too."""
    return (words.unsqueeze(2) >> torch.arange(0, 32, bits, dtype=torch.int32) & (1 << bits) - 1).flatten(1)
