"""What the tests of the judge share: a judge of a few thousand parameters, and an HTTP server that plays one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward_server.embedded import TrainingSettings, build
from reward_server.judge.prompts import Prompt, PromptTemplate

TINY = TrainingSettings(
    steps=2, batch_size=8, hidden_size=32, layers=2, heads=2, key_value_heads=1, head_dim=32, intermediate_size=64
)


def tiny_judge(folder: Path) -> Path:
    """A judge that has learnt nothing, but is a model like any other. Built once for a folder."""
    return build(folder, settings=TINY, held_size=20)


def prompt(mode: str = "direct") -> Prompt:
    return PromptTemplate.load().prompt("default", mode)


@dataclass
class Reply:
    """What the stub server answers to one request."""

    status: int = 200
    body: Any = None
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[str, dict[str, Any], dict[str, str]], Awaitable[Reply] | Reply]


@contextlib.asynccontextmanager
async def http_server(handler: Handler) -> AsyncIterator[str]:
    """A server on a free local port; yields its base address. `handler(path, body, headers)` answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                _, path, _ = line.decode().split(" ", 2)
                headers: dict[str, str] = {}
                while (header := (await reader.readline()).decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                raw = await reader.readexactly(int(headers.get("content-length", "0")))
                reply = handler(path, json.loads(raw) if raw else {}, headers)
                reply = reply if isinstance(reply, Reply) else await reply
                await asyncio.sleep(reply.delay_s)
                content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                extra = "".join(f"{k}: {v}\r\n" for k, v in reply.headers.items())
                writer.write(
                    f"HTTP/1.1 {reply.status} X\r\ncontent-length: {len(content.encode())}\r\n{extra}\r\n".encode()
                    + content.encode()
                )
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


def chat_reply(text: str, logprobs: dict[str, float] | None = None) -> Reply:
    """A chat completion as OpenAI's reference shows it."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if logprobs is not None:
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": logprobs.get(text, -1.0), "top_logprobs": top}]}
    return Reply(body={"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 1}})
