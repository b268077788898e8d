"""`docs/templates.md` says what is so. `python -m tests.tokenizer.test_template_report` writes it anew."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jinja2 import nodes

from pellucid.errors import InputError
from pellucid.tokenizer.sandbox import ChatEnvironment
from pellucid.tokenizer.template import ChatTokens
from tests.tokenizer.chats import CONVERSATIONS, NEEDED, TEMPLATES, tokenizer_for

REPORT = Path(__file__).parents[2] / "docs" / "templates.md"

# column -> the conversation that shows it, and what its rendering must hold
COLUMNS = {
    "system": ("no tools", "Be brief"),
    "tools": ("tools", "The weather of a city."),
    "calls": ("call alone", "Oslo", 2),
    "results": ("result", "Schnee"),
    "reasoning": ("no tools, thinking", "down south"),
}

INTRODUCTION = """\
# Chat templates

What the {count} chat templates of real models in llama.cpp's source need, and how they fare here. `make test` keeps
this page true; `python -m tests.tokenizer.test_template_report` writes it anew.

Each template is rendered with {conversations} conversations, with and without generation prompt: {renderings}
renderings. {refused} are refused by the template itself (roles out of order, a missing tool call id) here as in
transformers; the text and the ids of all others are those of transformers. The tests behind this are
`tests/tokenizer/test_template_*.py`.

- **Content stays content.** Text in messages, tools and variables never becomes a control token, nor another added
  token that the template itself writes (`<think>`, `<tool_call>`). The exception: a model's own messages may hold such
  tokens where they are no control tokens, because that is how reasoning comes back to it.
- **The mask** covers what the assistant would have generated: from after the generation prompt through the token that
  ends the turn. Templates with `{{% generation %}}` tags are believed; for the others the turns are found by comparing
  renderings. Where that fails, asking for the mask is an error; the ids are not affected.
- The end of a turn is the tokenizer's stop token; where it knows none, the last control token that the template writes.
  Some templates end a turn only when the next message begins (GLM with the next role's token); their last answer has no
  end.
- Missing here and in transformers: the filter `from_json`, which three templates use on some paths.
- Text parts are the only content parts: images, audio and video are refused.
- Refused, because no template of text needs them: the filters `e`, `escape`, `forceescape`, `striptags`, `urlize`,
  `xmlattr`, the tags `autoescape`, `include`, `import` and `extends`, the function `lipsum`, and Python's attributes.

## What templates use

| | |
|---|---|
"""


def renderings(name: str) -> Iterator[tuple[str, bool, ChatTokens | None]]:
    for key, (messages, tools) in CONVERSATIONS.items():
        for prompt in (False, True):
            try:
                tokenizer = tokenizer_for(name)
                variables = {"tools": tools, "add_generation_prompt": prompt, **NEEDED.get(name, {})}
                yield key, prompt, tokenizer.apply_chat_template(messages, **variables)
            except InputError:
                yield key, prompt, None


def used(find: Callable[[nodes.Template], set[str]]) -> str:
    environment = ChatEnvironment()
    counts = Counter(name for source in TEMPLATES.values() for name in find(environment.parse(source)))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"`{name}` {count}" for name, count in ranked)


def names(tree: nodes.Template) -> tuple[set[str], set[str]]:
    """Those that are read and never set, and those of Jinja's and transformers' functions."""
    read = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    stored |= {macro.name for macro in tree.find_all(nodes.Macro)} | {"loop", "caller"}
    functions = {"raise_exception", "strftime_now", "namespace", "range", "dict"}
    return read - stored - functions, read & functions


def methods(tree: nodes.Template) -> set[str]:
    called = [call.node for call in tree.find_all(nodes.Call)]
    return {f.attr for f in called if isinstance(f, nodes.Getattr) and (hasattr("", f.attr) or hasattr({}, f.attr))}


def features() -> Iterator[tuple[str, str]]:
    yield "variables", used(lambda tree: names(tree)[0])
    yield "functions", used(lambda tree: names(tree)[1])
    yield "filters", used(lambda tree: {node.name for node in tree.find_all(nodes.Filter)})
    yield "tests", used(lambda tree: {node.name for node in tree.find_all(nodes.Test)})
    yield "methods", used(methods)
    controls = re.compile(r"{%-? *(break|continue)")
    yield "loop controls", str(sum(controls.search(source) is not None for source in TEMPLATES.values()))
    yield "generation tags", str(sum("endgeneration" in source for source in TEMPLATES.values()))


def shown(texts: dict[str, str | None], key: str, wanted: str, times: int = 1) -> str:
    text = texts[key]
    if text is None:
        return "refused"
    return "yes" if text.count(wanted) >= times else "left out"


def mask_of(chats: dict[str, ChatTokens]) -> str:
    complaints: set[str] = set()
    answered = {
        key: chat for key, chat in chats.items() if any(m["role"] == "assistant" for m in CONVERSATIONS[key][0])
    }
    for key, chat in answered.items():
        try:
            assert chat.assistant_mask
        except InputError as error:
            calls = "leaves out its tool call" in str(error)
            first = key == "assistant first"
            complaints.add("dropped calls" if calls else "assistant begins" if first else key)
    if not answered:
        return "refused"
    return "exact" + (f"; not: {', '.join(sorted(complaints))}" if complaints else "")


def report() -> str:
    rows, refused, total = [], 0, 0
    for name in TEMPLATES:
        found = list(renderings(name))
        total += len(found)
        refused += sum(chat is None for _, _, chat in found)
        chats = {key: chat for key, prompt, chat in found if not prompt and chat is not None}
        texts = {key: chat.text if chat else None for key, prompt, chat in found if not prompt}
        cells = [shown(texts, *column) for column in COLUMNS.values()]
        rows.append(f"| {name} | {' | '.join(cells)} | {mask_of(chats)} |")
    head = INTRODUCTION.format(
        count=len(TEMPLATES), conversations=len(CONVERSATIONS), renderings=f"{total:,}", refused=refused
    )
    table = f"| template | {' | '.join(COLUMNS)} | mask |\n|---|{'---|' * len(COLUMNS)}---|\n"
    uses = "".join(f"| {what} | {which} |\n" for what, which in features())
    legend = (
        "\n## Template by template\n\n"
        '"left out": the template renders the conversation without it, "refused": it raises an error.\n'
        '"reasoning": `reasoning_content` of the last answer. "not: dropped calls": a template that leaves tool calls '
        "out cannot\nteach them.\n\n"
    )
    return head + uses + legend + table + "\n".join(rows) + "\n"


@pytest.mark.skipif(not TEMPLATES, reason="the templates are not here: run `make test` once with a network")
def test_the_report_is_true() -> None:
    assert REPORT.read_text() == report()


if __name__ == "__main__":
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report())
