"""The drawn KL against the exact one, where an answer is one token."""

import pytest
import torch

from pellucid.alignment.before_after import question_of
from pellucid.alignment.divergence import sampled_divergence
from pellucid.alignment.templates import give_template
from pellucid.models.decoder import Decoder
from tests.alignment.chats import CONFIG, base_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_the_exact_divergence_within_its_own_error():
    policy = Decoder(CONFIG, seed=1)
    tokenizer = give_template(policy, base_tokenizer())
    reference = Decoder(policy.config, seed=2)
    with torch.no_grad():
        for model in (policy, reference):
            model.embedding.weight.mul_(4)
        question = question_of("Where?", tokenizer)
        one, other = (
            model(torch.tensor([question.ids]))[0, -1].double().log_softmax(-1) for model in (policy, reference)
        )
    exact = float((one.exp() * (one - other)).sum())
    found = sampled_divergence(policy, reference, tokenizer, [question] * 200, 1, seed=0)
    assert found.answers == 200 and 0 < found.error < exact
    assert abs(found.kl - exact) < 4 * found.error  # of one seed, always the same
    again = sampled_divergence(policy, reference, tokenizer, [question] * 200, 1, seed=0)
    assert again == found != sampled_divergence(policy, reference, tokenizer, [question] * 200, 1, seed=1)
    assert abs(sampled_divergence(policy, policy, tokenizer, [question] * 3, 4, seed=0).kl) == 0
