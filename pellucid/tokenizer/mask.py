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
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from pellucid.errors import InputError
from pellucid.tokenizer.provenance import SCAFFOLD, Traced, origins_of, traced_in

if TYPE_CHECKING:
    from pellucid.tokenizer.conversation import Conversation
    from pellucid.tokenizer.sandbox import Rendered
    from pellucid.tokenizer.structure import ChatTokenizer, Piece, Splitter

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
    check_calls(conversation, rendered.text)
    spans = rendered.generated or TurnFinder(conversation, rendered.text, splitter, tokenizer.stop_ids).spans()
    return [
        said
        for piece, ids in zip(pieces, encoded, strict=True)
        for said in mask_of_piece(piece, ids, spans, str.__str__(rendered.text), tokenizer)
    ]


def check_calls(conversation: Conversation, text: Traced) -> None:
    """InputError where the template drops a tool call: the assistant would be taught to say nothing in its place."""
    present = set(text.origins)
    for number, message in enumerate(conversation.messages, 1):
        for call in message.get("tool_calls") or () if message["role"] == "assistant" else ():
            if all(present.isdisjoint(string.origins) for string in traced_in(call.get("function", call))):
                raise InputError(
                    f"message {number}: the chat template leaves out its tool call, so it cannot be learnt from: "
                    "write the call into 'content' as the model is to say it"
                )


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
        self.opening = conversation.opening()
        self.begins = self.first_token(self.opening)

    def spans(self) -> list[Span]:
        roles = [message["role"] for message in self.conversation.messages]
        found = [self.span(number) for number, role in enumerate(roles) if role == "assistant"]
        return [span for span in found if span is not None]

    def span(self, number: int) -> Span | None:
        """Where the turn is; None if the template leaves the message out."""
        through = self.conversation.render(number + 1).text
        if number == 0:
            start, own_start = self.first_start(self.text), self.first_start(through)
        else:
            before = self.conversation.render(number).text
            if str.__str__(before) == str.__str__(through):
                return None
            prompt = self.conversation.render(number, add_generation_prompt=True).text
            start, own_start = (self.start(number, before, prompt, text) for text in (self.text, through))
        said = self.said(number, start, through)
        last = last_index(through.origins, *self.conversation.ledger.span(number))
        tail = through.cut(own_start if last is None else last + 1, len(through))
        return start, self.end(number, said, tail.cut(0, scaffold_length(tail)))

    def first_start(self, text: Traced) -> int:
        """`start` of a conversation's first message, before which there is nothing to compare with: the generation
        prompt is looked for as it stands after a user's message."""
        opening = self.opening
        first = str.__str__(text.cut(0, scaffold_length(text)))
        while opening and opening not in first:  # without `<think>`, say
            opening = self.whole_tokens(opening[:-1])
        if not opening:
            raise self.defeated(0)
        return first.rindex(opening) + len(opening)

    def start(self, number: int, before: Traced, prompt: Traced, text: Traced) -> int:
        """Where in `text` the generation prompt of a turn ends, as far as `text` has it.

        `before` and `prompt` are the messages before the turn, without and with the generation prompt.
        """
        place, tail = self.anchor(number, prompt, text)
        plain = str.__str__(text)
        if plain.startswith(tail, place):
            return place + len(tail)
        written = plain[place : place + scaffold_length(text, place)]
        opening = str.__str__(prompt).removeprefix(str.__str__(before))
        if opening and len(opening) < len(prompt) and opening in written:
            return place + written.index(opening) + len(opening)
        closing = tail.removesuffix(opening)  # what ends the message before
        common = self.whole_tokens(common_prefix(written, tail))
        if len(common) > len(closing):  # a part of the generation prompt: without `<think>`, say
            return place + len(common)
        if written == closing:  # the template goes on without it, after a tool's result
            return place + len(closing)
        if len(closing) == len(tail) and common:  # a template that always writes the generation prompt
            return place + len(common)
        raise self.defeated(number)

    def anchor(self, number: int, prompt: Traced, text: Traced) -> tuple[int, str]:
        """The place in `text` after the last character of the messages before, and what `prompt` has after that."""
        high = self.conversation.ledger.span(number)[0] or None
        last = last_index(prompt.origins, self.conversation.ledger.span(0)[0] or 1, high)
        if last is None:
            return 0, str.__str__(prompt)
        found = nth_index(text.origins, prompt.origins[last], prompt.origins.count(prompt.origins[last]))
        if found is None:
            raise self.defeated(number)
        return found + 1, str.__str__(prompt)[last + 1 :]

    def whole_tokens(self, text: str) -> str:
        """The beginning of `text` up to the last structural token or end of line."""
        stop = text.rfind("\n") + 1
        for match in self.splitter.pattern.finditer(text):
            stop = max(stop, match.end())
        return text[:stop]

    def said(self, number: int, start: int, through: Traced) -> int:
        """Where in the whole text the message's own text ends (`start`, if it has none there).

        A later message may repeat some of it (the name of the tool that answers): such copies are not in `through`.
        """
        low, high = self.conversation.ledger.span(number)
        copies = Counter(origin for origin in through.origins if low <= origin < high)
        expected, end, later = copies.total(), start, False
        for place in range(start, len(self.plain)):
            origin = self.text.origins[place]
            if not low <= origin < high:
                later = later or self.is_later(origin, number)
                if later and not expected:
                    break
                continue
            known = origin in copies
            if copies[origin] > 0:
                copies[origin] -= 1
                expected -= 1
                if later:  # said after the answer to it
                    raise self.defeated(number)
                end = place + 1
            elif not known and not later:
                end = place + 1
        return end

    def is_later(self, origin: int, number: int) -> bool:
        source = self.conversation.ledger.source(origin)
        return source is not None and source.message is not None and source.message > number

    def end(self, number: int, said: int, tail: Traced) -> int:
        """Where in the whole text the turn ends, whose own text ends at `said`.

        It ends with the first token that stops generation. A tokenizer may not know its own: then with the last
        control token of `tail`, the scaffold after the message where it is the last one. Where none comes before
        another turn begins, the template ends turns with nothing.
        """
        window = self.control_tokens(self.text.cut(said, said + scaffold_length(self.text, said)))
        stop = next((piece for piece in window if piece.id in self.stops), None)
        if stop is not None:
            return said + stop.stop
        written = str.__str__(tail)
        controls = self.control_tokens(tail)
        if not controls:
            begins = [piece.start for piece in self.splitter.split(tail) if piece.id in self.splitter.controls]
            written = written[: begins[0]] if begins else written
            if not self.plain.startswith(written, said):
                raise self.defeated(number)
            return said + len(written)
        place = controls[-1].start
        same = next((piece for piece in window if piece.start == place), None)  # or another token in its place
        if same is None or not self.plain.startswith(written[:place], said):
            raise self.defeated(number)
        return said + same.stop

    def control_tokens(self, scaffold: Traced) -> list[Piece]:
        """Those before the next turn begins."""
        pieces = takewhile(lambda piece: piece.id is None or piece.id != self.begins, self.splitter.split(scaffold))
        return [piece for piece in pieces if piece.id in self.splitter.controls]

    def first_token(self, text: str) -> int | None:
        """The first structural token of `text` that is not one that ends a turn."""
        pieces = self.splitter.split(Traced(text, origins_of(text)))
        return next((piece.id for piece in pieces if piece.id is not None and piece.id not in self.stops), None)

    def defeated(self, number: int) -> InputError:
        return InputError(
            f"message {number + 1}: the chat template moves this turn of the assistant about so that what it said "
            "cannot be told from the rest: mark it in the template with {% generation %}"
        )


def scaffold_length(text: Traced, start: int = 0) -> int:
    """How many characters of scaffold stand at `start`."""
    length = 0
    while start + length < len(text) and text.origins[start + length] == SCAFFOLD:
        length += 1
    return length


def last_index(origins: array[int], low: int, high: int | None = None) -> int | None:
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
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))]
