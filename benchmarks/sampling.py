"""What drawing a token costs, on SmolLM2's own logits, beside transformers' logits processors and `multinomial`.

    python benchmarks/sampling.py [--batches 1 8 32] [--repeats 30]

Microseconds of one step of the whole batch, the median. Then what a constraint costs: to begin, and at each token. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

import pellucid
from pellucid.inference.constraint import Matcher
from pellucid.inference.params import Constraint, SamplingParams
from pellucid.inference.rows import Row, new_row
from pellucid.inference.sampling import Sampler
from pellucid.models.decoder import Decoder
from pellucid.operations.hardware import describe
from pellucid.tokenizer.tokenizer import Tokenizer

TEXT = """Reading a prompt is one large product of matrices, and the processor's arithmetic is what bounds it; writing
an answer is a product of a matrix and a vector for every word, and there the memory that holds the matrix bounds it."""
PERSON = '{"name": "Ada Lovelace", "age": 36, "height": 1.65, "tags": ["mathematician", "countess"]}'
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "height": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "height", "tags"],
}
CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "greedy": ({"temperature": 0.0}, []),
    "temperature 0.7": ({"temperature": 0.7}, [transformers.TemperatureLogitsWarper(0.7)]),
    "top-k 50": ({"top_k": 50}, [transformers.TopKLogitsWarper(50)]),
    "top-p 0.95": ({"top_p": 0.95}, [transformers.TopPLogitsWarper(0.95)]),
    "top-k 50, top-p 0.95": (
        {"top_k": 50, "top_p": 0.95},
        [transformers.TopKLogitsWarper(50), transformers.TopPLogitsWarper(0.95)],
    ),
    "min-p 0.05": ({"min_p": 0.05}, [transformers.MinPLogitsWarper(0.05)]),
    "typical 0.9": ({"typical_p": 0.9}, [transformers.TypicalLogitsWarper(0.9)]),
    "greedy, repetition 1.1": (
        {"temperature": 0.0, "repetition_penalty": 1.1},
        [transformers.RepetitionPenaltyLogitsProcessor(1.1)],
    ),
}


def median(run: Callable[[], Any], repeats: int) -> float:
    """Microseconds."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def compare(logits: torch.Tensor, prompt: list[int], repeats: int) -> list[dict[str, Any]]:
    """logits: (B, V)."""
    batch, vocab_size = logits.shape
    seen = torch.tensor([prompt] * batch)
    sampler, rows = Sampler(vocab_size), []
    for name, (fields, processors) in CASES.items():
        own = [new_row(SamplingParams(**fields), prompt, vocab_size) for _ in range(batch)]
        theirs = transformers.LogitsProcessorList(processors)

        def run_theirs(
            theirs: transformers.LogitsProcessorList = theirs, greedy: bool = fields.get("temperature") == 0
        ) -> torch.Tensor:
            scores = theirs(seen, logits)  # type: ignore[arg-type]  # it says LongTensor, which no tensor is
            return scores.argmax(-1) if greedy else torch.multinomial(scores.softmax(-1), 1)

        def run_ours(own: list[Row] = own) -> torch.Tensor:
            return sampler(logits, own)

        ours_us = median(run_ours, repeats)
        theirs_us = median(run_theirs, repeats)
        rows.append({"case": name, "batch": batch, "pellucid_us": ours_us, "transformers_us": theirs_us})
        print(f"{name:24} {batch:5} {ours_us:12.0f} {theirs_us:15.0f} {theirs_us / ours_us:9.1f}x", flush=True)
    return rows


def constraint(tokenizer: Tokenizer) -> dict[str, float]:
    ends, asked = tokenizer.stop_ids, Constraint(json_schema=SCHEMA)
    started = time.perf_counter()
    Matcher(asked, tokenizer, ends)
    first = 1e3 * (time.perf_counter() - started)
    again = median(lambda: Matcher(asked, tokenizer, ends), 10) / 1e3
    masks, matcher = [], Matcher(asked, tokenizer, ends)
    for token in tokenizer.encode(PERSON):
        started = time.perf_counter()
        matcher.allowed()
        matcher.advance(token)
        masks.append(1e6 * (time.perf_counter() - started))
    costs = {"first_ms": first, "later_ms": again, "token_us": statistics.median(masks), "worst_token_us": max(masks)}
    print(
        f"a JSON schema: the first {first:.0f} ms (the vocabulary is handed over), each later one {again:.1f} ms; "
        f"a token {costs['token_us']:.0f} us, at worst {costs['worst_token_us']:.0f} us"
    )
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    model: Decoder
    model, tokenizer = pellucid.load("smollm2", dtype="float32")
    ids = tokenizer.encode(TEXT)
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0]  # (time, V): so many contexts, so many distributions
    print(describe())
    print(f"{'':24} {'batch':>5} {'pellucid us':>12} {'transformers us':>15}")
    rows = []
    for batch in options.batches:
        rows += compare(logits[torch.arange(batch) % len(logits)].contiguous(), ids, options.repeats)
    print(json.dumps({"steps": rows, "constraint": constraint(tokenizer)}))


if __name__ == "__main__":
    main()
