"""Several learners are one: two or three processes over gloo against one learner with the same batches."""

import socket
import time
from datetime import timedelta
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from agents.networks import NETWORKS, build_policy
from agents.rollout import Rollout
from envs.vector import VectorEnv
from learner.credit.components import ComponentCritics
from learner.credit.fragments import Origin
from learner.credit.online import OnlineCredit
from learner.credit.outcomes import EpisodeOutcome
from learner.credit.settings import CreditSettings
from learner.learner import Learner, NoIntrinsicReward, policy_step
from learner.parallel import ALONE, GroupError
from learner.settings import LearnerSettings, RewardSettings
from learner.step import PolicyStep
from tests.learner_group_support import CPU, PID, FollowerProcess, lead, listening
from tests.toy import CountingEnv

SEGMENTS = 7
STEPS = 10


class ByCaption:
    """r_int of an id, without a model."""

    def lookup(self, ids):
        return ((ids % 11) / 11.0).astype(np.float32)


def settings(**changed) -> LearnerSettings:
    return LearnerSettings(device="cpu", precision="fp32", **{"batch_size": SEGMENTS * STEPS, **changed})


def make_credit(method: str, network: str, **changed) -> OnlineCredit:
    return OnlineCredit(
        CreditSettings(method=method, outcome="return", return_high=4.0, min_episodes=2, publish_every=2, **changed),
        RewardSettings(w_prog=0.7, w_ground=0.1 if "grounding" in method else 0.0),
        discount=0.99, state_size=build_policy(network, 2).state_size, actions=2, seed=3, device=CPU,
    )  # fmt: skip


def make_learner(network="fast", intrinsic=False, credit: dict[str, Any] | None = None, **changed) -> Learner:
    torch.manual_seed(1)
    policy = build_policy(network, 2)
    given = None if credit is None else make_credit(network=network, **credit)
    reward = RewardSettings(w_int=0.5, count_exponent=1.0)
    return Learner(policy, settings(**changed), reward, ByCaption() if intrinsic else NoIntrinsicReward(), given)


def make_follower(network: str, separate: bool, changed: dict[str, Any]) -> PolicyStep:
    """Begins with other weights than the leader, whose it has to take over."""
    torch.manual_seed(77)
    policy = build_policy(network, 2)
    critics = ComponentCritics(policy.state_size, 4, learning_rate=1e-3, device=CPU) if separate else None
    weights = torch.tensor([1.0, 0.1, 0.7, 0.1]) if separate else None
    return PolicyStep(policy, settings(**changed), CPU, critics=critics, weights=weights)


def trajectories(network: str, count: int, envs: int = 3) -> list:
    """Of a toy whose episodes end and are cut, in environments of different luck."""
    view, made = NETWORKS[network].view, iter(range(1000))
    vector = VectorEnv(
        lambda: CountingEnv(limit=(1000, 4, 5)[next(made) % 3], view=view),
        envs,
        lambda env, episode: 10 * env + episode,
    )
    torch.manual_seed(1)
    rollout = Rollout(vector, build_policy(network, 2), length=STEPS, seed=0)
    found = []
    for _ in range(count):
        trajectory, report = rollout.collect()
        ends = [EpisodeOutcome(e.t, e.end.env_index, e.end.success, e.end.episode_return) for e in report.episodes]
        found.append((trajectory, Origin("a", 0, trajectory.batch, tuple(ends))))
    return found


@pytest.fixture(scope="module")
def processes():
    found = [FollowerProcess() for _ in range(2)]
    yield found
    for each in found:
        each.close()


