"""What `learner.precision` means on a device."""

import torch

from reward_server.judge.models import cpu_has_bfloat16


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products, of the learner and of the actors alike.

    `auto` is bfloat16 where the hardware multiplies it (CUDA, a CPU with AMX or AVX-512 BF16) and float32 elsewhere, as
    emulation is many times slower. bfloat16 has the range of float32, so losses need no scaling.
    """
    if name == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if native else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
