"""vLLM's options where they are not obvious. Imports vLLM not at all."""

import os
from pathlib import Path
from typing import Any

from inference.safe_loading import SAFE

_SMALL_KV_BYTES = 128 * 2**20
_LARGE_KV_BYTES = 4 * 2**30
_BATCH_TOKENS = 8192


def prepare_environment(threads: int | None = None) -> None:
    """Settings that vLLM reads from the environment, before it is imported. What is set already is left alone.

    Everywhere: no usage statistics, no progress bars, errors only. On a machine without a GPU also: `threads` OpenMP
    threads, bound to no core (an engine that pins itself to the cores on which training runs would starve it) and
    passive while they wait; one process less (the engine and its only worker share one); no compilation of kernels (it
    costs 5 s at the first question).
    """
    values = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
    }
    if not has_gpu():
        values |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCH_COMPILE_DISABLE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
        }
        if threads is not None:
            values["OMP_NUM_THREADS"] = str(threads)
    for name, value in values.items():
        os.environ.setdefault(name, value)


def has_gpu() -> bool:
    """Whether this process may use an NVIDIA GPU (Ray hides them from workers that asked for none); imports nothing."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def cpu_arguments(model: str, max_model_len: int, prompts: int = 32) -> dict[str, Any]:
    """Arguments of an engine on a CPU with room for `prompts` full ones.

    Prompts are read whole: of an answer whose prompt it had read in part, vLLM (0.30) draws a token too many and turns
    the generator of the request's seed back, which a CPU's cannot do, and the engine dies.
    """
    return {
        "kv_cache_memory_bytes": _cpu_kv_bytes(model, max_model_len, prompts),
        "block_size": 32,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, _BATCH_TOKENS),
    }


def _cpu_kv_bytes(model: str, max_model_len: int, prompts: int) -> int:
    """Bytes for keys and values on a CPU: `prompts` full ones, between 128 MiB and 4 GiB (vLLM would take half of all)."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(model, **SAFE).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * 4 * config.num_hidden_layers * heads * head_dim
    return min(_LARGE_KV_BYTES, max(_SMALL_KV_BYTES, prompts * max_model_len * token_bytes))
