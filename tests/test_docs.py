"""Every command and every program in README.md and docs/ runs, and gives what is shown under it (promise E7).

A ```console block holds commands after `$ `, each with the standard output that is claimed for it, if any; what begins
with `error: ` is an error, and status 2. In it `...` stands for anything, on a line of its own for any lines. A
```python block is a program; a ```text block right after it is what it prints. The blocks of one document run in order
in one folder. `<!-- slow -->` before a block leaves it to `-m slow`. Only `make`, `pip` and `git` are not run; the
targets of `make` have to exist.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<mark><!-- slow -->\n+)?```(?P<language>\w*)\n(?P<body>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
RUN = ("console", "python")
NOT_RUN = ("make", "pip", "git")


@dataclass(frozen=True)
class Block:
    document: Path
    line: int
    language: str
    body: str
    output: str | None
    slow: bool


def blocks() -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for fence in FENCE.finditer(text):
            line = text.count("\n", 0, fence.start("language")) + 1
            found.append(Block(document, line, fence["language"], fence["body"], fence["output"], bool(fence["mark"])))
    return found


def parameters() -> list[object]:
    return [
        pytest.param(
            block,
            id=f"{block.document.relative_to(ROOT)}:{block.line}",
            marks=[pytest.mark.slow] if block.slow else [],
        )
        for block in blocks()
        if block.language in RUN
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Each document's own, with the recipes where they lie in the repository."""
    made = {document: tmp_path_factory.mktemp(document.stem) for document in DOCUMENTS}
    for folder in made.values():
        (folder / "recipes").symlink_to(ROOT / "recipes")
    return made


@pytest.mark.parametrize("block", parameters())
def test_block(block: Block, folders: dict[Path, Path]) -> None:
    folder = folders[block.document]
    if block.language == "python":
        printed = run([sys.executable, "-c", block.body], folder)
        assert block.output is None or matches(block.output, printed), printed
        return
    for command, claimed in session(block.body):
        if command.split()[0] in NOT_RUN:
            check_unrun(command)
            continue
        printed = run(["bash", "-c", command], folder, fails=claimed.startswith("error: "))
        assert not claimed or matches(claimed, printed), f"$ {command}\n{printed}"


def session(body: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with what is claimed to be its output."""
    first, *parts = re.split(r"^\$ ", body, flags=re.MULTILINE)
    assert not first.strip(), "a console block begins with `$ `"
    pairs = (part.partition("\n") for part in parts)
    return [(command.strip(), claimed) for command, _, claimed in pairs]


def run(command: list[str], folder: Path, fails: bool = False) -> str:
    """The command's standard output, in that folder, 80 columns wide and without colour; it has to succeed.

    With `fails` it has to have been asked wrongly, and what it says is its error.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == (2 if fails else 0), f"{command[-1]}\n{done.stdout}{done.stderr}"
    return done.stderr if fails else done.stdout


def matches(claimed: str, printed: str) -> bool:
    """Whether the printed text is the claimed one: `...` is anything, spaces at the end of a line are nothing."""

    def plain(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    pattern = ".*".join(re.escape(part) for part in plain(claimed).split("..."))
    return re.fullmatch(pattern, plain(printed), re.DOTALL) is not None


def check_unrun(command: str) -> None:
    words = command.split("#")[0].split()
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        wanted = {word for word in words[1:] if "=" not in word}
        assert wanted <= targets, command


def test_no_command_stands_where_it_is_not_run() -> None:
    """What looks like one of our commands stands in a block that is run."""
    strays = [
        f"{block.document.name}:{block.line}"
        for block in blocks()
        if block.language not in RUN and re.search(r"^\W*(pellucid|python|make) ", block.body, re.MULTILINE)
    ]
    assert not strays


def test_every_link_inside_leads_somewhere() -> None:
    broken = [
        f"{document.name}: {target}"
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert not broken


def test_the_map_of_rooms_is_the_house() -> None:
    """README's map names each folder of the package once, and none that is not there."""
    listed = re.findall(r"^\| `pellucid/(\w+)/` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    there = [folder.parent.name for folder in (ROOT / "pellucid").glob("*/__init__.py")]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize(
    ("claimed", "printed", "holds"),
    [
        ("a\nb\n", "a  \nb", True),
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("about ... s\n", "about 1.3 s\n", True),
        ("a\n", "a\nb\n", False),
        ("a...c", "abd", False),
    ],
)
def test_matching(claimed: str, printed: str, holds: bool) -> None:
    assert matches(claimed, printed) is holds
