"""The classification network against the plain stack that ONI describes; measures against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from reward_server.models import build_reward_model, measure, reward_model_kind, reward_model_names
from reward_server.models.classification import ClassificationModel
from reward_server.models.measures import area_under_roc
from reward_server.models.network import CharacterMLP, SeededDropout, encode_captions
from reward_server.settings import DistillerSettings, ModelSettings


def network(length: int = 256) -> CharacterMLP:
    torch.manual_seed(0)
    return CharacterMLP((512, 512), outputs=2, dropout=0.1, length=length)


def plain(net: CharacterMLP) -> nn.Sequential:
    """The same parameters as a stack that knows nothing of padding (ONI, appendix: kernels 7, 7, 3, 3, 3, 3; pool 3
    behind the first, second and last)."""
    layers: list[nn.Module] = []
    for number, convolution in enumerate(net.encoder.convolutions):
        layers += [convolution, nn.ReLU()]
        if number in (0, 1, 5):
            layers.append(nn.MaxPool1d(3))
    return nn.Sequential(*layers, nn.Flatten(), net.encoder.project, nn.ReLU(), net.head)


def padded(captions: list[str], length: int) -> Tensor:
    rows = [caption.encode()[:length].ljust(length, b"\0") for caption in captions]
    return torch.tensor([list(row) for row in rows])


# -- the network ----------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_oni() -> None:
    by_hand = (
        256 * 32  # embedding
        + (32 * 64 * 7 + 64)
        + (64 * 64 * 7 + 64)
        + 4 * (64 * 64 * 3 + 64)  # convolutions
        + (320 * 128 + 128)  # 64 channels x 5 positions -> 128
        + (128 * 512 + 512)
        + (512 * 512 + 512)
        + (512 * 2 + 2)  # perceptron
    )
    assert by_hand == 471_554
    assert sum(p.numel() for p in network().parameters()) == by_hand


def test_256_bytes_leave_five_positions_of_64_channels() -> None:
    net = network()
    x = net.encoder.embedding(torch.zeros(3, 256, dtype=torch.long)).transpose(1, 2)
    assert x.shape == (3, 32, 256)
    convolved = plain(net)[:15](x)  # up to the last pool
    assert convolved.shape == (3, 64, 5)
    assert net.encoder.project.in_features == 320
    assert net.encoder(torch.zeros(3, 256, dtype=torch.uint8)).shape == (3, 128)
    assert net.eval()(torch.zeros(3, 256, dtype=torch.uint8)).shape == (3, 2)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300), min_size=1, max_size=4),
    st.sampled_from([256, 123, 200, 512]),
)
def test_leaving_padding_out_changes_nothing(captions: list[str], length: int) -> None:
    net = network(length).double().eval()
    expected = plain(net)(net.encoder.embedding(padded(captions, length)).transpose(1, 2))
    found = net(torch.tensor(encode_captions(captions, length)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [0, 1, 6, 7, 26, 27, 28, 100, 122, 230, 231, 232, 254, 255, 256, 257, 400])
def test_gradients_are_those_of_the_plain_stack(size: int) -> None:
    captions = ["x" * size, "You see here a key."[:size]]
    gradients: list[list[Tensor]] = []
    for skip in (True, False):
        net = network().double().eval()
        if skip:
            logits = net(torch.tensor(encode_captions(captions)))
        else:
            logits = plain(net)(net.encoder.embedding(padded(captions, 256)).transpose(1, 2))
        functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 21
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_captions_become_bytes_with_one_zero_behind_the_longest() -> None:
    rows = encode_captions(["ab", "é", "", "\udce9"])
    assert rows.dtype == np.uint8 and rows.shape == (4, 4)
    assert bytes(rows[0]) == b"ab\0\0" and bytes(rows[1]) == "é".encode() + b"\0\0" and not rows[2].any()
    assert bytes(rows[3]) == "\udce9".encode("utf-8", "surrogatepass") + b"\0"
    assert encode_captions(["x" * 300]).shape == (1, 256)
    assert encode_captions([]).shape == (0, 1)


def test_a_network_too_short_for_its_kernels_is_refused() -> None:
    network(123)
    with pytest.raises(ValueError, match=r"at least 123 bytes: raise `caption_bytes`"):
        network(122)


def test_dropout_has_a_generator_of_its_own() -> None:
    dropout = SeededDropout(0.25)
    x = torch.ones(200, 200)
    with pytest.raises(RuntimeError, match="generator"):
        dropout(x)
    before = torch.random.get_rng_state()
    masks: list[Tensor] = []
    for _ in range(2):
        dropout.generator = torch.Generator().manual_seed(7)
        masks.append(dropout(x))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(masks[0], masks[1])
    assert (masks[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert masks[0].mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(dropout.eval()(x), x)


# -- the model ------------------------------------------------------------------------------------------------------


def test_reward_is_one_above_the_threshold_and_independent_of_the_batch() -> None:
    captions = [f"You see here {i} gold pieces." * (1 + i % 7) for i in range(300)]
    model = ClassificationModel(DistillerSettings(), seed=3)
    evaluation = model.evaluate(captions)
    assert evaluation.reward.dtype == evaluation.probability.dtype == np.float32
    alone = np.array([model.probabilities([caption])[0] for caption in captions[:20]])
    np.testing.assert_allclose(evaluation.probability[:20], alone, atol=1e-6)
    middle = float(np.median(evaluation.probability))
    strict = ClassificationModel(DistillerSettings(threshold=middle), seed=3).evaluate(captions)
    np.testing.assert_array_equal(strict.reward, (strict.probability > middle).astype(np.float32))
    assert 0 < strict.reward.sum() < 300
    np.testing.assert_array_equal(model.score(captions), evaluation.reward)
    assert model.score([]).shape == (0,)


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (ClassificationModel(DistillerSettings(), seed=5).probabilities(["a"]) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == second


def test_the_registry_names_what_there_is() -> None:
    assert "classification" in reward_model_names()
    assert build_reward_model("classification", ModelSettings()).name == "classification"
    with pytest.raises(ValueError, match=r"no reward model 'clasification'; there are: .*classification"):
        reward_model_kind("clasification")


# -- measures -------------------------------------------------------------------------------------------------------

scored = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0]), st.booleans()), min_size=1)


@given(scored)
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    positive = [score for score, is_positive in pairs if is_positive]
    negative = [score for score, is_positive in pairs if not is_positive]
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    found = area_under_roc(np.array([s for s, _ in pairs]), np.array([b for _, b in pairs]))
    assert found == (pytest.approx(sum(wins) / len(wins)) if wins else None)


@given(scored)
def test_measures_follow_their_definitions(pairs: list[tuple[float, bool]]) -> None:
    p = np.array([score for score, _ in pairs])
    y = np.array([int(label) for _, label in pairs])
    found = measure(p, y)
    assert found is not None
    assert (found.count, found.positives) == (len(p), y.sum())
    assert found.accuracy == pytest.approx(np.mean((p > 0.5) == (y == 1)))
    recalls = [np.mean((p[y == kind] > 0.5) == (kind == 1)) for kind in (0, 1) if (y == kind).any()]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    clipped = torch.tensor(p).clamp(1e-7, 1 - 1e-7)
    expected = functional.binary_cross_entropy(clipped, torch.tensor(y, dtype=torch.float64)).item()
    assert found.loss == pytest.approx(expected, abs=1e-6)
    ece = 0.0
    for low in np.arange(10) / 10:
        inside = [(s, label) for s, label in pairs if low <= s < low + 0.1 or (low == 0.9 and s == 1.0)]
        if inside:
            ece += abs(np.mean([s for s, _ in inside]) - np.mean([label for _, label in inside])) * len(inside) / len(p)
    assert found.ece == pytest.approx(ece)


def test_no_labels_no_measures() -> None:
    assert measure(np.zeros(0), np.zeros(0, dtype=np.int64)) is None
