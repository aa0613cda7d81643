"""`credit.advantage=separate`: a critic for each component of the reward (Burda et al. 2018, arXiv 1810.12894, section 2.3)."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learner.credit.guards import separate_advantage
from learner.parallel import ALONE, Workers
from learner.vtrace import vtrace


class ComponentCritics:
    """Linear critics on the policy's core, of C components; their gradient does not reach the policy."""

    def __init__(self, state_size: int, components: int, *, learning_rate: float, device: torch.device) -> None:
        self._heads = nn.Linear(state_size, components).to(device)
        nn.init.zeros_(self._heads.weight)
        nn.init.zeros_(self._heads.bias)
        self._optimizer = torch.optim.Adam(self._heads.parameters(), lr=learning_rate)

    def advantage(
        self,
        *,
        log_ratio: Tensor,
        rewards: Tensor,
        weights: Tensor,
        state: Tensor,
        final_state: Tensor | None,
        final_index: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        discount: float,
        rho: float,
        c: float,
        workers: Workers = ALONE,
    ) -> Tensor:
        """[T, B]: the weighted sum of the components' normalised V-trace advantages; also one step of the critics.

        `workers` may have a share of the batch each.
        rewards [C, T, B]; state [T + 1, B, H] of the core; final_state [k, H] after the steps at final_index [k, 2]
        (None without); log_ratio, terminated, truncated [T, B] as of `vtrace`.
        """
        count, steps, batch = rewards.shape
        value = self._heads(state.detach().float()).permute(2, 0, 1)  # [C, T + 1, B]
        final_value = rewards.new_zeros(count, steps, batch)
        if final_state is not None:
            with torch.no_grad():
                final_value[:, final_index[:, 0], final_index[:, 1]] = self._heads(final_state.float()).T
        with torch.no_grad():
            found = vtrace(
                log_ratio=log_ratio.repeat(1, count),
                reward=_side_by_side(rewards),
                value=_side_by_side(value[:, :-1]),
                bootstrap=value[:, -1].reshape(-1),
                final_value=_side_by_side(final_value),
                terminated=terminated.repeat(1, count),
                truncated=truncated.repeat(1, count),
                discount=discount,
                rho=rho,
                c=c,
            )
        loss = (_side_by_side(value[:, :-1]) - found.target).square().mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        workers.average_gradients(self._heads.parameters(), steps * batch)
        self._optimizer.step()
        return separate_advantage(found.advantage.reshape(steps, count, batch).transpose(0, 1), weights, workers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "heads": {k: v.detach().cpu().clone() for k, v in self._heads.state_dict().items()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])


def _side_by_side(x: Tensor) -> Tensor:
    """[T, C · B] of [C, T, B]: the components as if they were other environments."""
    return x.transpose(0, 1).flatten(1)
