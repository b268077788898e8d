"""What files hold and what is wrong with it, all of it at once: what a training run would stop at, found before."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pellucid.data.documents import KINDS
from pellucid.data.preferences import messages_of
from pellucid.data.records import CHANGED, BadRecord, Kind, Record, digest
from pellucid.data.sources import File, examine
from pellucid.tokenizer.tokenizer import Tokenizer

PERCENTILES = (50, 90, 99)
_EXAMPLES = 3
_SAID_EVERY = 100  # records


@dataclass
class Found:
    """Something that was found `count` times, with the first few sentences about it."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.count += 1
        if self.count <= _EXAMPLES:
            self.examples.append(sentence)


@dataclass
class Lengths:
    """How many tokens the records have. supervised: those that fine-tuning learns from; all of a text."""

    tokens: array[int] = field(default_factory=lambda: array("q"))
    supervised: int = 0
    longest_tokens: int = 0
    longest: str = ""  # its place

    def add(self, tokens: int, supervised: int, place: str) -> None:
        if tokens > self.longest_tokens:
            self.longest, self.longest_tokens = place, tokens
        self.tokens.append(tokens)
        self.supervised += supervised

    @property
    def total(self) -> int:
        return sum(self.tokens)

    def percentiles(self) -> dict[int, int]:
        """The length that so many in a hundred records do not exceed (nearest rank)."""
        ordered = sorted(self.tokens)
        return {p: ordered[-(-p * len(ordered) // 100) - 1] for p in PERCENTILES} if ordered else {}

    def over(self, context: int) -> int:
        return sum(tokens > context for tokens in self.tokens)


@dataclass
class PairLengths:
    """How many tokens the two answers of each pair have."""

    chosen: array[int] = field(default_factory=lambda: array("q"))
    rejected: array[int] = field(default_factory=lambda: array("q"))

    def means(self) -> tuple[float, float]:
        """Of the chosen and of the rejected answers."""
        return sum(self.chosen) / len(self.chosen), sum(self.rejected) / len(self.rejected)

    def chosen_longer(self) -> float:
        """In which part of the pairs the chosen answer is the longer one; equal lengths count half."""
        wins = sum((c > r) + (c == r) / 2 for c, r in zip(self.chosen, self.rejected, strict=True))
        return wins / len(self.chosen)


@dataclass
class Check:
    """What `check` found. problems: by reason. duplicates: records equal to an earlier one."""

    files: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)  # messages by whom
    characters: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    problems: dict[str, Found] = field(default_factory=dict)
    duplicates: Found = field(default_factory=Found)
    lengths: Lengths = field(default_factory=Lengths)
    pairs: PairLengths = field(default_factory=PairLengths)

    @property
    def records(self) -> int:
        return self.formats.total()

    def problem(self, reason: str, sentence: str) -> None:
        self.problems.setdefault(reason, Found()).add(sentence)


def check(
    files: Iterable[File],
    *,
    wanted: Kind | None = None,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    progress: Callable[[int], None] = lambda records: None,
) -> Check:
    """Reads all of `files` and says what they hold, as records of the `wanted` kind if one is named.

    tokenizer: counts tokens with it, conversations through its chat template. context: conversations with more tokens
    are a problem (fine-tuning takes them whole), and pairs of which an answer has. progress: told now and then how many
    records have been read.
    """
    files, found, counts = list(files), Check(), Counter[str]()
    found.files = len(files)
    seen: dict[bytes, str] = {}  # digest -> place
    for number, item in enumerate(examine(files, wanted, counts), 1):
        if number % _SAID_EVERY == 0:
            progress(number)
        if isinstance(item, BadRecord):
            found.problem(item.reason, str(item))
            continue
        take_in(item, found)
        first = seen.setdefault(digest(item), item.place)
        if first != item.place:
            found.duplicates.add(f"{item.place} equals {first}")
        if tokenizer is not None and item.kind in KINDS:
            count_tokens(item, found, tokenizer, context)
    found.changed = {key.removeprefix(CHANGED): n for key, n in counts.items() if key.startswith(CHANGED)}
    return found


def take_in(record: Record, found: Check) -> None:
    """Counts a good record."""
    found.formats[record.format] += 1
    found.kinds[record.kind] += 1
    if record.kind == "text":
        found.characters += len(record.content)
        return
    messages = messages_of(record.content)
    found.roles.update(message["role"] for message in messages)
    found.characters += sum(len(content) for message in messages if isinstance(content := message.get("content"), str))


def count_tokens(record: Record, found: Check, tokenizer: Tokenizer, context: int | None) -> None:
    """Counts the tokens that the record is for training; what cannot be trained on, or not whole, is a problem."""
    (found_here,) = KINDS[record.kind].documents([record], tokenizer)
    if isinstance(found_here, BadRecord):
        found.problem(found_here.reason, str(found_here))
        return
    documents = found_here if isinstance(found_here, list) else [found_here]
    said = [len(one.ids) if one.mask is None else sum(one.mask) for one in documents]
    for document, supervised in zip(documents, said, strict=True):
        found.lengths.add(len(document.ids), supervised, record.place)
    if record.kind == "preference":
        found.pairs.chosen.extend(said[::2])
        found.pairs.rejected.extend(said[1::2])
    longest = max(documents, key=lambda document: len(document.ids))
    tokens = len(longest.ids)
    if record.kind == "text" or context is None or tokens <= context:
        return
    if record.kind == "preference" and longest.mask is not None and True not in longest.mask[:context]:
        sentence = f"{record.place}: what comes before the answer fills the context of {context:,} tokens"
        found.problem("the prompt alone exceeds the context", f"{sentence}; raise data.context, or remove the record")
        return
    sentence = f"{record.place}: {tokens:,} tokens, longer than the context of {context:,}"
    fix = "expected at most that; raise data.context, or choose data.too_long=drop or cut"
    found.problem("longer than the context", f"{sentence}; {fix}")
