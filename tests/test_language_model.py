"""The model as the learner sees it: packed against padded, adapters, what is written, what is refused."""

import copy

import pytest
import torch

from agents.language.errors import LanguageModelError
from learner.language.batch import pack
from learner.language.episodes import episode_tokens
from learner.language.loading import add_lora
from learner.language.model import LanguageModel, Lora, load_model, micro_batches
from tests.language_agents_support import tiny_model
from tests.language_learner_support import NoTokenizer, episode, network, perturb

CPU = torch.device("cpu")


def _model(net=None, **changes):
    return LanguageModel(net or network(), NoTokenizer(), device=CPU, **changes)


def _batch():
    return pack([episode_tokens(episode(seed, turns=1 + seed, terminated=seed != 1)) for seed in range(4)])


def _padded(net, batch, temperature):
    """log π and the last hidden state before each action token, from one padded batch with a mask."""
    rows = batch.tokens.split(batch.lengths.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    net.set_attn_implementation("eager")
    out = net(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    log_prob = (out.logits / temperature).log_softmax(-1)
    action = batch.action.split(batch.lengths.tolist())
    found = [
        (log_prob[s, n - 1, rows[s][n]], out.hidden_states[-1][s, n - 1])
        for s in range(len(rows))
        for n in action[s].nonzero().flatten().tolist()
    ]
    return torch.stack([p for p, _ in found]), torch.stack([h for _, h in found])


@pytest.mark.parametrize(
    "changes", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}], ids=["full", "sliding"]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_scores_and_gradients_are_those_of_a_padded_batch(changes, checkpointing):
    net = network(**changes)
    slow = copy.deepcopy(net)
    model = _model(net, critic=True, checkpointing=checkpointing)
    perturb(model.critic, 1, 0.5)
    batch = _batch()
    log_prob, hidden = _padded(slow, batch, 0.7)
    value = hidden @ model.critic.weight.detach()[0] + model.critic.bias.detach()
    (log_prob.sum() + value.square().sum()).backward()
    total = len(batch.actions())
    got = torch.empty(total), torch.empty(total)
    for rows in micro_batches(batch.lengths.tolist(), 25):
        part = batch.take(torch.tensor(rows))
        scores = model.score(part, 0.7)
        got[0][part.rows], got[1][part.rows] = scores.log_prob.detach(), scores.value.detach()
        (scores.log_prob.sum() + scores.value.square().sum()).backward()
    assert model.packed
    torch.testing.assert_close(got[0], log_prob.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], value.detach(), atol=1e-5, rtol=1e-5)
    for mine, other in zip(model.network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-4, rtol=1e-3)


def test_an_architecture_that_cannot_be_packed_or_changes_its_logits_gives_the_same_numbers():
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    shape = {
        "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3,
    }  # fmt: skip
    soft_capped = Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=8, sliding_window=4, final_logit_softcapping=2.0))
    scaled = GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=3.0))
    batch = _batch()
    for net, packed in ((soft_capped, False), (scaled, True)):
        slow = copy.deepcopy(net).eval()
        model = _model(net)
        assert model.packed is packed
        scores = model.score(batch.take(torch.arange(batch.sequences)), 0.7)
        torch.testing.assert_close(scores.log_prob, _padded(slow, batch, 0.7)[0], atol=1e-5, rtol=1e-5)


def test_the_reference_stays_where_it_was():
    batch = _batch()
    part = batch.take(torch.arange(batch.sequences))
    whole, adapted = _model(reference=True), _model(lora=Lora(2, 4))
    for model in (whole, adapted):
        before = model.score(part).log_prob.detach()
        torch.testing.assert_close(model.reference_log_prob(part), before)
        for p in model.policy_parameters():
            p.data += 0.1
        assert not torch.allclose(model.score(part).log_prob, before, atol=1e-3)
        torch.testing.assert_close(model.reference_log_prob(part), before)
    with pytest.raises(RuntimeError, match="without a reference"):
        _model().reference_log_prob(part)


@pytest.mark.parametrize("lora", [None, Lora(2, 4), Lora(3, 6, "q_proj,down_proj")], ids=["whole", "lora", "chosen"])
def test_a_saved_folder_opens_with_from_pretrained_and_gives_the_same_log_probabilities(tmp_path, lora):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny_model(tmp_path / "source")
    model = load_model(str(source), device=CPU, lora=lora)
    for p in model.policy_parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    model.save(tmp_path / "saved")
    batch = _batch()
    part = batch.take(torch.arange(batch.sequences))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template
    torch.testing.assert_close(model.score(part).log_prob, _padded(opened, batch, 1.0)[0], atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in model.policy_parameters()) < 1.01 * sum(p.numel() for p in opened.parameters())


def test_a_model_in_the_shape_of_qwen3_0_6b_goes_through(tmp_path):
    from transformers import Qwen3Config

    from tests.language_agents_support import tiny_tokenizer

    # The real shape but for the number of layers (28) and of words (151,936): 600 MB are not made for each test.
    shape = {
        "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    }  # fmt: skip
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=5120, num_hidden_layers=1, **shape)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_model(
        str(tmp_path), device=CPU, dtype=torch.bfloat16, lora=Lora(8, 16), critic=True, checkpointing=True
    )
    batch = _batch()
    scores = model.score(batch.take(torch.arange(batch.sequences)))
    (scores.log_prob.sum() + scores.value.sum()).backward()
    assert model.context == 40960
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.policy_parameters())


def test_micro_batches_hold_every_sequence_once_within_the_limit():
    lengths = [7, 3, 12, 5, 5, 1, 30]
    parts = micro_batches(lengths, 13)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in part) <= 13 or part == [6] for part in parts)
    assert len(parts) == 4  # 33 tokens in three full passes, and the one that is too long alone


def test_what_cannot_be_is_said_in_one_line(tmp_path):
    with pytest.raises(LanguageModelError, match=r"no linear layer 'q_prj'; did you mean q_proj\? It has: .*o_proj"):
        add_lora(network(), 2, 4, "q_prj")
    with pytest.raises(LanguageModelError, match="lora_targets=,: names no layer"):
        add_lora(network(), 2, 4, ",")
    with pytest.raises(LanguageModelError, match="there is no such folder"):
        load_model(str(tmp_path / "none"), device=CPU)
    source = tiny_model(tmp_path / "source")
    (source / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(LanguageModelError, match=r"agent\.model=.*cannot be loaded"):
        load_model(str(source), device=CPU)
