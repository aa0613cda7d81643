"""A small language model repeats what it has read, before any training."""

import itertools

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from learner.language.induction import build_induction_circuit
from learner.language.small import repeating_tokens

VOCABULARY = 2000


def network(**settings) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    default = {
        "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32, "max_position_embeddings": 1024,
        "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**{**default, **settings})).float().eval()


@torch.no_grad()
def copied(model: Qwen3ForCausalLM, period: int) -> float:
    """Share of random tokens that are foretold when they come for the second time."""
    once = torch.randint(VOCABULARY, (4, period), generator=torch.Generator().manual_seed(1))
    foretold = model(once.repeat(1, 2)).logits[:, period:-1].argmax(-1)
    return (foretold == once[:, 1:]).float().mean().item()


def test_it_copies_and_one_with_random_weights_does_not():
    model = network()
    assert all(copied(model, period) < 0.05 for period in (8, 300))
    build_induction_circuit(model, seed=0)
    for period, least in ((8, 0.6), (32, 0.9), (128, 0.9), (300, 0.8)):
        assert copied(model, period) > least, period
    # The first layer's heads look one token back, wherever that is.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        seen = model(torch.randint(VOCABULARY, (1, 200)), output_attentions=True).attentions[0]
    assert seen.diagonal(-1, 2, 3).mean() > 0.9
    same = network()
    build_induction_circuit(same, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings", [{"num_key_value_heads": 2}, {"head_dim": 16}, {"num_hidden_layers": 1}, {"tie_word_embeddings": False}]
)
def test_what_could_not_copy_is_refused(settings):
    with pytest.raises(ValueError, match="an induction circuit needs"):
        build_induction_circuit(network(**settings), seed=0)


def test_repeating_text_asks_for_nothing_but_what_was_read_before():
    for length in (6, 40, 384):
        (sequence,) = repeating_tokens(VOCABULARY, length, torch.Generator().manual_seed(3)).sequences
        tokens, asked = sequence.tokens.tolist(), sequence.action.tolist()
        assert len(tokens) == length and any(asked) and not asked[0]
        pairs = list(itertools.pairwise(tokens))
        for at in (index for index in range(length) if asked[index]):
            assert pairs[at - 1] in pairs[: at - 1]
