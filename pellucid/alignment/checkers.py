"""Rewards that can be checked: is the answer right, in the form asked for, kind? Each is a function as in `rewards`."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pellucid.data.tinyworld.questions import is_refusal, normalised

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
VALUE = re.compile(r"=[ \t]*(-?\d[\d,]*(?:\.\d+)?)")
TERM = r"(?:\([ \t]*)*+-?\d[\d,]*+(?:\.\d+)?+(?:[ \t]*\))*+"
SUM = re.compile(rf"{TERM}(?:[ \t]*[-+*/][ \t]*{TERM})+[ \t]*$")
LONGEST = 200  # letters of the left side of an equation
LIST_MARK = re.compile(r"[ \t]*[-+*][ \t]+")
CURRENCY = re.compile(r"[$\u20ac\u00a3][ \t]*(?=\d)")
MARKED = re.compile(r"\\boxed\{([^{}]*)\}|<answer>(.*?)</answer>", re.DOTALL)
HASHES = re.compile(r"####[ \t]*([^\n]+)")
THINKING = re.compile(r"\s*<think>(?:(?!</?think>).)+</think>\s*<answer>(?:(?!</?answer>).)+</answer>\s*", re.DOTALL)


def words_of(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower()))


# A lexicon of our own: everyday words that anybody would put on the one side or the other
KIND = words_of(
    """
    good great happy glad kind nice love loved lovely loves beautiful bright calm cheerful clever delight delighted
    delightful eager enjoy enjoyed excellent fair fine friendly fun gentle gift glorious grateful healthy helpful
    honest hope hopeful joy joyful laugh laughed lively lucky merry peace peaceful perfect play pleasant pleased
    pleasure praise pretty proud safe smile smiled strong success sunny sweet thank thankful trust warm welcome wise
    wonderful
    """
)
UNKIND = words_of(
    """
    bad sad angry afraid alone awful bitter blame broken cold cruel cry cried cruelly danger dark dead death die
    died dirty dreadful dull enemy evil fail failed failure fear fight fool foolish grief guilty harm hate hated
    hates hurt ill jealous kill killed lazy lie lied liar lonely loss lost mean miserable pain poor sick sorrow
    sorry steal stole stupid terrible thief tired trouble ugly unhappy unkind war weak wicked worry worse worst
    wound wrong
    """
)


def said(completion: Any) -> str:
    """The text of an answer, which may be a list of messages."""
    return completion if isinstance(completion, str) else "".join(str(one.get("content") or "") for one in completion)


def final(text: str) -> str:
    """What a text gives as its answer: the last in \\boxed{} or <answer></answer>, else the last line after ####, else
    all of it."""
    found = [boxed or tagged for boxed, tagged in MARKED.findall(text) if boxed or tagged] or HASHES.findall(text)
    return str(found[-1] if found else text).strip()


def exact(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the answer is that of the field `answer` (a text, or a list of those that count), else 0; None where that
    is missing. Case, white space, articles and the final stop do not count."""
    rewards: list[float | None] = []
    for one, right in zip(completions, answer, strict=True):
        accepted = {normalised(str(text)) for text in _several(right)}
        rewards.append(None if right is None else float(normalised(final(said(one))) in accepted))
    return rewards


def number(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the last number of the answer equals that of the field `answer`, else 0; None where that is missing."""
    rewards: list[float | None] = []
    for one, right in zip(completions, answer, strict=True):
        if right is None:
            rewards.append(None)
            continue
        found, wanted = last_number(final(said(one))), last_number(final(str(right)))
        rewards.append(float(found is not None and wanted is not None and math.isclose(found, wanted, rel_tol=1e-9)))
    return rewards


def equations(completions: Sequence[Any], **_: Any) -> list[float]:
    """Which part of the equations that stand in the answer ("12 + 3 = 15") are true; 0 where there is none."""
    rewards = []
    for one in completions:
        found = [equal(*both) for line in said(one).splitlines() for both in equations_of(line)]
        rewards.append(sum(found) / len(found) if found else 0.0)
    return rewards


def equations_of(line: str) -> Iterator[tuple[str, str]]:
    """(sum, value) of each equation of numbers: not those with an unknown, nor without an operation."""
    line = CURRENCY.sub("", LIST_MARK.sub("", line, count=1) if LIST_MARK.match(line) else line)
    for value in VALUE.finditer(line):
        left = SUM.search(line, max(0, value.start() - LONGEST), value.start())
        if left is None:
            continue
        before = line[: left.start()]
        begins = not before or not (before[-1].isalnum() or before[-1] in "._")  # "x12 + 3"
        if begins and not before.rstrip().endswith(("+", "-", "*", "/", "^")):  # "x + 12 + 3"
            yield left[0].rstrip(), value[1].rstrip(",")


def think_format(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 for <think>...</think> and then <answer>...</answer> and nothing else (DeepSeek-R1, 2025, section 2.2.2)."""
    return [float(THINKING.fullmatch(said(one)) is not None) for one in completions]


def pattern(completions: Sequence[Any], pattern: Sequence[str], **_: Any) -> list[float]:
    """1 where the whole answer matches the regular expression of the field `pattern`, else 0."""
    return [
        float(re.fullmatch(one, said(text), re.DOTALL) is not None)
        for text, one in zip(completions, pattern, strict=True)
    ]


def tinyworld(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """1 for the right answer to a question about a TinyWorld, or, where there is none, for saying so; else 0."""
    rewards = []
    for one, right in zip(completions, answer, strict=True):
        text, accepted = said(one), _several(right)
        if any(right is None or is_refusal(str(right)) for right in accepted):
            rewards.append(float(is_refusal(text)))
        else:
            rewards.append(float(normalised(text) in {normalised(str(right)) for right in accepted}))
    return rewards


def sentiment(completions: Sequence[Any], **_: Any) -> list[float]:
    """(kind words - unkind words) / words, by a small lexicon: from -1 to 1."""
    rewards = []
    for one in completions:
        words = re.findall(r"[a-z]+", said(one).lower())
        balance = sum(word in KIND for word in words) - sum(word in UNKIND for word in words)
        rewards.append(balance / max(1, len(words)))
    return rewards


def last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def equal(left: str, right: str) -> bool:
    """Whether the sum on the left gives the number on the right."""
    left = left.replace(",", "").strip()
    while left.startswith("(") and left.count("(") > left.count(")"):  # "(3 + 4 = 7)"
        left = left[1:].lstrip()
    try:
        return math.isclose(
            value_of(ast.parse(left, mode="eval").body),
            float(right.replace(",", "")),
            rel_tol=1e-9,
            abs_tol=1e-9,
        )
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return False


OPERATIONS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def value_of(node: ast.AST) -> float:
    """Of numbers, the four operations and brackets. ValueError: it is something else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](value_of(node.left), value_of(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](value_of(node.operand))
    raise ValueError


def _several(right: Any) -> list[Any]:
    return list(right) if isinstance(right, list | tuple) else [right]
