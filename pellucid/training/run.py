"""The run folder: what a run is, what it has come to, and what it needs to go on.

    <run>/  config.yaml      the recipe, every field of it
            metrics.jsonl    one JSON object a line: see `training/metrics.py`
            checkpoints/     step-N/, the newest few: see `training/state.py`
            final/           the model at the end

The same command starts a run and resumes it. A run may be killed at any moment: what is there is whole (promise D7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import yaml
from pydantic import ValidationError

from pellucid.checkpoints.atomic import atomic_file, atomic_folder, remove_folder, sweep
from pellucid.checkpoints.manifest import CHECKPOINTS, checkpoints, damage, whole_checkpoints
from pellucid.checkpoints.save import About
from pellucid.checkpoints.source import FINAL, RUN_RECIPE
from pellucid.errors import InputError, PellucidError
from pellucid.training.lock import LOCK, lock
from pellucid.training.ranks import Ranks
from pellucid.training.recipe import Recipe
from pellucid.training.saved import Saved
from pellucid.training.state import Checkpoint, Stateful, save_state

# Fields that may differ at a resume, because no weight depends on them. A section stands for all of its fields.
FREE = (
    "run", "expect", "train.evaluate_every", "train.evaluate_rows", "train.save_every", "train.keep",
    "train.sample_prompts", "train.sample_tokens", "train.explode", "report",
)  # fmt: skip
TOKENIZER = "tokenizer"  # of the run's own, learnt from its text before the first step
HEAD = "# The recipe of this run, every field of it. The command that began the run resumes it.\n"


class RunFolder:
    """A run folder that this process alone writes to, until `close` or the end of the `with` block."""

    def __init__(self, path: Path, keep: int, held: BinaryIO) -> None:
        self.path = path
        self.keep = keep
        self._held = held

    @classmethod
    def open(cls, folder: str | Path, recipe: Recipe) -> RunFolder:
        """Begins a run in `folder`, or takes up the one that is there.

        Raises `InputError` when another process is at it, when it was begun with another recipe (each difference is
        shown), or when the folder holds something else. Before its first checkpoint a run may still get another recipe:
        no weight depends on it yet, and what stopped the run may have been an error in it.
        """
        path = Path(folder).expanduser()
        _check_place(path)
        (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        held = lock(path)
        try:
            sweep(path)
            sweep(path / CHECKPOINTS)
            _settle_recipe(path / RUN_RECIPE, recipe)
        except BaseException:
            held.close()
            raise
        return cls(path, recipe.train.keep, held)

    def close(self) -> None:
        """Gives the folder back."""
        self._held.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def save_checkpoint(
        self,
        step: int,
        saved: Saved,
        optimizers: Stateful,
        state: Mapping[str, Any],
        about: About,
    ) -> Checkpoint:
        """Writes `checkpoints/step-N`, whole or not at all, and then removes those that are no longer kept.

        state: plain values, which `Checkpoint.restore` gives back, the step among them.
        Raises `PellucidError` when the disk refuses; the checkpoints that were there stay.
        """
        sweep(self.path / CHECKPOINTS)
        folder = self.path / CHECKPOINTS / f"step-{step}"
        save_state(folder, saved, optimizers, {"step": step, **state}, about)
        self._remove_old(step)
        return Checkpoint(folder, step)

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint; a warning tells of each newer one that is not whole. None: there is none."""
        return newest_checkpoint(self.path)

    def save_final(self, saved: Saved, about: About) -> Path:
        """Writes `final/`, what the run was for; returns where it is."""
        with atomic_folder(self.path / FINAL) as temporary:
            saved.write(temporary, about)
        return self.path / FINAL

    def _remove_old(self, newest: int) -> None:
        """Keeps the newest whole ones. Those of later steps are broken, or the run would have gone on from there."""
        found = checkpoints(self.path)
        whole = [step for step, folder in found if step <= newest and damage(folder, contents=False) is None]
        for step, folder in found:
            if step not in whole[: self.keep]:
                remove_folder(folder)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """As `RunFolder.newest_checkpoint`, for a process that does not write: every file is read and compared."""
    return next((Checkpoint(folder, step) for step, folder in whole_checkpoints(run, contents=True)), None)


def agreed_checkpoint(run: str, ranks: Ranks) -> Checkpoint | None:
    """What a run goes on from: its newest whole checkpoint, the same in every process. None: the run begins."""
    path = Path(run).expanduser()
    checkpoint = newest_checkpoint(path) if ranks.first else None
    step = ranks.agree(checkpoint.step if checkpoint else None)
    if step is not None and checkpoint is None:
        checkpoint = newest_checkpoint(path)
        if checkpoint is None or checkpoint.step != step:
            raise PellucidError(
                f"process {ranks.rank} does not find step {step} in {path}, which the first one has found: the run "
                "folder has to be where all processes see it"
            )
    return checkpoint


def _check_place(path: Path) -> None:
    """`InputError` for a folder that is not a run's."""
    if path.exists() and not path.is_dir():
        raise InputError(f"run = {str(path)!r} is a file; give the name of a folder")
    if not path.exists() or (path / RUN_RECIPE).is_file():
        return
    begun = {LOCK, CHECKPOINTS}  # of a run that was killed before its recipe was written
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in begun and entry.name[0] != ".")
    if strange:
        raise InputError(f"{path} holds {strange[0]!r}, and no run: choose another run folder, or empty this one")


def _settle_recipe(file: Path, recipe: Recipe) -> None:
    """Writes the recipe down, or compares it with the one that is there."""
    now = recipe.model_dump(mode="json")
    was = _read_recipe(file, type(recipe)) if file.is_file() else now
    differences = compare(was, now)
    if differences and not checkpoints(file.parent):
        if (file.parent / TOKENIZER).is_dir():
            remove_folder(file.parent / TOKENIZER)
    elif differences:
        shown = "; ".join(differences)
        raise InputError(
            f"{file.parent} was begun with another recipe ({shown}): "
            "choose another run folder, or take the fields back to resume this run"
        )
    if was != now or not file.is_file():
        with atomic_file(file) as temporary:
            temporary.write_text(HEAD + yaml.safe_dump(now, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _read_recipe(file: Path, kind: type[Recipe]) -> dict[str, Any]:
    """The recipe in `file`, with defaults for fields that have come since; of another kind of run, just as it is."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file}: this is no recipe of a run any more; choose another run folder") from None
    try:
        return kind.model_validate(content).model_dump(mode="json")
    except ValidationError:
        return content


def compare(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields in which two recipes differ and a run may not, as "field: was -> is"."""
    old, new = _flat(was), _flat(now)
    names = [name for name in {**old, **new} if not any(f"{name}.".startswith(f"{free}.") for free in FREE)]
    return [
        f"{name}: {_shown(old, name)} -> {_shown(new, name)}"
        for name in names
        if old.get(name, _ABSENT) != new.get(name, _ABSENT)
    ]


_ABSENT = object()


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def _shown(flat: Mapping[str, Any], name: str) -> str:
    """A value as YAML has it, on one line."""
    if name not in flat:
        return "not set"
    return yaml.safe_dump(flat[name], default_flow_style=True, allow_unicode=True, width=10**6).split("\n")[0]
