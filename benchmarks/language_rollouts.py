"""Language-model rollouts: tokens/s beside the same engine kept full by itself, and asynchronous beside taking turns.

The engine alone is asked the very prompts of the rollouts, for answers of the very lengths, with as many at once. Both take
turns on one engine. Asynchronous against synchronous: whole runs with `actors.in_flight` 2 and 1, seconds for each update.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.language.engines.base import Generator, Sampling
from agents.language.episode import LanguageEpisode
from agents.language.rollout import LanguageRollout


@dataclass(frozen=True)
class Rate:
    """Sampled tokens/s of each repeat."""

    rollouts: tuple[float, ...]
    alone: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbouring repeats."""
        return statistics.median(a / b for a, b in zip(self.rollouts, self.alone, strict=True))


def main(folder: Path, *options: str) -> None:
    """Prints both and writes `language_rollouts.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks language_rollouts", description=__doc__)
    parser.add_argument("--preset", default="textworld_ppo")
    parser.add_argument("--model", default="small")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--episodes", type=int, default=128, help="of each repeat (default 128)")
    parser.add_argument("--repeats", type=int, default=3, help="(default 3)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (default 120; 0: no runs)")
    parser.add_argument("keys", nargs="*", help="configuration, key=value")
    given = parser.parse_args(options)
    keys = [f"agent.model={given.model}", f"agent.engine={given.engine}", *given.keys]
    rate = asyncio.run(_rates(given.preset, keys, given.episodes, given.repeats))
    print(f"rollouts {_shown(rate.rollouts)} tokens/s, engine alone {_shown(rate.alone)}, ratio {rate.ratio:.2f}")
    found: dict[str, Any] = {"rollouts": rate.rollouts, "alone": rate.alone, "ratio": rate.ratio}
    if given.seconds:
        turns, ahead = (_update_s(folder, given.preset, keys, n, given.seconds) for n in (1, 2))
        found |= {"synchronous_update_s": turns, "asynchronous_update_s": ahead, "speedup": turns / ahead}
        print(
            f"an update takes {turns:.2f} s in turns, {ahead:.2f} s asynchronously: {turns / ahead:.2f} times as fast"
        )
    (folder / "language_rollouts.json").write_text(json.dumps(found, indent=2))


async def _rates(preset: str, keys: list[str], episodes: int, repeats: int) -> Rate:
    from orchestration.configuration import load_config
    from orchestration.language.models import acting_model
    from orchestration.language.parts import build_generator, build_language_rollout, build_template

    config = load_config(preset, keys)
    model = acting_model(config)
    template = build_template(model)
    generator = build_generator(config, model, template, 0, 0)
    rollout = build_language_rollout(config, generator, template, threads=True)
    await generator.start()
    groups = -(-episodes // config.agent.group_size)
    await _play(rollout, range(groups))  # games are made, the engine is warm
    played: list[float] = []
    alone: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = await _play(rollout, range(groups))
        tokens = sum(episode.output_tokens for episode in found)
        played.append(tokens / (time.perf_counter() - began))
        alone.append(await _alone(generator, found, config.actors.envs, config.agent.temperature))
    rollout.close()
    await generator.close()
    return Rate(tuple(played), tuple(alone))


async def _play(rollout: LanguageRollout, groups: Sequence[int]) -> list[LanguageEpisode]:
    results = await asyncio.gather(*(rollout.play_group(group) for group in groups))
    return [episode for result in results for episode in result.episodes]


async def _alone(generator: Generator, episodes: Sequence[LanguageEpisode], together: int, temperature: float) -> float:
    """Tokens/s of the engine with the turns of `episodes`, `together` at once. An episode's turns are asked in their order, so
    that the prefix cache serves it as it serves the rollouts, and without seeds, as theirs are."""
    room = asyncio.Semaphore(together)
    tokens = 0

    async def one(episode: LanguageEpisode) -> None:
        nonlocal tokens
        async with room:
            for number, turn in enumerate(episode.turns):
                sampling = Sampling(len(turn.output), temperature, None)
                answer = await generator.generate(episode.prompt_of(number), sampling)
                tokens += len(answer.ids)

    began = time.perf_counter()
    await asyncio.gather(*(one(episode) for episode in episodes))
    return tokens / (time.perf_counter() - began)


def _update_s(folder: Path, preset: str, keys: list[str], in_flight: int, seconds: float) -> float:
    """Seconds for each update of a run, its start left out."""
    name = f"in_flight_{in_flight}"
    command = [sys.executable, "-m", "orchestration.cli.main", "train", preset, *keys, f"actors.in_flight={in_flight}"]
    command += [f"run.dir={folder}", f"run.name={name}", f"train.max_wall_s={seconds}", "--plain", "--overwrite"]
    subprocess.run([*command, "log.interval_s=1"], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    points = [(line["time"]["wall_s"], line["metrics"]["policy/version"]) for line in lines]
    # The first updates wait for engines to start and for games to be made.
    steady = [point for point in points if point[1] >= 2]
    (t0, v0), (t1, v1) = steady[0], steady[-1]
    return (t1 - t0) / max(v1 - v0, 1)


def _shown(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
