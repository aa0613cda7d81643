"""Language models of strangers: loaded as data, never as code.

Hugging Face folders may hold code (`auto_map` names it) and weights as pickles, which execute code when they are read.
Neither is loaded, by any engine.
"""

import json
from pathlib import Path
from typing import Any

SAFE: dict[str, Any] = {"trust_remote_code": False}
"""Of every `from_pretrained`; of vLLM's engines too."""
SAFE_WEIGHTS: dict[str, Any] = {**SAFE, "use_safetensors": True}
"""Of every `from_pretrained` that loads weights."""
VLLM_SAFE: dict[str, Any] = {**SAFE, "load_format": "safetensors"}
"""Of vLLM's engines."""

_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class UnsafeModelError(ValueError):
    """A folder that could be loaded only by executing what is in it; the message says what that is."""


def check_safe(model: str | Path) -> None:
    """Raises `UnsafeModelError` where the folder `model` asks for code of its own, or has weights as pickles alone.

    Of an id of the Hub, whose files are not here yet, nothing is looked at: `SAFE_WEIGHTS` has it refused when it is loaded.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return
    for name in _CONFIGS:
        if "auto_map" in _keys(folder / name):
            raise UnsafeModelError(f"{name} asks for code of the model's own (auto_map), which is not executed")
    if (folder / "adapter_config.json").is_file():
        raise UnsafeModelError("it is an adapter, which names another model to load; merge it into that model first")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES and "model" in path.name)
    if pickles and not any(folder.glob("*.safetensors")):
        raise UnsafeModelError(
            f"its weights are a pickle ({pickles[0]}), which executes code when it is read; save them as safetensors"
        )


def _keys(path: Path) -> set[str]:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return set()  # whoever needs the file says so
    return set(tree) if isinstance(tree, dict) else set()
