"""The text of an answer is what its tokens add to the text of the prompt, as transformers decodes the two together."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as TheirTokenizer

from pellucid.inference.engine import Engine
from pellucid.inference.generate import generate, prompt_ids
from pellucid.inference.output import answer_all
from pellucid.inference.params import SamplingParams
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import tokenizer

TEXT = "The quick brown fox, naïve as ever, jumps over 在 dogs.\n Indented, and  doubly spaced"


def tiny_model_for(ours: Tokenizer) -> Decoder:
    config = ModelConfig(
        vocab_size=ours.vocab_size, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, max_positions=128
    )
    return Decoder(config).eval()


def text_of(
    ours: Tokenizer, prompt: list[int], said: list[int], *, in_chat: bool, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The text of an answer of the tokens `said`."""
    engine = Engine(tiny_model_for(ours), ours, max_sequences=1)
    compute, left = engine.runner.run, iter(said)

    def scripted(step: object) -> object:
        logits = compute(step).clone()  # type: ignore[arg-type]
        if len(logits):
            logits[-1, next(left)] = 1e9
        return logits

    monkeypatch.setattr(engine.runner, "run", scripted)
    params = SamplingParams(temperature=0, max_tokens=len(said), ignore_eos=True)
    [answer] = answer_all(engine, [prompt], params, in_chat=in_chat)
    assert answer.token_ids == said
    return answer.text


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "smollm2"])
def test_an_answer_goes_on_with_the_text_of_its_prompt(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    ours = tokenizer(name)
    folder = tmp_path_factory.mktemp(name)
    ours.save(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_object=TheirTokenizer.from_file(str(folder / "tokenizer.json")))
    ids = ours.encode(TEXT)
    for cut in (1, 2, 5, len(ids) - 3):
        prompt, said = ids[:cut], ids[cut:]
        expected = theirs.decode(ids, clean_up_tokenization_spaces=False)
        before = theirs.decode(prompt, clean_up_tokenization_spaces=False)
        assert text_of(ours, prompt, said, in_chat=False, monkeypatch=monkeypatch) == expected.removeprefix(before)


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_in_a_chat_and_after_no_text_an_answer_is_a_text_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tokenizer(name)
    said = [ours.vocab["▁Hello"], ours.vocab["▁Hello"]]
    prompt = ours.encode("a")
    for start, in_chat, expected in (
        (prompt, True, "Hello Hello"),
        (prompt, False, " Hello Hello"),
        (prompt_ids(ours, ""), False, "Hello Hello"),
    ):
        assert text_of(ours, start, said, in_chat=in_chat, monkeypatch=monkeypatch) == expected


def test_the_reference_gives_the_same_text() -> None:
    ours = tokenizer("llama-spm")
    hello = ours.vocab["▁Hello"]
    params = SamplingParams(temperature=0, max_tokens=1, logit_bias={hello: 100})
    assert generate(tiny_model_for(ours), ours, ["a"], params)[0].text == " Hello"
