"""A reward for code: it runs, with tests behind it, in a process of its own that is short of time and memory.

That process keeps a mistake from doing harm: it has limits, an empty folder and an empty environment. It is no prison:
it may read what its user may read and open connections. Where the code may be hostile, run all of it in a container.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pellucid.alignment.checkers import said

SECONDS = 5  # of processor time, and of waiting
MEMORY = 512 << 20  # bytes
FILE = 1 << 20  # bytes of a file that is written
FRAME = """import json, resource, sys
for kind, most in (("CPU", {seconds}), ("AS", {memory}), ("FSIZE", {file})):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
def frame(mark):
    names = {{"__name__": "__main__"}}
    for source in json.load(sys.stdin):
        exec(compile(source, "answer", "exec"), names)
    print(mark, end="", flush=True)
frame("{mark}")
"""
FENCED = re.compile(r"```[ \t]*(?:python3?|py)?[ \t\r]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def passes_tests(completions: Sequence[Any], tests: Sequence[str], **_: Any) -> list[float]:
    """1 where the answer's Python code (the last fenced block, or all of it), followed by the field `tests`, comes to
    its end within 5 s and 512 MB; else 0."""
    programs = [code_of(said(one)) for one in completions]
    with ThreadPoolExecutor(2) as pool:
        return [float(ended) for ended in pool.map(runs, programs, tests)]


def code_of(text: str) -> str:
    """The last fenced block of code, or the whole text."""
    blocks = FENCED.findall(text)
    return str(blocks[-1]) if blocks else text


def runs(program: str, tests: str = "", *, seconds: int = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a Python program and its tests come to their end within the limits, without an error and without leaving
    early. The tests see the program's names, and are a source of their own: nothing in it makes them part of it."""
    mark = secrets.token_hex(16)  # the frame prints it behind both; the program does not know it unless it looks for it
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", FRAME.format(seconds=seconds, memory=memory, file=FILE, mark=mark)],
            cwd=folder, env={}, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            child.communicate(json.dumps([program, tests]).encode(), timeout=seconds + 1)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and whatever it has started
            child.wait()
        output.seek(0)
        return child.returncode == 0 and output.read().endswith(mark.encode())
