"""The `openai` engine against a server that is well, flaky, slow, strict, wrong, or not there."""

import asyncio
import itertools
import math
import socket
import time
from typing import Any

import pytest

from reward_server.judge.engines.base import Request
from reward_server.judge.engines.openai_engine import DIALECTS, OpenAIEngine
from reward_server.judge.judge import build_judge, preflight, served_model
from reward_server.settings import JudgeSettings
from reward_server.types import JudgeError, JudgeUnavailableError
from tests.judge_support import Reply, chat_reply, http_server, prompt

CHOOSE = Request(1, ("0", "1"))


def ask(handler, captions=("The door opens.",), request=CHOOSE, **options):
    """Completions of a fresh engine against a server with this handler, and the bodies that the server saw."""
    seen: list[dict[str, Any]] = []

    def watched(path, body, headers):
        seen.append(body)
        return handler(path, body, headers)

    async def run():
        async with http_server(watched) as url:
            engine = OpenAIEngine(url, "m", **{"deadline_s": 5.0, "request_timeout_s": 2.0, **options})
            try:
                return await engine.complete([prompt().chat(c) for c in captions], request)
            finally:
                await engine.close()

    return asyncio.run(run()), seen


def test_answers_come_in_order_with_renormalised_probabilities() -> None:
    def handler(path, body, headers):
        helpful = "door" in body["messages"][-1]["content"].rpartition("\n")[2]
        good, bad = math.log(0.6), math.log(0.2)
        return chat_reply(
            "1" if helpful else "0", {"1": good if helpful else bad, "0": bad if helpful else good, "x": -2.0}
        )

    captions = ["The door opens.", "It's a wall.", "As you kick the door, it crashes open!"] * 5
    found, seen = ask(handler, captions)
    assert [c.text for c in found] == ["1", "0", "1"] * 5
    assert [round(c.probabilities["1"], 6) for c in found] == [0.75, 0.25, 0.75] * 5
    assert seen[0]["structured_outputs"] == {"choice": ["0", "1"]}
    assert seen[0]["max_tokens"] == 1


def test_a_flaky_server_is_asked_again() -> None:
    numbers = itertools.count()

    def handler(path, body, headers):
        return (Reply(429, {"error": "slow down"}), Reply(503, "busy"), Reply(500, ""), chat_reply("1"))[
            min(3, next(numbers))
        ]

    found, seen = ask(handler)
    assert found[0].text == "1"
    assert len(seen) == 4


def test_dialects_are_stepped_down_once_and_remembered() -> None:
    def strict(path, body, headers):
        unknown = {"structured_outputs", "chat_template_kwargs", "logprobs"} & set(body)
        return Reply(400, {"error": {"message": f"unknown {unknown}"}}) if unknown else chat_reply(" 1.")

    found, seen = ask(strict, ["a", "b", "c", "d"])
    assert [c.text for c in found] == [" 1."] * 4
    assert len(seen) == 2 + 4  # two dialects refused, for the first caption alone
    assert seen[-1]["max_tokens"] > 1


def test_a_server_without_system_role_gets_one_user_message() -> None:
    def gemma(path, body, headers):
        return Reply(400, {"error": "no system role"}) if body["messages"][0]["role"] == "system" else chat_reply("0")

    found, seen = ask(gemma)
    assert found[0].text == "0"
    assert len(seen) == len(DIALECTS)


def test_what_every_dialect_is_refused_is_an_error_with_the_servers_words() -> None:
    with pytest.raises(JudgeError, match=r"refuses the request \(400\): context too long") as caught:
        ask(lambda *_: Reply(400, {"error": {"message": "context too long"}}))
    assert not isinstance(caught.value, JudgeUnavailableError)


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", {"choices": []}, {"choices": [{"message": None}]}, "[1]", {"x": 1}]
)
def test_garbage_is_an_answer_that_cannot_be_read(body) -> None:
    found, _ = ask(lambda *_: Reply(200, body))
    assert found[0].probabilities is None
    assert found[0].text not in ("0", "1")


@pytest.mark.parametrize(
    ("status", "words"), [(401, "YENDOR_TEST_KEY"), (403, "YENDOR_TEST_KEY"), (404, "judge.model")]
)
def test_refusals_say_what_to_set_and_are_not_repeated(status: int, words: str) -> None:
    calls: list[str] = []

    def handler(path, body, headers):
        calls.append(path)
        return Reply(status, {"error": {"message": "no"}})

    with pytest.raises(JudgeError, match=words) as caught:
        ask(handler, api_key_env="YENDOR_TEST_KEY")
    assert not isinstance(caught.value, JudgeUnavailableError)
    assert len(calls) == 1


