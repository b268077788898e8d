"""`pellucid doctor`: what this machine has, what is in use of it, and why the rest is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pellucid.operations.hardware import Features, Precision

Report = dict[str, Any]

# Instruction sets that decide the speed of matrix products, by architecture: shown whether they are there or not.
EXPECTED = {
    "x86_64": ("AVX2", "AVX512F", "AVX512-BF16", "AVX512-VNNI", "AMX-BF16"),
    "aarch64": ("NEON", "NEON-DOT", "ARM-BF16", "ARM-I8MM", "SVE"),
}
WITH_BFLOAT16 = {"AVX512-BF16", "AMX-BF16", "ARM-BF16"}
VARIABLES = (
    "PELLUCID_PRECISION",
    "PELLUCID_THREADS",
    "PELLUCID_CACHE",
    "PELLUCID_NATIVE",
    "CXX",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Choose threads and precision anew instead of remembering.")
    ] = False,
) -> None:
    """Say what this machine has and can do, which precision, threads and kernels are in use, and why no others.

    Takes a few seconds. The variables PELLUCID_PRECISION (float32, bfloat16, float16) and PELLUCID_THREADS override
    the choices.

    Example: pellucid doctor --json
    """
    report = examine(remeasure)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def examine(remeasure: bool = False) -> Report:
    """Everything that `pellucid doctor` says, by section. Measures for a few seconds."""
    import torch

    from pellucid.operations.ceilings import measure_ceilings
    from pellucid.operations.hardware import best_precision, best_threads, features

    machine = features()
    threads = best_threads(remeasure=remeasure)
    torch.set_num_threads(threads.count)
    ceilings = measure_ceilings()
    precision = best_precision(remeasure=remeasure)
    training = examine_training(remeasure)
    return {
        "machine": examine_machine(machine),
        "torch": examine_torch(machine),
        "ceilings": {"matmul_gflops": ceilings.matmul, "memory_read_gb_per_s": ceilings.memory_read},
        "threads": asdict(threads),
        "precision": {**asdict(precision), "refused": why_not(precision, machine)},
        "training": training,
        "kernels": examine_kernels(),
        "models": examine_models(),
        "folders": examine_folders(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "notes": list(notes(machine)),
    }


def examine_machine(machine: Features) -> dict[str, Any]:
    expected = EXPECTED.get(machine.architecture, ())
    compilers = (shutil.which(name) for name in ("c++", "g++", "clang++"))
    return {
        "processor": machine.processor,
        "architecture": machine.architecture,
        "instructions": list(machine.instructions),
        "missing": [name for name in expected if name not in machine.instructions],
        "cores": machine.cores,
        "memory_total": machine.memory_total,
        "memory_available": machine.memory_available,
        "gpus": list(machine.gpus),
        "compiler": next((path for path in compilers if path), None),
    }


def examine_torch(machine: Features) -> dict[str, Any]:
    return {
        "version": machine.torch_version,
        "vector_instructions": machine.torch_capability,
    }


def examine_training(remeasure: bool) -> dict[str, Any]:
    """The precision that models are trained in, or why there is none: `PELLUCID_PRECISION` may name one that only
    answers."""
    from pellucid.errors import InputError
    from pellucid.training.precision import best_training_precision

    try:
        return asdict(best_training_precision(remeasure=remeasure))
    except InputError as error:
        return {"name": None, "reason": f"not possible: {error}", "seconds": {}}


def examine_kernels() -> dict[str, Any]:
    """What encodes text, and what computes the steps of a model that generates."""
    from pellucid import native
    from pellucid.tokenizer.bpe_native import SOURCE

    encoder = native.built(SOURCE)
    by = f"native, compiled by {encoder.compiler}" if encoder.library else f"Python, not native: {encoder.reason}"
    return {
        "tokenizer": by,
        "native_step": examine_step(),
        "gpu_step": examine_gpu_step(),
    }


def examine_step() -> dict[str, Any]:
    """For which weights there is a native step, how it was compiled and how it runs; or why there is none.

    weights: types of numbers, and GGUF's names of blocks of integers. instructions: those that it was compiled for.
    """
    import torch

    from pellucid import native
    from pellucid.operations import step

    built = native.built(step.SOURCE, *step.FLAGS)
    if built.library is None:
        return {"weights": [], "instructions": [], "compiler": None, "threads": None, "refused": built.reason}
    return {
        "weights": [*(str(dtype).removeprefix("torch.") for dtype in step.TYPES), *step.BLOCKS],
        "instructions": list(native.instructions()),
        "compiler": built.compiler,
        "threads": torch.get_num_threads(),
        "refused": None,
    }


def examine_gpu_step() -> dict[str, Any]:
    """What computes the steps of a model on a GPU, or why nothing does. graphs: how many sequences a recorded step of
    answers is made for."""
    import torch

    from pellucid.inference.gpu_step import BUCKETS
    from pellucid.operations.paged_attention import NARROWEST, why_not

    refused = "PyTorch sees no CUDA device"
    if torch.cuda.is_available():
        reason = why_not(torch.device("cuda"), NARROWEST)
        if reason is None:
            return {"attention": "FlexAttention", "graphs": list(BUCKETS), "refused": None}
        refused = reason
    return {"attention": None, "graphs": [], "refused": refused}


def why_not(precision: Precision, machine: Features) -> dict[str, str]:
    """Why each of the other precisions was refused."""
    from pellucid.operations.ceilings import PRECISIONS

    return {name: refusal(name, precision, machine) for name in PRECISIONS if name != precision.name}


def refusal(name: str, precision: Precision, machine: Features) -> str:
    if not precision.seconds:
        return f"{precision.name} was asked for"
    if name not in precision.seconds:
        return "not a candidate: it overflows in models that were trained in bfloat16"
    if name == "bfloat16" and not WITH_BFLOAT16 & set(machine.instructions):
        reason = "this processor has no instructions for it"
    elif precision.seconds[name] < precision.seconds[precision.name]:
        reason = "not faster by enough to give up float32's exactness"
    else:
        reason = "slower"
    return f"{reason}: {precision.seconds[name]:.2f} s against {precision.seconds[precision.name]:.2f} s"


def examine_models() -> dict[str, Any]:
    from pellucid.checkpoints.source import PACKAGED, packaged_source
    from pellucid.errors import PellucidError

    found: dict[str, Any] = {}
    for name in PACKAGED:
        try:
            found[name] = str(packaged_source(name).path)
        except PellucidError as error:
            found[name] = f"missing: {error}"
    return found


def examine_folders() -> dict[str, Any]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from pellucid.native import cache_folder

    return {"cache": str(cache_folder()), "hub_cache": str(HF_HUB_CACHE)}


def notes(machine: Features) -> Iterator[str]:
    """What is worth changing, one sentence each."""
    if machine.threads > machine.cores:
        yield f"torch by itself would start {machine.threads} threads on {machine.cores} usable cores"
    if "AVX512F" in machine.instructions and machine.torch_capability != "AVX512":
        yield (
            f"the processor has AVX512, but torch uses {machine.torch_capability}; "
            "unset ATEN_CPU_CAPABILITY or install a torch that was built for it"
        )


def show(report: Report) -> None:
    """Print the report for a reader."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines(report):
        table.add_row(name, text)
    Console(soft_wrap=False, highlight=False, markup=False).print(table)


