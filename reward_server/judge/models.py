"""Which model is meant, and whether it is there: checks that cost nothing, before any engine starts."""

import hashlib
import importlib.util
import json
from pathlib import Path

from reward_server.settings import JudgeSettings
from reward_server.types import JudgeError

EMBEDDED = "embedded"
"""`judge.model` of the small judge that the project makes."""

_WHOLE_FILE = 64 * 2**20
_SAMPLES = 64


def looks_like_path(model: str) -> bool:
    """Whether `judge.model` means a folder and not a Hugging Face id (owner/name)."""
    return model != EMBEDDED and (
        model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).expanduser().is_dir()
    )


def check_model(model: str) -> None:
    """Raises `JudgeError` where `judge.model` names a folder that holds no model, or is no name of a model at all."""
    if model == EMBEDDED:
        return
    if looks_like_path(model):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise JudgeError(
                f"judge.model={model}: there is no such folder; give one in Hugging Face format, a Hugging Face id, or "
                "`embedded`"
            )
        if not (folder / "config.json").is_file():
            raise JudgeError(
                f"judge.model={model}: the folder holds no config.json, so it is no model in Hugging Face format"
            )
    elif "/" not in model or " " in model:
        raise JudgeError(
            f"judge.model={model} is neither `embedded`, nor a folder that exists, nor a Hugging Face id (owner/name)"
        )


def check_vllm() -> None:
    """Raises `JudgeError` where vLLM is not installed. Does not import it."""
    if importlib.util.find_spec("vllm") is None:
        raise JudgeError(
            "judge.engine=vllm: vLLM is not installed; install the extra `yendor[vllm]`, or set "
            "judge.engine=transformers"
        )


def model_identity(model: str) -> str:
    """What stands for the model in the key of a label: a folder's name with a digest of its files, otherwise the id.

    Weights above 64 MiB are sampled at 64 places, so a large model is not read whole.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    digest = hashlib.blake2b(digest_size=8)
    names = sorted(
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".bin", ".json", ".jinja", ".model", ".gguf"}
    )
    for file in names:
        if file.name != "judge.json":
            digest.update(file.name.encode() + b"\0" + _content(file))
    return f"{folder.resolve().name}@{digest.hexdigest()}"


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` on a CPU without bf16 instructions is float32: emulated bf16 is many times slower. Otherwise `dtype`."""
    return "float32" if dtype == "auto" and device == "cpu" and not cpu_has_bfloat16() else dtype


def sampling_key(settings: JudgeSettings) -> str:
    """Canonical JSON of what decides an answer besides prompt and model."""
    values: dict[str, object] = {"temperature": settings.temperature}
    if settings.mode == "reasoned":
        values["reason_tokens"] = settings.reason_tokens
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    except OSError:
        return False


def _content(file: Path) -> bytes:
    size = file.stat().st_size
    if size <= _WHOLE_FILE:
        return hashlib.blake2b(file.read_bytes()).digest()
    digest = hashlib.blake2b(str(size).encode())
    with file.open("rb") as stream:
        for sample in range(_SAMPLES):
            stream.seek(sample * (size - 2**16) // (_SAMPLES - 1))
            digest.update(stream.read(2**16))
    return digest.digest()
