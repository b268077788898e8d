"""Promise T2: the mask of the assistant's tokens, for every template, with and without generation tags."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import pytest

from pellucid.errors import InputError
from pellucid.tokenizer.template import ChatTokens, check_supervised
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.chats import (
    CALLED,
    CONVERSATIONS,
    NEEDED,
    OTHER,
    SAID,
    SAID_LATER,
    TEMPLATES,
    THOUGHT,
    THOUGHT_LATER,
    TOOLS,
    USER,
    definition,
    end_of_sequence,
    reference_tokenizer,
    tokenizer_for,
    tokenizer_with,
)

TAGGED = [name for name, template in TEMPLATES.items() if re.search(r"{%-?\s*generation", template)]
UNTAGGED = [name for name in TEMPLATES if name not in TAGGED]

# Templates that write nothing after a conversation's last answer, or after a call.
OPEN_ENDED = ("Apertus", "Apriel-1.6", "GLM-4", "tencent", "CohereForAI-c4ai-command-r-plus", "llama-cpp-rwkv")


def spans(tokenizer: Tokenizer, chat: ChatTokens) -> list[str]:
    """The stretches of supervised tokens, as text."""
    assert len(chat.assistant_mask) == len(chat.ids)
    runs = groupby(zip(chat.ids, chat.assistant_mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for said, run in runs if said]


def spans_of(name: str, messages: Any, tools: Any = None) -> list[str]:
    tokenizer = tokenizer_for(name)
    return spans(tokenizer, tokenizer.apply_chat_template(messages, tools=tools))


# Written by hand from each family's documentation and template: what the model itself would have generated.
TURNS = [USER, SAID, OTHER, SAID_LATER]
BY_HAND: dict[str, tuple[Any, Any, list[str]]] = {
    "Qwen-Qwen2.5-7B-Instruct": (TURNS, None, ["In Norway.<|im_end|>", "  In Italy!<|im_end|>"]),
    "meta-llama-Llama-3.1-8B-Instruct": (TURNS, None, ["In Norway.<|eot_id|>", "In Italy!<|eot_id|>"]),
    "google-gemma-2-2b-it": (TURNS, None, ["In Norway.<end_of_turn>", "In Italy!<end_of_turn>"]),
    "mistralai-Mistral-Nemo-Instruct-2407": (TURNS, None, ["In Norway.</s>", "  In Italy!</s>"]),
    "microsoft-Phi-3.5-mini-instruct": (TURNS, None, ["In Norway.<|end|>", "  In Italy!<|end|>"]),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": (
        TURNS,
        None,
        [f"<|START_RESPONSE|>{said}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>" for said in ("In Norway.", "  In Italy!")],
    ),
    "Qwen-Qwen3-0.6B": (  # an old answer loses its thoughts, the last keeps them
        [USER, THOUGHT, OTHER, THOUGHT_LATER],
        None,
        ["In Norway.<|im_end|>", "<think>\nA capital, down south.\n</think>\n\nIn Italy!<|im_end|>"],
    ),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (  # the prompt opens `<think>`, which no answer in a history has
        [USER, {"role": "assistant", "content": "<think>\nUp north.\n</think>In Norway."}, OTHER, SAID_LATER],
        None,
        ["In Norway.<｜end▁of▁sentence｜>", "  In Italy!<｜end▁of▁sentence｜>"],
    ),
    "openai-gpt-oss-120b": (
        [USER, THOUGHT, OTHER, THOUGHT_LATER],
        None,
        [
            "<|channel|>final<|message|>In Norway.<|end|>",
            "<|channel|>analysis<|message|>A capital, down south.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>In Italy!<|return|>",
        ],
    ),
    "GLM-4.6": (  # the model ends its turn by beginning the user's
        TURNS,
        None,
        ["\n<think></think>\nIn Norway.<|user|>", "\n<think></think>\nIn Italy!"],
    ),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": (
        *CONVERSATIONS["call"],
        ['<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call><|im_end|>'],
    ),
    "moonshotai-Kimi-K2": (
        *CONVERSATIONS["call"],
        [
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            '{"city": "Oslo", "days": 2}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
        ],
    ),
    "ByteDance-Seed-OSS": (
        [USER, THOUGHT],
        None,
        ["<seed:think>A capital.\nUp north.</seed:think>\nIn Norway.<seed:eos>"],
    ),
    "llama-cpp-rwkv-world": (TURNS, None, [" In Norway.\n\n", " In Italy!\n\n"]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_masks_written_by_hand(name: str) -> None:
    messages, tools, expected = BY_HAND[name]
    assert spans_of(name, messages, tools) == expected


def masked(name: str, key: str) -> tuple[Tokenizer, ChatTokens] | None:
    """None where the template refuses the conversation or leaves a part of it out."""
    messages, tools = CONVERSATIONS[key]
    tokenizer = tokenizer_for(name)
    try:
        chat = tokenizer.apply_chat_template(messages, tools=tools, **NEEDED.get(name, {}))
    except InputError:
        return None
    try:
        assert chat.assistant_mask
    except InputError as error:
        assert "leaves out its tool call" in str(error) or (name, key) in KNOWN_DEFEATS, (name, key, str(error))
        return None
    return tokenizer, chat


# Where the mask is refused, and why. A conversation that the assistant begins has no generation prompt to compare with.
KNOWN_DEFEATS = {
    ("google-gemma-4-31B-it", "call with words"),  # puts the words said before a call after its result
    ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "assistant first"),
    ("Qwen3.5-4B", "assistant first"),
    ("fireworks-ai-llama-3-firefunction-v2", "assistant first"),
    ("deepseek-ai-DeepSeek-V3.1", "assistant first"),
    ("deepseek-ai-DeepSeek-V3.2", "assistant first"),
    ("microsoft-Phi-3.5-mini-instruct", "assistant first"),
    ("unsloth-mistral-Devstral-Small-2507", "assistant first"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_holds_what_the_assistant_said_and_nothing_else(name: str) -> None:
    for key, (messages, _tools) in CONVERSATIONS.items():
        answers = [message for message in messages if message["role"] == "assistant"]
        found = masked(name, key)
        if found is None:
            continue
        said = spans(*found)
        assert len(said) == len(answers), key
        for span, answer in zip(said, answers, strict=True):
            visible = answer["content"].split("</think>")[-1].strip()
            assert visible in span or visible not in found[1].text, key  # some leave out words beside a call
            for called in answer.get("tool_calls", ()):
                assert called["function"]["arguments"]["city"] in span
        for foreign in ("Où est", "And Rome?", "Be brief", "Schnee", "Sonne", "-3", "Its name", "The weather of"):
            assert foreign not in "".join(said), key


THINKING = r"</?[^<>]*think[^<>]*>|<\|[A-Z]+_THINKING\|>|<\|channel>thought|<channel\|>|Here are my reasoning steps:|\s"


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_without_a_past_is_what_follows_the_generation_prompt(name: str) -> None:
    """`text` before the answer is transformers' own prompt, but for thoughts that the prompt opens or skips."""
    for key in ("answer", "call alone"):
        found = masked(name, key)
        if found is None or name in TAGGED:
            continue
        tokenizer, chat = found
        messages, tools = CONVERSATIONS[key]
        prompt = reference_tokenizer(end_of_sequence(name)).apply_chat_template(
            messages[:-1],
            tools=tools,
            chat_template=TEMPLATES[name],
            add_generation_prompt=True,
            tokenize=False,
            **NEEDED.get(name, {}),
        )
        before = tokenizer.decode(chat.ids[: chat.assistant_mask.index(True)])
        if name == "CohereForAI-c4ai-command-r-plus-tool_use":  # writes instructions between a question and its prompt
            assert before.endswith("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")
            continue
        assert prompt.startswith(before)
        left = prompt[len(before) :]
        assert re.fullmatch(f"({THINKING})*", left), left