def test_a_server_that_hangs_is_unavailable_within_the_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(JudgeUnavailableError, match="did not answer in time"):
        ask(lambda *_: Reply(200, {}, delay_s=30), deadline_s=1.0, request_timeout_s=0.4)
    assert time.monotonic() - began < 4


def test_no_server_is_unavailable() -> None:
    async def run():
        engine = OpenAIEngine(f"http://127.0.0.1:{_free_port()}/v1", "m", deadline_s=0.5)
        try:
            await engine.complete([prompt().chat("x")], CHOOSE)
        finally:
            await engine.close()

    with pytest.raises(JudgeUnavailableError, match="cannot be reached"):
        asyncio.run(run())


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch) -> None:
    monkeypatch.setenv("YENDOR_TEST_KEY", "s3cret")
    seen: list[str] = []

    def handler(path, body, headers):
        seen.append(headers.get("authorization", ""))
        return chat_reply("1")

    _, bodies = ask(handler, api_key_env="YENDOR_TEST_KEY")
    assert seen == ["Bearer s3cret"]
    assert "s3cret" not in str(bodies)


def test_a_judge_over_http_answers_from_more_than_one_event_loop() -> None:
    """The serial runtime calls `asyncio.run` again and again; nothing may stay on the first loop."""
    ready, done = asyncio.Event(), asyncio.Event()
    found = []

    async def serve(url_box: list[str]) -> None:
        async with http_server(
            lambda path, body, headers: _models() if path.endswith("models") else chat_reply("1")
        ) as url:
            url_box.append(url)
            ready.set()
            await done.wait()

    async def run() -> None:
        box: list[str] = []
        server = asyncio.create_task(serve(box))
        await ready.wait()
        settings = JudgeSettings(engine="openai", model="m", url=box[0])
        judge = build_judge(settings)
        found.append(await asyncio.to_thread(lambda: asyncio.run(judge.ask(["a", "b"]))))
        found.append(await asyncio.to_thread(lambda: asyncio.run(judge.ask(["a", "b"]))))
        await judge.close()
        await judge.close()
        done.set()
        await server

    asyncio.run(run())
    assert [[a.label for a in answers] for answers in found] == [[1, 1], [1, 1]]


def test_preflight_asks_the_address_and_finds_the_only_model() -> None:
    async def run(handler, work):
        async with http_server(handler) as url:
            return await asyncio.to_thread(work, JudgeSettings(engine="openai", url=url))

    assert asyncio.run(run(lambda *_: _models(), served_model)) == "qwen"
    asyncio.run(run(lambda *_: _models(), preflight))
    asyncio.run(run(lambda *_: Reply(404, ""), preflight))
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        asyncio.run(run(lambda *_: Reply(401, ""), preflight))
    with pytest.raises(JudgeError, match=r"judge.model=\.\.\.; it serves qwen, llama"):
        asyncio.run(run(lambda *_: _models("qwen", "llama"), served_model))


def test_preflight_names_an_address_that_cannot_be_reached() -> None:
    with pytest.raises(JudgeError, match=r"judge.url=http://127.0.0.1:\d+/v1 cannot be reached"):
        preflight(JudgeSettings(engine="openai", url=f"http://127.0.0.1:{_free_port()}/v1"))
    with pytest.raises(JudgeError, match=r"needs judge\.url"):
        preflight(JudgeSettings(engine="openai"))
    with pytest.raises(JudgeError, match="is no address"):
        preflight(JudgeSettings(engine="openai", url="localhost:8000"))


def test_reasoned_mode_asks_twice_and_keeps_the_reasoning() -> None:
    def handler(path, body, headers):
        return chat_reply("1") if "structured_outputs" in body else chat_reply("A way is open now.")

    async def run():
        async with http_server(handler) as url:
            judge = build_judge(JudgeSettings(engine="openai", model="m", url=url, mode="reasoned", reason_tokens=64))
            try:
                return await judge.ask(["The door opens."])
            finally:
                await judge.close()

    (found,) = asyncio.run(run())
    assert found.label == 1
    assert found.raw == "A way is open now.\n1"


def _models(*names: str) -> Reply:
    return Reply(200, {"data": [{"id": name} for name in names or ("qwen",)]})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
