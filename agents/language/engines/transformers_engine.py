"""Engine `transformers`: the model in this process, in batches that keep keys and values. Where vLLM cannot run, and
where a run must repeat itself.

A batch is what waits when the engine becomes free. Rows that are done leave it at once; new ones come with the next
batch. An answer with a seed is drawn with a generator of its own, so it does not depend on what else is in the batch, but
for the rounding of products of other shapes; a batch of the same prompts in the same order repeats exactly.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.language.engines.base import Generation, Sampling
from agents.language.episode import Ids
from agents.language.errors import LanguageModelError
from inference.safe_loading import SAFE_WEIGHTS, check_safe

_IDLE_TURNS = 4
"""Turns of the event loop that a batch waits for others who are about to ask."""


@dataclass(slots=True)
class _Asked:
    prompt: Ids
    sampling: Sampling
    answer: "asyncio.Future[Generation]"


@dataclass(slots=True)
class _Row:
    """One answer while it is being drawn."""

    asked: _Asked
    generator: Any
    ids: list[int] = field(default_factory=list[int])
    log_prob: list[float] = field(default_factory=list[float])
    stop: str = "length"


class TransformersGenerator:
    """A causal language model of `transformers`, on the GPU if there is one."""

    def __init__(
        self,
        model: str,
        *,
        stop_ids: tuple[int, ...],
        context: int,
        dtype: str = "auto",
        sequences: int = 16,
        seed: int = 0,
        version: int = 0,
    ) -> None:
        """`model`: folder or Hugging Face id; nothing is loaded yet. `sequences`: rows of the largest batch. `seed`: of the
        answers that have none of their own."""
        self._name, self._dtype = model, dtype
        self._stops = frozenset(stop_ids)
        self._context, self._sequences = context, sequences
        self._version = version
        self._seed = seed
        self._shared: Any = None
        """Generator of the answers without a seed."""
        self._model: Any = None
        self._waiting: list[_Asked] = []
        self._starting: asyncio.Future[None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "transformers")

    @property
    def version(self) -> int:
        return self._version

    async def start(self) -> None:
        # One load for all who ask meanwhile: they go on together, so that the first batch is the same every time.
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._in_thread(self._load))
        await asyncio.shield(self._starting)

    async def generate(self, prompt: Ids, sampling: Sampling) -> Generation:
        if len(prompt) + sampling.max_tokens > self._context:
            raise LanguageModelError(
                f"a prompt of {len(prompt)} tokens and an answer of {sampling.max_tokens} exceed agent.context="
                f"{self._context}"
            )
        await self.start()
        asked = _Asked(prompt, sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.ensure_future(self._run())
        return await asked.answer

    async def update(self, folder: Path, version: int) -> None:
        await self.start()
        # The thread does one thing after the other: a batch that runs is finished under the weights that it began with.
        await self._in_thread(self._reload, folder, version)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if self._runner is not None:
            self._runner.cancel()
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)
        self._model = None

    async def _run(self) -> None:
        """Answers what waits, batch after batch, until nothing does."""
        while self._waiting:
            for _ in range(_IDLE_TURNS):
                await asyncio.sleep(0)
            batch, self._waiting = self._waiting[: self._sequences], self._waiting[self._sequences :]
            try:
                answers = await self._in_thread(self._answer, batch)
            except Exception as error:  # everyone who waits for the batch is told
                for asked in batch:
                    if not asked.answer.done():
                        asked.answer.set_exception(error)
                continue
            for asked, answer in zip(batch, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        if self._thread is None:
            raise LanguageModelError("the transformers engine is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # In the thread.

    def _load(self) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = {"auto": torch.float32 if device == "cpu" else torch.bfloat16}.get(self._dtype)
        dtype = dtype or getattr(torch, self._dtype)
        try:
            check_safe(self._name)
            model: Any = AutoModelForCausalLM.from_pretrained(self._name, dtype=dtype, **SAFE_WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise LanguageModelError(
                f"agent.model={self._name} cannot be loaded: {str(error).splitlines()[0]}"
            ) from error
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and longest < self._context:
            raise LanguageModelError(f"agent.context={self._context}: agent.model={self._name} reads at most {longest}")
        self._model = model.to(device).eval()

    def _reload(self, folder: Path, version: int) -> None:
        from safetensors.torch import load_file

        weights: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        result = self._model.load_state_dict(weights, strict=False)
        tied = set(
            getattr(self._model, "all_tied_weights_keys", None)
            or getattr(self._model, "_tied_weights_keys", None)
            or ()
        )
        missing = [name for name in result.missing_keys if name not in tied]
        if missing or result.unexpected_keys or not weights:
            odd = ", ".join([*missing, *result.unexpected_keys][:3]) or "no weights"
            raise LanguageModelError(f"the weights in {folder} do not fit the model: {odd}")
        self._version = version

    def _answer(self, batch: list[_Asked]) -> list[Generation]:
        import torch

        with torch.inference_mode():
            return self._decode(batch)

    def _decode(self, batch: list[_Asked]) -> list[Generation]:
        """Draws all answers of a batch, token by token."""
        import torch

        device = self._model.device
        rows = [_Row(asked, self._generator_of(asked.sampling)) for asked in batch]
        running = list(rows)
        ids, mask = _left_padded([asked.prompt for asked in batch], device)
        cache: Any = None
        while True:
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            going = self._draw(running, output.logits[:, -1].float())
            if not going:
                break
            if len(going) < len(running):
                kept = torch.tensor(going, device=device)
                cache.batch_select_indices(kept)
                mask = mask[kept]
                running = [running[row] for row in going]
            ids = torch.tensor([[row.ids[-1]] for row in running], device=device)
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
        return [
            Generation(
                np.array(r.ids, np.int32), np.array(r.log_prob, np.float32), self._version, self._version, r.stop
            )
            for r in rows
        ]

    def _draw(self, running: list[_Row], logits: Any) -> list[int]:
        """One more token for each row, from logits [B, V]; returns which rows go on."""
        import torch

        going: list[int] = []
        temperatures = [row.asked.sampling.temperature for row in running]
        scale = torch.tensor([t if t > 0 else 1.0 for t in temperatures], device=logits.device)
        log_probs = (logits / scale[:, None]).log_softmax(dim=1)
        greedy = log_probs.argmax(dim=1)
        for number, row in enumerate(running):
            if temperatures[number] > 0:
                token = int(torch.multinomial(log_probs[number].exp(), 1, generator=row.generator))
            else:
                token = int(greedy[number])
            row.ids.append(token)
            row.log_prob.append(float(log_probs[number, token]))
            if token in self._stops:
                row.stop = "stop"
            elif len(row.ids) < row.asked.sampling.max_tokens:
                going.append(number)
        return going

    def _generator_of(self, sampling: Sampling) -> Any:
        import torch

        if sampling.temperature <= 0:
            return None
        if sampling.seed is None:
            if self._shared is None:
                self._shared = torch.Generator(device=self._model.device).manual_seed(self._seed)
            return self._shared
        return torch.Generator(device=self._model.device).manual_seed(sampling.seed)


def _left_padded(prompts: list[NDArray[np.int32]], device: Any) -> tuple[Any, Any]:
    """Ids and mask [B, P]: the last position is the last token of every prompt."""
    import torch

    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
