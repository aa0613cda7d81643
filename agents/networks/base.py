"""Recurrent policies: an encoder of observations, a GRU core, and linear heads for actor and critic."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from agents.networks.crops import CropMemory, Encoder, TensorObservation
from agents.networks.gru import GRUCore
from envs.base import View


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """What the policy says of T x B observations."""

    logits: Tensor
    """[T, B, A], unnormalised log-probabilities."""
    value: Tensor
    """[T, B]"""
    state: Tensor
    """[T, B, H], the recurrent state after each observation."""


class RecurrentPolicy(nn.Module):
    """Encoder → GRU → (actor, critic). A network is a subclass that gives `view`, `hidden`, and the encoder."""

    view: View

    def __init__(self, encoder: Encoder, hidden: int, actions: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.core = GRUCore(encoder.crop_features + encoder.rest_features, hidden)
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

    def gates(self, observation: TensorObservation, lead: tuple[int, ...], memory: CropMemory | None) -> Tensor:
        """The inputs' share of the core's gates [*lead, G], of observations whose leading axes are `lead`.

        The product with the crop's columns of the weights goes with the crop, and is computed once for equal ones.
        """
        flat = {k: v.reshape(-1, *v.shape[len(lead) :]) for k, v in observation.items()}
        weight_GF, columns = self.core.cell.weight_ih, self.encoder.crop_features
        of_crop = self.encoder.each_crop(flat, lambda features: linear(features, weight_GF[:, :columns]), memory)
        of_rest = linear(self.encoder.read(flat), weight_GF[:, columns:], self.core.cell.bias_ih)
        return (of_crop + of_rest).reshape(*lead, -1)

    def heads(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [..., A] and values [...] of recurrent states [..., H]."""
        return self.actor(state).float(), self.critic(state).squeeze(-1).float()

    def forward(
        self, observation: TensorObservation, start_TB: Tensor, state_BH: Tensor, memory: CropMemory | None = None
    ) -> PolicyOutput:
        """Reads T observations in order from the state before the first one.

        `memory`, for T = 1 without gradients, spares the crops that did not change since the call before.
        """
        gates_TBG = self.gates(observation, (start_TB.shape[0], start_TB.shape[1]), memory)
        states_TBH = self.core(gates_TBG, start_TB, state_BH)
        logits, value = self.heads(states_TBH)
        return PolicyOutput(logits, value, states_TBH)
