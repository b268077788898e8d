"""DPO and fine-tuning of an adapter beside TRL: the same model, data, batch, precision and number of steps.

    python benchmarks/alignment.py [--tasks dpo sft] [--repeats 3] [--steps 6] [--batch 8] [--layers 8] [--width 512]
                                   [--vocabulary 32768] [--precision float32] [--people 40]

The model has random weights, the data are those of TinyWorld, the adapter is LoRA of rank 16 on all linear layers. Each
contender is a fresh process, and they take turns. Of each, the clock runs from the end of its first step to the end of
its last one. pellucid packs whole pairs or conversations into rows, so a step has `batch` of them on average; TRL pads.
TRL asks its reference in every step, as it does by default; the seconds that pellucid takes to ask its own beforehand
are added, for as many pairs as the steps compare. Printed are samples/s (medians over the repeats) and the peak of each
process above what it held before it had a model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

OURS, PEER = "pellucid", "trl"
RANK, ALPHA, RATE = 16, 32, 1e-4
LENGTH = 128  # tokens of a prompt and its answer, at most


def peak() -> int:
    """Bytes at most since `forget_peak`, of this program alone."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def forget_peak() -> int:
    """What was held at most is what is held now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The model with its tokenizer, and the data: `pairs.jsonl` and `chats.jsonl`."""
    from pellucid.alignment.templates import give_template
    from pellucid.checkpoints.save import About, save
    from pellucid.data.tinyworld import TinyWorld
    from pellucid.models.config import ModelConfig
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.train import train_bpe

    world = TinyWorld(0, options.people)
    pairs = list(world.preferences())
    chats = [
        {"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p["chosen"]}]}
        for p in pairs
    ]
    for name, records in (("pairs", pairs), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = (document.text for document in world.documents(tellings=2))
    trained = train_bpe(texts, 1024, special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>")).tokenizer()
    model = Decoder(
        ModelConfig(
            vocab_size=options.vocabulary, hidden_size=options.width, num_layers=options.layers,
            num_heads=options.width // 64, intermediate_size=options.width * 8 // 3 // 64 * 64, max_positions=512,
            tie_embeddings=True,
        )
    )  # fmt: skip
    save(model, give_template(model, trained), folder / "base", about=About(base="random"))


def pellucid(folder: Path, task: str, options: argparse.Namespace) -> dict[str, float]:
    import torch

    from pellucid.alignment.dpo import preference_loss
    from pellucid.alignment.policy import AdapterRecipe, open_policy
    from pellucid.alignment.preference_losses import Settings
    from pellucid.alignment.reference import answer_log_probs, reference_log_probs
    from pellucid.data.packing import Whole
    from pellucid.data.pairs import Pairs
    from pellucid.data.prepared import prepared
    from pellucid.training.loss import next_token_loss
    from pellucid.training.optimizers import make_optimizer
    from pellucid.training.recipe import OptimRecipe
    from pellucid.training.step import Objective, clip, take_gradient

    before = forget_peak()
    model, tokenizer = open_policy(str(folder / "base"), AdapterRecipe(rank=RANK, alpha=ALPHA))
    kind, name = ("preference", "pairs") if task == "dpo" else ("conversation", "chats")
    shards = prepared([folder / f"{name}.jsonl"], tokenizer, folder / f"{name}-shards", kind)  # type: ignore[arg-type]
    rows: Any = Pairs(shards, LENGTH, 0) if task == "dpo" else Whole(shards, 2 * LENGTH, 0)
    samples = rows.num_pairs if task == "dpo" else shards.num_documents
    per_step = max(1, round(options.batch * len(rows) / samples))  # rows
    autocast = None if options.precision == "float32" else getattr(torch, options.precision)
    asking = 0.0
    objective: Objective = next_token_loss
    if task == "dpo":
        answer_log_probs(model, rows.read([0]), autocast)  # what is loaded at first use, as in the peer's first step
        began = time.perf_counter()
        rows.reference = reference_log_probs(model, rows, rows=per_step, autocast=autocast)
        asking = (time.perf_counter() - began) / samples  # seconds a pair
        objective = partial(preference_loss, loss="sigmoid", settings=Settings(0.1))
    optimizers = make_optimizer(model, OptimRecipe(lr=RATE, weight_decay=0), autocast or torch.float32)
    model.train()
    done, began, losses = 0, 0.0, []
    for step in range(options.steps):
        examples = rows.read(range(step * per_step, (step + 1) * per_step))
        gradient = take_gradient(model, examples, objective, autocast=autocast)
        clip(model, gradient.norm, 1.0)
        optimizers.step()
        optimizers.zero_grad()
        losses.append(gradient.loss)
        if step == 0:
            began = time.perf_counter()
        else:
            done += gradient.learnt if task == "dpo" else documents(examples)
    seconds = time.perf_counter() - began + asking * done
    return {"samples": done, "seconds": seconds, "peak": peak() - before, "first_loss": losses[0]}


def documents(examples: Any) -> int:
    """How many there are in some rows."""
    return int((examples.documents.max(1).values + 1).sum())


def trl(folder: Path, task: str, options: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def records(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    if task == "dpo":
        made = [
            {"prompt": said("user", p["prompt"]), **{k: said("assistant", p[k]) for k in ("chosen", "rejected")}}
            for p in records("pairs")
        ]
    else:
        made = [{"prompt": c["messages"][:1], "completion": c["messages"][1:]} for c in records("chats")]
    before = forget_peak()
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"), "max_steps": options.steps, "per_device_train_batch_size": options.batch,
        "learning_rate": RATE, "use_cpu": True, "bf16": options.precision == "bfloat16", "report_to": [],
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "max_length": 2 * LENGTH,
        "gradient_checkpointing": False, "optim": "adamw_torch_fused",
    }  # fmt: skip
    kinds: tuple[Any, Any] = (DPOConfig, DPOTrainer) if task == "dpo" else (SFTConfig, SFTTrainer)
    trainer = kinds[1](
        model, args=kinds[0](**common, **({"beta": 0.1} if task == "dpo" else {})),
        train_dataset=Dataset.from_list(made), processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    done = (options.steps - 1) * options.batch
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {"samples": done, "seconds": ends[-1] - ends[0], "peak": peak() - before, "first_loss": loss}


def child(program: str, task: str, folder: Path, arguments: list[str]) -> dict[str, float]:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--child", program, "--task", task, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=("dpo", "sft"), default=["dpo", "sft"])
    numbers = {"repeats": 3, "steps": 6, "batch": 8, "layers": 8, "width": 512, "vocabulary": 32768, "people": 40}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    for name in ("child", "task", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run = {OURS: pellucid, PEER: trl}[options.child]
        print(json.dumps(run(Path(options.folder), options.task, options)))
        return
    result: dict[str, Any] = {"options": {name: value for name, value in vars(options).items() if value is not None}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options)
        for task in options.tasks:
            runs: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
            for _ in range(options.repeats):
                for program, found in runs.items():
                    found.append(child(program, task, folder, sys.argv[1:]))
            speed = {
                name: statistics.median(r["samples"] / r["seconds"] for r in found) for name, found in runs.items()
            }
            memory = {name: statistics.median(r["peak"] for r in found) for name, found in runs.items()}
            for name, found in runs.items():
                first = found[0]["first_loss"]
                line = (
                    f"{task} {name:>8}: {speed[name]:6.2f} samples/s, {memory[name] / 1e6:6,.0f} MB, loss {first:.4f}"
                )
                print(line, flush=True)
            ratios = speed[OURS] / speed[PEER], memory[OURS] / memory[PEER]
            print(f"{task}: {ratios[0]:.2f} times as fast, {ratios[1]:.2f} of the memory", flush=True)
            result[task] = {"samples_per_second": speed, "peak": memory, "speed": ratios[0], "memory": ratios[1]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
