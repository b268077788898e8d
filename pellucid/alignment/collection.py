"""A file of preferences that grows choice by choice, and can be left at any moment and gone on with later.

preferences.jsonl            {"prompt": [...], "chosen": [...], "rejected": [...], "judge": ...}, a line each pair
preferences.jsonl.answers    what it was begun with; the answers that were drawn, a line a prompt, so that they are
                             drawn once; and the prompts that were passed over
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pellucid.alignment.candidates import Candidates, Prompt
from pellucid.alignment.judges import Judge, Judged
from pellucid.checkpoints.atomic import refused
from pellucid.errors import InputError

ANSWERS = ".answers"
CHOSEN = b', "chosen": '  # what follows the prompt in a line
TOGETHER = 8  # prompts to which answers are drawn at a time

Draw = Callable[[Sequence[Prompt]], Sequence[Candidates]]
"""Draws answers to some prompts."""


@dataclass
class Tally:
    """What came of a session. passed: prompts without a pair: skipped, or none is better; alike: prompts to which all
    answers were equal, or fewer than two were whole. swayed, unusable, unsaid: as `Judged` has them."""

    prompts: int = 0
    pairs: int = 0
    passed: int = 0
    alike: int = 0
    swayed: int = 0
    unusable: int = 0
    unsaid: int = 0

    def take(self, judged: Judged) -> None:
        self.prompts += 1
        self.pairs += len(judged.pairs)
        self.passed += not judged.pairs
        self.swayed += judged.swayed
        self.unusable += judged.unusable
        self.unsaid += judged.unsaid


class Collection:
    """The two files at `path`, begun there or taken up again.

    about: what answers depend on, as plain values. Raises `InputError` where the files are another collection's, or
    none's.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self.beside = self.path.with_name(self.path.name + ANSWERS)
        self._drawn: dict[str, tuple[str, ...]] = {}
        self._done: set[str] = set()
        if self.path.exists() and not self.beside.exists():
            raise InputError(f"{self.path} is there already and was not begun by this command: give another -o")
        if not self.beside.exists():
            self._append(self.beside, [{"about": about}])
        else:
            self._take_up(about)

    def left(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Those on which nothing has been decided."""
        return [prompt for prompt in prompts if prompt.key not in self._done]

    def collect(self, prompts: Sequence[Prompt], draw: Draw, judge: Judge, name: str) -> Tally:
        """Has what is left judged, and keeps each choice at once. A judge that ends early has had enough.

        name: of the judge, which its pairs keep. Raises `PellucidError` when the disk refuses.
        """
        tally, waiting = Tally(), deque[Candidates]()

        def several() -> Iterator[Candidates]:
            for one in self._candidates(self.left(prompts), draw):
                if len(one.answers) < 2:
                    tally.alike += 1
                    self._pass(one.prompt)
                else:
                    waiting.append(one)
                    yield one

        for judged in judge(several()):
            self._decide(waiting.popleft(), judged, name)
            tally.take(judged)
        return tally

    def _candidates(self, prompts: Sequence[Prompt], draw: Draw) -> Iterator[Candidates]:
        """The answers that were drawn in an earlier session, and new ones, a few prompts at a time."""
        for start in range(0, len(prompts), TOGETHER):
            batch = prompts[start : start + TOGETHER]
            wanted = [prompt for prompt in batch if prompt.key not in self._drawn]
            new = list(draw(wanted)) if wanted else []
            self._append(self.beside, [{"prompt": one.prompt.messages, "answers": one.answers} for one in new])
            self._drawn |= {one.prompt.key: one.answers for one in new}
            yield from (Candidates(prompt, self._drawn[prompt.key]) for prompt in batch)

    def _decide(self, one: Candidates, judged: Judged, name: str) -> None:
        if not judged.pairs:
            if not judged.unusable:  # of which nothing could be read is asked again in another session
                self._pass(one.prompt)
            return
        said = [[{"role": "assistant", "content": answer}] for answer in one.answers]
        lines = [
            {"prompt": one.prompt.messages, "chosen": said[better], "rejected": said[worse], "judge": name}
            for better, worse in judged.pairs
        ]
        self._append(self.path, lines)
        self._done.add(one.prompt.key)

    def _pass(self, prompt: Prompt) -> None:
        self._append(self.beside, [{"passed": prompt.messages}])
        self._done.add(prompt.key)

    def _take_up(self, about: Mapping[str, Any]) -> None:
        for line in self._lines(self.beside):
            if "about" in line:
                was = line["about"]
                for field in {**was, **about}:
                    if was.get(field) != about.get(field):
                        raise InputError(
                            f"{self.path} was begun with {field} = {was.get(field)!r}, not {about.get(field)!r}: give "
                            "another -o, or take it back"
                        )
            elif "passed" in line:
                self._done.add(Prompt(tuple(line["passed"])).key)
            else:
                self._drawn[Prompt(tuple(line["prompt"])).key] = tuple(line["answers"])
        if self.path.exists():
            self._done |= {Prompt(tuple(line["prompt"])).key for line in self._lines(self.path)}

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """What a file holds; a last line that was cut off while it was written is taken away first, and with it those
        before it on the same prompt: they were written together, and without it are not all that was chosen."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            if path == self.path:
                whole -= sum(map(len, together_with(content[whole:], content[:whole].splitlines(keepends=True))))
            os.truncate(path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict) or not {"about", "passed", "prompt"} & value.keys():
                raise InputError(f"{path}:{number}: this is no line of a collection: mend it, or give another -o")
            yield value

    def _append(self, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise refused(path, error, "make room: earlier choices are kept, and the same command goes on") from error


def together_with(begun: bytes, lines: Sequence[bytes]) -> list[bytes]:
    """Of whole lines of preferences the last ones, if they are on the prompt of the line that was begun after them."""
    prompt, found, _ = lines[-1].partition(CHOSEN) if lines else (b"", b"", b"")
    if not found or not (begun.startswith(prompt + found) or (prompt + found).startswith(begun)):
        return []
    return list(takewhile(lambda line: line.startswith(prompt + found), reversed(lines)))
