"""A constitution: principles by which a model criticises, revises and judges answers (Bai et al. 2022).

name: Short answers
principles:
  - name: brief
    critique: Is your answer longer than it has to be?         # asked about an answer
    revision: Write it again in half as many words.            # asked after the critique
    choice: Which of the two answers is briefer?               # asked about two answers
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import StringConstraints, model_validator

from pellucid.data.order import random_number
from pellucid.data.tinyworld.harm import Harm
from pellucid.errors import InputError, did_you_mean
from pellucid.training.recipe import Section, parse_recipe

BUNDLED = Path(__file__).parent / "constitutions"

Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Principle(Section):
    """One principle: what is asked about an answer, after that, and about two answers.

    forbids: of the harms that are defined in a TinyWorld, those that it is about; for the rules that judge there.
    """

    name: Sentence
    critique: Sentence
    revision: Sentence
    choice: Sentence
    forbids: tuple[Harm, ...] = ()


class Constitution(Section):
    """Principles, each under a name of its own."""

    name: Sentence
    principles: tuple[Principle, ...] = ()

    @model_validator(mode="after")
    def _some_principles(self) -> Constitution:
        if not self.principles:
            raise ValueError("a constitution needs at least one principle: give `principles`, a list of them")
        names = [principle.name for principle in self.principles]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two principles are called {twice!r}: give each a name of its own")
        return self

    def drawn(self, rounds: int, *about: int | str) -> Iterator[Principle]:
        """The principles of so many rounds of one example, which `about` names, at random: none comes again before all
        have come."""
        left: list[Principle] = []
        for number in range(rounds):
            left = left or list(self.principles)
            yield left.pop(random_number(len(left), "principle", number, *about))


def bundled() -> list[str]:
    """The names of the constitutions that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def read_constitution(name: str) -> Constitution:
    """The constitution in the YAML file `name`, or the bundled one of that name.

    Raises `InputError` in one sentence: no such file, no principles, a field that is missing, empty or unknown.
    """
    path = BUNDLED / f"{name}.yaml" if name in bundled() else Path(name).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        near = did_you_mean(name, bundled()) or f"; bundled are {', '.join(bundled())}"
        raise InputError(f"{name}: there is no such constitution{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the constitution cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a constitution is a YAML mapping with a name and a list of principles")
    if content.get("principles", ()) is None:
        content = {**content, "principles": []}
    return parse_recipe(content, Constitution, str(path))
