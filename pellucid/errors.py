"""The two ways in which a command ends badly, and how a message is put."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


LONGEST_VALUE = 200  # letters of a wrong value that a message shows


class PellucidError(Exception):
    """It failed: the request was right, the world was not (a full disk, a lost file).

    The message is one sentence that says what to do. The command line prints it and ends with `exit_status`.
    """

    exit_status = 1


class InputError(PellucidError):
    """It was asked wrongly: a bad value, name, file or combination. Nothing has been changed."""

    exit_status = 2


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the choice nearest to `word`, or `""` when none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def from_validation(error: ValidationError, what: str, fields: Iterable[str] = ()) -> InputError:
    """One sentence for pydantic's first complaint about `what`: the field, the value seen, what is allowed.

    `fields` are the names that exist, for the suggestion when a field is unknown.
    """
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return InputError(f"{what}: there is no field {place!r}{did_you_mean(place, fields)}")
    if first["type"] == "missing":
        return InputError(f"{what}: the field {place!r} is missing")
    if not place:  # a rule across fields: our own validator wrote the sentence
        return InputError(f"{what}: {first['msg'].removeprefix('Value error, ')}")
    message = first["msg"].removeprefix("Value error, ")
    seen = repr(first["input"])
    seen = seen if len(seen) <= LONGEST_VALUE else f"{seen[:LONGEST_VALUE]}..."
    return InputError(f"{what}: {place} = {seen}: {message[0].lower()}{message[1:]}")
