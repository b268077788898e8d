"""Stop strings in a stream of text: none of them is ever shown, not even its first half."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.inference.automaton import ROOT, Automaton


class StopText:
    """Lets text through until the first stop string, and holds back whatever may be the beginning of one.

    Of several stop strings the one that ends first counts (of those the longest), however the text is cut into pieces.
    Takes time linear in the text, however many stop strings there are.
    found: the stop string that was met.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._automaton: Automaton[str] | None = Automaton(stops) if stops else None
        self._node = ROOT
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Take the next piece of text; returns what can be shown now. After a stop string nothing more is."""
        if self.found is not None:
            return ""
        if self._automaton is None:
            return piece
        text = self._held + piece
        for place, character in enumerate(piece, len(self._held) + 1):
            self._node = self._automaton.step(self._node, character)
            if length := self._automaton.longest[self._node]:
                self.found, self._held = text[place - length : place], ""
                return text[: place - length]
        shown = len(text) - self._automaton.depth[self._node]
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The text has ended: what was held back is no stop string."""
        rest, self._held = self._held, ""
        return rest
