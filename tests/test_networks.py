"""The networks: the core against torch's GRU, the encoders' shapes and sizes, the pixels of ONI's crop."""

import numpy as np
import pytest
import torch

from agents.networks import NETWORKS, build_policy
from agents.networks.crops import CropMemory
from agents.networks.distinct import once_each
from agents.networks.encoders import TrigramMessage
from agents.networks.font import render_table
from agents.networks.gru import GRUCore
from agents.sizes import few_sizes
from benchmarks.plain import PlainEncoder


def observation(view, *lead, seed=0):
    rng = np.random.default_rng(seed)
    message = np.zeros((*lead, view.message_bytes), np.uint8)
    message[..., :30] = rng.integers(32, 127, (*lead, 30))
    crop = (*lead, view.crop_height, view.crop_width)
    arrays = {
        "chars": rng.integers(32, 127, crop).astype(np.uint8),
        "colors": rng.integers(0, 16, crop).astype(np.uint8),
        "blstats": rng.integers(-5, 2000, (*lead, 27)).astype(np.int32),
        "message": message,
    }
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def test_core_is_torchs_gru_with_resets():
    torch.manual_seed(0)
    core = GRUCore(5, 7)
    gru = torch.nn.GRU(5, 7)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(core.cell.weight_ih)
        gru.weight_hh_l0.copy_(core.cell.weight_hh)
        gru.bias_ih_l0.copy_(core.cell.bias_ih)
        gru.bias_hh_l0.copy_(core.cell.bias_hh)
    inputs, state = torch.randn(9, 2, 5), torch.randn(2, 7)
    start = torch.zeros(9, 2, dtype=torch.bool)
    start[4, 0] = True
    gates = torch.nn.functional.linear(inputs, core.cell.weight_ih, core.cell.bias_ih)
    states = core(gates, start, state)
    whole, _ = gru(inputs, state.unsqueeze(0))
    torch.testing.assert_close(states[:, 1], whole[:, 1])
    torch.testing.assert_close(states[:4, 0], whole[:4, 0])
    fresh, _ = gru(inputs[4:, :1], torch.zeros(1, 1, 7))
    torch.testing.assert_close(states[4:, 0], fresh[:, 0])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_reading_at_once_equals_reading_step_by_step(name):
    torch.manual_seed(0)
    policy = build_policy(name, 6)
    seen = observation(policy.view, 4, 3)
    start = torch.zeros(4, 3, dtype=torch.bool)
    start[2, 1] = True
    with torch.no_grad():
        whole = policy(seen, start, policy.initial_state(3))
        state = policy.initial_state(3)
        for t in range(4):
            step = policy({k: v[t : t + 1] for k, v in seen.items()}, start[t : t + 1], state)
            state = step.state[0]
            torch.testing.assert_close(step.logits[0], whole.logits[t], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(step.value[0], whole.value[t], atol=1e-5, rtol=1e-4)


def test_oni_has_the_sizes_of_the_paper():
    policy = build_policy("oni", 28)
    assert policy.encoder.crop_features + policy.encoder.rest_features == 795 and policy.state_size == 512
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(2.8e6, rel=0.01)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_distinct_crops_and_windows_give_the_values_and_gradients_of_all(name):
    torch.manual_seed(0)
    policy = build_policy(name, 5)
    seen = observation(policy.view, 7)
    # A third of real crops is distinct and much of them blank; here some are copies, one is blank, one nearly so.
    seen["chars"][3], seen["colors"][3] = seen["chars"][0], seen["colors"][0]
    seen["chars"][4], seen["colors"][4] = 32, 0
    seen["chars"][5], seen["colors"][5] = seen["chars"][4], seen["colors"][4]
    seen["colors"][5, -1, -1] = 7
    encoder = policy.encoder
    ours = encoder.each_crop(seen, lambda features: features, None)
    plain = PlainEncoder(encoder).look(seen)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(plain)
    parameters = [p for part in (encoder.crop, encoder.project) for p in part.parameters()]
    if name == "fast":
        parameters += [encoder.character.weight, encoder.colour.weight]
    for own, expected in zip(
        torch.autograd.grad(ours, parameters, weights), torch.autograd.grad(plain, parameters, weights), strict=True
    ):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_memory_of_crops_changes_nothing(name):
    torch.manual_seed(0)
    policy = build_policy(name, 5)
    memory, start, state = CropMemory(), torch.zeros(1, 4, dtype=torch.bool), policy.initial_state(4)
    seen = observation(policy.view, 1, 4)
    with torch.no_grad():
        for changed in ([], [2], [], [0, 1, 2, 3], [3]):
            seen["message"][0, 0, 0] += 1
            for index in changed:
                seen["chars"][0, index, 3, 4] += 1
            remembered = policy({k: v.clone() for k, v in seen.items()}, start, state, memory)
            torch.testing.assert_close(remembered.logits, policy(seen, start, state).logits)
            state = remembered.state[0]


def test_the_cores_gradient_is_autograds():
    torch.manual_seed(0)
    core = GRUCore(4, 3).double()
    start = torch.zeros(5, 2, dtype=torch.bool)
    start[0, 1] = start[3, 0] = True
    gates = torch.randn(5, 2, 9, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    parameters = (core.cell.weight_hh, core.cell.bias_hh)

    def states(gates, state, weight, bias):
        return torch.func.functional_call(core, {"cell.weight_hh": weight, "cell.bias_hh": bias}, (gates, start, state))

    assert torch.autograd.gradcheck(states, (gates, state, *parameters))


def test_every_character_has_an_image_of_its_own():
    table = render_table()
    assert table.shape == (256, 16, 3, 6, 6)
    assert not table[32].any()
    images = {table[code, 15].tobytes() for code in range(33, 127)}
    assert len(images) >= 90  # a few pairs (such as ' and `) may coincide at 6 x 6 pixels


def test_messages_are_encoded_once_each_and_rows_keep_their_own():
    torch.manual_seed(0)
    encoder = TrigramMessage(256, 64)
    texts = ["It's a wall.", "", "You see here a key.", "It's a wall."]
    message = torch.zeros(4, 256, dtype=torch.uint8)
    for i, text in enumerate(texts):
        message[i, : len(text)] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    together = encoder(message)
    alone = torch.cat([encoder(message[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert torch.equal(together[0], together[3]) and not torch.equal(together[0], together[2])


def test_an_unknown_network_is_named():
    with pytest.raises(ValueError, match=r"agent.network=onni: no such network; there are fast, oni"):
        build_policy("onni", 4)


def test_few_sizes_hold_any_count_and_waste_little():
    sizes = {few_sizes(count) for count in range(1, 4097)}
    assert len(sizes) == 16 + 5 * 8
    for count in (*range(1, 300), 1000, 4095, 4096, 4097, 70_000):
        assert count <= few_sizes(count) < count + 8 + count / 8
        assert few_sizes(few_sizes(count)) == few_sizes(count)


def test_what_is_encoded_once_comes_in_few_sizes():
    sizes: set[int] = set()

    def encode(where):
        sizes.add(len(where))
        return table[keys.reshape(-1)[where]]

    table = torch.randn(200, 3)
    for distinct in range(1, 200):
        keys = torch.arange(400).reshape(20, 20) % distinct
        torch.testing.assert_close(once_each(keys, encode), table[keys])
    assert sizes == {few_sizes(distinct) for distinct in range(1, 200)}
