"""The promises of the package itself (E7): few dependencies, all declared, all pinned."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PEERS = {"transformers", "trl", "peft", "tiktoken", "sentencepiece", "gguf", "llama_cpp"}
IMPORTED_AS = {"pyyaml": "yaml"}  # where it is not the package's name


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(pin.name): pin for pin in pins}


def core() -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}


def optional() -> set[str]:
    """What the extras for users bring; who uses it says how to install it where it is missing."""
    extras = PROJECT["optional-dependencies"]
    return {canonicalize_name(Requirement(line).name) for name in extras if name != "dev" for line in extras[name]}


def test_at_most_twelve_core_dependencies() -> None:
    assert len(core()) <= 12


def test_every_import_is_declared() -> None:
    """No module of pellucid imports what pyproject.toml does not name, and none imports a peer."""
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in core() | optional()}
    known = declared | set(sys.stdlib_module_names) | {"pellucid", "__future__"}
    undeclared = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / "pellucid").rglob("*.py")
        for name in imported(ast.parse(file.read_text()))
        if name not in known or name in PEERS
    }
    assert not undeclared


def imported(tree: ast.AST) -> set[str]:
    """The top-level names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_everything_installed_for_us_is_pinned() -> None:
    """Each package that `pip install -e .[dev]` brings stands in constraints.txt, direct or transitive."""
    unpinned = needed("pellucid", {"dev"}) - set(constraints()) - {"pellucid"}
    assert not unpinned


def needed(package: str, extras: set[str], seen: set[str] | None = None) -> set[str]:
    seen = set() if seen is None else seen
    try:
        lines = requires(package) or []
    except PackageNotFoundError:  # needed on another system only
        return set()
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        wanted = not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""})
        if wanted and name not in seen:
            seen.add(name)
            needed(name, set(requirement.extras), seen)
    return seen


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the pins with a marker hold from Python 3.11 on")
def test_what_is_installed_is_what_is_pinned() -> None:
    different = {}
    for name in needed("pellucid", {"dev"}) & set(constraints()):
        pin = constraints()[name]
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if not pin.specifier.contains(installed, prereleases=True):
            different[name] = (installed, str(pin))
    assert not different


def test_pins_satisfy_the_declared_ranges() -> None:
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        pin = constraints()[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert requirement.specifier.contains(exact.version, prereleases=True), line


def test_every_folder_of_code_is_a_package() -> None:
    """Without `__init__.py` a folder would be missing from the wheel, and only there."""
    folders = {file.parent for file in (ROOT / "pellucid").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_ci_runs_what_a_user_runs() -> None:
    commands = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "make test"
    assert re.search(r"^test:", (ROOT / "Makefile").read_text(), re.MULTILINE)
