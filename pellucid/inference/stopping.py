"""Stop strings in a stream of text: none of them is ever shown, not even its first half."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Lets text through until the first stop string, and holds back whatever may be the beginning of one.

    Of several stop strings the one that ends first counts (of those the longest), however the text is cut into pieces.
    found: the stop string that was met.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Take the next piece of text; returns what can be shown now. After a stop string nothing more is."""
        if not self._stops or self.found is not None:
            return "" if self.found is not None else piece
        self._held += piece
        met = [(self._held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in self._held]
        if met:
            end, _, self.found = min(met)
            return self._let_out(end - len(self.found))
        return self._let_out(min(self._first_beginning(stop) for stop in self._stops))

    def flush(self) -> str:
        """The text has ended: what was held back is no stop string."""
        return "" if self.found is not None else self._let_out(len(self._held))

    def _first_beginning(self, stop: str) -> int:
        """The first place from which the held text may go on to become `stop`."""
        first = max(0, len(self._held) - len(stop) + 1)
        return next((i for i in range(first, len(self._held)) if stop.startswith(self._held[i:])), len(self._held))

    def _let_out(self, end: int) -> str:
        out, self._held = self._held[:end], self._held[end:]
        return out
