"""The template that a base model gets: what it renders, where its tokens go, and that transformers sees the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pellucid.alignment.templates import give_template, with_template
from pellucid.checkpoints.load import load
from pellucid.checkpoints.save import save
from pellucid.errors import InputError
from pellucid.models.vocabulary import add_tokens
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.alignment.chats import base_tokenizer
from tests.checkpoints.tiny import CONFIGS, logits, random_model, tiny_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the one"},
    {"role": "assistant", "content": "in it"},
    {"role": "user", "content": "and\n\nthe other?"},
    {"role": "assistant", "content": ""},
]


def test_a_template_that_is_there_is_kept() -> None:
    tokenizer = tiny_tokenizer()
    assert with_template(tokenizer) is tokenizer


def test_what_the_assistant_says_and_its_end_is_supervised() -> None:
    chat = with_template(base_tokenizer()).apply_chat_template(CHAT)
    assert chat.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe one<|im_end|>\n"
        "<|im_start|>assistant\nin it<|im_end|>\n<|im_start|>user\nand\n\nthe other?<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n"
    )
    tokenizer = with_template(base_tokenizer())
    said = [token for token, own in zip(chat.ids, chat.assistant_mask, strict=True) if own]
    assert tokenizer.decode(said) == "in it<|im_end|><|im_end|>"


def test_parts_of_text_are_joined_and_the_generation_prompt_comes_last() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    text = with_template(base_tokenizer()).apply_chat_template(parts, add_generation_prompt=True).text
    assert text == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"


def test_new_tokens_are_control_tokens_and_end_what_is_generated() -> None:
    base = base_tokenizer()
    tokenizer = with_template(base)
    assert tokenizer.special_tokens == {"<|endoftext|>": 262, "<|im_start|>": 263, "<|im_end|>": 264}
    assert tokenizer.eos_id == 264 and tokenizer.stop_ids == (264, 262)
    text = "the <|im_end|> of <|im_start|>"
    assert tokenizer.encode(text) == base.encode(text)
    assert base.vocab_size == 263 and base.chat_template is None


def test_tokens_that_the_vocabulary_has_keep_their_ids() -> None:
    all_three = base_tokenizer(3)
    assert with_template(all_three).special_tokens == all_three.special_tokens
    plain = base_tokenizer()
    plain.definition["model"]["vocab"]["<|im_end|>"] = 263  # a word like any other
    assert with_template(Tokenizer(plain.definition, plain.config)).special_tokens["<|im_end|>"] == 263


@pytest.mark.parametrize("adds", [True, False])
def test_a_conversation_begins_with_bos_where_texts_do(adds: bool) -> None:
    tokenizer = with_template(base_tokenizer(add_bos_token=adds))
    ids = tokenizer.apply_chat_template(CHAT).ids
    assert ids.count(tokenizer.bos_id or -1) == adds and (ids[0] == tokenizer.bos_id) == adds


@pytest.mark.parametrize("with_call", [True, False])
def test_tools_are_refused_not_left_out(with_call: bool) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(InputError, match="knows no tools"):
        with_template(base_tokenizer()).apply_chat_template(
            [*CHAT[:2], call] if with_call else CHAT[:2], tools=None if with_call else tools
        )


@pytest.mark.parametrize("name", ["llama", "llama-tied-wide-heads", "gpt2", "gemma3"])
def test_a_model_with_new_tokens_opens_in_transformers(name: str, tmp_path: Path) -> None:
    """Promise M1: equal template, equal ids, equal logits; here and there."""
    base = base_tokenizer()
    model = random_model(CONFIGS[name].model_copy(update={"vocab_size": base.vocab_size}))
    model.generation_config = {"eos_token_id": base.eos_id, "temperature": 0.5}  # what a base model's says
    tokenizer = give_template(model, base)
    save(model, tokenizer, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    theirs_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    reloaded, reloaded_tokenizer = load(tmp_path / "model")
    ids = tokenizer.apply_chat_template(CHAT).ids
    assert theirs_tokenizer.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT).text
    assert theirs_tokenizer.apply_chat_template(CHAT)["input_ids"] == ids
    assert reloaded_tokenizer.apply_chat_template(CHAT).ids == ids
    assert theirs.generation_config.eos_token_id == [264, 262]
    tokens = torch.tensor([ids[: model.config.max_positions]])
    with torch.no_grad():
        wanted = model(tokens)
        assert torch.equal(reloaded(tokens), wanted)
        torch.testing.assert_close(theirs(tokens).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "llama-tied-wide-heads"])
def test_new_tokens_hardly_change_what_the_model_says(name: str) -> None:
    """k new tokens get at most k / (V + k) of the probability; among the others nothing changes."""
    config = CONFIGS[name]
    model = random_model(config)
    before = logits(model)
    V = config.vocab_size
    add_tokens(model, range(V, V + 2), V)
    after = logits(model)
    assert model.config.vocab_size == V + 2 and after.shape[-1] == V + 2
    torch.testing.assert_close(after[..., :V], before)
    assert after.softmax(-1)[..., V:].sum(-1).max() <= 2 / (V + 2) + 1e-6


def test_spare_rows_are_used_and_set(name: str = "llama") -> None:
    model = random_model(CONFIGS[name])
    weight = model.embedding.weight.detach().clone()
    add_tokens(model, [263, 264], 263)
    assert model.config.vocab_size == 272
    torch.testing.assert_close(model.embedding.weight[263:265], weight[:263].mean(0).expand(2, -1))
    kept = [*range(263), *range(265, 272)]
    assert torch.equal(model.embedding.weight[kept], weight[kept])
