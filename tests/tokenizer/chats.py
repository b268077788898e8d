"""What the tests of chat templates share: real templates, conversations, and a tokenizer that fits them all."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cache
from typing import Any

from pellucid.errors import InputError
from pellucid.tokenizer.alphabet import ALPHABET
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.references import REFERENCES

FOLDER = REFERENCES / "llama.cpp" / "models" / "templates"
TEMPLATES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}

# Tokens that a vocabulary holds as added, not as control: a model writes them itself.
PLAIN_TAGS = ("think", "tool_call", "tool_response", "tools", "seed:think", "seed:tool_call", "arg_key", "arg_value")

Messages = list[dict[str, Any]]


def call(name: str, arguments: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(name: str, content: str, number: int = 1) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{number:05}", "name": name, "content": content}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name"},
                    "days": {"type": "integer", "description": "How far ahead"},
                },
                "required": ["city"],
            },
        },
    }
]

USER, OTHER = {"role": "user", "content": 'Où est <b>Oslo</b> & "co"?'}, {"role": "user", "content": "And Rome?\n"}
SYSTEM = {"role": "system", "content": "Be brief: it's late."}
SAID, SAID_LATER = {"role": "assistant", "content": "In Norway."}, {"role": "assistant", "content": "  In Italy!"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [call("weather", {"city": "Oslo", "days": 2})]}
TOLD = {"role": "assistant", "content": "It snows in Oslo."}
THOUGHT = {"role": "assistant", "content": "In Norway.", "reasoning_content": "A capital.\nUp north."}
THOUGHT_LATER = {"role": "assistant", "content": "In Italy!", "reasoning_content": "A capital, down south."}

CONVERSATIONS: dict[str, tuple[Messages, list[dict[str, Any]] | None]] = {
    "user": ([USER], None),
    "system": ([SYSTEM, USER], None),
    "answer": ([USER, SAID], None),
    "turns": ([SYSTEM, USER, SAID, OTHER, SAID_LATER], None),
    "three turns": ([USER, SAID, OTHER, SAID_LATER, USER], None),
    "tools": ([USER], TOOLS),
    "tools and system": ([SYSTEM, USER], TOOLS),
    "call": ([SYSTEM, USER, CALLED], TOOLS),
    "no tools": ([SYSTEM, USER, SAID, OTHER, SAID_LATER], []),
    "no tools, thinking": ([USER, THOUGHT, OTHER, THOUGHT_LATER], []),
    "call alone": ([USER, CALLED], TOOLS),
    "result": ([USER, CALLED, result("weather", "-3 °C, Schnee")], TOOLS),
    "told": ([SYSTEM, USER, CALLED, result("weather", '{"t": -3}'), TOLD, OTHER, SAID_LATER], TOOLS),
    "call with words": ([USER, {**CALLED, "content": "I look."}, result("weather", "Schnee"), TOLD], TOOLS),
    "two calls": (
        [
            USER,
            {**CALLED, "tool_calls": [call("weather", {"city": "Oslo"}), call("weather", {"city": "Rome"}, 2)]},
            result("weather", "Schnee"),
            result("weather", "Sonne", 2),
            TOLD,
        ],
        TOOLS,
    ),
    "thinking": ([USER, THOUGHT, OTHER, THOUGHT_LATER], None),
    "thinking and calling": (
        [
            USER,
            {**CALLED, "reasoning_content": "I must look."},
            result("weather", "Schnee"),
            {**TOLD, "reasoning_content": "Cold."},
        ],
        TOOLS,
    ),
    "thinking aloud": (
        [USER, {"role": "assistant", "content": "<think>\nUp north.\n</think>\n\nIn Norway."}, OTHER, SAID_LATER],
        None,
    ),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "Where is Oslo?"}]}, SAID], None),
    "assistant first": ([SAID, USER], None),
    "two users": ([USER, OTHER], None),
}


# Variables without which a template renders nothing.
NEEDED = {"fireworks-ai-llama-3-firefunction-v2": {"functions": "[]", "datetime": "2026-01-02"}}


@cache
def definition() -> dict[str, Any]:
    """A byte-level tokenizer.json whose added tokens are those of all families at hand."""
    return definition_of(family_tokens())


def definition_of(tokens: tuple[str, ...]) -> dict[str, Any]:
    """A byte-level tokenizer.json without merges."""
    vocab = {character: number for number, character in enumerate(ALPHABET)}
    added = [
        {"id": 256 + number, "content": token, "special": not plain_tag(token), "normalized": False,
         "single_word": False, "lstrip": False, "rstrip": False}
        for number, token in enumerate(tokens)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }


def plain_tag(token: str) -> bool:
    return token.strip("</>") in PLAIN_TAGS


@cache
def family_tokens() -> tuple[str, ...]:
    """Every control token that the templates write or their vocabularies hold."""
    text = "\n".join([*TEMPLATES.values(), *rendered_samples()])
    found = {"<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"}
    found |= set(
        re.findall(r"<\|[A-Za-z_▁.0-9]+\|>|<｜[^｜<>{}' \n]+｜>|\[/?[A-Z]+_[A-Z_]+\]|<\|?[a-z]+\|>|<[a-z]+\|>", text)
    )
    found |= {
        "<|tool_call>",
        "<|turn>",
        "<|channel>",
        "<|tool>",
        "<|tool_response>",
        "<|think|>",
        '<|"|>',
        "<extra_id_0>",
    }
    found |= {
        "[e~[",
        "]~b]",
        "]~!b[",
        "<end_of_sentence>",
        "<beginning_of_sentence>",
        "<seed:bos>",
        "<seed:eos>",
        "<sep>",
    }
    found |= {"<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>", "</assistant>", "</user>", "</system>", "[ARGS]"}
    found |= set(re.findall(r"</?[a-z_]+:opensource>", text))
    found |= {f"<{slash}{tag}>" for tag in PLAIN_TAGS for slash in ("", "/")}
    return tuple(sorted(found))


def rendered_samples() -> list[str]:
    """Templates also put tokens together from parts, which only shows in what they render."""
    samples = []
    for template in TEMPLATES.values():
        tokenizer = Tokenizer({**definition_of(())}, {}, {"default": template})
        for messages, tools in (CONVERSATIONS["told"], CONVERSATIONS["thinking"]):
            with suppress(InputError):
                samples.append(tokenizer.apply_chat_template(messages, tools=tools).text)
    return samples


# What ends a turn, where the tokenizer of the family knows it as its end of sequence.
ENDS = {
    "Apertus": "<|assistant_end|>", "ByteDance": "<seed:eos>", "GLM-4": "<|user|>", "GigaChat": "<|message_sep|>",
    "Kimi-K3": "<|end_of_msg|>", "MiniMax-M1": "<end_of_sentence>", "MiniMax-M": "[e~[",
    "NVIDIA-Nemotron-Nano": "<SPECIAL_12>", "Reka": "<sep>", "inclusionai": "<|role_end|>", "muse": "<|eot|>",
    "poolside": "</assistant>", "tencent": "<｜hy_eos:opensource｜>", "upstage": "<|end|>",
}  # fmt: skip


def end_of_sequence(name: str) -> str:
    return next((end for family, end in ENDS.items() if name.startswith(family)), "</s>")


def tokenizer_for(name: str) -> Tokenizer:
    """A tokenizer with the template of that name."""
    return tokenizer_with(TEMPLATES[name], end_of_sequence(name))


@cache
def tokenizer_with(template: str | None, end: str = "</s>") -> Tokenizer:
    return Tokenizer(definition(), {"bos_token": "<s>", "eos_token": end}, {"default": template} if template else {})


@cache
def reference_tokenizer(end: str = "</s>") -> Any:
    """The same tokenizer in transformers."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from transformers import PreTrainedTokenizerFast

    library = LibraryTokenizer.from_str(json.dumps(definition()))
    return PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token=end)
