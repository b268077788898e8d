"""A tokenizer whose tokens are longer than a byte, so that a text can be written in many ways."""

from __future__ import annotations

from pellucid.errors import InputError

LETTERS = '{}[]":,.-+ 0123456789abcdefghijklmnopqrstuvwxyzABCDEÉ\\\n'
PIECES = ["ab", "abc", "bc", "ca", "cab", "aa", '{"', '":', "true", "false", "null", "00", "123", "  ", '", "', "name"]


class WordTokenizer:
    """Every byte of `LETTERS` and the `PIECES`, a hole, and an end."""

    def __init__(self) -> None:
        single = sorted({bytes([byte]) for byte in LETTERS.encode()})
        self.tokens: list[bytes | None] = [*single, *(piece.encode() for piece in PIECES), None, b"<end>"]
        self.vocab_size = len(self.tokens)
        self.end = self.vocab_size - 1
        self.stop_ids = (self.end,)
        self.special_tokens: dict[str, int] = {"<end>": self.end}

    def token_bytes(self, token: int) -> bytes:
        piece = self.tokens[token]
        if piece is None:
            raise InputError(f"there is no token {token}")
        return piece

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool = False) -> list[int]:
        single = [bytes([byte]) for byte in text.encode()]
        return [self.tokens.index(piece) for piece in single if piece in self.tokens]

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "replace")


TOKENIZER = WordTokenizer()
