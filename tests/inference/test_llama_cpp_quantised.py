"""Blocks read as they lie in a GGUF file, against llama.cpp, which rounds what reads them to bytes as we do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.source import find_source
from pellucid.inference.runner import Runner
from pellucid.inference.step import Chunk, Step
from pellucid.models.decoder import Decoder
from pellucid.operations.step import why_not
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.test_llama_cpp import PROMPTS, TOOLS, their_continuation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TOOLS / "llama-completion").is_file(), reason="make peers builds llama.cpp"),
    pytest.mark.skipif(why_not(torch.float32) is not None, reason="there is no native step here"),
]

SURE = 0.3  # nats between the likeliest token and the next: closer ones may change places


@pytest.mark.parametrize("kind", ["packaged", "q8_0", "q4_0"])
def test_the_next_token_is_the_same_where_the_model_is_sure(
    kind: str, smollm2: tuple[Decoder, Tokenizer], tmp_path: Path
) -> None:
    path = find_source("smollm2").path if kind == "packaged" else tmp_path / "m.gguf"
    if kind != "packaged":
        save_gguf(*smollm2, path, kind=kind)
    model, tokenizer = pellucid.load(path, quantize="stored")
    runner, compared = Runner(model, 8), 0
    assert runner.why_not is None
    for prompt in PROMPTS[:10]:
        ids = tokenizer.encode(prompt)
        logits = runner.run(Step((Chunk(ids, 0, list(range(8)), 1),), ()))[0]
        first, second = logits.topk(2).values.tolist()
        if first - second > SURE:
            ours = tokenizer.token_bytes(int(logits.argmax())).rstrip(b"\n")
            assert their_continuation(path, prompt) == ours, prompt
            compared += 1
    assert compared >= 5
