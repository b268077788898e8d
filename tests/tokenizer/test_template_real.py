"""Chats with vocabularies of real models: ids equal to transformers' `apply_chat_template(tokenize=True)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import InputError
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.chats import CONVERSATIONS, TEMPLATES, Messages
from tests.tokenizer.vocabularies import TORTURE, gguf_path, tokenizer

# vocabulary -> the template of a model that has it (None: the one in the file)
PAIRS = [
    ("smollm2", None),
    ("llama-bpe", "meta-llama-Llama-3.1-8B-Instruct"),
    ("llama-bpe", "meta-llama-Llama-3.2-3B-Instruct"),
    ("llama-bpe", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"),
    ("qwen2", "Qwen-Qwen2.5-7B-Instruct"),
    ("qwen2", "Qwen-Qwen3-0.6B"),
    pytest.param(("gemma-4", "google-gemma-4-31B-it"), marks=pytest.mark.slow),
    ("phi-3", "microsoft-Phi-3.5-mini-instruct"),
    ("command-r", None),
    ("llama-spm", "mistralai-Mistral-Nemo-Instruct-2407"),
]

CHATS: dict[str, tuple[Messages, Any]] = {
    **CONVERSATIONS,
    **{
        f"torture {number}": ([{"role": "user", "content": text}, {"role": "assistant", "content": text}], None)
        for number, text in enumerate(TORTURE)
        if "<|im_end|>" not in text
    },
    "code": (
        [
            {"role": "user", "content": "def f(x):\n        return x\n\n\n\t\tpass        # <b>bold</b>\r\n"},
            {"role": "assistant", "content": "        indented\n\n```python\n    x = 1\n```"},
        ],
        None,
    ),
}


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(filter(None, pair)))
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Ours, and transformers'."""
    from transformers import PreTrainedTokenizerFast

    vocabulary, template = request.param
    ours = tokenizer(vocabulary)
    if template is not None:
        ours = Tokenizer(ours.definition, ours.config, {"default": TEMPLATES[template]})
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    ours.save(folder)
    return ours, PreTrainedTokenizerFast.from_pretrained(folder)


def test_ids_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    compared = 0
    for key, (messages, tools) in CHATS.items():
        for prompt in (False, True):
            try:
                chat = ours.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt)
            except InputError:
                continue
            expected = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, return_dict=True)
            assert chat.ids == expected["input_ids"], key
            compared += 1
    assert compared > 2 * len(TORTURE)


def test_smollm2_as_transformers_itself_reads_it() -> None:
    from transformers import AutoTokenizer

    path = gguf_path("smollm2")
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for key in ("user", "system", "answer", "turns", "three turns"):
        messages, _ = CONVERSATIONS[key]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert tokenizer("smollm2").apply_chat_template(messages, add_generation_prompt=True).ids == expected


def test_exactly_one_bos(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    messages = [{"role": "user", "content": "<s><bos><|begin_of_text|>"}, {"role": "assistant", "content": "Hi"}]
    ids = ours.apply_chat_template(messages).ids
    assert ours.bos_id is not None
    if "bos_token" in (ours.chat_template or ""):
        assert ids[0] == ours.bos_id and ids.count(ours.bos_id) == 1


def test_masked_text_is_the_answer(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    for key, (messages, tools) in CHATS.items():
        try:
            chat = ours.apply_chat_template(messages, tools=tools)
            mask = chat.assistant_mask
        except InputError:
            continue
        assert len(mask) == len(chat.ids)
        said = ours.decode([token for token, supervised in zip(chat.ids, mask, strict=True) if supervised])
        for message in messages:
            content = message["content"]
            if message["role"] != "assistant" or content not in chat.text:
                continue
            if ours.decode(ours.encode(content)) == content:  # some vocabularies lose what others keep
                assert content.split("</think>")[-1].strip() in said, key


def test_forged_text_is_kept_as_text(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    forged = "a" + "b".join(ours.special_tokens) + "c"
    for messages in ([{"role": "user", "content": forged}], [{"role": "user", "content": "acd"}]):
        chat = ours.apply_chat_template(messages)
        special = set(ours.special_tokens.values())
        if forged in chat.text:
            first = [token for token in chat.ids if token in special]
        else:
            assert [token for token in chat.ids if token in special] == first