@pytest.fixture(autouse=True)
def no_group_is_left():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def close(found: Any, expected: Any, what: str = "", **tolerance: float) -> None:
    """Nested dicts, lists and tensors, number by number."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), what
        for key in expected:
            close(found[key], expected[key], f"{what}.{key}", **tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), what
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{what}[{at}]", **tolerance)
    elif isinstance(expected, str | None):
        assert found == expected, what
    else:
        one, other = (np.asarray(x, dtype=np.float64) for x in (found, expected))
        np.testing.assert_allclose(one, other, err_msg=what, **tolerance)


SPA = {"method": "spa+grounding", "heads": 2}
CASES = {
    "plain": {},
    "oni": {"network": "oni"},
    "raw advantages": {"normalise_advantage": False},
    "intrinsic": {"intrinsic": True},
    "clipped gradients": {"intrinsic": True, "max_grad_norm": 0.05},
    "outcome": {"credit": {"method": "outcome"}},
    "progress": {"credit": SPA},
    "oni, all": {"network": "oni", "intrinsic": True, "credit": SPA},
    "separate": {"intrinsic": True, "credit": {**SPA, "advantage": "separate"}},
}


@pytest.mark.parametrize(("case", "size"), [*((case, 2) for case in CASES), ("oni, all", 3), ("separate", 3)])
def test_workers_learn_what_one_learner_does(case, size, processes):
    """Seven segments: shares are unequal. Policy, optimiser, critics, estimator and metrics come out the same."""
    given = CASES[case]
    network, credit = given.get("network", "fast"), given.get("credit") or {}
    alone, leader = make_learner(**given), make_learner(**given)
    changed = {k: v for k, v in given.items() if k not in ("network", "intrinsic", "credit")}
    group = lead(processes[: size - 1], make_follower, network, credit.get("advantage") == "separate", changed)
    team = leader.lead(group)
    updates = 0
    for trajectory, origin in trajectories(network, 14):
        expected, found = (each.feed(trajectory, origin) for each in (alone, leader))
        updates += len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one.metrics, other.metrics, "metrics", rtol=1e-3, atol=2e-5)
            assert (one.samples, one.lag_mean, one.lag_max) == (other.samples, other.lag_mean, other.lag_max)
    assert updates == 6
    if given.get("max_grad_norm"):
        assert all(update.metrics["policy/grad_norm"] > 0.05 for update in expected)
    team.close()
    state = leader.state_dict()
    # Steps of up to 1e-4 each.
    close(state["policy"], alone.state_dict()["policy"], "policy", rtol=1e-4, atol=2e-6)
    close(state["optimizer"], alone.state_dict()["optimizer"], "optimizer", rtol=1e-2, atol=2e-6)
    before = make_learner(**given).state_dict()["policy"]
    assert max(float((before[k] - v).abs().max()) for k, v in state["policy"].items()) > 1e-4
    if credit:
        close(state["credit"]["critics"], alone.state_dict()["credit"]["critics"], "critics", rtol=1e-3, atol=2e-6)
        assert state["credit"]["slots"]["lost"] == alone.state_dict()["credit"]["slots"]["lost"]
    if credit.get("method", "").startswith("spa"):
        estimators = (each["credit"]["estimator"] for each in (state, alone.state_dict()))
        one, other = ({k: e[k] for k in ("training", "used", "version", "steps")} for e in estimators)
        assert one["version"] > 0
        # It reads features in float16, and Adam makes much of gradients that are nearly 0: a few of its weights differ.
        close(one, other, "estimator", rtol=1e-2, atol=3e-4)
        assert max(float((one["training"][k] - v).abs().mean()) for k, v in other["training"].items()) < 1e-6
    for process in processes[: size - 1]:
        word, there = process.answer()
        assert word == "done", there
        for name, value in state["policy"].items():  # not only nearly: nothing drifts apart
            np.testing.assert_array_equal(there["step"]["policy"][name], value.numpy())


def test_a_state_that_was_loaded_reaches_the_followers(processes):
    """Resumed alone from what two learned, and the other way round."""
    found = trajectories("fast", 14)
    alone = make_learner()
    for trajectory, origin in found[:7]:
        alone.feed(trajectory, origin)
    resumed = make_learner()
    team = resumed.lead(lead(processes[:1], make_follower, "fast", False, {}))
    resumed.feed(*found[0])
    resumed.feed(*found[1])
    resumed.feed(*found[2])  # the followers know another state by now
    resumed.load_state_dict(alone.state_dict())
    for trajectory, origin in found[7:]:
        alone.feed(trajectory, origin)
        resumed.feed(trajectory, origin)
    team.close()
    assert processes[0].answer()[0] == "done"
    close(resumed.state_dict()["policy"], alone.state_dict()["policy"], "policy", rtol=1e-4, atol=2e-6)
    again = make_learner()
    again.load_state_dict(resumed.state_dict())
    assert again.version == alone.version == 6
    for trajectory, origin in found[:7]:
        again.feed(trajectory, origin)
        alone.feed(trajectory, origin)
    close(again.state_dict()["policy"], alone.state_dict()["policy"], "policy", rtol=1e-4, atol=4e-6)


def test_a_batch_that_has_too_few_segments_is_an_error(processes):
    learner = make_learner(batch_size=STEPS)
    team = learner.lead(lead(processes[:1], make_follower, "fast", False, {}))
    with pytest.raises(ValueError, match=r"a batch of 1 trajectories cannot be shared by learner.workers=2"):
        learner.feed(*trajectories("fast", 1)[0])
    team.close()
    assert processes[0].answer()[0] == "done"


def test_workers_do_not_take_the_same_gpu_by_chance(monkeypatch):
    """`learner.device=auto` asks Ray for none, so each worker would find the machine's first."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ValueError, match=r"^learner.workers=2: learner.device=auto asks Ray for no GPU"):
        policy_step(build_policy("fast", 2), LearnerSettings(workers=2), None)


