"""Which tokens of a conversation the assistant said.

A turn of the assistant is supervised from just after the generation prompt through its end-of-turn token: reasoning and
tool calls included, and nothing that the template would have put there itself. Where the template marks this with
`{% generation %}`, it is believed. Most do not, and then the turn is found in the rendering of the whole conversation
by comparison with two shorter ones:

    up to the turn, with generation prompt     ... last content | end of turn | generation prompt
    the whole conversation                     ... last content | end of turn | generation prompt | answer | end | ...
    through the turn                                                                     ... answer | end

Each character of content has a number (`provenance.py`), so "the same place" is exact, however the template rewrites
earlier turns when later ones come (a reasoning model's template drops old thoughts).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from pellucid.errors import InputError
from pellucid.tokenizer.provenance import Traced

if TYPE_CHECKING:
    from pellucid.tokenizer.conversation import Conversation
    from pellucid.tokenizer.sandbox import Rendered
    from pellucid.tokenizer.template import ChatTokenizer, Piece, Splitter

Span = tuple[int, int]


def assistant_mask(
    conversation: Conversation,
    rendered: Rendered,
    splitter: Splitter,
    pieces: Sequence[Piece],
    encoded: Sequence[Sequence[int]],
    tokenizer: ChatTokenizer,
) -> list[bool]:
    """One bool for each of the ids in `encoded`, which holds those of each piece of the rendered text."""
    spans = rendered.generated or TurnFinder(conversation, rendered.text, splitter, tokenizer.stop_ids).spans()
    return [
        said
        for piece, ids in zip(pieces, encoded)
        for said in mask_of_piece(piece, ids, spans, str.__str__(rendered.text), tokenizer)
    ]


def mask_of_piece(
    piece: Piece, ids: Sequence[int], spans: Sequence[Span], text: str, tokenizer: ChatTokenizer
) -> list[bool]:
    if piece.id is not None:
        return [any(start <= piece.start < stop for start, stop in spans)]
    inside = [(max(start, piece.start), min(stop, piece.stop)) for start, stop in spans]
    inside = [(start, stop) for start, stop in inside if start < stop]
    if not inside or inside == [(piece.start, piece.stop)]:
        return [bool(inside)] * len(ids)
    places = [tuple(len(text[piece.start : border].encode()) for border in span) for span in inside]
    mask, done = [], -surplus(ids, text[piece.start : piece.stop], tokenizer)
    for token in ids:
        start, done = done, done + len(tokenizer.token_bytes(token))
        mask.append(any(start < last and first < done for first, last in places))
    return mask


def surplus(ids: Sequence[int], text: str, tokenizer: ChatTokenizer) -> int:
    """How many bytes more than the text its tokens have: the space that some tokenizers put first, or none."""
    spelt = b"".join(map(tokenizer.token_bytes, ids))
    wanted = text.encode()
    if spelt == wanted:
        return 0
    if spelt == b" " + wanted:
        return 1
    raise InputError("this tokenizer rewrites its text, so which tokens the assistant said cannot be told")


class TurnFinder:
    """The assistant's turns in `text`, the rendering of the whole conversation."""

    def __init__(self, conversation: Conversation, text: Traced, splitter: Splitter, stop_ids: Sequence[int]) -> None:
        self.conversation = conversation
        self.text = text
        self.plain = str.__str__(text)
        self.splitter = splitter
        self.stops = frozenset(stop_ids)

    def spans(self) -> list[Span]:
        found = []
        for number, message in enumerate(self.conversation.messages):
            if message["role"] == "assistant":
                span = self.span(number)
                if span is not None:
                    found.append(span)
        return found

    def span(self, number: int) -> Span | None:
        """Where the turn is; None if the template leaves the message out."""
        before = self.conversation.render(number).text
        through = self.conversation.render(number + 1).text
        if str.__str__(before) == str.__str__(through):
            return None
        prompt = self.conversation.render(number, add_generation_prompt=True).text
        start = self.start(number, before, prompt, self.text)
        own = self.conversation.ledger.span(number)
        last = last_index(through.origins, *own)
        if last is None:  # the message has no text of its own: an empty answer
            begin, tail = start, through.cut(self.start(number, before, prompt, through), len(through))
        else:
            begin, tail = self.last_said(number, through, last, start), through.cut(last + 1, len(through))
        return start, self.end(number, tail, begin)

    def start(self, number: int, before: Traced, prompt: Traced, text: Traced) -> int:
        """Where in `text` the generation prompt of a turn ends, as far as `text` has it."""
        anchor = last_index(prompt.origins, 1, None)
        if anchor is None:
            place, tail = 0, str.__str__(prompt)
        else:
            occurrence = prompt.origins.count(prompt.origins[anchor])
            found = nth_index(text.origins, prompt.origins[anchor], occurrence)
            if found is None:
                raise self.defeated(number)
            place, tail = found + 1, str.__str__(prompt)[anchor + 1 :]
        plain = str.__str__(text)
        if plain.startswith(tail, place):
            return place + len(tail)
        scaffold = sum(1 for _ in takewhile(lambda origin: origin == 0, text.origins[place:]))
        opening = str.__str__(prompt).removeprefix(str.__str__(before)) if prompt.startswith(before) else ""
        if opening:
            found = plain.find(opening, place, place + scaffold)
            if found >= 0:
                return found + len(opening)
        common = self.whole_tokens(common_prefix(plain[place : place + scaffold], tail))
        if len(common) <= len(tail) - len(opening) and opening:
            raise self.defeated(number)
        return place + len(common)

    def whole_tokens(self, text: str) -> str:
        """The beginning of `text` up to the last structural token or end of line."""
        stop = text.rfind("\n") + 1
        for match in self.splitter.pattern.finditer(text):
            stop = max(stop, match.end())
        return text[:stop]

    def last_said(self, number: int, through: Traced, last: int, start: int) -> int:
        """Where in the whole text the message's own text ends."""
        low, high = self.conversation.ledger.span(number)
        for index in range(last, -1, -1):
            origin = through.origins[index]
            if low <= origin < high:
                found = nth_index(self.text.origins, origin, through.origins[: index + 1].count(origin))
                if found is not None:
                    return max(start, found + 1)
        return start

    def end(self, number: int, tail: Traced, begin: int) -> int:
        """Where in the whole text the turn that was said up to `begin` ends; `tail` follows it where it is the last."""
        tokens = [piece for piece in self.splitter.split(tail) if piece.id is not None and self.is_control(piece.id)]
        ends = [piece for piece in tokens if piece.id in self.stops][:1] or tokens[-1:]
        if ends:
            written = str.__str__(tail)[: ends[0].start]
            place = begin + len(written)
            token = self.splitter.pattern.match(self.plain, place)
            if not self.plain.startswith(written, begin) or token is None:
                raise self.defeated(number)
            return token.end()
        if not self.plain.startswith(str.__str__(tail), begin):
            raise self.defeated(number)
        place = begin + len(tail)
        token = self.splitter.pattern.match(self.plain, place)
        follows = token is not None and self.splitter.tokens[token.group()].id in self.stops
        return token.end() if token is not None and follows else place

    def is_control(self, token: int) -> bool:
        return any(added.id == token and added.special for added in self.splitter.tokens.values())

    def defeated(self, number: int) -> InputError:
        return InputError(
            f"message {number + 1}: the chat template moves this turn of the assistant about so that what it said "
            "cannot be told from the rest: mark it in the template with {% generation %}"
        )


def last_index(origins: array[int], low: int, high: int | None) -> int | None:
    """The last place of an origin from `low` up to, not including, `high`."""
    for index in range(len(origins) - 1, -1, -1):
        if origins[index] >= low and (high is None or origins[index] < high):
            return index
    return None


def nth_index(origins: array[int], origin: int, occurrence: int) -> int | None:
    """The place at which `origin` comes for the `occurrence`-th time (from 1)."""
    place = -1
    try:
        for _ in range(occurrence):
            place = origins.index(origin, place + 1)
    except ValueError:
        return None
    return place


def common_prefix(one: str, other: str) -> str:
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))]
