"""Tokenizers side by side on the same texts: the pieces, and how many tokens a byte and a word cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import regex

from pellucid.tokenizer.tokenizer import Tokenizer

# One thought in several scripts, and code: what a tokenizer trained on English pays for the rest shows at once.
SAMPLES: Mapping[str, str] = {
    "English": "The old lighthouse keeper wrote down every ship that passed in the night.",
    "German": "Der alte Leuchtturmwärter schrieb jedes Schiff auf, das in der Nacht vorüberfuhr.",
    "Russian": "Старый смотритель маяка записывал каждый корабль, проходивший ночью.",
    "Chinese": "老灯塔看守人记下了夜里驶过的每一艘船。",
    "Japanese": "年老いた灯台守は、夜に通り過ぎる船をすべて書き留めた。",
    "Arabic": "كان حارس المنارة العجوز يدوّن كل سفينة تمر في الليل.",
    "Hindi": "बूढ़ा प्रकाशस्तंभ रक्षक रात में गुज़रने वाले हर जहाज़ को लिख लेता था।",
    "code": "def passing(ships, hour):\n    return [ship for ship in ships if ship.hour == hour]\n",
}


@dataclass(frozen=True)
class Count:
    """One text, cut by one tokenizer."""

    pieces: tuple[str, ...]
    bytes: int
    words: int

    @property
    def tokens(self) -> int:
        return len(self.pieces)

    @property
    def per_byte(self) -> float:
        return self.tokens / self.bytes if self.bytes else 0.0

    @property
    def per_word(self) -> float:
        return self.tokens / self.words if self.words else 0.0


def count(tokenizer: Tokenizer, text: str) -> Count:
    """The pieces of `text` (bytes that are no whole characters as "\\xe4"), its bytes in UTF-8 and its words."""
    pieces = tuple(readable(tokenizer.token_bytes(token)) for token in tokenizer.encode(text))
    return Count(pieces, len(text.encode("utf-8", "surrogatepass")), words_in(text))


def readable(token: bytes) -> str:
    """A token's bytes as text, with "\\xe4" for what is only a part of a character."""
    return token.decode("utf-8", "backslashreplace")


def words_in(text: str) -> int:
    """The words of `text` by Unicode's default borders (UAX 29), by which a Han or Hiragana character is a word."""
    return sum(1 for part in regex.split(r"(?w)\b", text) if regex.search(r"\w", part))
