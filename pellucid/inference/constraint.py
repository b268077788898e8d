"""Constrained output: after each token, which ones keep the answer on its way to what was asked for.

The grammar is followed by the library llguidance (extra `structured`): an Earley parser over derivatives of regular
expressions, walked along the trie of the vocabulary.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InputError
from pellucid.inference.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from pellucid.inference.params import Constraint
    from pellucid.tokenizer.tokenizer import Tokenizer

# JSON allows white space without end between its parts, and digits without end in a number; a model that has lost its
# way makes use of both. Enough for indentation, and more digits than a double or a 64-bit integer has.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,32}"
MAX_DIGITS = 24
# Work that a constraint may cost at its first token, in the library's unit; what is refused takes under half a second.
MAX_WORK = 300_000
DEAD_ENDS = ("NoExtension", "NoExtensionBias")

Bits = NDArray[np.uint8]  # (ceil(V / 8),): token i is allowed when bit i % 8 of byte i // 8 is set


class Matcher:
    """One answer on its way through its constraint.

    Raises `InputError` when the constraint is malformed or no output can meet it, or the library is not there.
    end_ids: the tokens that end an answer, allowed where the constraint is met.
    finished: it is met, and nothing but the end may follow.
    """

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, end_ids: Collection[int]) -> None:
        name = constraint.given()[0]
        self._vocabulary = Vocabulary.of(tokenizer)
        self._matcher = _compile(constraint, name, _tokenizer(tokenizer, self._vocabulary, frozenset(end_ids)))
        self._numbers = Numbers(self._vocabulary) if name in ("json_schema", "json_object") else None
        self.finished = False
        if not self.allowed().any():
            error = _in_short(self._matcher.get_error())
            if error in DEAD_ENDS:
                raise InputError(f"constraint: no output can meet the {name}: change it")
            raise InputError(f"constraint: the {name} cannot be used: {error}")

    def allowed(self) -> Bits:
        """The tokens that may come next; none at all where the constraint has led into a dead end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # then the library would have the answer end here
            return np.zeros_like(bits)
        return bits if self._numbers is None else self._numbers.narrow(bits)

    def advance(self, token: int) -> None:
        """The answer has one more token, one that was allowed."""
        self._matcher.consume_token(token)
        self.finished = self._matcher.is_stopped() and not self._matcher.is_error()
        if self._numbers is not None:
            self._numbers.advance(token)


class Numbers:
    """Ends a number in JSON that has got `MAX_DIGITS` digits in a row, wherever something else may follow."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._no_digit = vocabulary.once("no digit", lambda: _without_digits(vocabulary))
        self._in_string = self._escaped = False
        self._digits = 0

    def advance(self, token: int) -> None:
        for byte in self._vocabulary.bytes[token]:
            self._digits = self._digits + 1 if 0x30 <= byte <= 0x39 else 0
            if self._escaped:
                self._escaped = False
            elif byte == ord('"'):
                self._in_string = not self._in_string
            else:
                self._escaped = self._in_string and byte == ord("\\")

    def narrow(self, bits: Bits) -> Bits:
        if self._in_string or self._digits < MAX_DIGITS:
            return bits
        narrowed = bits & self._no_digit
        return narrowed if narrowed.any() else bits


def _without_digits(vocabulary: Vocabulary) -> Bits:
    allowed = np.ones(-(-len(vocabulary.bytes) // 32) * 32, dtype=np.bool_)
    for digit in b"0123456789":
        allowed[vocabulary.beginning_with(bytes([digit]))] = False
    return np.packbits(allowed, bitorder="little")


def _compile(constraint: Constraint, name: str, tokenizer: LLTokenizer) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=MAX_WORK, verbose_errors=False)
    try:
        return LLMatcher(tokenizer, _grammar(constraint), log_level=0, limits=limits)
    except (ValueError, RecursionError) as error:  # no JSON, half a surrogate, nested without end
        raise InputError(f"constraint: the {name} cannot be used: {_in_short(str(error))}") from None


def _grammar(constraint: Constraint) -> str:
    """The constraint as the library writes it."""
    from llguidance import LLMatcher

    if constraint.regex is not None:
        return LLMatcher.grammar_from_regex(constraint.regex)
    if constraint.grammar is not None:
        return LLMatcher.grammar_from_lark(constraint.grammar)
    if constraint.choice is not None:
        # A name in capitals is one regular expression, which takes thousands of texts where a rule takes two thousand.
        return LLMatcher.grammar_from_lark("start: TEXT\nTEXT: " + " | ".join(map(json.dumps, constraint.choice)))
    schema: Any = {"type": "object"} if constraint.json_object else constraint.json_schema
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": WHITE_SPACE})


def _in_short(error: str) -> str:
    """The first line of the library's message, which may go on with a dump of its state."""
    line = error.strip().partition("\n")[0].rstrip(". ")
    return f"{line[:300]}..." if len(line) > 300 else line


class _Vocabulary:
    """A vocabulary as the library asks for it.

    Where the constraint leaves one way to go on, the library has its text written in the tokens that the tokenizer
    gives it, as the model knows it from training.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, ends: Sequence[int]) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # what is kept beside the vocabulary must not keep its tokenizer
        self._vocabulary = vocabulary
        self.tokens = vocabulary.bytes
        self.special_token_ids = sorted(vocabulary.special.union(ends))  # these never stand for their text
        self.eos_token_id = ends[0]

    def __call__(self, text: str) -> list[int]:
        tokenizer = self._tokenizer()
        ids = [] if tokenizer is None else tokenizer.encode(text)
        # A tokenizer may put a space before a text, or write it in lower case: then its tokens are not the text's.
        exact = b"".join(map(self.tokens.__getitem__, ids)) == text.encode()
        return ids if exact else self._vocabulary.spell(text.encode())


def _tokenizer(tokenizer: Tokenizer, vocabulary: Vocabulary, end_ids: frozenset[int]) -> LLTokenizer:
    """The tokenizer as the library knows it: handed over once."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise InputError(
            "constrained output needs the library llguidance: pip install 'pellucid[structured]'"
        ) from None

    ends = sorted(end for end in end_ids if end < len(vocabulary.bytes))
    if not ends:
        raise InputError("constrained output needs an end-of-text token, and this tokenizer and model name none")
    wrapped = TokenizerWrapper(_Vocabulary(tokenizer, vocabulary, ends))
    return vocabulary.once(("llguidance", end_ids), lambda: LLTokenizer(wrapped, eos_token=ends))
