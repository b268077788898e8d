"""The real model: GPTQ errs measurably less than rounding to nearest, and llama.cpp opens what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.inference.quantisation.compare import Difference, compare
from pellucid.inference.quantisation.quantise import quantise
from pellucid.inference.quantisation.rounding import Grid
from pellucid.inference.quantisation.texts import read_rows
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.test_llama_cpp import PROMPTS, TOOLS, their_continuation

pytestmark = pytest.mark.slow

Model = tuple[Decoder, Tokenizer]


def test_gptq_is_nearer_than_rounding_on_text_that_it_has_not_seen(smollm2: Model) -> None:
    """Learnt from eight rows of an address of 1946, measured on four rows of one of 1913."""
    original, tokenizer = smollm2
    rows = read_rows("bundled:state-of-the-union", tokenizer, 512, 400)
    held, text = rows[:4], rows[-8:]
    found: dict[str, Difference] = {}
    for method, learnt in (("rtn", None), ("gptq", text)):
        model, _ = pellucid.load("smollm2", dtype="float32")
        quantise(model, Grid("Q4_1", short=True), learnt, embedding=False)
        found[method] = compare(original, model, held)
    # Measured on three rows: KL 0.125 against 0.218, agreement 80 % against 72 %. Perplexity does not tell the two
    # apart here (40.8 and 40.7, the original 35.6); with a model trained on such a text it does: `test_trained.py`.
    assert found["gptq"].kl_mean < 0.8 * found["rtn"].kl_mean
    assert found["gptq"].agreement > found["rtn"].agreement + 0.03


@pytest.mark.skipif(not (TOOLS / "llama-completion").is_file(), reason="make peers builds llama.cpp")
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
def test_llama_cpp_goes_on_as_we_do(name: str, tmp_path: Path) -> None:
    model, tokenizer = pellucid.load("smollm2", dtype="float32")
    blocks = quantise(model, Grid(name))
    save_gguf(model, tokenizer, tmp_path / "m.gguf", kind=name.lower(), blocks=blocks)
    same = 0
    for prompt in PROMPTS[:10]:
        with torch.no_grad():
            best = int(model(torch.tensor([tokenizer.encode(prompt)]))[0, -1].argmax())
        same += their_continuation(tmp_path / "m.gguf", prompt) == tokenizer.token_bytes(best).rstrip(b"\n")
    assert same >= 9  # it rounds activations to bytes: where two tokens are nearly as likely, another may win
