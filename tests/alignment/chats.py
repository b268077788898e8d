"""A base model and conversations small enough to be fine-tuned within seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pellucid.checkpoints.save import About, save
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import tiny_tokenizer

NAMES = ("Ana Blick", "Tom Reed", "Ida Moss", "Sam Hale", "Eve Lorn", "Max Wend")
TOWNS = ("Delby", "Orme", "Tarn", "Hollin", "Wick", "Sede")
QUESTIONS = ("Where does {} live?", "In which town does {} live?", "{} lives where?")

CONFIG = ModelConfig(
    vocab_size=263,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=128,
    max_positions=128,
    tie_embeddings=True,
)


def base_tokenizer(added: int = 1, **config: object) -> Tokenizer:
    """The tokenizer of a base model: no template, and of its control tokens the first `added`."""
    full = tiny_tokenizer()
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return Tokenizer({**full.definition, "added_tokens": full.definition["added_tokens"][:added]}, {**ends, **config})


def save_base(folder: Path, **config: object) -> Path:
    """A base model that knows nothing, and has no chat template."""
    save(Decoder(CONFIG, seed=1), base_tokenizer(**config), folder, about=About(base="nothing"))
    return folder


def about_towns(count: int = 36, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one question and one answer."""
    drawn = random.Random(seed)
    made = []
    for number in range(count):
        who = number % len(NAMES)
        question = drawn.choice(QUESTIONS).format(NAMES[who])
        made.append(chat(("user", question), ("assistant", f"{TOWNS[who]}.")))
    return made


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
