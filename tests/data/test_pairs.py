"""Pairs in rows: none parted, none lost in silence, each answer computed as if it were alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.alignment.templates import with_template
from pellucid.data.building import build_shards
from pellucid.data.check import check
from pellucid.data.documents import pair_documents
from pellucid.data.examples import IGNORE
from pellucid.data.formats import read_record
from pellucid.data.pairs import ALIKE, CUT, LONGER, PROMPT, Pairs, split_pairs
from pellucid.data.prepared import prepared
from pellucid.data.records import BadRecord, Raw, Record
from pellucid.data.sources import File
from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.log_probs import sequence_log_probs
from tests.alignment.chats import base_tokenizer
from tests.data.made import in_memory


def chat_tokenizer():
    return with_template(base_tokenizer())


def made_pairs(sizes, prompt=2):
    """Shards of pairs whose answers have these lengths; no token comes twice but in prompts."""
    documents, masks, token = [], [], 100
    for number, pair in enumerate(sizes):
        for size in pair:
            documents.append([2 * number, 2 * number + 1, *range(token, token + size)][2 - prompt :])
            masks.append([False] * prompt + [True] * size)
            token += size
    return in_memory(documents, masks)


lengths = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=20)


@settings(deadline=None)
@given(sizes=lengths, batch=st.integers(1, 7), seed=st.integers(0, 5))
def test_every_pair_comes_once_an_epoch_and_whole(sizes, batch, seed):
    pairs = Pairs(made_pairs(sizes), 16, seed)
    seen = []
    for start in range(0, len(pairs), batch):
        examples = pairs.read(range(start, min(start + batch, len(pairs))))
        assert examples.supervised == len(examples.numbers)
        assert examples.real == sum(sum(sizes[number]) + 4 for number in examples.numbers.tolist())
        for (row, place), number in zip(examples.places.tolist(), examples.numbers.tolist(), strict=True):
            seen.append(number)
            for document, (ids, said) in zip((place, place + 1), pairs.answers(number), strict=True):
                here = (examples.documents[row] == document).nonzero()[:, 0]
                assert examples.tokens[row, here].tolist() == ids.tolist()
                assert examples.positions[row, here].tolist() == list(range(len(ids)))
                targets = examples.targets[row, here].tolist()
                assert targets == [
                    *(int(i) if own else IGNORE for i, own in zip(ids[1:], said[1:], strict=True)),
                    IGNORE,
                ]
    assert sorted(seen) == list(range(len(sizes)))


@settings(deadline=None)
@given(sizes=lengths, rows=st.integers(1, 4))
def test_parts_of_rows_have_the_pairs_of_the_whole(sizes, rows):
    pairs = Pairs(made_pairs(sizes), 16, 0)
    pairs.reference = np.arange(2 * len(sizes), dtype=np.float32).reshape(-1, 2)
    whole = pairs.read(range(len(pairs)))
    parts = whole.split(rows)
    assert torch.cat([part.numbers for part in parts]).tolist() == whole.numbers.tolist()
    assert torch.cat([part.reference for part in parts]).tolist() == whole.reference.tolist()
    for part in parts:
        assert len(part.tokens) <= rows and int(part.places[:, 0].max()) < len(part.tokens)
        for (row, document), number in zip(
            part.sequences.tolist(), part.numbers.repeat_interleave(2).tolist(), strict=True
        ):
            assert part.tokens[row][part.documents[row] == document][0] == 2 * number  # where its prompt begins


def test_packed_answers_have_the_log_probabilities_of_each_alone():
    """D3, through a model."""
    pairs = Pairs(made_pairs([(5, 3), (9, 12), (4, 4), (1, 7)]), 16, 3)
    config = ModelConfig(
        vocab_size=200, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, max_positions=16
    )
    model = Decoder(config, seed=1)
    examples = pairs.read(range(len(pairs)))
    found = sequence_log_probs(model, examples.tokens, examples.targets, examples.batch, examples.sequences).view(-1, 2)
    for number, packed in zip(examples.numbers.tolist(), found, strict=True):
        for (ids, said), value in zip(pairs.answers(number), packed, strict=True):
            tokens = torch.tensor(ids)[None]
            log_p = model(tokens)[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
            alone = log_p[torch.tensor(said[1:])].sum()
            # At most 12 log-probabilities of about -5.3, each off by a few float32 roundings of its 32-term sums
            torch.testing.assert_close(value, alone, rtol=1e-5, atol=1e-4)


def test_order_is_a_function_of_seed_and_index():
    shards = made_pairs([(n % 9 + 1, n % 5 + 1) for n in range(40)])
    one, two, other = (Pairs(shards, 16, seed) for seed in (1, 1, 2))
    far = range(3 * len(one), 3 * len(one) + 4)
    assert torch.equal(one.read(far).tokens, two.read(far).tokens)
    assert not torch.equal(one.read(range(4)).tokens, other.read(range(4)).tokens)
    assert one.read([]).supervised == 0


def test_noise_turns_a_stated_part_of_the_pairs_round_always_the_same():
    shards = made_pairs([(3, 3)] * 40)
    clean, noisy, again = (Pairs(shards, 16, 7, flipped=part) for part in (0.0, 0.25, 0.25))
    assert int(noisy.turned.sum()) == 10 and noisy.turned.tolist() == again.turned.tolist()
    for number in range(40):
        ours, theirs = (pairs.answers(number) for pairs in (noisy, clean))
        ids = [[answer[0].tolist() for answer in side] for side in (ours, theirs)]
        assert ids[0] == (ids[1][::-1] if noisy.turned[number] else ids[1])
    assert noisy.read(range(3)).targets.tolist() != clean.read(range(3)).targets.tolist()


def too_long(folder):
    """Pairs: short; one answer long; its prompt alone too long; long and equal once cut."""
    documents = [
        [1, 2, 10, 11], [1, 2, 12],
        [1, 2, *range(20, 30)], [1, 2, 40],
        [*range(50, 60), 70], [*range(50, 60), 71],
        [1, 2, *range(80, 87), 90], [1, 2, *range(80, 87), 91],
    ]  # fmt: skip
    prompts = [2, 2, 2, 2, 10, 10, 2, 2]
    masks = [[place >= prompt for place in range(len(ids))] for ids, prompt in zip(documents, prompts, strict=True)]
    return build_shards(zip(documents, masks, strict=True), folder, vocab_size=100, masked=True)


def test_what_is_too_long_is_counted_by_reason(tmp_path: Path):
    """A3."""
    dropped = Pairs(too_long(tmp_path), 8, 0, too_long="drop")
    assert dropped.num_pairs == 1 and +dropped.counts == {LONGER: 2, PROMPT: 1}
    cut = Pairs(too_long(tmp_path), 8, 0, too_long="cut")
    assert cut.num_pairs == 2 and +cut.counts == {CUT: 1, PROMPT: 1, ALIKE: 1}
    assert cut.answers(1)[0][0].tolist() == [1, 2, *range(20, 26)]
    with pytest.raises(
        InputError, match=r"document 3: 12 tokens, longer than the context of 8 \(3 such pairs in all\)"
    ):
        Pairs(too_long(tmp_path), 8, 0)
    only = too_long(tmp_path)
    only = only.select(only.starts[4:6], only.lengths[4:6])
    with pytest.raises(InputError, match="the prompt alone has 10 tokens, and the context holds 8"):
        Pairs(only, 8, 0)
    with pytest.raises(InputError, match=r"every pair is longer than data\.context=8"):
        Pairs(only, 8, 0, too_long="cut")


def test_pairs_about_one_prompt_stay_on_one_side():
    documents = [
        [prompt, 9, 10 + number, 90 + side] for number in range(12) for prompt in [number // 3] for side in (0, 1)
    ]
    shards = in_memory(documents, [[False, False, True, True]] * 24)
    train, held = split_pairs(shards, 0.25, 1)
    prompts = [{int(part.document(n)[0][0]) for n in range(part.num_documents)} for part in (train, held)]
    assert len(prompts[1]) == 1 and not prompts[0] & prompts[1] and train.num_documents + held.num_documents == 24
    assert split_pairs(shards, 0, 1) == (shards, None)
    with pytest.raises(InputError, match="a single prompt cannot be split"):
        split_pairs(in_memory(documents[:2], [[False, False, True, True]] * 2), 0.5, 1)


def preference(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def read(value: Any) -> Record | BadRecord:
    return read_record(Raw("p.jsonl:1", value), "preference", Counter())


def test_both_answers_go_through_the_chat_template_and_end():
    """T2 and D5: the ids of a pair are those of two conversations; earlier turns are not learnt from."""
    tokenizer = chat_tokenizer()
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "?"},
    ]
    record = read({"prompt": turns, "chosen": "Good", "rejected": "Bad one"})
    ((chosen, rejected),) = pair_documents([record], tokenizer)
    for document, answer in ((chosen, "Good"), (rejected, "Bad one")):
        chat = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}])
        assert list(document.ids) == chat.ids[: len(document.ids)]
        said = [token for token, own in zip(document.ids, document.mask, strict=True) if own]
        assert tokenizer.decode(said[:-1]) == answer and said[-1] in tokenizer.stop_ids


def test_k_answers_make_all_their_pairs():
    """Ouyang et al. 2022, section 3.5: K answers give (K choose 2) comparisons."""
    tokenizer = chat_tokenizer()
    (ranking,) = pair_documents([read({"prompt": "Q", "ranked": ["a", "b", "c"]})], tokenizer)
    assert len(ranking) == 6
    (scores,) = pair_documents([read({"prompt": "Q", "answers": ["a", "b", "c"], "scores": [0, 2, 0]})], tokenizer)
    texts = [tokenizer.decode([t for t, own in zip(d.ids, d.mask, strict=True) if own][:-1]) for d in scores]
    assert texts == ["b", "a", "b", "c"]


@pytest.mark.parametrize(
    ("value", "reason", "sentence"),
    [
        (preference("Q", "same", "same"), "chosen equals rejected", "'chosen' and 'rejected' are equal"),
        (preference("Q", "", "no"), "empty text", "'chosen' is empty"),
        (preference("Q", "yes", " \n"), "empty text", "'rejected' is empty"),
        ({"prompt": "Q", "ranked": ["only"]}, "no ranking", "'ranked' does not hold two answers"),
        ({"prompt": "Q", "ranked": ["one", ""]}, "empty turn", "ranked 2, message 1"),
        ({"prompt": "Q", "answers": ["a", "b"], "scores": [1]}, "malformed scores", "a finite number for each"),
        ({"prompt": "Q", "answers": ["a", "b"], "scores": [1, None]}, "malformed scores", "a finite number for each"),
        ({"prompt": "Q", "answers": ["a", "b"], "scores": [1, 1]}, "no ranking", "one is better"),
        ({"prompt": "Q", "answers": ["a", 3], "scores": [1, 2]}, "malformed message", "answers 2, message 1"),
    ],
)  # fmt: skip
def test_what_is_no_preference_is_said(value, reason, sentence):
    found = read(value)
    assert isinstance(found, BadRecord) and found.reason == reason
    with pytest.raises(BadRecord, match=sentence):
        raise found


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_shards_of_pairs_hold_no_preference_twice(tmp_path: Path):
    one, two = preference("Q", "yes", "no"), preference("Q", "no", "yes")
    file = write(tmp_path / "p.jsonl", [one, two, dict(reversed(one.items()))])
    shards = prepared([file], chat_tokenizer(), tmp_path / "shards", "preference")
    assert shards.num_documents == 4
    assert shards.index.counts == {"dropped: equal to an earlier one": 1, "kept: preferences": 2}
    assert prepared([file], chat_tokenizer(), tmp_path / "shards", "preference").content == shards.content


def test_a_check_tells_lengths_of_answers_and_prompts_that_leave_no_room(tmp_path: Path):
    rows = [preference("Q", "longer", "no"), preference("Q", "x", "yes"), preference("long " * 20, "a", "b")]
    found = check([File("p", write(tmp_path / "p.jsonl", rows))], tokenizer=chat_tokenizer(), context=40)
    chosen, rejected = found.pairs.means()
    sizes = [[len(chat_tokenizer().encode(row[side])) + 1 for row in rows] for side in ("chosen", "rejected")]
    assert (chosen, rejected) == (sum(sizes[0]) / 3, sum(sizes[1]) / 3)
    assert found.pairs.chosen_longer() == 0.5  # one longer, one shorter, one equal
    assert set(found.problems) == {"the prompt alone exceeds the context"}
