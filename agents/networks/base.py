"""Recurrent policies: an encoder of observations, a GRU core, and linear heads for actor and critic."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from envs.base import View

TensorObservation = Mapping[str, Tensor]
"""Arrays of an observation with one leading batch axis: `chars` and `colors` uint8 [N, h, w], `blstats` int32 [N, 27],
`message` uint8 [N, M]."""


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """What the policy says of T x B observations."""

    logits: Tensor
    """[T, B, A], unnormalised log-probabilities."""
    value: Tensor
    """[T, B]"""
    state: Tensor
    """[T, B, H], the recurrent state after each observation."""


class GRUCore(nn.Module):
    """A GRU (Cho et al. 2014, in the form of cuDNN) over time, whose state is zeroed where an episode starts."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.GRUCell(inputs, hidden)

    def forward(self, inputs_TBF: Tensor, start_TB: Tensor, state_BH: Tensor) -> Tensor:
        """States [T, B, H] after each of T inputs, from the state before the first."""
        # The inputs' share of all gates is one large product; only the state's share must wait for the step before.
        gates_TBG = nn.functional.linear(inputs_TBF, self.cell.weight_ih, self.cell.bias_ih)
        keep_TB1 = (~start_TB).to(state_BH.dtype).unsqueeze(-1)
        hidden = self.hidden
        states: list[Tensor] = []
        for gates_BG, keep_B1 in zip(gates_TBG.unbind(0), keep_TB1.unbind(0), strict=True):
            state_BH = state_BH * keep_B1
            recurrent_BG = nn.functional.linear(state_BH, self.cell.weight_hh, self.cell.bias_hh)
            reset_update = torch.sigmoid(gates_BG[:, : 2 * hidden] + recurrent_BG[:, : 2 * hidden])
            reset, update = reset_update.chunk(2, dim=1)
            candidate = torch.tanh(gates_BG[:, 2 * hidden :] + reset * recurrent_BG[:, 2 * hidden :])
            state_BH = candidate + update * (state_BH - candidate)
            states.append(state_BH)
        return torch.stack(states)


class RecurrentPolicy(nn.Module):
    """Encoder → GRU → (actor, critic). A network is a subclass that gives `view`, `hidden`, and the encoder."""

    view: View

    def __init__(self, encoder: nn.Module, features: int, hidden: int, actions: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.core = GRUCore(features, hidden)
        self.actor = nn.Linear(hidden, actions)
        self.critic = nn.Linear(hidden, 1)
        # A small actor starts near the uniform policy; the critic starts near zero.
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.zeros_(self.actor.bias)
        nn.init.orthogonal_(self.critic.weight, 0.1)
        nn.init.zeros_(self.critic.bias)

    @property
    def state_size(self) -> int:
        """H, the size of the recurrent state."""
        return self.core.hidden

    def initial_state(self, batch: int) -> Tensor:
        """[B, H] of zeros."""
        return torch.zeros(batch, self.state_size, device=self.critic.weight.device)

    def encode(self, observation: TensorObservation, lead: tuple[int, ...]) -> Tensor:
        """Features [*lead, F] of observations whose leading axes are `lead`."""
        flat = {k: v.reshape(-1, *v.shape[len(lead) :]) for k, v in observation.items()}
        return self.encoder(flat).reshape(*lead, -1)

    def heads(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [..., A] and values [...] of recurrent states [..., H]."""
        return self.actor(state), self.critic(state).squeeze(-1)

    def forward(self, observation: TensorObservation, start_TB: Tensor, state_BH: Tensor) -> PolicyOutput:
        """Reads T observations in order from the state before the first one."""
        features_TBF = self.encode(observation, (start_TB.shape[0], start_TB.shape[1]))
        states_TBH = self.core(features_TBF, start_TB, state_BH)
        logits, value = self.heads(states_TBH)
        return PolicyOutput(logits, value, states_TBH)
