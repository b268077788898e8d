"""Rewards: plain functions that say how good answers are, named in a recipe, ours or anybody's.

A reward is called with the prompts and their answers and every other field of the prompts' records, each a list with an
entry an answer, and gives a number for each (None: it says nothing of this one):

    def reward(prompts, completions, answer, **others) -> list[float | None]: ...

A prompt that is text has answers that are text; one that is messages has answers that are lists of one message. So
functions that were written for TRL are taken as they are.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from pellucid.alignment import checkers
from pellucid.alignment.code import passes_tests
from pellucid.errors import InputError, PellucidError, did_you_mean

RewardFunction: TypeAlias = Callable[..., Sequence[float | None]]

BUILT_IN: dict[str, RewardFunction] = {
    "exact": checkers.exact,
    "number": checkers.number,
    "equations": checkers.equations,
    "think_format": checkers.think_format,
    "pattern": checkers.pattern,
    "tinyworld": checkers.tinyworld,
    "sentiment": checkers.sentiment,
    "code": passes_tests,
}
LETTERS = 60  # of a prompt that an error shows


@dataclass(frozen=True, slots=True)
class Reward:
    """A function and what its numbers are multiplied with in the sum."""

    name: str
    function: RewardFunction
    weight: float = 1.0

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """One number for each answer. Raises `PellucidError`, one sentence with the function and the sample."""
        given = self._accepted({**columns, "prompts": prompts, "completions": completions})
        try:
            found = self.function(**given)
        except Exception as error:
            where = self._culprit(prompts, given)
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise PellucidError(f"the reward {self.name} failed {where} ({said}): mend the function") from error
        return self._checked(found, prompts)

    def _checked(self, found: object, prompts: Sequence[Any]) -> list[float | None]:
        try:
            values = [None if value is None else float(value) for value in found]  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise PellucidError(
                f"the reward {self.name} gave {_short(found)}: it must give a list with a number for each answer"
            ) from None
        if len(values) != len(prompts):
            raise PellucidError(
                f"the reward {self.name} gave {len(values)} numbers for {len(prompts)} answers: it must give one each"
            )
        for value, prompt in zip(values, prompts, strict=True):
            if value is not None and not math.isfinite(value):
                raise PellucidError(
                    f"the reward {self.name} gave {value} for an answer to {_short(prompt)}: it must give a finite "
                    "number, or None"
                )
        return values

    def _culprit(self, prompts: Sequence[Any], given: Mapping[str, Sequence[Any]]) -> str:
        """The first sample on which the function fails by itself."""
        for number, prompt in enumerate(prompts):
            try:
                self.function(**{name: values[number : number + 1] for name, values in given.items()})
            except Exception:  # noqa: BLE001 (anybody's code)
                return f"on an answer to {_short(prompt)}"
        return f"on {len(prompts)} answers together, though on none of them alone"

    def _accepted(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """What the function takes: all, or what it names."""
        taken = inspect.signature(self.function).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            return dict(columns)
        return {parameter.name: columns[parameter.name] for parameter in taken if parameter.name in columns}


def find_reward(name: str, weight: float = 1.0) -> Reward:
    """The reward of that name: a built-in one, or `module:function`, or `file.py:function`.

    Raises `InputError` where there is none.
    """
    if name in BUILT_IN:
        return Reward(name, BUILT_IN[name], weight)
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise InputError(
            f"there is no reward {name!r}{did_you_mean(name, BUILT_IN)}; there are {', '.join(BUILT_IN)}, and your own "
            "functions as module:function or file.py:function"
        )
    function = getattr(_module(name, place), attribute, None)
    if not callable(function):
        raise InputError(f"{name}: there is no function {attribute!r} in {place}")
    return Reward(name, function, weight)


def total_rewards(
    rewards: Sequence[Reward], prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum for each answer, and each reward's own numbers by name, those that it gave.

    Raises `PellucidError` where none of them says anything of an answer, and as `Reward` does.
    """
    each = {reward.name: reward(prompts, completions, columns) for reward in rewards}
    totals = []
    for number, prompt in enumerate(prompts):
        said = [(reward.weight, each[reward.name][number]) for reward in rewards]
        known = [weight * value for weight, value in said if value is not None]
        if not known:
            raise PellucidError(f"no reward says anything of an answer to {_short(prompt)}: each gave None")
        totals.append(sum(known))
    return totals, {name: [value for value in values if value is not None] for name, values in each.items()}


def _module(name: str, place: str) -> ModuleType:
    """A module by its name, looked for in the working folder too, or by its file."""
    path = Path(place)
    if path.suffix == ".py":
        if not path.is_file():
            raise InputError(f"{name}: there is no file {place}")
        folder = str(path.parent.resolve())
    else:
        folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return _from_file(path.resolve()) if path.suffix == ".py" else importlib.import_module(place)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{name}: {place} cannot be imported ({said})") from error
    finally:
        sys.path.remove(folder)


def _from_file(path: Path) -> ModuleType:
    """A file's module, under a name that no other file and no installed module has."""
    name = f"pellucid_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}..."
