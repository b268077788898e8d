"""The report on what fine-tuning did: the figures against ones worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pellucid.alignment.before_after import Question, answer, as_markdown, changes, compare, turn_end
from pellucid.alignment.templates import with_template
from pellucid.cli.training import sample
from pellucid.models.decoder import Decoder
from tests.alignment.chats import base_tokenizer
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer


def favouring(token: int) -> Decoder:
    """A model that says `token` always."""
    config = CONFIGS["llama"]
    model = random_model(config)
    with torch.no_grad():
        model.head.weight.zero_()
        model.final_norm.weight.zero_()
        model.final_norm.weight[0] = 1.0
        for block in model.blocks:
            block.attention.output.weight.zero_()
            block.feed_forward.down.weight.zero_()
        model.embedding.weight[:, 0] = 1.0
        model.head.weight[token, 0] = 1.0
    return model


def test_changes_are_relative_norms_by_part() -> None:
    before, after = Decoder(CONFIGS["llama"]), Decoder(CONFIGS["llama"])
    with torch.no_grad():
        after.head.weight *= 1.25
        after.blocks[1].attention.query.weight += 0.5
    found = {change.part: change for change in changes(before, after)}
    assert list(found) == ["embeddings", "attention", "feed-forward", "norms", "head", "all"]
    assert found["head"].relative == pytest.approx(0.25) and found["norms"].relative == 0
    attention = [p for n, p in before.named_parameters() if ".attention." in n]
    length = math.sqrt(sum(float(p.detach().square().sum()) for p in attention))
    moved = 0.5 * math.sqrt(before.blocks[1].attention.query.weight.numel())
    assert found["attention"].relative == pytest.approx(moved / length, rel=1e-5)
    assert found["all"].parameters == sum(p.numel() for p in before.parameters())
    whole = math.sqrt(sum(float(p.detach().square().sum()) for p in before.parameters()))
    head = 0.25 * float(before.head.weight.detach().norm())
    assert found["all"].relative == pytest.approx(math.hypot(head, moved) / whole, rel=1e-5)


def test_a_tied_head_is_no_part_of_its_own() -> None:
    model = random_model(CONFIGS["llama-tied-wide-heads"])
    assert "head" not in {change.part for change in changes(model, model)}


def test_answers_and_stops() -> None:
    tokenizer = with_template(base_tokenizer())
    end = turn_end(tokenizer)
    assert end == tokenizer.special_tokens["<|im_end|>"]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "on"}], add_generation_prompt=True).ids
    questions = [Question("on", tuple(ids), expected) for expected in ("off", None, "off", "off")]
    letter = tokenizer.encode("n")[0]
    comparison = compare(favouring(letter), favouring(end), tokenizer, questions, max_tokens=4)
    assert (comparison.stops.asked, comparison.stops.before, comparison.stops.after) == (4, 0, 4)
    assert [(one.before, one.after) for one in comparison.answers] == [("nnnn", "")] * 3
    report = as_markdown(comparison, "runs/x", "tiny")
    assert "Of 4 answers, 4 ended with the turn's end token within 4 tokens (0 before)." in report
    assert "Before:\n\n    nnnn\n" in report and report.count("In the data:") == 2


def test_another_end_of_text_is_no_end_of_turn() -> None:
    """The base model's own end of text stops an answer, but that is not what fine-tuning has taught."""
    tokenizer = with_template(base_tokenizer())
    ids = tuple(tokenizer.apply_chat_template([{"role": "user", "content": "on"}], add_generation_prompt=True).ids)
    other = favouring(tokenizer.special_tokens["<|endoftext|>"])
    assert compare(other, other, tokenizer, [Question("on", ids)]).stops.after == 0


def test_the_end_of_turn_is_the_one_of_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.templates["default"] = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert turn_end(tokenizer) == tokenizer.special_tokens["<|endoftext|>"]


def test_answers_of_a_model_in_training_leave_it_as_it_is() -> None:
    """The optimizer holds these very parameters: kernels that want them in another order have no place here."""
    model, tokenizer = random_model(CONFIGS["llama"]).requires_grad_(True), with_template(base_tokenizer())
    before = dict(model.named_parameters())
    assert len(answer(model, tokenizer, ["on", "off"], 4)) == 2
    assert len(sample(model, tokenizer, ["on", "off"], 4)) == 2
    after = dict(model.named_parameters())
    assert all(after[name] is parameter and parameter.requires_grad for name, parameter in before.items())
