"""The benchmarks of labels, of what annotation costs, and of memory: their arithmetic, and the judge that stands elsewhere."""

import asyncio
import itertools
import os
import subprocess
import sys
import time

import pytest

from benchmarks import judge_cost, labels, memory
from reward_server.judge import build_judge
from reward_server.settings import AnnotatorSettings, JudgeSettings


def test_the_remote_judge_answers_by_its_rule_after_its_latency() -> None:
    async def ask(url: str):
        judge = build_judge(JudgeSettings(engine="openai", url=url, model="elsewhere"))
        began = time.monotonic()
        found = await judge.ask(["You see here a key.", "It's a wall.", "You kill the newt!"])
        await judge.close()
        return [answer.label for answer in found], time.monotonic() - began

    with judge_cost.remote_judge(0.1) as judge:
        found, seconds = asyncio.run(ask(judge.url))
        assert judge.cpu_s > 0.0
    assert found == [1, 0, 1]
    assert seconds >= 0.1
    assert not judge.process.is_running()


def test_labels_through_the_annotator_are_counted_in_a_fresh_store() -> None:
    async def measured(url: str) -> float:
        judge = build_judge(JudgeSettings(engine="openai", url=url, model="elsewhere"))
        settings = AnnotatorSettings(batch=8, in_flight=2)
        rate = await labels.through(judge, list(itertools.islice(labels.captions(), 32)), settings)
        await judge.close()
        return rate

    with judge_cost.remote_judge(0.05) as judge:
        # Two rounds of sixteen at once take 0.05 s each at least.
        assert 1.0 < asyncio.run(measured(judge.url)) < 32 / 0.1


def test_no_caption_of_the_benchmark_comes_twice() -> None:
    texts = list(itertools.islice(labels.captions(), 5000))
    assert len(set(texts)) == len(texts)


def test_growth_is_that_after_warm_up() -> None:
    assert memory.growth([1.0] * 20 + [100.0] * 80) == 0.0
    assert memory.growth([100.0] * 60 + [110.0] * 40) == pytest.approx(10.0)
    assert memory.growth([5.0]) == 0.0


def test_processes_are_sampled_by_role_and_their_time_outlives_them() -> None:
    work = "import sys, time; x = bytearray(50_000_000)\nwhile time.process_time() < 0.3: pass\ntime.sleep(0.4)"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "EngineCore"])
    with memory.Sampler(0.1, without=[bystander.pid]) as sampler:
        subprocess.run([sys.executable, "-c", work, "ray::RolloutWorker"], check=True, env={**os.environ})
        time.sleep(0.3)
    bystander.kill()
    bystander.wait()
    largest = max(sampler.samples, key=lambda sample: sample.total_mb)
    assert largest.memory_mb["actors"] > 50.0 and memory.JUDGE not in largest.memory_mb
    assert "actors" not in sampler.samples[-1].memory_mb
    assert sampler.samples[-1].cpu_s["actors"] > 0.2


def test_the_judges_memory_is_not_in_the_total() -> None:
    assert memory.Sample(0.0, {"learner": 3.0, memory.JUDGE: 5.0}, {}).total_mb == 3.0
