"""Promise M3 against the real llama.cpp: it opens what we write, with the same ids and the same next tokens.

`make peers` builds its tools; without them these tests are skipped.
"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.references import REFERENCES

TOOLS = REFERENCES.parent / "peers" / "llama.cpp" / "bin"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TOOLS / "llama-completion").is_file(), reason="make peers builds llama.cpp"),
]

PROMPTS = [
    "The capital of France is", "The capital of Italy is the city of", "Water boils at a temperature of",
    "Once upon a time there was a little", "The opposite of hot is", "Two plus two equals",
    "The first president of the United States was", "A triangle has three", "The sun rises in the",
    "def add(a, b):\n    return a", "for i in range(10):\n    print(", "import numpy as",
    "Dear Sir or Madam,\n\nI am writing to", "The quick brown fox jumps over the lazy", "In the year 1969, humans",
    "Monday, Tuesday, Wednesday,", "A, B, C, D,", "The chemical formula of water is", "To be or not to",
    "Photosynthesis is the process by which plants",
]  # fmt: skip

SCRIPTS = [
    "hello world",
    "Grüße aus Köln",
    "Привет, мир",
    "你好世界",
    "こんにちは",
    "مرحبا",
    "नमस्ते",
    "שלום",
    "👩‍👩‍👧 🇩🇪",
    "e\u0301 n\u0303",
]
SHAPES = [
    "{}",
    " {}",
    "{}  {}",
    "{}\n\n{}",
    "\t{} 1234567",
    "{}'s {}",
    "({})!?",
    "x{}x",
    "{}\u00a0{}",
    "<|im_start|>{}",
]


def thousand_strings() -> list[str]:
    """Scripts in shapes, numbers, code, white space, and every plane's edge: a thousand that differ."""
    texts = [shape.format(*[script] * shape.count("{}")) for script in SCRIPTS for shape in SHAPES]
    texts += [f"{number} {number * 7919 % 100003}.{number % 10}" for number in range(300)]
    texts += ["if x:\n" + " " * number + f"y{number} = {{'a': [{number}]}}" for number in range(200)]
    texts += [" " * (number % 17) + "a\n" * (number % 5) + str(number) for number in range(200)]
    generator = torch.Generator().manual_seed(0)
    while len(texts) < 1000:
        points = torch.randint(32, 0x3000, (12,), generator=generator).tolist()
        texts.append("".join(map(chr, points)))
    assert len(set(texts)) == len(texts) == 1000
    return texts


def their_ids(model: Path, text: str) -> list[int]:
    """llama.cpp's ids of a text in which control tokens are not looked for."""
    command = [
        TOOLS / "llama-tokenize",
        "-m",
        model,
        "--stdin",
        "--ids",
        "--no-bos",
        "--no-parse-special",
        "--log-disable",
    ]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    return list(ast.literal_eval(done.stdout.decode().strip().splitlines()[-1]))


def their_continuation(model: Path, prompt: str, count: int = 1) -> bytes:
    command = [TOOLS / "llama-completion", "-m", model, "-p", prompt, "-n", str(count), "--temp", "0", "-no-cnv"]
    options = ["-t", "2", "-c", "512", "--no-display-prompt", "--no-warmup", "--simple-io"]
    seen: list[bytes] = []
    for _ in range(8):  # a thread of its own prints, and is at times cut off by the end of the program
        done = subprocess.run([*command, *options], capture_output=True, check=True, stdin=subprocess.DEVNULL)
        seen.append(done.stdout)
        longest = max(seen, key=len)
        if longest and seen.count(longest) > 1:
            break
    return longest.removesuffix(b"\n").removesuffix(b" [end of text]").rstrip(b"\n")


@pytest.fixture(scope="module")
def exported(smollm2: tuple[Decoder, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for kind in ("f32", "f16", "bf16", "q8_0"):
        save_gguf(*smollm2, folder / f"{kind}.gguf", kind=kind)
    return {path.stem: path for path in folder.iterdir()}


def test_ids_of_a_thousand_strings(exported: dict[str, Path], smollm2: tuple[Decoder, Tokenizer]) -> None:
    tokenizer = smollm2[1]
    # One call a string would take an hour on a slow machine: llama.cpp gets them joined, and apart where that differs.
    different = []
    for group in batched(thousand_strings(), 25):
        whole = "\n~\n".join(group)
        if their_ids(exported["f16"], whole) != tokenizer.encode(whole):
            different += [text for text in group if their_ids(exported["f16"], text) != tokenizer.encode(text)]
    assert not different


def batched(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_the_next_token_of_twenty_prompts(kind: str, exported: dict[str, Path]) -> None:
    model, tokenizer = pellucid.load(exported[kind], dtype="float32")
    ours = {}
    with torch.no_grad():
        for prompt in PROMPTS:
            best = int(model(torch.tensor([tokenizer.encode(prompt)]))[0, -1].argmax())
            ours[prompt] = tokenizer.token_bytes(best).rstrip(b"\n")
    theirs = {prompt: their_continuation(exported[kind], prompt) for prompt in PROMPTS}
    assert theirs == ours


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_goes_on_as_we_do(name: str, tmp_path: Path) -> None:
    """Random weights, a rule of its own for each family: eight greedy tokens are the same."""
    config = ModelConfig(**CONFIGS[name].model_dump() | {"hidden_size": 256, "head_dim": 64, "max_positions": 512})
    if name.startswith("gemma"):
        fields = {"attention_scale": 0.125, "embedding_scale": 16.0}
        config = ModelConfig(**config.model_dump() | fields)
    model, tokenizer = random_model(config), tiny_tokenizer()
    for end in (model.embedding, model.head or model.embedding):
        end.weight.data[262:] = 0  # control tokens and unused ones are never the best, since they print nothing
    for part, parameter in model.named_parameters():
        if "post_norm" in part:  # else a tied embedding repeats the last token, whatever the layers do
            parameter.data += 4
    save_gguf(model, tokenizer, tmp_path / "m.gguf", kind="f32")
    prompt = "the 12 things on the inner thing" * 2
    tokens = torch.tensor([tokenizer.encode(prompt)])
    with torch.no_grad():
        for _ in range(8):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    ours = b"".join(map(tokenizer.token_bytes, tokens[0, -8:].tolist()))
    assert len(set(ours)) > 2
    # They are asked for more tokens, since the end of what they print may be cut off; C prints no NUL.
    assert their_continuation(tmp_path / "m.gguf", prompt, 16).startswith(ours.replace(b"\0", b"").rstrip(b"\n"))
