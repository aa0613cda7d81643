"""In what precision a policy computes."""

from contextlib import AbstractContextManager

import torch


def products_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Matrix products and convolutions in `dtype`; weights, states, losses and sums stay float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)  # pyright: ignore[reportReturnType]
