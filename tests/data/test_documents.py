"""Records as documents: how texts begin and end, that every fine-tuned turn learns to stop, processes that agree."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from pellucid.data.building import Document
from pellucid.data.documents import conversation_documents, document_end, text_documents, tokenise
from pellucid.data.records import BadRecord, Record
from pellucid.errors import InputError
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import tiny_tokenizer
from tests.tokenizer.chats import CONVERSATIONS, NEEDED, OTHER, SAID, SAID_LATER, SYSTEM, TEMPLATES, USER, tokenizer_for

TURNS = [SYSTEM, USER, SAID, OTHER, SAID_LATER]


def texts(*contents: str) -> list[Record]:
    return [Record(f"t:{number}", "text", "text", content) for number, content in enumerate(contents, 1)]


def talk(messages: Any, tools: Any = None) -> Record:
    content = {"messages": messages} | ({"tools": tools} if tools else {})
    return Record("talk.jsonl:3", "conversation", "messages", content)


def document_of(record: Record, tokenizer: Tokenizer) -> Document:
    found = next(conversation_documents([record], tokenizer))
    assert isinstance(found, Document)
    return found


def learnt(document: Document, tokenizer: Tokenizer) -> list[str]:
    """What is learnt from, each stretch as text."""
    assert document.mask is not None and len(document.mask) == len(document.ids)
    runs = groupby(zip(document.ids, document.mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode(token for token, _ in run) for said, run in runs if said]


def with_template(template: str, **changes: Any) -> Tokenizer:
    tokenizer = tiny_tokenizer()
    return Tokenizer(tokenizer.definition, {**tokenizer.config, **changes}, {"default": template})


def test_a_text_ends_with_the_end_of_text_and_begins_as_the_model_expects() -> None:
    tokenizer = tiny_tokenizer()  # whose end of sequence is <|im_end|>
    end = tokenizer.special_tokens["<|endoftext|>"]
    spelt = "of <|endoftext|> it"
    documents = list(text_documents(texts("the end", spelt), tokenizer))
    assert documents == [
        Document([*tokenizer.encode("the end"), end], None, "t:1"),
        Document([*tokenizer.encode(spelt), end], None, "t:2"),
    ]
    assert documents[1].ids.count(end) == 1  # a text cannot end itself
    begins = with_template("", add_bos_token=True)
    assert next(text_documents(texts("the end"), begins)).ids[:2] == [begins.bos_id, *begins.encode("the end")][:2]


def test_a_tokenizer_without_the_usual_token_ends_text_with_its_own_or_says_so() -> None:
    tokenizer = tiny_tokenizer()
    added = [entry for entry in tokenizer.definition["added_tokens"] if entry["content"] != "<|endoftext|>"]
    other = Tokenizer({**tokenizer.definition, "added_tokens": added}, tokenizer.config)
    assert document_end(other) == other.special_tokens["<|im_end|>"]
    nothing = Tokenizer({**tokenizer.definition, "added_tokens": added[2:]})
    with pytest.raises(InputError, match=r"no token that ends a text: give it <\|endoftext\|> as a special token"):
        next(text_documents(texts("a"), nothing))
    with pytest.raises(InputError, match="no token that ends a turn: give it an eos_token"):
        next(conversation_documents([talk(TURNS)], nothing))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_conversation_learns_to_stop(name: str) -> None:
    """Promise D5, for every published template: the last thing that is learnt is a token that stops generation."""
    tokenizer, any_shown = tokenizer_for(name), False
    for messages, tools in CONVERSATIONS.values():
        found = next(conversation_documents([talk(messages, tools)], tokenizer))
        if isinstance(found, BadRecord):
            continue
        any_shown = True
        assert found.mask is not None
        last = max(place for place, said in enumerate(found.mask) if said)
        assert found.ids[last] in tokenizer.stop_ids
    assert any_shown or name in NEEDED  # a few templates want variables that no record has


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MARKED = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
MARKED = MARKED.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}", 1)
MARKED = MARKED.replace("{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content }}{% endif %}")
OPEN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def test_marks_of_a_template_that_leave_out_the_end_are_completed() -> None:
    for template in (CHATML, MARKED):
        tokenizer = with_template(template)
        document = document_of(talk(TURNS), tokenizer)
        assert learnt(document, tokenizer) == ["In Norway.<|im_end|>", "  In Italy!<|im_end|>"]


def test_a_padding_token_that_ends_turns_does_no_harm() -> None:
    """Masks come from lengths, never from token ids: pad = eos = end of turn, as many models have it."""
    usual, same = with_template(CHATML), with_template(CHATML, pad_token="<|im_end|>")
    assert same.pad_id == same.eos_id
    assert document_of(talk(TURNS), same) == document_of(talk(TURNS), usual)


def test_a_template_that_ends_turns_with_nothing_gets_an_end() -> None:
    marked = OPEN.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    tokenizer = with_template(marked)
    document = document_of(talk([USER, SAID]), tokenizer)
    assert learnt(document, tokenizer)[-1] == "In Norway.<|im_end|>"
    assert document.ids[-1] == tokenizer.eos_id and document.ids.count(tokenizer.eos_id) == 1


def test_conversations_that_cannot_be_learnt_from() -> None:
    tokenizer = with_template(
        CHATML.replace("{{ m.role }}", "{{ raise_exception('no system') if m.role == 'system' }}")
    )
    good = talk([USER, SAID])
    refused, fine, silent = conversation_documents([talk(TURNS), good, talk([USER])], tokenizer)
    assert isinstance(refused, BadRecord) and refused.reason == "refused by the chat template"
    assert str(refused).startswith("talk.jsonl:3: ") and "no system" in str(refused)
    assert isinstance(fine, Document)
    assert isinstance(silent, BadRecord) and silent.reason == "nothing to learn"
    with pytest.raises(InputError, match=r"talk.jsonl:3: .*no system.*; or leave such records out"):
        list(tokenise([good, talk(TURNS)], tokenizer, "conversation"))
    ((block, _),) = tokenise([good, talk(TURNS)], tokenizer, "conversation", skip_bad=True)
    assert block.records == 2 and len(block.ends) == 1
    assert block.counts == {"dropped: refused by the chat template": 1, "kept: messages": -1}


def many_texts() -> Iterator[Record]:
    words = random.Random(0).choices(["the", "on", "in", "sea", "über", "12", "\n\n", "stone"], k=40_000)
    for number in range(0, 40_000, 10):
        yield Record(f"t:{number}", "text", "text", " ".join(words[number : number + 10]) * 30)


def many_talks() -> Iterator[Record]:
    for number in range(300):
        said = {"role": "assistant", "content": json.dumps(list(range(number)))}
        yield Record(f"c:{number}", "conversation", "messages", {"messages": [USER, said]})


@pytest.mark.parametrize("kind", ["text", "conversation"])
def test_processes_agree_whatever_their_number(kind: str) -> None:
    make = many_texts if kind == "text" else many_talks
    tokenizer = with_template(CHATML)
    blocks = [list(tokenise(make(), tokenizer, kind, workers=workers)) for workers in (1, 2, 3)]
    assert len(blocks[0]) > 2
    for others in blocks[1:]:
        for (one, size), (other, same) in zip(blocks[0], others, strict=True):
            assert size == same and np.array_equal(one.tokens, other.tokens) and np.array_equal(one.ends, other.ends)
            assert one.places == other.places and one.records == other.records
            assert (one.mask is None and other.mask is None) or np.array_equal(one.mask, other.mask)
    skipped = blocks[0][0][0].records
    rest = list(tokenise(make(), tokenizer, kind, skip=skipped, workers=2))
    assert [block.tokens.tobytes() for block, _ in rest] == [block.tokens.tobytes() for block, _ in blocks[0][1:]]


def test_a_bad_record_in_another_process_is_named() -> None:
    records = [*many_talks(), talk([USER]), *many_talks()]
    with pytest.raises(InputError, match=r"talk.jsonl:3: nothing in it was said by the assistant"):
        list(tokenise(records, with_template(CHATML), "conversation", workers=2))