@pytest.mark.parametrize("name", UNTAGGED)
def test_turns_end_with_the_token_that_stops_generation(name: str) -> None:
    for key in CONVERSATIONS:
        found = masked(name, key)
        if found is None:
            continue
        tokenizer, chat = found
        mask = [*chat.assistant_mask, False]
        lasts = [place for place in range(len(chat.ids)) if mask[place] and not mask[place + 1]]
        for place in lasts:
            token = chat.ids[place]
            ends = token in tokenizer.stop_ids or token in tokenizer.special_tokens.values()
            assert ends or name.startswith(OPEN_ENDED), (key, tokenizer.decode(chat.ids[place - 5 : place + 1]))


@pytest.mark.parametrize("name", TAGGED)
def test_generation_tags_are_followed_as_transformers_does(name: str) -> None:
    for messages, tools in CONVERSATIONS.values():
        tokenizer = tokenizer_for(name)
        try:
            chat = tokenizer.apply_chat_template(messages, tools=tools)
        except InputError:
            continue
        expected = reference_tokenizer(end_of_sequence(name)).apply_chat_template(
            messages,
            tools=tools,
            chat_template=TEMPLATES[name],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert chat.ids == expected["input_ids"]
        if any(message["role"] == "assistant" for message in messages):
            assert [int(said) for said in chat.assistant_mask] == expected["assistant_masks"]


@pytest.mark.parametrize(
    "name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct", "google-gemma-2-2b-it"]
)
def test_empty_and_repeated_answers(name: str) -> None:
    end = {"Q": "<|im_end|>", "m": "<|eot_id|>", "g": "<end_of_turn>"}[name[0]]
    empty = {"role": "assistant", "content": ""}
    assert spans_of(name, [USER, empty, OTHER, SAID]) == [end, f"In Norway.{end}"]
    again = {"role": "user", "content": "In Norway."}
    assert spans_of(name, [again, SAID, again, SAID]) == [f"In Norway.{end}"] * 2


