"""Labels a second: through the reward server over the engine alone, one token over reasoning, and the judge's start.

Every figure is of the embedded judge on vLLM, asked about real messages. "Directly" is the engine with prompts that were
tokenised beforehand, and as many of them on their way as the annotator keeps: all that the reward server adds (prompts,
tokens, Ray Serve, books, SQLite) counts against it.
"""

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.judge_cost import print_figures, spread
from envs.captions import caption_id
from orchestration.cluster import start_patiently
from reward_server.annotator import Annotator
from reward_server.embedded.corpus import real_messages
from reward_server.judge.engines.base import Completion, Request
from reward_server.judge.engines.vllm_engine import VllmEngine, _sampling  # pyright: ignore[reportPrivateUsage]
from reward_server.judge.judge import PromptedJudge, judge_key, judge_prompt, model_folder
from reward_server.judge.prompts import Chat
from reward_server.settings import AnnotatorSettings, JudgeSettings
from reward_server.store import AnnotationStore
from reward_server.types import Judge, JudgeUnavailableError

LABEL = Request(1, ("0", "1"))
_START_LIMIT_S = 300.0
_LOOK_S = 0.01


class Watched(VllmEngine):
    """The engine, which also notes its tokens, and can be asked with nothing around it."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.seen: list[Completion] = []

    async def complete(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        found = await super().complete(chats, request)
        self.seen += found
        return found

    async def label_sampling(self) -> Any:
        """How vLLM samples a label: constrained to the two, with their probabilities."""
        _, renderer = await self._started()
        return _sampling(renderer, LABEL, self._seed)[0]

    async def token_ids(self, chats: Sequence[Chat]) -> list[list[int]]:
        """The prompts as vLLM gets them."""
        _, renderer = await self._started()
        return renderer.batch_ids(chats)

    async def directly(self, prompts: Sequence[list[int]], sampling: Any, in_flight: int) -> float:
        """Prompts/s of vLLM alone, `in_flight` of them at once, each answered as `sampling` says."""
        return await self._loop.run(self._directly(prompts, sampling, in_flight))

    async def _directly(self, prompts: Sequence[list[int]], sampling: Any, in_flight: int) -> float:
        engine, _ = await self._started()
        rest = iter(prompts)

        async def ask() -> None:
            for prompt in rest:
                async for _ in engine.generate({"prompt_token_ids": prompt}, sampling, f"direct-{next(self._numbers)}"):
                    pass

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(in_flight)))
        return len(prompts) / (time.perf_counter() - began)


def captions() -> Iterator[str]:
    """Messages of real games over and over, each time with another turn behind it: none comes twice, or its label would
    be in the prefix cache but for one block."""
    messages = real_messages()
    random.Random(0).shuffle(messages)
    for turn, message in enumerate(itertools.cycle(messages)):
        yield f"{message} Turn {turn}."


async def through(judge: Judge, texts: Sequence[str], settings: AnnotatorSettings) -> float:
    """Labels/s from the submission of captions until the last label is in a fresh store."""
    with tempfile.TemporaryDirectory() as folder, AnnotationStore(Path(folder) / "annotations.sqlite") as store:
        annotator = Annotator(judge, store, settings)
        began = time.perf_counter()
        annotator.submit([(caption_id(text), text) for text in texts])
        running = asyncio.ensure_future(annotator.run())
        status = annotator.status()
        while status.labelled + status.failed < len(texts) and not running.done():
            await asyncio.sleep(_LOOK_S)
            status = annotator.status()
        seconds = time.perf_counter() - began
        annotator.stop()
        await running
        if status.labelled < len(set(texts)):
            raise RuntimeError(f"{status.labelled} of {len(texts)} captions have a label: {status.last_error}")
        return status.labelled / seconds


async def serve_judge(settings: JudgeSettings) -> tuple[Judge, float]:
    """A client of the judge on Ray Serve, and the seconds from the request for it until its first label."""
    from reward_server.judge import deployment

    began = time.perf_counter()
    deployment.start(settings, num_cpus=0)
    client = deployment.ServeJudge(settings)
    while time.perf_counter() - began < _START_LIMIT_S:
        try:
            await client.ask(["You see here a key."])
            return client, time.perf_counter() - began
        except JudgeUnavailableError:
            await asyncio.sleep(0.1)
    raise RuntimeError(f"the judge did not start within {_START_LIMIT_S:.0f} s: {deployment.status().message}")


async def measure(count: int, rounds: int, settings: AnnotatorSettings) -> dict[str, Any]:
    """All figures; `count` captions in each pass, `rounds` passes of each kind, one kind after the other."""
    chosen = JudgeSettings()
    began = time.perf_counter()
    engine = Watched(model_folder(chosen))
    from vllm import SamplingParams  # after the engine has set vLLM's environment

    prompt, key = judge_prompt(chosen), judge_key(chosen)
    here = PromptedJudge(engine, prompt, key)
    await here.ask(["You see here a key."])
    start_s = time.perf_counter() - began
    served, serve_start_s = await serve_judge(chosen)
    reasoning = JudgeSettings(mode="reasoned")
    thinker = PromptedJudge(
        engine, judge_prompt(reasoning), judge_key(reasoning), reason_tokens=reasoning.reason_tokens
    )
    texts, in_flight = captions(), settings.batch * settings.in_flight
    one_token = await engine.label_sampling()
    in_full = SamplingParams(max_tokens=reasoning.reason_tokens, temperature=0.0, ignore_eos=True, detokenize=False)

    async def alone(asked: Sequence[str], sampling: Any) -> float:
        return await engine.directly(await engine.token_ids([prompt.chat(c) for c in asked]), sampling, in_flight)

    passes: dict[str, tuple[int, Callable[[list[str]], Awaitable[float]]]] = {
        "directly": (count, lambda asked: alone(asked, one_token)),
        "in process": (count, lambda asked: through(here, asked, settings)),
        "Ray Serve": (count, lambda asked: through(served, asked, settings)),
        "reasoned": (count // 4, lambda asked: through(thinker, asked, settings)),
        "reasoned in full": (count // 8, lambda asked: alone(asked, in_full)),
    }
    found: dict[str, list[float]] = {name: [] for name in passes}
    for size, run in passes.values():  # what is computed and compiled once
        await run(list(itertools.islice(texts, min(size, 32))))
    tokens: dict[str, list[Completion]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, (size, run) in passes.items():
            engine.seen = []
            found[name].append(await run(list(itertools.islice(texts, size))))
            tokens[name] += engine.seen
    await here.close()
    return _figures(found, tokens) | {"start_s": start_s, "start_serve_s": serve_start_s, "rounds": found}


def _figures(found: dict[str, list[float]], tokens: dict[str, list[Completion]]) -> dict[str, Any]:
    def ratio(one: str, other: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(found[one], found[other], strict=True)])

    asked = tokens["in process"]
    cached = sum(c.cached_tokens or 0 for c in asked) / max(sum(c.prompt_tokens or 0 for c in asked), 1)
    written = [c.output_tokens or 0 for c in tokens["reasoned"]]
    return {
        **{f"labels/s, {name}": spread(values) for name, values in found.items()},
        "in process over directly": ratio("in process", "directly"),
        "Ray Serve over directly": ratio("Ray Serve", "directly"),
        "one token over reasoned": ratio("in process", "reasoned"),
        "one token over reasoned in full": ratio("in process", "reasoned in full"),
        "prefix cache hit rate": cached,
        "tokens written, reasoned, mean of both questions": sum(written) / max(len(written), 1),
    }


def main(folder: Path, *arguments: str) -> None:
    """`--captions N` in each pass (1024), `--rounds N` (5), `--batch N`, `--in-flight N` (the annotator's defaults).
    Prints a table, writes `labels.json`."""
    import logging

    import ray

    parser = argparse.ArgumentParser(prog="labels", description=main.__doc__)
    parser.add_argument("--captions", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=AnnotatorSettings.batch)
    parser.add_argument("--in-flight", type=int, default=AnnotatorSettings.in_flight)
    options = parser.parse_args(arguments)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    start_patiently(lambda: ray.init("local", num_cpus=2, **quiet))
    try:
        settings = AnnotatorSettings(batch=options.batch, in_flight=options.in_flight)
        report = asyncio.run(measure(options.captions, options.rounds, settings))
    finally:
        ray.shutdown()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").write_text(json.dumps(report, indent=2))
    print_figures(report)