def test_the_mean_does_not_depend_on_who_has_what():
    x = torch.tensor([[1e4, 1.0, -1e4, 2.5], [2.5, 2.5, 2.5, 2.5]])
    mean, variance = ALONE.moments(x)
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(variance, x.var(1, unbiased=False))
    assert mean[1] == 2.5 and variance[1] == 0.0


def test_idle_followers_wait_and_nobody_listens_to_others(monkeypatch, processes):
    """However long the leader has no batch; and ports are those of the loopback alone."""
    monkeypatch.setattr("learner.parallel._LOOK", timedelta(milliseconds=10))
    process, before = FollowerProcess(), listening(PID)
    learner = make_learner()
    team = learner.lead(lead([process], make_follower, "fast", False, {}))
    assert (listening(PID) - before) | listening(process.process.pid) == {"127.0.0.1"}
    time.sleep(0.3)
    for trajectory, origin in trajectories("fast", 5):
        learner.feed(trajectory, origin)
        time.sleep(0.1)
    assert learner.version == 2
    team.close()
    assert process.answer()[0] == "done"
    process.close()


def test_workers_of_several_machines_listen_on_their_own_address(monkeypatch):
    addresses = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    host = next((address for address in addresses if not address.startswith("127.")), None)
    if host is None:
        pytest.skip("this machine has no address but the loopback")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    process, learner = FollowerProcess(), make_learner(batch_size=3 * STEPS)
    before = listening(PID)
    team = learner.lead(lead([process], make_follower, "fast", False, {}, host=host))
    assert listening(process.process.pid) == {host} and listening(PID) - before == {host}
    learner.feed(*trajectories("fast", 1)[0])
    team.close()
    assert learner.version == 1 and process.answer()[0] == "done"
    process.close()


def test_a_worker_that_dies_is_noticed_by_the_leader():
    process = FollowerProcess()
    learner = make_learner()
    learner.lead(lead([process], make_follower, "fast", False, {}))
    found = trajectories("fast", 6)
    for trajectory, origin in found[:3]:
        learner.feed(trajectory, origin)
    process.close()  # kill -9
    before, began = learner.weights(), time.monotonic()
    with pytest.raises(GroupError, match="learners lost each other"):
        for trajectory, origin in found[3:]:
            learner.feed(trajectory, origin)
    assert time.monotonic() - began < 5.0
    assert all(np.array_equal(before[k], v) for k, v in learner.weights().items())


def test_a_loss_that_is_not_finite_ends_all_of_them():
    process = FollowerProcess()
    learner = make_learner(batch_size=3 * STEPS)
    learner.lead(lead([process], make_follower, "fast", False, {"batch_size": 3 * STEPS}))
    (trajectory, origin) = trajectories("fast", 1)[0]
    trajectory.log_prob[:, 2] = -np.inf  # in the follower's share
    with pytest.raises(FloatingPointError, match=r"learner\.learning_rate"):
        learner.feed(trajectory, origin)
    word, text = process.answer()
    assert word == "FloatingPointError" and "learner.learning_rate" in text
    process.close()
