"""Engine `transformers`: the model in this process, for machines where vLLM cannot run.

Choices are read from the logits of one forward pass; free text is generated. The model runs in one thread of its own,
so the event loop stays free.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from inference.safe_loading import SAFE, SAFE_WEIGHTS, check_safe
from reward_server.judge.engines.base import ChatRenderer, Completion, Request, renormalise
from reward_server.judge.models import resolve_dtype
from reward_server.judge.prompts import Chat
from reward_server.types import JudgeError, JudgeUnavailableError


class TransformersEngine:
    """A causal language model of `transformers`, batched, on the GPU if there is one."""

    def __init__(
        self, model: str, *, dtype: str = "auto", max_model_len: int = 2048, batch_size: int = 16, seed: int = 0
    ) -> None:
        """Loads the model (`model`: folder or Hugging Face id). Raises `JudgeError` where that fails."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = {"auto": "auto"}.get(resolved := resolve_dtype(dtype, self._device), getattr(torch, resolved, None))
        try:
            check_safe(model)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left", **SAFE)
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=precision, **SAFE_WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise JudgeError(f"judge.model={model} cannot be loaded: {str(error).splitlines()[0]}") from error
        self._model: Any = loaded.to(self._device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._renderer = ChatRenderer(self._tokenizer, model)
        self._limit = max_model_len
        self._batch_size = batch_size
        self._generator: Any = torch.Generator(device=self._device).manual_seed(seed)
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "judge-transformers")

    async def start(self) -> None:
        """Nothing to do: it is ready once it is made."""

    async def complete(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        if self._thread is None:
            raise JudgeUnavailableError("the transformers engine is closed")
        started = time.monotonic()
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._complete, list(chats), request)
        latency = time.monotonic() - started
        return [Completion(text, p, latency, prompt_tokens=n, output_tokens=m) for text, p, n, m in found]

    async def check(self) -> None:
        if self._thread is None:
            raise JudgeUnavailableError("the transformers engine is closed")

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=True)

    def _complete(self, chats: list[Chat], request: Request) -> list[tuple[str, dict[str, float] | None, int, int]]:
        found: list[tuple[str, dict[str, float] | None, int, int]] = []
        for start in range(0, len(chats), self._batch_size):
            prompts = [self._renderer.ids(chat) for chat in chats[start : start + self._batch_size]]
            if (longest := max(map(len, prompts))) + request.max_tokens > self._limit:
                raise JudgeError(f"a prompt of {longest} tokens exceeds judge.max_model_len={self._limit}; raise it")
            found += self._choose(prompts, request) if request.choices else self._write(prompts, request)
        return found

    def _choose(
        self, prompts: list[list[int]], request: Request
    ) -> list[tuple[str, dict[str, float] | None, int, int]]:
        import torch

        pieces = self._renderer.choice_ids(request.choices or ())
        ids, mask = self._pad(prompts)
        with torch.inference_mode():
            log_BV = (
                self._model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
            )
        found: list[tuple[str, dict[str, float] | None, int, int]] = []
        for row, prompt in zip(log_BV, prompts, strict=True):
            probabilities = renormalise({c: [row[i].item() for i in tokens] for c, tokens in pieces.items()}) or {}
            text = self._draw(probabilities, request.temperature)
            found.append((text, probabilities, len(prompt), 1))
        return found

    def _draw(self, probabilities: dict[str, float], temperature: float) -> str:
        """The most probable choice, or one drawn by the tempered probabilities."""
        import torch

        choices = list(probabilities)
        if temperature <= 0:
            return max(choices, key=lambda c: probabilities[c])
        weights = torch.tensor([probabilities[c] for c in choices], dtype=torch.float64, device=self._device).pow(
            1 / temperature
        )
        return choices[int(torch.multinomial(weights, 1, generator=self._generator))]

    def _write(self, prompts: list[list[int]], request: Request) -> list[tuple[str, dict[str, float] | None, int, int]]:
        import torch

        ids, mask = self._pad(prompts)
        sampling = (
            {"do_sample": True, "temperature": request.temperature} if request.temperature > 0 else {"do_sample": False}
        )
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=request.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **sampling,
            )
        new = [row[ids.shape[1] :] for row in out]
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in new]
        return [
            (text, None, len(p), int((row != self._tokenizer.pad_token_id).sum()))
            for text, p, row in zip(texts, prompts, new, strict=True)
        ]

    def _pad(self, prompts: list[list[int]]) -> tuple[Any, Any]:
        """Token ids and mask `[B, N]`, padded on the left: the last position is the last token of every prompt."""
        import torch

        longest = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        return ids, mask
