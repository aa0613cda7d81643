"""Engine `openai`: any server that speaks OpenAI's chat completions: vLLM's own, llama.cpp, Ollama, a hosted one.

Servers differ in what they accept. The engine begins with everything it would like (an answer constrained to the
labels, log-probabilities) and steps down to what the server takes; the first dialect that works is remembered.

Requests go through aiohttp: with 32 connections it takes a sixth of the processor time of httpx (0.5 against 3 ms a
label), and that time is the training's.
"""

import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx

from reward_server.judge.engines.base import Completion, Request, renormalise, without_system
from reward_server.judge.engines.loop_thread import LoopThread
from reward_server.judge.prompts import Chat
from reward_server.types import JudgeError, JudgeUnavailableError

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_NOT_UNDERSTOOD = frozenset({400, 422})
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_UNCONSTRAINED_TOKENS = 8
"""Where the answer cannot be constrained, a model may write a space or a quote before the label."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server is asked for besides a plain completion."""

    constrained: bool
    logprobs: bool
    system_role: bool = True
    length_key: str = "max_tokens"


DIALECTS = (
    Dialect(constrained=True, logprobs=True),
    Dialect(constrained=False, logprobs=True),
    Dialect(constrained=False, logprobs=False),
    Dialect(constrained=False, logprobs=False, length_key="max_completion_tokens"),
    Dialect(constrained=False, logprobs=False, system_role=False),
)


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a server sent back."""

    status: int
    body: bytes
    reason: str = ""
    """The words beside the status."""

    def words(self) -> str:
        """The server's own words about an error, one short line."""
        try:
            data = json.loads(self.body)
            error = data.get("error", data)
            text = error.get("message", error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            text = self.body.decode("utf-8", "replace")
        return (" ".join(str(text).split()) or self.reason)[:200]


class _TransientError(JudgeUnavailableError):
    """Asking again soon may work."""


class OpenAIEngine:
    """A client of an OpenAI-compatible server. Not bound to the event loop of any caller."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        deadline_s: float = 45.0,
        request_timeout_s: float = 30.0,
        concurrency: int = 32,
    ) -> None:
        """`url`: base address up to `/v1`. `deadline_s` bounds all tries of a request, `request_timeout_s` each one."""
        self._url, self._model = url.rstrip("/"), model
        self._key_env = api_key_env
        self._deadline_s = deadline_s
        key = os.environ.get(api_key_env)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s, connect=min(5.0, request_timeout_s))
        self._concurrency = concurrency
        self._client: aiohttp.ClientSession | None = None
        """Made on the engine's own loop by the first request."""
        self._slots = asyncio.Semaphore(concurrency)
        self._loop = LoopThread("judge-openai")
        self._dialect = 0
        self._closed = False

    async def start(self) -> None:
        """Nothing to do: it is ready once it is made."""

    async def complete(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        return await self._loop.run(self._all(chats, request))

    async def check(self) -> None:
        """Asks for the list of models."""
        await self._loop.run(self._send("GET", "/models", None))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._client is not None:
                await self._loop.run(self._client.close())
            await asyncio.to_thread(self._loop.stop)

    async def _all(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        # The first chat finds the dialect alone: otherwise a batch would repeat every refused try.
        head = [await self._one(chat, request) for chat in chats[:1]]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(chat, request)) for chat in chats[1:]]
        return head + [task.result() for task in tasks]

    async def _one(self, chat: Chat, request: Request) -> Completion:
        """The first dialect from the remembered one on that the server understands."""
        refused = ""
        async with self._slots:
            for index in range(self._dialect, len(DIALECTS)):
                started = time.monotonic()
                body = _body(self._model, chat, request, DIALECTS[index])
                response = await self._retried("POST", "/chat/completions", body)
                if response.status in _NOT_UNDERSTOOD:
                    refused = f"({response.status}): {response.words()}"
                    continue
                self._dialect = index
                return _completion(response, request, time.monotonic() - started)
        raise JudgeError(f"the judge at {self._url} refuses the request {refused}")

    async def _retried(self, method: str, path: str, body: Mapping[str, Any] | None) -> HttpAnswer:
        """Tries until `deadline_s` is over, with waits that double up to `_LONGEST_WAIT_S`, drawn from 0 to that."""
        give_up_at = time.monotonic() + self._deadline_s
        for attempt in itertools.count():
            try:
                return await self._send(method, path, body)
            except _TransientError:
                if time.monotonic() >= give_up_at:
                    raise
            await asyncio.sleep(random.uniform(0.0, min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S)))
        raise AssertionError("unreachable")

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> HttpAnswer:
        """One HTTP exchange. Raises `_TransientError` for what may pass, `JudgeError` for what will not."""
        try:
            async with self._session().request(
                method, self._url + path, json=body, timeout=self._timeout, allow_redirects=False
            ) as response:
                answer = HttpAnswer(response.status, await response.read(), response.reason or "")
        except TimeoutError as error:
            raise _TransientError(f"the judge at {self._url} did not answer in time") from error
        except aiohttp.InvalidURL as error:
            raise JudgeError(f"judge.url={self._url} is no address: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _TransientError(
                f"the judge at {self._url} cannot be reached: {str(error) or type(error).__name__}"
            ) from error
        if answer.status in _RETRIED:
            raise _TransientError(f"the judge at {self._url} answers {answer.status}: {answer.words()}")
        raise_for_refusal(answer, self._url, self._key_env, self._model)
        return answer

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            # The certificates that httpx trusts, also where the system has none; proxies as the environment says.
            connector = aiohttp.TCPConnector(limit=self._concurrency, ssl=httpx.create_ssl_context())
            self._client = aiohttp.ClientSession(connector=connector, headers=self._headers, trust_env=True)
        return self._client


