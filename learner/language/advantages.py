"""Advantages of packed action tokens: GAE by token and by turn, comparisons within a group, whitening.

GAE: Schulman et al. 2016 (arXiv 1506.02438), eq. 16: A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V(s_{t+1}) − V(s_t). An episode that
terminated has no next value; one that was cut bootstraps from the value of its final state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.language.batch import ActionTokens
from learner.language.kl import kl_estimate
from learner.language.segments import last_of_runs, reverse_scan


@dataclass(frozen=True, slots=True)
class Advantages:
    """What GAE makes of M action tokens; constants, all [M]."""

    advantage: Tensor
    value_target: Tensor
    """A + V (the λ-return); only meant where `critic` is set."""
    critic: Tensor
    """bool: tokens whose value was used, and which the critic is therefore trained on."""


def token_rewards(reward: Tensor, actions: ActionTokens) -> Tensor:
    """[M]: each turn's reward [K] on the turn's last action token, 0 elsewhere."""
    if reward.shape != (actions.turns,):
        raise ValueError(f"rewards have the shape {tuple(reward.shape)}; the batch has {actions.turns} turns")
    return actions.on_last_token(reward)


def kl_penalty(estimator: str, coefficient: float, log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """[M]: −β k(log π, log π_ref), a constant to add to the tokens' rewards (Ziegler et al. 2019, arXiv 1909.08593, eq. 2)."""
    return -coefficient * kl_estimate(estimator, log_prob, reference_log_prob).detach()


def token_gae(
    *,
    reward: Tensor,
    value: Tensor,
    bootstrap: Tensor,
    terminated: Tensor,
    actions: ActionTokens,
    discount: float,
    trace: float,
) -> Advantages:
    """GAE with one step for each action token.

    reward, value [M]: of the action tokens, where value is V of the state *before* the token. Observation tokens are
    no steps: the next state of a turn's last token is that before the first token of the next turn. So γ < 1
    discounts by the tokens that the agent wrote. bootstrap [E]: V of the final state, read where an episode was cut
    (`terminated` [E] is False). trace: λ.
    """
    advantage = _gae(reward, value, bootstrap, terminated, actions.episode, actions.longest, discount, trace)
    return Advantages(advantage, advantage + value, torch.ones_like(value, dtype=torch.bool))


def turn_gae(
    *,
    reward: Tensor,
    value: Tensor,
    bootstrap: Tensor,
    terminated: Tensor,
    actions: ActionTokens,
    discount: float,
    trace: float,
) -> Advantages:
    """GAE with one step for each turn; all tokens of a turn share its advantage.

    Arguments as of `token_gae`. A turn's reward is the sum over its tokens, its state the one before its first action
    token: the critic is trained there only. γ and λ count turns.
    """
    first = actions.first_of_turn
    episode, value_K = actions.episode[first], value[first]
    steps = _gae(
        actions.sum_by_turn(reward), value_K, bootstrap, terminated, episode, actions.longest, discount, trace
    )  # fmt: skip
    return Advantages(steps[actions.turn], (steps + value_K)[actions.turn], first)


def returns_to_go(reward: Tensor, actions: ActionTokens, discount: float) -> Tensor:
    """[M]: Σ_{l ≥ 0} γ^l r_{t+l} over the rest of the episode's action tokens; reward [M]. A cut episode adds nothing."""
    decay = torch.full_like(reward, discount).masked_fill(actions.last_of_episode, 0.0)
    return reverse_scan(reward, decay, actions.longest)


def group_relative(score: Tensor, group: Tensor, *, scale: bool) -> Tensor:
    """[E]: (score − mean of the group) / (deviation of the group); score, group [E].

    GRPO, DeepSeekMath (arXiv 2402.03300), section 4.1.2, with the sample deviation (n − 1). Without `scale` the mean
    alone is taken off (Dr. GRPO, arXiv 2503.20783). A group of equal scores gets exactly 0. Raises `ValueError` for
    a group of one.
    """
    inverse, size = _groups(score, group, "GRPO")
    wide = score.double()
    mean = wide.new_zeros(len(size)).index_add(0, inverse, wide) / size
    centred = wide - mean[inverse]
    if scale:
        squares = wide.new_zeros(len(size)).index_add(0, inverse, centred.square())
        centred = centred / (squares / (size - 1)).sqrt()[inverse].clamp(min=1e-12)
    return centred.masked_fill(_constant(score, inverse, len(size)), 0.0).to(score.dtype)


def leave_one_out(score: Tensor, group: Tensor) -> Tensor:
    """[E]: score − mean of the *other* scores of the group; score, group [E].

    RLOO: Ahmadian et al. 2024 (arXiv 2402.14740), section 2.3; Kool et al. 2019. The baseline does not depend on the
    episode's own actions, so the policy gradient is unbiased. Raises `ValueError` for a group of one.
    """
    inverse, size = _groups(score, group, "RLOO")
    wide = score.double()
    total = wide.new_zeros(len(size)).index_add(0, inverse, wide)
    baseline = (total[inverse] - wide) / (size[inverse] - 1)
    return (wide - baseline).masked_fill(_constant(score, inverse, len(size)), 0.0).to(score.dtype)


def whiten(x: Tensor, keep: Tensor) -> Tensor:
    """[M]: x with the mean taken off and divided by the deviation, both over the tokens in `keep` [M] bool.

    0 everywhere where the kept ones are all equal, or none is kept.
    """
    kept = x[keep].double()
    if len(kept) == 0 or bool(kept.max() == kept.min()):
        return torch.zeros_like(x)
    return ((x.double() - kept.mean()) / kept.std(unbiased=False).clamp(min=1e-12)).to(x.dtype)


def _gae(
    reward: Tensor,
    value: Tensor,
    bootstrap: Tensor,
    terminated: Tensor,
    episode: Tensor,
    longest: int,
    discount: float,
    trace: float,
) -> Tensor:
    """Eq. 16 over consecutive steps [M] of `episode` [M]."""
    last = last_of_runs(episode)
    final = torch.where(terminated, torch.zeros_like(bootstrap), bootstrap)
    following = torch.where(last, final[episode], torch.cat([value[1:], value.new_zeros(1)]))
    delta = reward + discount * following - value
    decay = torch.full_like(value, discount * trace).masked_fill(last, 0.0)
    return reverse_scan(delta, decay, longest)


def _groups(score: Tensor, group: Tensor, who: str) -> tuple[Tensor, Tensor]:
    """The row of each episode's group [E], and the groups' sizes [G]."""
    if score.shape != group.shape or score.dim() != 1:
        raise ValueError(f"scores {tuple(score.shape)} and groups {tuple(group.shape)} differ in shape")
    ids, inverse, size = group.unique(return_inverse=True, return_counts=True)
    alone = ids[size < 2]
    if len(alone) > 0:
        raise ValueError(
            f"{who} compares episodes of one group, and group {int(alone[0])} has only one; "
            "play at least 2 episodes of each task, or use ppo or reinforce++"
        )
    return inverse, size


def _constant(score: Tensor, inverse: Tensor, groups: int) -> Tensor:
    """[E] bool: all scores of the episode's group are equal. Rounding of a mean must not become an advantage."""
    highest = score.new_zeros(groups).scatter_reduce(0, inverse, score, "amax", include_self=False)
    lowest = score.new_zeros(groups).scatter_reduce(0, inverse, score, "amin", include_self=False)
    return (highest == lowest)[inverse]
