"""PEFT folders beside one model in the engine: the answers are those that peft gives with each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pellucid import LLM, SamplingParams
from pellucid.checkpoints.adapters import save_adapter
from pellucid.checkpoints.save import save
from pellucid.errors import InputError
from pellucid.models.adapters import AdapterConfig, add_adapter
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

SCORED = SamplingParams(max_tokens=1, prompt_logprobs=0, seed=0)
KINDS = {
    "poet": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "clerk": {"r": 6, "use_rslora": True, "use_dora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "base"
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def theirs(base: Path) -> object:
    """peft's model with both adapters, which lie in folders beside the base."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, fields in KINDS.items():
        config = peft.LoraConfig(task_type="CAUSAL_LM", **fields)
        if isinstance(model, peft.PeftModel):
            model.add_adapter(name, config)
        else:
            model = peft.get_peft_model(model, config, adapter_name=name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.save_pretrained(base.parent)
    return model.eval()


@torch.no_grad()
def test_answers_are_those_of_peft_with_each_adapter(base: Path, theirs: object) -> None:
    """float32, both of them: 4 layers, logits up to 13."""
    names = ["poet", None, "clerk"] * 2
    prompts = [[5 + number, 30, *range(40, 60 + number)] for number in range(6)]
    llm = LLM(base, dtype="float32", num_blocks=32, adapters={name: base.parent / name for name in KINDS})
    outputs = llm.generate(prompts, SCORED, adapter=names)
    for prompt, name, output in zip(prompts, names, outputs, strict=True):
        tokens = torch.tensor([prompt])
        if name is None:
            with theirs.disable_adapter():
                logits = theirs(tokens).logits[0]
        else:
            theirs.set_adapter(name)
            logits = theirs(tokens).logits[0]
        expected = logits.log_softmax(-1)[torch.arange(len(prompt) - 1), tokens[0, 1:]]
        assert output.prompt_logprobs is not None
        ours = torch.tensor([score for score, _ in output.prompt_logprobs])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=3e-4)


def test_a_folder_of_an_adapter_is_a_model(base: Path, theirs: object) -> None:
    """It is the base with the adapter, which nobody need name; others may stand beside it."""
    prompt, greedy = [[5, 6, 7]], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=0)
    folder = base.parent / "poet"
    beside = LLM(base, dtype="float32", num_blocks=8, adapters={"poet": folder}).generate(
        prompt, greedy, adapter="poet"
    )
    alone = LLM(folder, dtype="float32", num_blocks=8, adapters={"clerk": base.parent / "clerk"})
    assert alone.generate(prompt, greedy)[0].answers[0].logprobs == beside[0].answers[0].logprobs
    assert alone.generate(prompt, greedy, adapter="clerk")[0].answers[0].logprobs != beside[0].answers[0].logprobs


def test_what_is_no_adapter_of_the_model_is_refused(base: Path, theirs: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a whole model: give the folder of an adapter"):
        LLM(base, dtype="float32", num_blocks=8, adapters={"poet": base})
    for layers, what in ((6, "has no place in this model"), (2, "it has no lora_A.weight for the layer")):
        other = random_model(CONFIGS["llama"].model_copy(update={"num_layers": layers}))
        add_adapter(other, AdapterConfig(rank=2), "other")
        save_adapter(other, tmp_path / f"{layers}", "other", base="another")
        with pytest.raises(InputError, match=f"was made for 'another': .*{what}"):
            LLM(base, dtype="float32", num_blocks=8, adapters={"other": tmp_path / f"{layers}"})
    other = random_model(CONFIGS["llama"])
    add_adapter(other, AdapterConfig(rank=2), "other")
    same = tiny_tokenizer()
    for named, tokenizer in (
        ("chat template", Tokenizer(same.definition, same.config, {"default": "{{ messages }}"})),
        ("tokenizer", Tokenizer({**same.definition, "added_tokens": []}, same.config, same.templates)),
    ):
        save_adapter(other, tmp_path / "other", "other", base=str(base), tokenizer=tokenizer)
        with pytest.raises(InputError, match=f"has another {named} than the model: convert it to a model, or serve it"):
            LLM(base, dtype="float32", num_blocks=8, adapters={"other": tmp_path / "other"})
    save_adapter(other, tmp_path / "other", "other", base=str(base), tokenizer=same)
    llm = LLM(base, dtype="float32", num_blocks=8, adapters={"poet": base.parent / "poet", "other": tmp_path / "other"})
    with pytest.raises(InputError, match="there are 2 prompts and 1 adapters: give one each, or one"):
        llm.generate([[1], [2]], SCORED, adapter=["poet"])
    with pytest.raises(InputError, match="there is no adapter 'pot'"):
        llm.chat([{"role": "user", "content": "on"}], SCORED, adapter="pot")