def raise_for_refusal(answer: HttpAnswer, url: str, key_env: str, model: str) -> None:
    """Raises `JudgeError` for an answer that asking again cannot change (401, 403, 404); says what to set."""
    if answer.status in (401, 403):
        raise JudgeError(
            f"the judge at {url} refuses the API key ({answer.status}); "
            f"put a valid one into the environment variable {key_env}"
        )
    if answer.status == 404:
        raise JudgeError(
            f"the judge at {url} does not know this address or the model {model!r} (404): {answer.words()}; "
            "check judge.url and judge.model"
        )


def _body(model: str, chat: Chat, request: Request, dialect: Dialect) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in chat] if dialect.system_role else without_system(chat)
    free = request.choices is not None and not dialect.constrained
    body: dict[str, Any] = {
        "model": model,
        "messages": turns,
        "temperature": request.temperature,
        dialect.length_key: max(request.max_tokens, _UNCONSTRAINED_TOKENS) if free else request.max_tokens,
    }
    if dialect.constrained:
        body["chat_template_kwargs"] = {"enable_thinking": False}
    if request.choices is not None and dialect.constrained:
        body["structured_outputs"] = {"choice": list(request.choices)}
    if request.choices is not None and dialect.logprobs:
        body |= {"logprobs": True, "top_logprobs": 5}
    return body


def _completion(response: HttpAnswer, request: Request, latency_s: float) -> Completion:
    """What the server answered. An answer of another form is empty text: it cannot be read, and so is missing."""
    try:
        data = json.loads(response.body)
        choice = data["choices"][0]
        text = choice["message"]["content"] or ""
    except (ValueError, LookupError, TypeError):
        return Completion(response.body.decode("utf-8", "replace")[:200], None, latency_s)
    usage: dict[str, Any] = data.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Completion(
        text,
        _probabilities(choice, request.choices),
        latency_s,
        usage.get("prompt_tokens"),
        cached,
        usage.get("completion_tokens"),
    )


def _probabilities(choice: Mapping[str, Any], choices: Sequence[str] | None) -> dict[str, float] | None:
    """Probabilities of the choices from the first token that is one of them; pieces such as " 1" count for "1"."""
    if choices is None:
        return None
    for position in (choice.get("logprobs") or {}).get("content") or []:
        if str(position["token"]).strip() in choices:
            top = position.get("top_logprobs") or [position]
            return renormalise({c: [float(t["logprob"]) for t in top if str(t["token"]).strip() == c] for c in choices})
    return None
