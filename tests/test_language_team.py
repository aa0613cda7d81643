"""Several learners of a language model are one: two or three processes over gloo against one learner with the same batches."""

from typing import Any

import numpy as np
import pytest
import torch

from agents.language.episode import LanguageEpisode
from learner.language.learner import LanguageLearner
from learner.language.model import LanguageModel, Lora
from learner.language.registry import build_objective, objective_kind
from learner.language.settings import LanguageSettings
from learner.language.step import LanguageStep
from learner.learner import NoIntrinsicReward
from learner.parallel import GroupError
from learner.settings import RewardSettings
from tests.language_learner_support import NoTokenizer, episode, network, perturb
from tests.learner_group_support import CPU, FollowerProcess, lead

CASES: dict[str, dict[str, Any]] = {
    "ppo": {"minibatches": 3, "epochs": 2},
    "ppo, clipped gradients": {"minibatches": 2, "max_grad_norm": 0.05, "critic_warmup": 2, "warmup": 5},
    "ppo, kl in the reward": {"objective": {"kl_coefficient": 0.1}},
    "grpo": {"objective": {"kl_coefficient": 0.1}, "minibatches": 2},
    "rloo": {"objective": {"kl_coefficient": 0.0}},
    "reinforce++": {"objective": {"entropy_coefficient": 0.01}, "epochs": 2},
    "ppo, adapters": {"lora": True, "minibatches": 2},
}


def make_step(case: str) -> LanguageStep:
    settings = dict(CASES[case])
    algorithm, objective, adapters = case.partition(",")[0], settings.pop("objective", {}), settings.pop("lora", False)
    built = build_objective(algorithm, objective_kind(algorithm).settings(**{"kl_coefficient": 0.0, **objective}))
    torch.manual_seed(5)
    model = LanguageModel(
        network(), NoTokenizer(), device=CPU, critic=built.needs_value, reference=built.needs_reference,
        lora=Lora(2, 4) if adapters else None,
    )  # fmt: skip
    given = {"micro_batch_tokens": 40, "max_grad_norm": 1e9, "learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    return LanguageStep(model, built, LanguageSettings(**{**given, "batch_episodes": 6, **settings}))


def other_step(case: str) -> LanguageStep:
    """Begins with another critic than the leader and other trained weights, which it has to take over."""
    step = make_step(case)
    for seed, parameter in enumerate([*step.model.policy_parameters(), *step.model.critic_parameters()]):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return step


def make_learner(case: str) -> LanguageLearner:
    return LanguageLearner(make_step(case), RewardSettings(), NoIntrinsicReward(), seed=3)


def batch(number: int) -> list[list[LanguageEpisode]]:
    """Two groups of three with different outcomes; lengths differ, so that shares are unequal."""
    episodes = [
        episode(100 * number + seed, turns=1 + (seed + number) % 5, group=2 * number + seed // 3,
                reward=float(seed % 3 == 0) * (1 + seed), terminated=seed % 2 == 0, version=number, temperature=0.8)
        for seed in range(6)
    ]  # fmt: skip
    return [episodes[:3], episodes[3:]]


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


def feed(learner: LanguageLearner, number: int):
    return [update for group in batch(number) for update in learner.feed(group)]


@pytest.mark.parametrize(("case", "size"), [*((case, 2) for case in CASES), ("ppo", 3), ("grpo", 3)])
def test_workers_learn_what_one_learner_does(case, size, processes):
    """Model, critic, optimiser and metrics come out the same; the group is joined after a first update alone."""
    alone, leader = make_learner(case), make_learner(case)
    before = leader.step.state_dict()["weights"]
    feed(alone, 0), feed(leader, 0)
    team = leader.lead(lead(processes[: size - 1], other_step, case))
    for number in (1, 2, 3):
        (expected,), (found,) = feed(alone, number), feed(leader, number)
        assert set(found.metrics) == set(expected.metrics)
        for name in expected.metrics:
            if name != "batch/tokens_per_second":
                np.testing.assert_allclose(
                    found.metrics[name], expected.metrics[name], rtol=2e-3, atol=2e-5, err_msg=name
                )
        assert (found.samples, found.lag_mean, found.lag_max) == (expected.samples, expected.lag_mean, expected.lag_max)
        assert found.exchange_s > 0.0 == expected.exchange_s
    team.close()
    told, wanted = leader.step.state_dict(), alone.step.state_dict()
    assert told["steps"] == wanted["steps"] > 3
    for part in ("weights", "critic"):
        for name, value in (wanted[part] or {}).items():
            torch.testing.assert_close(told[part][name], value, rtol=1e-3, atol=2e-5)
    for one, other in zip(told["optimizer"]["state"].values(), wanted["optimizer"]["state"].values(), strict=True):
        torch.testing.assert_close(one["exp_avg"], other["exp_avg"], rtol=1e-2, atol=1e-4)
    assert max(float((told["weights"][name] - value).abs().max()) for name, value in before.items()) > 1e-3
    for process in processes[: size - 1]:
        word, there = process.answer()
        assert word == "done", there
        for name, value in told["weights"].items():  # not only nearly: nothing drifts apart
            np.testing.assert_array_equal(there["step"]["weights"][name], value.numpy())


def test_a_state_that_was_restored_reaches_the_followers(processes, tmp_path):
    alone, leader = make_learner("ppo"), make_learner("ppo")
    for number in (0, 1):
        feed(alone, number)
    alone.save(tmp_path / "model")
    team = leader.lead(lead(processes[:1], other_step, "ppo"))
    feed(leader, 0)  # the follower knows another state by now
    perturb(leader.model.network, 1)
    leader.restore(tmp_path / "model", alone.state_dict())
    feed(alone, 2), feed(leader, 2)
    team.close()
    assert processes[0].answer()[0] == "done"
    for name, value in alone.step.state_dict()["weights"].items():
        torch.testing.assert_close(leader.step.state_dict()["weights"][name], value, rtol=1e-3, atol=2e-5)


def test_a_batch_of_too_few_sequences_is_an_error(processes):
    step = make_step("reinforce++")
    learner = LanguageLearner(step, RewardSettings(), NoIntrinsicReward())
    team = learner.lead(lead(processes[:1], other_step, "reinforce++"))
    with pytest.raises(ValueError, match=r"a batch of 1 sequences cannot be shared by learner.workers=2"):
        learner.update([episode(1, turns=1)])
    team.close()
    assert processes[0].answer()[0] == "done"


def test_a_worker_that_dies_is_noticed_by_the_leader():
    process, learner = FollowerProcess(), make_learner("ppo")
    learner.lead(lead([process], other_step, "ppo"))
    feed(learner, 0)
    process.close()  # kill -9
    before = learner.weights()
    with pytest.raises(GroupError, match="learners lost each other"):
        feed(learner, 1)
    assert all(torch.equal(before[name], value) for name, value in learner.weights().items())


def test_a_loss_that_is_not_finite_ends_all_of_them():
    process, learner = FollowerProcess(), make_learner("rloo")
    learner.lead(lead([process], other_step, "rloo"))
    with torch.no_grad():
        next(iter(learner.model.policy_parameters())).fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"language\.learning_rate"):
        feed(learner, 0)
    word, text = process.answer()
    assert word == "FloatingPointError" and "language.learning_rate" in text
    process.close()
