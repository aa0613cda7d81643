"""A real vLLM engine: answers as `transformers` does, dies and comes back, leaves nothing behind."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from reward_server.embedded.corpus import real_messages
from reward_server.judge.engines.base import Request
from reward_server.judge.engines.transformers_engine import TransformersEngine
from reward_server.judge.engines.vllm_engine import VllmEngine
from reward_server.types import JudgeError, JudgeUnavailableError
from tests.judge_support import prompt, tiny_judge
from tests.processes import engines

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CAPTIONS = real_messages()[::40]
CHOOSE = Request(1, ("0", "1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    started = VllmEngine(str(folder), dtype="float32", max_model_len=1024)
    asyncio.run(started.start())
    yield started
    asyncio.run(started.close())
    asyncio.run(started.close())
    assert not _cores()


def test_vllm_and_transformers_agree(folder: Path, engine: VllmEngine) -> None:
    chats = [prompt().chat(c) for c in CAPTIONS]
    served = asyncio.run(engine.complete(chats, CHOOSE))
    by_hand = TransformersEngine(str(folder), dtype="float32")
    expected = asyncio.run(by_hand.complete(chats, CHOOSE))
    asyncio.run(by_hand.close())
    for one, other in zip(served, expected, strict=True):
        assert one.probabilities is not None
        assert other.probabilities is not None
        assert one.probabilities["1"] == pytest.approx(other.probabilities["1"], abs=1e-4)
        assert one.prompt_tokens == other.prompt_tokens
        if abs(other.probabilities["1"] - 0.5) > 1e-3:
            assert one.text == other.text


def test_the_shared_prefix_is_computed_once(engine: VllmEngine) -> None:
    found = asyncio.run(engine.complete([prompt().chat(f"You see here {n} apples.") for n in range(2, 12)], CHOOSE))
    assert all((c.cached_tokens or 0) > 0.8 * (c.prompt_tokens or 0) for c in found)


def test_free_text_ends_at_its_bound(engine: VllmEngine) -> None:
    (found,) = asyncio.run(engine.complete([prompt("reasoned").chat("The door opens.")], Request(6, None, 0.7)))
    assert found.probabilities is None
    assert 1 <= (found.output_tokens or 0) <= 6


def test_a_prompt_that_is_too_long_is_named(engine: VllmEngine) -> None:
    with pytest.raises(JudgeError, match=r"judge\.max_model_len=1024"):
        asyncio.run(engine.complete([prompt().chat("A")], Request(1000)))


def test_an_engine_that_was_killed_is_brought_back_by_the_next_check(engine: VllmEngine) -> None:
    asyncio.run(engine.check())
    (core,) = _cores()
    core.suspend()  # so that the question is on its way when the engine dies
    threading.Timer(1.0, os.kill, (core.pid, signal.SIGKILL)).start()
    with pytest.raises(JudgeUnavailableError, match="died"):
        asyncio.run(engine.complete([prompt().chat("The door opens.")], CHOOSE))
    asyncio.run(engine.check())
    (found,) = asyncio.run(engine.complete([prompt().chat("The door opens.")], CHOOSE))
    assert found.text in ("0", "1")
    assert [c.pid for c in _cores()] != [core.pid]


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    broken = VllmEngine(str(tmp_path))
    with pytest.raises(JudgeError, match="cannot be loaded"):
        asyncio.run(broken.complete([prompt().chat("x")], CHOOSE))
    with pytest.raises(JudgeError, match="cannot be loaded"):
        asyncio.run(broken.check())
    asyncio.run(broken.close())


def _cores() -> list[psutil.Process]:
    return engines(psutil.Process().children(recursive=True))
