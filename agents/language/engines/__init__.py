"""Engines that generate tokens. To add one: a class with the methods of `Generator`, and one line in `build_engine`."""

from agents.language.engines.base import Generation, Generator, Sampling
from agents.language.errors import LanguageModelError
from agents.settings import AgentSettings

__all__ = ["ENGINES", "Generation", "Generator", "Sampling", "build_engine", "check_engine"]

ENGINES = ("vllm", "transformers")


def build_engine(
    settings: AgentSettings,
    model: str,
    *,
    stop_ids: tuple[int, ...],
    sequences: int,
    seed: int,
    version: int = 0,
    gpu_memory: float = 0.9,
) -> Generator:
    """The engine that `settings` names, with the weights `model` (folder or Hugging Face id), which have `version`.

    sequences: how many run at once. gpu_memory: share of a GPU's memory that vLLM takes, if it has one.
    Raises `LanguageModelError` where it cannot run here.
    """
    check_engine(settings.engine)
    if settings.engine == "vllm":
        from agents.language.engines.vllm_engine import VllmGenerator

        return VllmGenerator(
            model,
            stop_ids=stop_ids,
            context=settings.context,
            dtype=settings.dtype,
            sequences=sequences,
            seed=seed,
            version=version,
            gpu_memory=gpu_memory,
        )
    from agents.language.engines.transformers_engine import TransformersGenerator

    return TransformersGenerator(
        model,
        stop_ids=stop_ids,
        context=settings.context,
        dtype=settings.dtype,
        sequences=sequences,
        seed=seed,
        version=version,
    )


def check_engine(engine: str) -> None:
    """Raises `LanguageModelError` for an engine whose package is not installed. Loads nothing."""
    import importlib.util

    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise LanguageModelError(
            "agent.engine=vllm: vLLM is not installed; install the extra `yendor[vllm]`, or set agent.engine=transformers"
        )
