"""`prepared`: found, built, built again; killed at any moment it goes on; nobody is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pellucid.data.prepared import prepared
from pellucid.data.shards import Shards, open_shards
from pellucid.errors import InputError, PellucidError
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import tiny_tokenizer
from tests.disk import largest_file

SHARD_TOKENS = 200_000
BUILDER = """
import sys, time
from pellucid.data.prepared import prepared
from pellucid.tokenizer.tokenizer import Tokenizer
blocks = int(sys.argv[4])
def progress(phase, done, of):
    global blocks
    print(done, flush=True)
    blocks -= 1
    if not blocks:
        time.sleep(600)
print("ready", flush=True)
tokenizer = Tokenizer.load(sys.argv[2])
prepared([sys.argv[1]], tokenizer, sys.argv[3], "text", workers=2, shard_tokens=200_000, progress=progress)
print("finished", flush=True)
"""


def corpus(path: Path, texts: int = 7_000) -> Path:
    """Texts of about 7 MB as JSON Lines: seven blocks, each a shard of its own."""
    rng = random.Random(0)
    words = ["the", "on", "inn", "seas", "über", "1234", "stone", "thee"]
    lines = (json.dumps({"text": " ".join(rng.choices(words, k=200))}) for _ in range(texts))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def small(path: Path, texts: int = 3) -> Path:
    path.write_text("".join(json.dumps({"text": f"the text number {n}"}) + "\n" for n in range(texts)))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_is_built_once_and_then_found(tmp_path: Path) -> None:
    source, said = small(tmp_path / "a.jsonl"), []
    seen: list[tuple[str, int, int | None]] = []
    tokenizer = tiny_tokenizer()

    def again() -> Shards:
        return prepared(
            [source], tokenizer, tmp_path / "shards", "text", progress=lambda *now: seen.append(now), say=said.append
        )

    built = again()
    assert [tokenizer.decode(built.document(n)[0]) for n in range(3)] == [
        f"the text number {n}<|endoftext|>" for n in range(3)
    ]
    assert built.index.counts == {"kept: text": 3}
    assert seen == [("tokenising", 51, source.stat().st_size)]
    before = {path: path.stat().st_mtime_ns for path in built.folder.iterdir()}
    assert again().content == built.content and len(seen) == 1
    assert before == {path: path.stat().st_mtime_ns for path in built.folder.iterdir()} and not said


def test_what_has_changed_is_built_again_and_that_is_said(tmp_path: Path) -> None:
    source, said = small(tmp_path / "a.jsonl"), []

    def build(tokenizer: Tokenizer, **options: bool) -> Shards:
        return prepared([source], tokenizer, tmp_path / "shards", "text", say=said.append, **options)

    one = build(tiny_tokenizer())
    small(source, texts=4)
    two = build(tiny_tokenizer())
    assert two.num_documents == 4 and two.content != one.content and len(said) == 1
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True}
    three = build(Tokenizer(tiny_tokenizer().definition, config))
    assert three.num_tokens == two.num_tokens + 4 and len(said) == 2
    build(Tokenizer(tiny_tokenizer().definition, config), skip_bad=True)
    assert len(said) == 3
    assert all(
        "shards there are of another source, tokenizer or version, so they are made again" in line for line in said
    )


def test_a_source_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.jsonl", texts=2000)

    def meddle(phase: str, done: int, of: int | None) -> None:
        os.utime(source, ns=(0, 0))

    with pytest.raises(PellucidError, match=r"a.jsonl: the source changed while it was read: run the same command"):
        prepared([source], tiny_tokenizer(), tmp_path / "shards", "text", progress=meddle)
    with pytest.raises(InputError, match="no finished shards"):
        open_shards(tmp_path / "shards")


def test_bad_records_are_named_or_counted(tmp_path: Path) -> None:
    source = tmp_path / "talk.jsonl"
    talks = [
        [{"role": "user", "content": "the"}, {"role": "assistant", "content": "on"}],
        [{"role": "user", "content": "the"}],
    ]
    lines = [json.dumps({"messages": talk}) for talk in talks]
    source.write_text("\n".join([*lines, "{not JSON", lines[0]]))
    with pytest.raises(InputError, match=r"talk.jsonl:2: no message is by the assistant"):
        prepared([source], tiny_tokenizer(), tmp_path / "shards", "conversation")
    shards = prepared([source], tiny_tokenizer(), tmp_path / "shards", "conversation", skip_bad=True)
    assert shards.index.counts == {"dropped: invalid JSON": 1, "dropped: no assistant turn": 1, "kept: messages": 2}
    assert [shards.place(n) for n in range(2)] == [f"{source}:1", f"{source}:4"]


@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\x7fELF\x00\x01\x02"])
def test_a_corpus_that_is_empty_or_binary_is_named(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "book.txt"
    source.write_bytes(content)
    with pytest.raises(InputError, match=r"book\.txt"):
        prepared([source], tiny_tokenizer(), tmp_path / "shards", "text")


def test_a_full_disk_is_said_and_the_same_line_goes_on(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.jsonl", texts=3000)
    with largest_file(100_000), pytest.raises(PellucidError, match=r"shard-00000.tokens could not be written \("):
        prepared([source], tiny_tokenizer(), tmp_path / "shards", "text", shard_tokens=SHARD_TOKENS)
    assert prepared([source], tiny_tokenizer(), tmp_path / "shards", "text").num_documents == 3000


def start(source: Path, tokenizer: Path, shards: Path, blocks: int) -> subprocess.Popen[str]:
    """A run in a process of its own, which stands still after so many blocks."""
    command = [sys.executable, "-c", BUILDER, str(source), str(tokenizer), str(shards), str(blocks)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_killed_at_any_moment_it_goes_on_from_whole_shards(tmp_path: Path) -> None:
    """SIGKILL again and again: what comes out is byte for byte what an undisturbed run makes."""
    source, tokenizer, clock = corpus(tmp_path / "a.jsonl"), tmp_path / "tokenizer", random.Random(0)
    tiny_tokenizer().save(tokenizer)
    whole = start(source, tokenizer, tmp_path / "whole", 100)
    started = time.perf_counter()
    assert whole.communicate()[0].endswith("finished\n")
    took = time.perf_counter() - started
    shards, kept = tmp_path / "shards", 0
    for kill in range(30):
        process = start(source, tokenizer, shards, 4)
        workers: list[psutil.Process] = []
        said = ""
        if kill:  # the first is killed before it has begun, the others some time after their first shard
            assert process.stdout is not None
            said = process.stdout.readline()
            workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            time.sleep(clock.uniform(0, took / 7))
        process.send_signal(signal.SIGKILL)
        said += process.communicate()[0]
        assert not psutil.wait_procs(workers, timeout=10)[1]  # nobody is left waiting for work
        now = len(list(shards.glob("shard-*.tokens")))
        assert now >= kept
        kept = now
        if said.endswith("finished\n"):
            break
    else:
        raise AssertionError(f"it never comes to its end: {kept} shards")
    assert kill > 1
    built, undisturbed = files_of(shards), files_of(tmp_path / "whole")
    assert built.keys() == undisturbed.keys() and len(built) > 12
    assert built == undisturbed
    assert open_shards(shards).num_documents == 7_000


def test_only_what_is_not_in_whole_shards_is_tokenised_again(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.jsonl", texts=6000)
    seen: list[int] = []

    def stop_after_three(phase: str, done: int, of: int | None) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    def build(progress: object) -> Shards:
        return prepared(
            [source],
            tiny_tokenizer(),
            tmp_path / "shards",
            "text",
            workers=1,
            shard_tokens=SHARD_TOKENS,
            progress=progress,  # type: ignore[arg-type]
        )

    with pytest.raises(KeyboardInterrupt):
        build(stop_after_three)
    total = sum(len(json.loads(line)["text"]) for line in source.read_text().splitlines())
    rest: list[int] = []
    shards = build(lambda phase, done, of: rest.append(done))
    assert rest[-1] == total - seen[-1]
    assert shards.num_documents == 6000 and shards.index.counts == {"kept: text": 6000}
