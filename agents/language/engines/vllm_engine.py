"""Engine `vllm`: continuous batching over all running episodes, prefix caching, weights replaced in place.

**New weights.** The engine is paused where it stands (running answers stay in the queue, their keys and values and the
prefix cache are dropped), every worker loads the new weights over the old ones, and it goes on. Nothing that old
weights computed is read after that.
"""

import asyncio
import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from agents.language.engines.base import Generation, Sampling
from agents.language.engines.vllm_worker import WeightsExtension
from agents.language.episode import Ids
from agents.language.errors import EngineDiedError, LanguageModelError
from inference.safe_loading import VLLM_SAFE, check_safe
from inference.vllm_options import cpu_arguments, has_gpu, prepare_environment

_SHUTDOWN_S = 5.0


class VllmGenerator:
    """A vLLM engine. It belongs to the event loop that starts it."""

    def __init__(
        self,
        model: str,
        *,
        stop_ids: tuple[int, ...],
        context: int,
        dtype: str = "auto",
        sequences: int = 64,
        seed: int = 0,
        version: int = 0,
        gpu_memory: float = 0.9,
    ) -> None:
        """`model`: folder or Hugging Face id; nothing is loaded yet. `sequences`: answers in one batch at most.
        `gpu_memory`: share of a GPU's memory that the engine takes."""
        prepare_environment(threads=1)
        self._model, self._dtype, self._context = model, dtype, context
        self._stops, self._sequences, self._seed = stop_ids, sequences, seed
        self._gpu_memory = gpu_memory
        self._version = version
        self._engine: Any = None
        self._starting = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._numbers = itertools.count()

    @property
    def version(self) -> int:
        return self._version

    async def start(self) -> None:
        async with self._starting:
            if self._engine is None:
                # In this thread: the engine takes hold of the running event loop.
                self._engine = self._new_engine()

    async def generate(self, prompt: Ids, sampling: Sampling) -> Generation:
        from vllm.v1.engine.exceptions import EngineDeadError

        await self.start()
        if len(prompt) + sampling.max_tokens > self._context:
            raise LanguageModelError(
                f"a prompt of {len(prompt)} tokens and an answer of {sampling.max_tokens} exceed agent.context="
                f"{self._context}"
            )
        await self._open.wait()
        version, final = self._version, None
        try:
            request = {"prompt_token_ids": prompt.tolist()}
            async for output in self._engine.generate(request, self._parameters(sampling), f"a{next(self._numbers)}"):
                final = output
        except EngineDeadError as error:
            raise EngineDiedError("the vLLM engine that generates for the agents died") from error
        answer: Any = final.outputs[0]  # pyright: ignore[reportOptionalMemberAccess]  (a request gives one output or raises)
        ids = list(answer.token_ids)
        log_prob = [each[token].logprob for each, token in zip(answer.logprobs, ids, strict=True)]
        return Generation(
            np.array(ids, np.int32),
            np.array(log_prob, np.float32),
            version,
            self._version,
            "stop" if ids[-1] in self._stops else "length",
        )

    async def update(self, folder: Path, version: int) -> None:
        await self.start()
        self._open.clear()
        try:
            await self._engine.pause_generation(mode="keep", clear_cache=True)
            await self._engine.collective_rpc("take_weights", args=(str(folder),))
            await self._engine.reset_prefix_cache(reset_running_requests=True)
            self._version = version
            await self._engine.resume_generation()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise LanguageModelError(f"vLLM cannot take the weights in {folder}: {_said(error)}") from error
        finally:
            self._open.set()

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=_SHUTDOWN_S)
            del engine
            gc.collect()  # the engine's finaliser must run before the interpreter ends, when it could only complain

    def _parameters(self, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed if sampling.temperature > 0 else None,
            stop_token_ids=list(self._stops),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _new_engine(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        gpu = has_gpu()
        dtype = {"auto": "bfloat16" if gpu else "float32"}.get(self._dtype, self._dtype)
        try:
            check_safe(self._model)
            machine: dict[str, Any] = (
                {"gpu_memory_utilization": self._gpu_memory}
                if gpu
                else cpu_arguments(self._model, self._context, self._sequences)
            )
            arguments = AsyncEngineArgs(
                model=self._model,
                dtype=dtype,  # pyright: ignore[reportArgumentType]
                max_model_len=self._context,
                seed=self._seed,
                enforce_eager=not gpu,
                enable_prefix_caching=True,
                disable_log_stats=True,
                max_num_seqs=self._sequences,
                # The distribution that was drawn from, its temperature included.
                logprobs_mode="processed_logprobs",
                worker_extension_cls=f"{WeightsExtension.__module__}.{WeightsExtension.__qualname__}",
                use_tqdm_on_load=False,
                **VLLM_SAFE,
                **machine,
            )
            return AsyncLLM.from_engine_args(arguments)
        except (OSError, ValueError, RuntimeError) as error:
            raise LanguageModelError(f"vLLM cannot run agent.model={self._model}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
