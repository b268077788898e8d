"""The numbers of the report, against PyTorch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pellucid.errors import InputError
from pellucid.inference.quantisation import compare as comparing
from pellucid.inference.quantisation import texts
from pellucid.inference.quantisation.compare import compare, tokens_per_second
from pellucid.inference.quantisation.texts import own_rows, read_rows
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.models.few_bits import quantise

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_model_and_itself_do_not_differ() -> None:
    model = random_model(CONFIGS["llama"])
    seen = compare(model, model, torch.randint(0, 272, (3, 40)))
    assert (seen.kl_mean, seen.kl_99, seen.agreement, seen.tokens) == (0, 0, 1, 3 * 39)
    assert seen.perplexity_before == seen.perplexity_after


@pytest.mark.parametrize("config", ["llama", "gemma2"])
def test_divergence_perplexity_and_agreement(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = random_model(CONFIGS[config]), random_model(CONFIGS[config])
    quantise(after, "q4_0")
    rows = torch.randint(0, 272, (3, 40))
    monkeypatch.setattr(comparing, "LOGITS", 272 * 7)  # seven tokens at a time
    seen = compare(before, after, rows)
    with torch.no_grad():
        p, q = (model(rows[:, :-1]).double().log_softmax(-1).flatten(0, 1) for model in (before, after))
    targets = rows[:, 1:].flatten()
    divergences = F.kl_div(q, p, reduction="none", log_target=True).sum(1)
    assert seen.kl_mean == pytest.approx(float(divergences.mean()), rel=1e-3)
    assert seen.kl_99 == pytest.approx(float(divergences.quantile(0.99)), rel=1e-3)
    assert seen.perplexity_before == pytest.approx(float(F.nll_loss(p, targets).exp()), rel=1e-4)
    assert seen.perplexity_after == pytest.approx(float(F.nll_loss(q, targets).exp()), rel=1e-4)
    assert seen.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))


def test_speed_is_a_number_of_tokens() -> None:
    assert tokens_per_second(random_model(CONFIGS["llama"]), tiny_tokenizer(), [5, 6, 7]) > 1


def test_a_text_is_cut_into_rows(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "text.txt", tiny_tokenizer()
    path.write_text("on the thin thing " * 20)
    ids = tokenizer.encode(path.read_text(), add_bos=tokenizer.adds_bos)
    rows = read_rows(path, tokenizer, 24, 3)
    assert rows.tolist() == [ids[:24], ids[24:48], ids[48:72]]
    assert read_rows(path, tokenizer, 10_000, 3).tolist() == [ids]
    assert len(read_rows(path, tokenizer, 24, 10_000)) == len(ids) // 24
    path.write_text("on")
    with pytest.raises(InputError, match=r"the text has . tokens, and at least 16 are needed"):
        read_rows(path, tokenizer, 24, 3)


def test_a_model_writes_its_own_text_again_by_its_seed() -> None:
    told: list[tuple[int, int]] = []

    def write(seed: int) -> torch.Tensor:
        model = random_model(CONFIGS["llama"])
        return own_rows(model, tiny_tokenizer(), 24, 3, seed=seed, progress=lambda *now: told.append(now))

    one, two, other = write(0), write(0), write(1)
    assert one.shape == (3, 24) and torch.equal(one, two) and not torch.equal(one, other)
    assert int(one[0, 0]) == tiny_tokenizer().bos_id
    assert told[-1][0] >= told[-1][1] == 72


def test_a_text_without_a_start_token_begins_with_one_that_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that is padded, as real ones are: its last rows are no token's."""
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(type(tokenizer), "bos_id", None)
    model = random_model(CONFIGS["llama"].model_copy(update={"vocab_size": 100 * tokenizer.vocab_size}))
    begun: list[int] = []

    def samples(_engine: object, starts: list[int], *_: object) -> list[int]:
        begun.extend(starts)
        return [0] * 24 * len(starts)

    monkeypatch.setattr(texts, "_samples", samples)
    own_rows(model, tokenizer, 24, 20)
    assert len(begun) == 20 and max(begun) < tokenizer.vocab_size
