"""Chunked log-probabilities and entropies against the whole softmax, values and gradients."""

import itertools

import pytest
import torch

from learner.language.log_probs import scores_from_hidden, scores_from_logits
from tests.language_support import randn

M, H, V = 13, 5, 17
CHUNKS = [1, 4, 13, 100]


def _inputs(dtype=torch.float64):
    target = torch.randint(V, (M,), generator=torch.Generator().manual_seed(0))
    tensors = (randn(1, M, H), randn(2, V, H), randn(3, V))
    return *(x.to(dtype).requires_grad_() for x in tensors), target


def _whole(logits, target, temperature):
    p = (logits / temperature).softmax(dim=1)
    return p[range(len(target)), target].log(), -(p * p.log()).sum(dim=1)


@pytest.mark.parametrize(("chunk", "temperature"), itertools.product(CHUNKS, [1.0, 0.7]))
def test_from_hidden_states_equals_the_whole(chunk, temperature):
    hidden, head, bias, target = _inputs()
    log_prob, entropy = _whole(hidden @ head.T + bias, target, temperature)
    found = scores_from_hidden(hidden, head, target, bias=bias, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(found.log_prob, log_prob)
    torch.testing.assert_close(found.entropy, entropy)
    upstream, other = randn(4, M), randn(5, M)
    for mine, whole in (
        ((found.log_prob * upstream).sum(), (log_prob * upstream).sum()),
        ((found.entropy * other).sum(), (entropy * other).sum()),
        ((found.log_prob * upstream + found.entropy * other).sum(), (log_prob * upstream + entropy * other).sum()),
    ):
        inputs = (hidden, head, bias)
        expected = torch.autograd.grad(whole, inputs, retain_graph=True)
        for a, b in zip(torch.autograd.grad(mine, inputs, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_from_logits_equals_the_whole(chunk):
    logits, target = randn(7, M, V).requires_grad_(), _inputs()[3]
    log_prob, entropy = _whole(logits, target, 0.7)
    found = scores_from_logits(logits, target, temperature=0.7, chunk=chunk)
    torch.testing.assert_close(found.log_prob, log_prob)
    torch.testing.assert_close(found.entropy, entropy)
    (mine,) = torch.autograd.grad((found.log_prob.square() + found.entropy.square()).sum(), logits)
    (whole,) = torch.autograd.grad((log_prob.square() + entropy.square()).sum(), logits)
    torch.testing.assert_close(mine, whole)


def test_gradients_against_differences():
    hidden, head, bias, target = _inputs()

    def scores(*inputs):
        found = scores_from_hidden(inputs[0], inputs[1], target, bias=inputs[2], temperature=0.7, chunk=4)
        return found.log_prob, found.entropy

    assert torch.autograd.gradcheck(scores, (hidden, head, bias))


def test_a_frozen_head_and_no_bias():
    """LoRA: the head takes no gradient, the hidden states do."""
    hidden, head, _, target = _inputs()
    frozen = head.detach()
    (mine,) = torch.autograd.grad(scores_from_hidden(hidden, frozen, target, chunk=4).log_prob.sum(), hidden)
    (whole,) = torch.autograd.grad(_whole(hidden @ frozen.T, target, 1.0)[0].sum(), hidden)
    torch.testing.assert_close(mine, whole)


def test_the_inputs_are_left_as_they_were():
    logits = torch.randn(M, V)
    before, target = logits.clone(), _inputs()[3]
    scores_from_logits(logits.requires_grad_(), target, temperature=0.5).log_prob.sum().backward()
    assert torch.equal(logits.detach(), before)


def test_bfloat16_is_softmaxed_in_float32():
    hidden, head, _, target = _inputs(torch.bfloat16)
    found = scores_from_hidden(hidden, head, target, chunk=4)
    assert found.log_prob.dtype == found.entropy.dtype == torch.float32
    logits = torch.nn.functional.linear(hidden, head).detach().double()
    torch.testing.assert_close(found.log_prob.double(), _whole(logits, target, 1.0)[0], atol=1e-5, rtol=1e-5)
    found.log_prob.sum().backward()
    assert hidden.grad is not None and head.grad is not None
    assert (hidden.grad.dtype, head.grad.dtype) == (torch.bfloat16, torch.bfloat16)


def test_large_logits_in_float32():
    logits = torch.tensor([[1e4, 0.0, -1e4], [80.0, 80.0, 80.0]], requires_grad=True)
    found = scores_from_logits(logits, torch.tensor([0, 1]))
    assert found.log_prob.tolist() == pytest.approx([0.0, -1.0986123], abs=1e-5)
    assert found.entropy.tolist() == pytest.approx([0.0, 1.0986123], abs=1e-5)
    (found.log_prob + found.entropy).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_forbidden_tokens():
    """A logit of −inf is a token that cannot come: no share in the entropy, no gradient, no NaN."""
    logits = torch.tensor([[1.0, float("-inf"), 2.0]], dtype=torch.float64, requires_grad=True)
    found = scores_from_logits(logits, torch.tensor([2]))
    allowed = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    log_prob, entropy = _whole(allowed, torch.tensor([1]), 1.0)
    torch.testing.assert_close(found.log_prob, log_prob)
    torch.testing.assert_close(found.entropy, entropy)
    (found.log_prob + found.entropy).sum().backward()
    (log_prob + entropy).sum().backward()
    assert logits.grad is not None and allowed.grad is not None
    torch.testing.assert_close(logits.grad[0, [0, 2]], allowed.grad[0])
    assert logits.grad[0, 1] == 0.0


def test_no_tokens():
    hidden, head, bias, target = _inputs()
    found = scores_from_hidden(hidden[:0], head, target[:0], bias=bias)
    assert found.log_prob.shape == found.entropy.shape == (0,)
    found.log_prob.sum().backward()
    assert head.grad is not None and head.grad.abs().max() == 0.0


def test_the_logits_of_all_tokens_are_never_there_at_once(monkeypatch):
    """The largest matrix that is made has `chunk` rows, forward and backward."""
    rows: list[int] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *rest: rows.append(len(x)) or linear(x, *rest))
    hidden, head, _, target = _inputs()
    scores_from_hidden(hidden, head, target, chunk=4).log_prob.sum().backward()
    assert rows == [4, 4, 4, 1] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"target": torch.zeros(M + 1, dtype=torch.int64)}, "14 tokens do not fit 13 rows"),
        ({"target": torch.full((M,), V)}, "leave a vocabulary of 17"),
        ({"head": torch.zeros(V, H + 1, dtype=torch.float64)}, "width 5 do not fit a head of width 6"),
    ],
)
def test_bad_input(change, message):
    hidden, head, _, target = _inputs()
    with pytest.raises(ValueError, match=message):
        scores_from_hidden(**{"hidden": hidden, "head": head, "target": target, **change})
