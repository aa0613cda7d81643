"""From `agent.model` to a network, whole or with adapters; an error says what is wrong and what to do."""

import difflib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agents.language.errors import LanguageModelError
from agents.language.template import check_folder
from inference.safe_loading import SAFE_WEIGHTS, check_safe

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_network(model: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The causal language model in `dtype`, on the CPU. Raises `LanguageModelError`."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_folder(model)
    path = Path(model).expanduser()
    try:
        check_safe(model)
        network = AutoModelForCausalLM.from_pretrained(path if path.is_dir() else model, dtype=dtype, **SAFE_WEIGHTS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise LanguageModelError(
            f"agent.model={model}: cannot be loaded as a causal language model: {_line(error)}"
        ) from error
    return network


def add_lora(network: "PreTrainedModel", rank: int, alpha: int, targets: str) -> "PeftModel":
    """`network` with low-rank adapters (Hu et al. 2021, arXiv 2106.09685), which alone are trained, in float32.

    targets: names of linear layers, separated by commas, or `all-linear` (all but the head). Raises `LanguageModelError` for a
    name that no linear layer has.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    names: str | list[str] = targets
    if targets != "all-linear":
        names = [name.strip() for name in targets.split(",") if name.strip()]
        _check_targets(network, names, targets)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none", task_type=TaskType.CAUSAL_LM
    )  # fmt: skip
    adapted: Any = get_peft_model(network, config)
    return adapted


def _check_targets(network: "PreTrainedModel", names: list[str], given: str) -> None:
    there = Counter(
        name.rsplit(".", 1)[-1] for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)
    )
    kinds = ", ".join(sorted(there))
    if not names:
        raise LanguageModelError(
            f"language.lora_targets={given}: names no layer; the model has {kinds}, or give all-linear"
        )
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, [*there, "all-linear"], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise LanguageModelError(
                f"language.lora_targets={given}: the model has no linear layer {name!r}{hint} It has: {kinds}"
            )


def _line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
