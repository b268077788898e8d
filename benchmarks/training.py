"""A step of training beside transformers' Llama and a nanoGPT-shaped model, at equal size, on the same rows.

    python benchmarks/training.py [--repeats 7] [--layers 6] [--width 384] [--context 256] [--rows 16]

Each contender is a process of its own that has made its model, taken its best precision and compiled it before the
clock starts ("in parts": pellucid's step with a quarter of the rows at a time, which gives the same gradient from less
memory); the processes take turns, a few steps each, and sleep meanwhile. A step reads its rows (pellucid: from
shards, packed documents that attend within themselves; the others: the same tokens, without borders), takes the
gradient, clips it and lets AdamW move the weights. Printed are tokens/s (medians), how near that is to the matrix
product's ceiling, measured in the same minute, and the peak of each process while it trains, above what it was before
it had a model, its imports and the compiler's done. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pellucid.operations.ceilings import measure_ceilings
from pellucid.operations.hardware import describe

OURS = ("pellucid", "in parts")
PROGRAMS = (*OURS, "transformers", "nanogpt")
VOCABULARY = 4096
STEPS = 3  # a turn


def peak() -> int:
    """Bytes at most since `forget_peak`, of this program alone."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    """What was held at most is what is held now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def contender(program: str, shape: dict[str, int], precision: str, compiled: bool, folder: str) -> None:
    """The child: answers each line on stdin with the seconds of STEPS steps and how many of them were reading."""
    import torch

    from pellucid.data.packing import Stream
    from pellucid.data.shards import open_shards
    from pellucid.training.recipe import OptimRecipe

    if program == "transformers":
        import transformers  # noqa: F401
    if compiled:
        torch.compile(torch.sin)(torch.ones(8))  # the compiler's own imports
    forget_peak()
    before = peak()
    rows = Stream(open_shards(Path(folder)), shape["context"], 0)
    autocast = None if precision == "float32" else getattr(torch, precision)
    optim = OptimRecipe(lr=1e-3)
    if program in OURS:
        step = pellucid_step(shape, autocast, compiled, optim, shape["rows"] // (4 if program == "in parts" else 1))
    else:
        model = llama(shape) if program == "transformers" else nanogpt(shape)
        step = peer_step(model, autocast, compiled, optim)
    done = 0

    def turn() -> dict[str, float]:
        nonlocal done
        began, reading = time.perf_counter(), 0.0
        for _ in range(STEPS):
            started = time.perf_counter()
            examples = rows.read(range(done * shape["rows"], (done + 1) * shape["rows"]))
            reading += time.perf_counter() - started
            loss = step(examples)
            done += 1
        return {"seconds": time.perf_counter() - began, "reading": reading, "loss": loss, "peak": peak() - before}

    turn()
    forget_peak()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


def pellucid_step(shape: dict[str, int], autocast: Any, compiled: bool, optim: Any, together: int) -> Any:
    import torch

    from pellucid.models.config import ModelConfig
    from pellucid.models.decoder import Decoder
    from pellucid.training.loss import next_token_loss
    from pellucid.training.optimizers import make_optimizer
    from pellucid.training.setting import Setting, compile_blocks
    from pellucid.training.step import clip, take_gradient

    config = ModelConfig(
        vocab_size=VOCABULARY, hidden_size=shape["width"], num_layers=shape["layers"], num_heads=shape["width"] // 64,
        intermediate_size=shape["feed_forward"], max_positions=shape["context"], tie_embeddings=True,
    )  # fmt: skip
    model = Decoder(config)
    setting = Setting(torch.device("cpu"), autocast or torch.float32, compiled, torch.get_num_threads())
    compile_blocks(model, setting)
    optimizers = make_optimizer(model, optim)

    def step(examples: Any) -> float:
        gradient = take_gradient(model, examples, next_token_loss, micro_batch=together, autocast=autocast)
        clip(model, gradient.norm, optim.clip)
        optimizers.step()
        optimizers.zero_grad()
        return gradient.loss

    return step


def peer_step(model: Any, autocast: Any, compiled: bool, optim: Any) -> Any:
    """The usual loop: autocast, loss from the model, clip, fused AdamW."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), optim.lr, optim.betas, optim.eps, optim.weight_decay, fused=True)
    run = torch.compile(model) if compiled else model

    def step(examples: Any) -> float:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = run(examples.tokens, labels=examples.tokens)
            loss = loss if isinstance(loss, torch.Tensor) else loss.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def llama(shape: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = shape["width"] // 64
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=shape["width"], num_hidden_layers=shape["layers"],
            num_attention_heads=heads, num_key_value_heads=heads, intermediate_size=shape["feed_forward"],
            max_position_embeddings=shape["context"], tie_word_embeddings=True, use_cache=False,
        )
    )  # fmt: skip


def nanogpt(shape: dict[str, int]) -> Any:
    """A GPT as small training scripts write it: learned positions, one projection for query, key and value, GELU."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    E, H = shape["width"], shape["width"] // 64

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(E, bias=False), nn.LayerNorm(E, bias=False)
            self.project, self.out = nn.Linear(E, 3 * E, bias=False), nn.Linear(E, E, bias=False)
            self.wide, self.narrow = nn.Linear(E, 4 * E, bias=False), nn.Linear(4 * E, E, bias=False)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            parts = self.project(self.before(x)).split(E, dim=2)
            q, k, v = (part.view(B, T, H, E // H).transpose(1, 2) for part in parts)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, E)
            x = x + self.out(mixed)
            return x + self.narrow(F.gelu(self.wide(self.between(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCABULARY, E), nn.Embedding(shape["context"], E)
            self.blocks = nn.ModuleList(Block() for _ in range(shape["layers"]))
            self.norm = nn.LayerNorm(E, bias=False)
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, 0.0, 0.02)

        def forward(self, tokens: Any, labels: Any) -> Any:
            x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    return GPT()


def make_rows(folder: Path, tokens: int) -> None:
    """Documents of 20 to 400 random tokens: what they say does not matter to the clock."""
    import numpy as np

    from pellucid.data.building import build_shards

    random = np.random.default_rng(0)
    lengths = random.integers(20, 400, size=tokens // 200)
    documents = ((random.integers(0, VOCABULARY, size=length), None) for length in lengths)
    build_shards(documents, folder, vocab_size=VOCABULARY)


def flops(shape: dict[str, int], program: str) -> float:
    """Operations a token of training: 6 N + 6 L E T, with causality; pellucid's packed documents are shorter."""
    E, L, F = shape["width"], shape["layers"], shape["feed_forward"]
    weights = L * (4 * E * E + (8 * E * E if program == "nanogpt" else 3 * E * F)) + VOCABULARY * E
    return 6 * weights + 6 * L * E * (shape["context"] + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"repeats": 7, "layers": 6, "width": 384, "context": 256, "rows": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="auto", help="auto: the faster one here, for all of them")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contender(**json.loads(arguments.contender))
        return
    from pellucid.training.precision import best_training_precision

    width = arguments.width
    shape = {name: getattr(arguments, name) for name in ("layers", "width", "context", "rows")}
    shape["feed_forward"] = (width * 8 // 3 + 63) // 64 * 64
    chosen = best_training_precision(arguments.precision)
    print(describe())
    print(f"precision {chosen.reason}; {'eager' if arguments.eager else 'torch.compile'}")
    with tempfile.TemporaryDirectory() as name:
        make_rows(Path(name) / "rows", 4 * arguments.rows * arguments.context * STEPS * (arguments.repeats + 2))
        common = {"shape": shape, "precision": chosen.name, "compiled": not arguments.eager, "folder": f"{name}/rows"}
        children = {}
        for program in PROGRAMS:
            told = json.dumps({"program": program, **common})
            command = [sys.executable, "-W", "ignore", __file__, "--contender", told]
            children[program] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert children[program].stdout.readline(), f"{program} did not start"  # one compiles at a time
        turns: dict[str, list[dict[str, float]]] = {program: [] for program in PROGRAMS}
        ceilings = []
        for _ in range(arguments.repeats):
            ceilings.append(measure_ceilings((chosen.name,)).matmul[chosen.name])
            for program, child in children.items():
                child.stdin.write("\n")
                child.stdin.flush()
                turns[program].append(json.loads(child.stdout.readline()))
        for child in children.values():
            child.stdin.close()
            child.wait()
    report(shape, turns, statistics.median(ceilings), chosen.name, arguments.eager)


def report(
    shape: dict[str, int], turns: dict[str, list[dict[str, float]]], ceiling: float, precision: str, eager: bool
) -> None:
    tokens = shape["rows"] * shape["context"] * STEPS
    medians = {program: tokens / statistics.median(t["seconds"] for t in seen) for program, seen in turns.items()}
    peaks = {program: max(t["peak"] for t in seen) for program, seen in turns.items()}
    print(f"ceiling   {ceiling:.0f} GFLOP/s {precision}, in the same minute")
    for program, rate in medians.items():
        used = rate * flops(shape, program) / 1e9 / ceiling
        print(f"{program:13} {rate:7.0f} tokens/s  {used:4.0%} of the ceiling  peak {peaks[program] / 2**20:5.0f} MiB")
    for ours in OURS:
        for peer in PROGRAMS[len(OURS) :]:
            speed, memory = medians[ours] / medians[peer], peaks[ours] / peaks[peer]
            print(f"{ours:8} / {peer:13} speed {speed:.2f}  memory {memory:.2f}")
    reading = statistics.median(t["reading"] / t["seconds"] for t in turns["pellucid"])
    print(f"reading and packing rows: {reading:.2%} of a step")
    found = {"ceiling_gflops": ceiling, "tokens_per_second": medians, "peak_bytes": peaks, "reading": reading}
    print(json.dumps({"benchmark": "training", "precision": precision, "eager": eager, "shape": shape, **found}))


if __name__ == "__main__":
    main()
