"""The chat template that a base model gets, and the control tokens that go with it.

ChatML (OpenAI 2023): every turn is `<|im_start|>role`, a line end, its text, `<|im_end|>`. The two tokens are control
tokens, so no text can forge a turn, and the second one is where a model that was fine-tuned with it stops.
"""

from __future__ import annotations

from typing import Any

from pellucid.models.decoder import Decoder
from pellucid.models.vocabulary import add_tokens
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.tokenizer import Tokenizer

TURN_BEGINS, TURN_ENDS = "<|im_start|>", "<|im_end|>"

# What it cannot show it refuses: a tool that is left out in silence would be learnt from as if it had never been there.
CHATML = """\
{%- for message in messages %}
    {%- if tools or message.tool_calls %}
        {{- raise_exception('this chat template knows no tools: take a model whose own template has them') }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {{- message.content if message.content is string else message.content | map(attribute='text') | join }}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
BOS_FIRST = "{{- bos_token }}\n"  # for a model whose texts all begin with one


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself if it has a chat template; else a new one with ChatML, which ends text at the turn's end.

    `<|im_start|>` and `<|im_end|>` become control tokens under the ids that they have, or under new ones at the end of
    the vocabulary, for which the model needs rows (`give_template`).
    """
    if tokenizer.chat_template:
        return tokenizer
    definition = tokenizer.definition
    for content in (TURN_BEGINS, TURN_ENDS):
        definition = with_control_token(definition, content, tokenizer)
    template = BOS_FIRST + CHATML if tokenizer.adds_bos else CHATML
    config = {**tokenizer.config, "eos_token": TURN_ENDS}
    new = Tokenizer(definition, config, {**tokenizer.templates, "default": template})
    new.more_stops = tokenizer.more_stops
    return new


def give_template(model: Decoder, tokenizer: Tokenizer) -> Tokenizer:
    """`with_template`, and the model gets rows for the new tokens; both are ready to be fine-tuned and saved.

    model: as `pellucid.load` gives it with this tokenizer; changed in place.
    """
    new = with_template(tokenizer)
    if new is not tokenizer:
        known = tokenizer.vocab_size
        add_tokens(model, range(known, new.vocab_size), known)
        # Its end of text is one of `more_stops`; the file is to name the turn's end too.
        model.generation_config = {k: v for k, v in model.generation_config.items() if k != "eos_token_id"}
    return new


def with_control_token(definition: dict[str, Any], content: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """`definition` with `content` as a control token: under the id that it has in `tokenizer`, or the next free one."""
    added = {entry["content"]: entry for entry in definition.get("added_tokens") or []}
    if content not in added or not added[content].get("special"):
        free = max([tokenizer.vocab_size - 1, *(entry["id"] for entry in added.values())]) + 1
        added[content] = AddedToken(tokenizer.vocab.get(content, free), content, special=True).to_json()
    return {**definition, "added_tokens": sorted(added.values(), key=lambda entry: entry["id"])}
