"""The recurrent core: a GRU (Cho et al. 2014, in the form of cuDNN) whose state is zeroed where an episode starts."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GRUCore(nn.Module):
    """GRU over time. Its parameters are those of `torch.nn.GRUCell`, by the same names."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.GRUCell(inputs, hidden)

    def forward(self, gates_TBG: Tensor, start_TB: Tensor, state_BH: Tensor) -> Tensor:
        """States [T, B, H] after each of T inputs, from the state before the first.

        `gates_TBG` is the inputs' share of the gates (W_ih x + b_ih, in the order reset, update, candidate; G = 3 H): one
        large product over all steps, which is the caller's. Only the state's share must wait for the step before.
        """
        keep_TB1 = (~start_TB).to(state_BH.dtype).unsqueeze(-1)
        states: Any = _Recurrence.apply(
            gates_TBG.to(state_BH.dtype), keep_TB1, state_BH, self.cell.weight_hh, self.cell.bias_hh
        )
        return states


class _Recurrence(torch.autograd.Function):
    """The loop over time, with its gradient written out.

    Backpropagation through separate operations would add up the weights' gradient T times and launch some forty small
    operations a step; here it is one product over all steps, and what does not depend on the step after is computed for
    all steps at once.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gates_TBG: Tensor, keep_TB1: Tensor, state_BH: Tensor, weight_GH: Tensor, bias_G: Tensor
    ) -> Tensor:
        steps, batch, _ = gates_TBG.shape
        hidden = state_BH.shape[1]
        ctx.product_dtype = _product_dtype(gates_TBG)
        weight_HG = weight_GH.to(ctx.product_dtype).t()
        kept_TBH, states_TBH, candidate_TBH, share_TBH = (gates_TBG.new_empty(steps, batch, hidden) for _ in range(4))
        reset_update_TBK = gates_TBG.new_empty(steps, batch, 2 * hidden)
        for t in range(steps):
            kept_BH = torch.mul(state_BH, keep_TB1[t], out=kept_TBH[t])
            recurrent_BG = torch.mm(kept_BH.to(ctx.product_dtype), weight_HG).to(gates_TBG.dtype).add_(bias_G)
            gates_BG = gates_TBG[t]
            reset_update_BK = reset_update_TBK[t]
            torch.add(gates_BG[:, : 2 * hidden], recurrent_BG[:, : 2 * hidden], out=reset_update_BK).sigmoid_()
            share_TBH[t] = recurrent_BG[:, 2 * hidden :]
            candidate_BH = torch.addcmul(
                gates_BG[:, 2 * hidden :], reset_update_BK[:, :hidden], share_TBH[t], out=candidate_TBH[t]
            ).tanh_()
            state_BH = torch.lerp(candidate_BH, kept_BH, reset_update_BK[:, hidden:], out=states_TBH[t])
        ctx.save_for_backward(keep_TB1, weight_GH, kept_TBH, candidate_TBH, share_TBH, reset_update_TBK)
        return states_TBH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TBH: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        keep_TB1, weight_GH, kept_TBH, candidate_TBH, share_TBH, reset_update_TBK = ctx.saved_tensors
        steps, batch, hidden = kept_TBH.shape
        weight_GH = weight_GH.to(ctx.product_dtype)
        reset_TBH, update_TBH = reset_update_TBK[..., :hidden], reset_update_TBK[..., hidden:]
        # h' = n + u (h - n); d n = (1 - u)(1 - n^2), d u = (h - n) u (1 - u), d r = share r (1 - r), each times what follows.
        by_candidate = (1.0 - update_TBH) * (1.0 - candidate_TBH.square())
        by_update = (kept_TBH - candidate_TBH) * update_TBH * (1.0 - update_TBH)
        by_reset = share_TBH * reset_TBH * (1.0 - reset_TBH)
        inputs_TBG = grad_TBH.new_empty(steps, batch, 3 * hidden)
        recurrent_TBG = grad_TBH.new_empty(steps, batch, 3 * hidden)
        carried_BH = torch.zeros_like(kept_TBH[0])
        for t in reversed(range(steps)):
            grad_BH = grad_TBH[t] + carried_BH
            inputs_BG, recurrent_BG = inputs_TBG[t], recurrent_TBG[t]
            candidate_BH = torch.mul(grad_BH, by_candidate[t], out=inputs_BG[:, 2 * hidden :])
            torch.mul(grad_BH, by_update[t], out=inputs_BG[:, hidden : 2 * hidden])
            torch.mul(candidate_BH, by_reset[t], out=inputs_BG[:, :hidden])
            recurrent_BG[:, : 2 * hidden] = inputs_BG[:, : 2 * hidden]
            torch.mul(candidate_BH, reset_TBH[t], out=recurrent_BG[:, 2 * hidden :])
            carried_BH = torch.mm(recurrent_BG.to(ctx.product_dtype), weight_GH).to(grad_BH.dtype)
            carried_BH.addcmul_(grad_BH, update_TBH[t]).mul_(keep_TB1[t])
        flat_NG = recurrent_TBG.flatten(0, 1)
        product = flat_NG.to(ctx.product_dtype).t() @ kept_TBH.flatten(0, 1).to(ctx.product_dtype)
        return inputs_TBG, None, carried_BH, product.to(grad_TBH.dtype), flat_NG.sum(dim=0)


def _product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is on. Gates and states are kept in the dtype of the inputs."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