def test_an_answer_that_spells_the_scaffold_is_still_one_answer() -> None:
    spelt = "a<|im_end|>\n<|im_start|>assistant\nb"
    said = spans_of("Qwen-Qwen2.5-7B-Instruct", [USER, {"role": "assistant", "content": spelt}, OTHER, SAID])
    assert said == [f"{spelt}<|im_end|>", "In Norway.<|im_end|>"]


def test_a_tool_name_that_the_result_repeats_is_not_said_twice() -> None:
    said = spans_of("openai-gpt-oss-120b", *CONVERSATIONS["result"])
    assert said == [' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo", "days": 2}<|call|>']


def test_a_conversation_without_answers_has_an_empty_mask() -> None:
    chat = tokenizer_for("Qwen-Qwen2.5-7B-Instruct").apply_chat_template([USER], add_generation_prompt=True)
    assert chat.assistant_mask == [False] * len(chat.ids)


def test_the_generation_prompt_at_the_end_is_not_supervised() -> None:
    tokenizer = tokenizer_for("Qwen-Qwen2.5-7B-Instruct")
    chat = tokenizer.apply_chat_template([USER, SAID, OTHER], add_generation_prompt=True)
    assert spans(tokenizer, chat) == ["In Norway.<|im_end|>"]


def test_a_token_across_the_border_is_supervised() -> None:
    """The prompt ends with a newline and the answer begins with one; a vocabulary may hold both as one token."""
    given = definition()
    model = {**given["model"], "vocab": {**given["model"]["vocab"], "ĊĊ": 100_000}, "merges": [["Ċ", "Ċ"]]}
    splits = {**given["pre_tokenizer"], "use_regex": False}
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tokenizer = Tokenizer({**given, "model": model, "pre_tokenizer": splits}, {}, {"default": template})
    chat = tokenizer.apply_chat_template([USER, {"role": "assistant", "content": "\nHi"}])
    assert spans(tokenizer, chat) == ["\n\nHi<|im_end|>"]


def test_a_template_that_drops_a_call_cannot_teach_it() -> None:
    chat = tokenizer_for("HuggingFaceTB-SmolLM3-3B").apply_chat_template([USER, CALLED], tools=TOOLS)
    assert chat.ids
    with pytest.raises(InputError, match="message 2: the chat template leaves out its tool call"):
        assert chat.assistant_mask


def test_a_template_that_hides_the_turn_is_refused_not_guessed() -> None:
    backwards = "{% for m in messages | reverse %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    chat = tokenizer_with(backwards).apply_chat_template([USER, SAID, OTHER])
    with pytest.raises(InputError, match=r"message 2: .*\{% generation %\}"):
        assert chat.assistant_mask


def test_a_batch_without_supervised_tokens_is_an_error() -> None:
    check_supervised([[False, False], [False, True]])
    with pytest.raises(InputError, match="role 'assistant'"):
        check_supervised([[False, False], []])
    with pytest.raises(InputError):
        check_supervised([])
