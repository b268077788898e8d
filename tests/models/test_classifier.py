"""Classifiers: a score at every token, of one family or another, and the folders of transformers both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import pellucid
from pellucid.checkpoints.describe import describe
from pellucid.checkpoints.folder import read_folder
from pellucid.checkpoints.load import load_classifier
from pellucid.checkpoints.save import save
from pellucid.errors import InputError
from pellucid.layers.batch import Batch
from pellucid.models.classifier import Classifier
from pellucid.models.config import ModelConfig
from tests.checkpoints.tiny import CONFIGS, SIZES, random_model, same_weights, tiny_tokenizer

# float32 on both sides, scores of order 1: sums in another order differ by about 1e-6 of the largest term.
TOLERANCE = 1e-4
LENGTHS = (24, 9)


def random_classifier(name: str, labels: int = 1) -> Classifier:
    return Classifier.of(random_model(CONFIGS[name]), labels)


def last_scores(model: Classifier, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    """Of each text, by itself, the scores at its last token: (texts, L)."""
    with torch.no_grad():
        return torch.cat([model(torch.arange(7, 7 + length)[None])[:, -1] for length in lengths])


def padded(lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    """The same texts as a batch with padding on the right, as transformers takes them."""
    rows = [torch.arange(7, 7 + length) for length in lengths]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=262)
    return tokens, torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True).long()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("labels", [1, 3])
def test_transformers_opens_ours_with_equal_scores(name: str, labels: int, tmp_path: Path) -> None:
    """Promise M1, in a batch of unequal lengths."""
    model = random_classifier(name, labels)
    save(model, tiny_tokenizer(), tmp_path / "m")
    back, _ = load_classifier(tmp_path / "m")
    assert back.config == model.config and same_weights(model, back)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()) and theirs.config.num_labels == labels
    tokens, mask = padded()
    with torch.no_grad():
        assert torch.allclose(
            theirs.eval()(tokens, attention_mask=mask).logits, last_scores(model), rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"])
def test_theirs_is_read(name: str, tmp_path: Path) -> None:
    save(random_classifier(name), tiny_tokenizer(), tmp_path / "a")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "a", attn_implementation="eager")
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "b", max_shard_size="50KB")
    tiny_tokenizer().save(tmp_path / "b")
    model, _ = load_classifier(tmp_path / "b")
    tokens, mask = padded()
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=mask).logits
    assert torch.allclose(expected, last_scores(model), rtol=0, atol=TOLERANCE)


def test_scores_of_packed_texts_are_those_of_each_alone() -> None:
    """Promise D3, at every token."""
    model = random_classifier("llama")
    texts = [torch.arange(7, 7 + length) for length in LENGTHS]
    row = torch.cat(texts)[None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    documents = torch.repeat_interleave(torch.arange(2), torch.tensor(LENGTHS))[None]
    with torch.no_grad():
        together = model.scores(row, Batch(positions, documents))[0].split(LENGTHS)
        for text, scores in zip(texts, together, strict=True):
            assert torch.allclose(scores, model.scores(text[None])[0], rtol=0, atol=TOLERANCE)


def test_it_is_the_decoder_that_it_was_made_of() -> None:
    base = random_model(CONFIGS["llama"])
    model = Classifier.of(base)
    tokens = torch.arange(7, 31)[None]
    with torch.no_grad():
        assert torch.equal(model.hidden(tokens), base.hidden(tokens))
        assert torch.equal(model.scores(tokens), base.hidden(tokens) @ model.score.weight[0])
    assert model.head is None and model.config.tie_embeddings and not base.config.tie_embeddings
    assert torch.equal(Classifier.of(base, seed=3).score.weight, Classifier.of(base, seed=3).score.weight)
    assert not torch.equal(Classifier.of(base, seed=3).score.weight, model.score.weight)


def test_one_of_no_family_is_kept(tmp_path: Path) -> None:
    config = ModelConfig(**SIZES, position="alibi", activation="relu", norm_position="post")
    model = Classifier.of(random_model(config), labels=2)
    with pytest.warns(UserWarning, match="no published family can express this config"):
        save(model, tiny_tokenizer(), tmp_path / "m")
    back, _ = read_folder(tmp_path / "m")
    assert isinstance(back, Classifier) and back.config == model.config and same_weights(model, back)


def test_the_wrong_kind_of_model_is_said(tmp_path: Path) -> None:
    save(random_classifier("llama"), tiny_tokenizer(), tmp_path / "score")
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "text")
    with pytest.raises(InputError, match="score gives texts a score and writes none"):
        pellucid.load(tmp_path / "score")
    with pytest.raises(InputError, match="text writes text and gives none a score"):
        load_classifier(tmp_path / "text")


def test_its_head_is_counted_and_named(tmp_path: Path) -> None:
    save(random_classifier("llama", labels=3), tiny_tokenizer(), tmp_path / "m")
    told = describe(str(tmp_path / "m"))
    assert told.labels == 3 and told.parameters["head"] == 3 * 64
    weights = sum(parameter.numel() for parameter in random_classifier("llama", labels=3).parameters())
    assert sum(told.parameters.values()) == weights
