"""Text as it arrives: each id gives the characters that are certain by then."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text one by one; the joined pieces are `tokenizer.decode` of all the ids.

    A character that is not yet whole is kept back, so no piece ends in half a character, and U+FFFD stands only
    where the whole text has it too. begun: the ids go on with a text, of which nothing is told: the space that
    SentencePiece puts before a text, and takes away again, is then one between two words.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False, begun: bool = False) -> None:
        self.pieces = tokenizer.pieces
        self.skipped = tokenizer.pieces.special if skip_special else frozenset[int]()
        self.begun = begun
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps none."""
        if token in self.skipped:
            return ""
        piece = self.pieces[token] if self.begun else self.pieces.first(token)
        self.begun = True
        return self.utf8.decode(piece)

    def finish(self) -> str:
        """What was kept back (half a character becomes U+FFFD); afterwards a new text may begin."""
        self.begun = False
        rest = self.utf8.decode(b"", final=True)
        self.utf8.reset()
        return rest