def lines(report: Report) -> Iterator[tuple[str, str]]:
    """(what, text) of each line of the report."""
    machine, torch, ceilings, precision = (report[name] for name in ("machine", "torch", "ceilings", "precision"))
    missing = f" (not there: {', '.join(machine['missing'])})" if machine["missing"] else ""
    gib = 2**30
    yield "processor", f"{machine['processor']}, {machine['architecture']}, {machine['cores']} usable cores"
    yield "instructions", (" ".join(machine["instructions"]) or "unknown") + missing
    yield "memory", f"{machine['memory_total'] / gib:.1f} GiB, {machine['memory_available'] / gib:.1f} GiB available"
    yield "GPU", ", ".join(machine["gpus"]) or "none"
    yield "compiler", machine["compiler"] or "none (nothing needs one)"
    yield "torch", f"{torch['version']}, {torch['vector_instructions']} kernels"
    for name, rate in ceilings["matmul_gflops"].items():
        yield f"matmul {name}", f"{rate:.0f} GFLOP/s"
    yield "memory read", f"{ceilings['memory_read_gb_per_s']:.0f} GB/s"
    yield "threads", report["threads"]["reason"]
    yield "precision", precision["reason"]
    for name, reason in precision["refused"].items():
        yield f"not {name}", reason
    yield "training", report["training"]["reason"]
    yield "tokenizer", report["kernels"]["tokenizer"]
    step = report["kernels"]["native_step"]
    if step["refused"] is None:
        yield "native step", f"for weights in {', '.join(step['weights'])}; {step['threads']} threads"
        yield "compiled", f"for {' '.join(step['instructions']) or 'no vector instructions'}, by {step['compiler']}"
    else:
        yield "native step", f"none, PyTorch computes the steps: {step['refused']}"
    gpu = report["kernels"]["gpu_step"]
    if gpu["refused"] is None:
        sizes = ", ".join(map(str, gpu["graphs"]))
        yield "GPU step", f"{gpu['attention']} over the paged cache; answers as CUDA graphs of {sizes} sequences"
    else:
        yield "GPU step", f"none: {gpu['refused']}"
    for name, path in report["models"].items():
        yield f"model {name}", path
    yield "cache", f"{report['folders']['cache']}; of the hub: {report['folders']['hub_cache']}"
    for name, value in report["environment"].items():
        yield name, value
    for note in report["notes"]:
        yield "note", note
