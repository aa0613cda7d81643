"""Engine `vllm`: continuous batching, prefix caching, constrained answers.

vLLM's asynchronous engine belongs to one event loop, callers come with whatever loop they have: so the engine lives on
a loop in a thread of its own, and every call is handed over to it.
"""

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

from inference.safe_loading import SAFE, VLLM_SAFE, check_safe
from inference.vllm_options import cpu_arguments, has_gpu, prepare_environment
from reward_server.judge.engines.base import ChatRenderer, Completion, Request, renormalise
from reward_server.judge.engines.loop_thread import LoopThread
from reward_server.judge.models import check_vllm, resolve_dtype
from reward_server.judge.prompts import Chat
from reward_server.types import JudgeError, JudgeUnavailableError

CHECK_TIMEOUT_S = 20.0
_SHUTDOWN_S = 5.0


class VllmEngine:
    """A vLLM engine. Starts with the first question; after it died, with the next question or check."""

    def __init__(self, model: str, *, dtype: str = "auto", max_model_len: int = 2048, seed: int = 0) -> None:
        """`model`: folder or Hugging Face id. Raises `JudgeError` where vLLM is not installed; nothing starts yet."""
        check_vllm()
        prepare_environment(threads=1)
        self._model, self._dtype, self._limit, self._seed = model, dtype, max_model_len, seed
        self._loop = LoopThread("judge-vllm")
        self._lock = threading.Lock()
        self._engine: Any = None
        self._renderer: ChatRenderer | None = None
        self._numbers = itertools.count()
        self._closed = False

    async def start(self) -> None:
        """Starts the model now (some tens of seconds on a CPU). Raises `JudgeError` where it cannot be loaded."""
        await asyncio.to_thread(self._start)

    async def complete(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        return await self._loop.run(self._complete(chats, request))

    async def check(self) -> None:
        """Starts the engine again if it died; raises `JudgeUnavailableError` where it then does not answer in time."""
        await self.start()
        try:
            await asyncio.wait_for(self._loop.run(self._ping()), CHECK_TIMEOUT_S)
        except TimeoutError as error:
            raise JudgeUnavailableError(f"the vLLM engine did not answer within {CHECK_TIMEOUT_S:.0f} s") from error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._end)

    async def _started(self) -> tuple[Any, ChatRenderer]:
        """The engine and its renderer, started if need be; one caller starts, the others wait."""
        await asyncio.to_thread(self._start)
        if self._engine is None or self._renderer is None:
            raise JudgeUnavailableError("the vLLM engine was closed")
        return self._engine, self._renderer

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise JudgeUnavailableError("the vLLM engine is closed")
            if self._engine is not None and self._engine.errored:
                self._shutdown()
            if self._renderer is None:
                self._renderer = ChatRenderer(_tokenizer(self._model), self._model)
            if self._engine is None:
                self._engine = _new_engine(self._model, self._dtype, self._limit, self._seed)

    def _shutdown(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=_SHUTDOWN_S)

    def _end(self) -> None:
        with self._lock:
            self._shutdown()
        self._loop.stop()
        gc.collect()  # the engine's finaliser must run before the interpreter ends, when it could only complain

    async def _complete(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        engine, renderer = await self._started()
        sampling, pieces = _sampling(renderer, request, self._seed)
        prompts = renderer.batch_ids(chats)
        if (longest := max(map(len, prompts), default=0)) + request.max_tokens > self._limit:
            raise JudgeError(f"a prompt of {longest} tokens exceeds judge.max_model_len={self._limit}; raise it")
        return list(await asyncio.gather(*(self._one(engine, prompt, sampling, pieces) for prompt in prompts)))

    async def _one(self, engine: Any, prompt: list[int], sampling: Any, pieces: dict[str, list[int]]) -> Completion:
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.monotonic()
        final: Any = None
        try:
            async for output in engine.generate({"prompt_token_ids": prompt}, sampling, f"judge-{next(self._numbers)}"):
                final = output
        except EngineDeadError as error:
            raise JudgeUnavailableError("the vLLM engine died; it is started again") from error
        answer = final.outputs[0]
        probabilities = _probabilities(answer.logprobs, pieces) if pieces else None
        return Completion(
            answer.text,
            probabilities,
            time.monotonic() - started,
            len(prompt),
            final.num_cached_tokens,
            len(answer.token_ids),
        )

    async def _ping(self) -> None:
        from vllm import SamplingParams

        engine, _ = await self._started()
        await self._one(engine, [0], SamplingParams(max_tokens=1, temperature=0.0, detokenize=False), {})


def _new_engine(model: str, dtype: str, max_model_len: int, seed: int) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    gpu = has_gpu()
    machine: dict[str, Any] = {} if gpu else cpu_arguments(model, max_model_len)
    arguments = AsyncEngineArgs(
        model=model,
        dtype=resolve_dtype(dtype, "cuda" if gpu else "cpu"),  # pyright: ignore[reportArgumentType]
        max_model_len=max_model_len,
        seed=seed,
        enforce_eager=not gpu,
        enable_prefix_caching=True,
        disable_log_stats=True,
        max_num_seqs=64,
        use_tqdm_on_load=False,
        **VLLM_SAFE,
        **machine,
    )
    try:
        return AsyncLLM.from_engine_args(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise JudgeError(f"vLLM cannot run judge.model={model}: {str(error).splitlines()[0]}") from error


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        check_safe(model)
        return AutoTokenizer.from_pretrained(model, **SAFE)
    except (OSError, ValueError) as error:
        raise JudgeError(f"judge.model={model} cannot be loaded: {str(error).splitlines()[0]}") from error


def _sampling(renderer: ChatRenderer, request: Request, seed: int) -> tuple[Any, dict[str, list[int]]]:
    """vLLM's sampling parameters, and the token ids whose probabilities are read for each choice."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    common: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
    if request.temperature > 0:
        common["seed"] = seed
    if request.choices is None:
        return SamplingParams(**common), {}
    pieces = renderer.choice_ids(request.choices)
    ids = [i for tokens in pieces.values() for i in tokens]
    return SamplingParams(
        **common, structured_outputs=StructuredOutputsParams(choice=list(request.choices)), logprob_token_ids=ids
    ), pieces


def _probabilities(logprobs: Any, pieces: dict[str, list[int]]) -> dict[str, float] | None:
    """Probabilities of the choices from the log-probabilities at the first position of the answer."""
    if not logprobs:
        return None
    first = logprobs[0]
    return renormalise({choice: [first[i].logprob for i in ids if i in first] for choice, ids in pieces.items()})
