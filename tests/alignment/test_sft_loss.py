"""The loss of fine-tuning against transformers' own, with labels of -100 where the assistant does not speak."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pellucid.alignment.templates import with_template
from pellucid.checkpoints.folder import open_folder
from pellucid.checkpoints.load import load
from pellucid.checkpoints.save import save
from pellucid.data.documents import conversation_documents
from pellucid.data.packing import Whole
from pellucid.data.records import Record
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.loss import next_token_loss
from tests.alignment.chats import about_towns, base_tokenizer, chat
from tests.data.made import in_memory

CHATS = [
    *about_towns(5),
    chat(("system", "Be brief."), ("user", "on"), ("assistant", "off"), ("user", "in"), ("assistant", "")),
    chat(("user", "x" * 60), ("assistant", "y" * 30)),
]


def compare(ours: Decoder, theirs: torch.nn.Module, tokenizer: Tokenizer, context: int) -> None:
    """Loss and gradient of packed rows, against each conversation alone in transformers."""
    records = [Record(f"line {n}", "conversation", "messages", one) for n, one in enumerate(CHATS)]
    documents = list(conversation_documents(records, tokenizer))
    rows = Whole(in_memory([d.ids for d in documents], [d.mask for d in documents]), context, seed=3)
    assert len(rows) < len(CHATS)  # some share a row
    loss, learnt = torch.zeros(()), 0
    for document in documents:
        ids, said = torch.tensor([document.ids]), torch.tensor([document.mask])
        labels = torch.where(said, ids, -100)
        count = int((labels[:, 1:] != -100).sum())
        loss = loss + theirs(input_ids=ids, labels=labels).loss * count
        learnt += count
    loss.backward()
    examples = rows.read(range(len(rows)))
    assert examples.supervised == learnt
    total = next_token_loss(ours, examples)
    total.backward()
    torch.testing.assert_close(total.detach(), loss.detach(), rtol=1e-5, atol=1e-4)
    gradients = dict(theirs.named_parameters())
    for theirs_name, ours_name in (
        ("model.embed_tokens.weight", "embedding.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blocks.0.attention.value.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blocks.1.feed_forward.down.weight"),
    ):
        wanted = gradients[theirs_name].grad
        found = ours.get_parameter(ours_name).grad
        assert wanted is not None and found is not None
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("tied", [True, False])
def test_a_random_llama(tied: bool, tmp_path: Path) -> None:
    tokenizer = with_template(base_tokenizer())
    torch.manual_seed(4)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=160,
            tie_word_embeddings=tied,
            initializer_range=0.3,
        )
    )
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    compare(load(tmp_path)[0], theirs, tokenizer, 160)


@pytest.mark.slow
def test_smollm2(smollm2: tuple[Decoder, Tokenizer], tmp_path: Path) -> None:
    model, tokenizer = smollm2
    save(model, tokenizer, tmp_path)
    assert open_folder(tmp_path).dtype == torch.float32
    ours, tokenizer = load(tmp_path)
    compare(ours, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), tokenizer, 256)
