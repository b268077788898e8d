"""/v1/chat/completions: messages, streams, tools, probabilities."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest

from pellucid.tokenizer.tokenizer import Tokenizer
from tests.serving.live import Reply, serving
from tests.serving.stand_in import Scripted, chat_tokenizer, tiny_engine

TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Röm"}}\n</tool_call>'


def joined(reply: Reply, index: int = 0) -> dict[str, Any]:
    """The message that the parts of a stream make."""
    message: dict[str, Any] = {"content": "", "calls": [], "reason": None, "tokens": []}
    for part in reply.events:
        for choice in part["choices"]:
            if choice["index"] != index:
                continue
            assert message["reason"] is None, "nothing comes after the end"
            message["content"] += choice["delta"].get("content", "")
            message["calls"] += [one["function"] for one in choice["delta"].get("tool_calls", [])]
            message["tokens"] += (choice["logprobs"] or {"content": []})["content"]
            message["reason"] = choice["finish_reason"]
    return message


def test_the_template_is_what_the_model_reads() -> None:
    seen: list[str] = []

    def script(prompt: str) -> str:
        seen.append(prompt)
        return "Hello."

    with serving(Scripted(script)) as live:
        messages = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ]
        reply = live.ask("POST", "/v1/chat/completions", {"messages": messages, "model": "tiny"})
    expected = chat_tokenizer().apply_chat_template(messages, add_generation_prompt=True).text
    assert seen == [expected]
    answer = reply.json
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello."},
            "logprobs": None,
            "finish_reason": "stop",
            "finish_detail": chat_tokenizer().eos_id,
        }
    ]
    assert answer["usage"]["completion_tokens"] == len(chat_tokenizer().encode("Hello.")) + 1  # and the end


def test_a_stream_joined_is_the_whole() -> None:
    with serving(Scripted("Grüße, 世界! the end")) as live:
        asked = {"n": 2, "logprobs": True, "top_logprobs": 2}
        whole = live.chat(**asked).json
        reply = live.chat(**asked, stream=True, stream_options={"include_usage": True})
    first = reply.events[0]
    assert first["object"] == "chat.completion.chunk" and first["choices"][0]["delta"]["role"] == "assistant"
    assert reply.events[-1]["choices"] == [] and reply.events[-1]["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        message = joined(reply, index)
        assert message["content"] == choice["message"]["content"] == "Grüße, 世界! the end"
        assert message["reason"] == choice["finish_reason"] == "stop"
        assert message["tokens"] == choice["logprobs"]["content"]


def test_log_probabilities_join_to_the_text() -> None:
    with serving(Scripted("Grüße 世")) as live:
        (choice,) = live.chat(logprobs=True, top_logprobs=2).json["choices"]
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries[:-1] for byte in entry["bytes"]).decode() == "Grüße 世"
    for entry in entries:
        assert entry["logprob"] == -0.5
        assert len(entry["top_logprobs"]) == 2
        if not entry["token"].startswith("bytes:"):
            assert list(entry["token"].encode()) == entry["bytes"]
    assert any(entry["token"].startswith("bytes:") for entry in entries)


@pytest.mark.parametrize(
    ("said", "content", "calls", "reason"),
    [
        (CALL, None, [{"name": "weather", "arguments": '{"town": "Röm"}'}], "tool_calls"),
        (f"I look. {CALL}\n{CALL}", "I look.", [{"name": "weather", "arguments": '{"town": "Röm"}'}] * 2, "tool_calls"),
        (CALL[:-20], CALL[:-20], [], "stop"),
        (CALL.replace("weather", "wether"), CALL.replace("weather", "wether"), [], "stop"),
        ("No tool.", "No tool.", [], "stop"),
    ],
)  # fmt: skip
def test_tool_calls(said: str, content: str | None, calls: list[dict[str, str]], reason: str) -> None:
    seen: list[str] = []

    def script(prompt: str) -> str:
        seen.append(prompt)
        return said

    with serving(Scripted(script)) as live:
        (choice,) = live.chat(tools=[TOOL]).json["choices"]
        streamed = joined(live.chat(tools=[TOOL], stream=True))
        plain = live.chat(tools=[TOOL], tool_choice="none").json["choices"][0]["message"]["content"]
    assert choice["message"]["content"] == content
    assert [one["function"] for one in choice["message"].get("tool_calls", [])] == calls
    assert choice["finish_reason"] == reason == streamed["reason"]
    assert (streamed["content"] or None, streamed["calls"]) == (content, calls)
    assert '"weather"' in seen[0] and "tools" not in seen[2] and plain == said


def test_calls_go_back_as_the_template_reads_them() -> None:
    seen: list[str] = []

    def script(prompt: str) -> str:
        seen.append(prompt)
        return CALL

    with serving(Scripted(script)) as live:
        first = live.chat(tools=[TOOL]).json["choices"][0]["message"]
        assert len(first["tool_calls"][0]["id"]) == 9
        answer = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "sunny"}
        nulls = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
        messages = [{"role": "user", "content": "?"}, {**first, **nulls}, answer]
        body = {"messages": messages, "tools": [TOOL]}
        assert live.ask("POST", "/v1/chat/completions", body).status == 200
        first["tool_calls"][0]["function"]["arguments"] = "{"
        refused = live.ask("POST", "/v1/chat/completions", body)
    assert '"arguments": {"town": "R' in seen[1] and "sunny" in seen[1]
    assert refused.status == 400 and "message 2" in refused.error


def test_tools_are_never_dropped_in_silence() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    with serving(Scripted("x", chat_tokenizer(template))) as live:
        refused = live.chat(tools=[TOOL])
        assert refused.status == 400 and "no place for tools" in refused.error
        assert live.chat(tools=[TOOL], tool_choice="none").status == 200
    needing = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + template
    with serving(Scripted("x", chat_tokenizer(needing))) as live:
        assert live.chat(tools=[TOOL]).status == 200
    bare = chat_tokenizer()
    with serving(Scripted("x", Tokenizer(bare.definition, bare.config))) as live:
        refused = live.chat()
        assert refused.status == 400 and "no chat template" in refused.error


def test_response_formats_become_constraints() -> None:
    seen: list[Any] = []

    class Seen(Scripted):
        def queue(self, asked: Any) -> int:
            seen.append(asked[1].constraint)
            return super().queue(asked)

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with serving(Seen(json.dumps({"a": 1}))) as live:
        for form in (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
            {"type": "json_object"},
            {"type": "text"},
        ):
            assert live.chat(response_format=form).status == 200
        assert live.chat(constraint={"choice": ["yes", "no"]}).status == 200
        assert live.complete("?", constraint={"regex": "[ab]+"}).status == 200
    assert seen[0].json_schema == schema and seen[1].json_object and seen[2] is None
    assert seen[3].choice == ("yes", "no") and seen[4].regex == "[ab]+"


@pytest.mark.skipif(find_spec("llguidance") is None, reason="needs llguidance")
def test_a_schema_is_met(one_thread: None) -> None:
    """By a model that knows nothing: what it says parses, and has the fields."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "ab", "schema": schema}}
    with serving(tiny_engine()) as live:
        for seed in range(3):
            (choice,) = live.chat(response_format=form, seed=seed, max_tokens=150).json["choices"]
            assert choice["finish_reason"] == "stop"
            answer = json.loads(choice["message"]["content"])
            assert answer["a"] in ("x", "y") and answer["b"] in (True, False) and len(answer) == 2
