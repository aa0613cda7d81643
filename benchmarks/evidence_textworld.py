"""Language models in TextWorld: random play, fine-tuning on k demonstrations, and RL from there with each algorithm, on
games that none of them saw: split `test` (seeds 1 to 100) and, as these are few, games of the split `train` beyond those that RL
plays. Every step is a command of the project's own.

    python -m benchmarks evidence_textworld --folder DIR [--seeds 3] [--world w2-o3-q4] [--demonstrations 60]
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ALGORITHMS = ("ppo", "rloo", "grpo", "reinforce++")
PRESETS = {"reinforce++": "reinforce"}
"""Where the preset's name is not `textworld_<algorithm>`."""


@dataclass(frozen=True)
class Result:
    """One evaluation."""

    name: str
    """`random`, `sft`, or an algorithm."""
    seed: int
    demonstrations: int
    train_episodes: int
    """Of RL; 0 without."""
    success: float
    """Share of the test games that were won."""
    low: float
    high: float
    """95 %, Wilson."""
    length: float
    failures: float
    """Share of turns whose answer could not be read."""
    grounded: float
    train_s: float
    command: str
    fresh: float | None = None
    """Share that was won of the games of the split `train` that RL does not play."""


def main(folder: Path, *options: str) -> None:
    """Runs all, prints a table, and writes `evidence_textworld.json` after each step: what is there is not run again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence_textworld", description=__doc__)
    parser.add_argument("--world", default="w2-o3-q4")
    parser.add_argument("--model", default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--demonstrations", type=int, default=60)
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--games", type=int, default=100, help="of the test split (default 100)")
    parser.add_argument(
        "--fresh", type=int, default=200, help="games of the train split that RL does not play (default 200)"
    )
    parser.add_argument("--episodes", type=int, default=1600, help="of RL for each seed and algorithm (default 1600)")
    parser.add_argument("--temperature", type=float, default=0.4, help="of answers in evaluations (default 0.4)")
    parser.add_argument("--set", action="append", default=[], help="key=value for both commands; may be repeated")
    parser.add_argument("--sft", action="append", default=[], help="key=value for `yendor sft`")
    parser.add_argument("--rl", action="append", default=[], help="key=value for `yendor train`")
    Evidence(folder, parser.parse_args(options)).run()


class Evidence:
    """What was asked for, and what is known already."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        self.file = folder / "evidence_textworld.json"
        known: dict[str, Any] = {"given": self._settings, "results": []}
        if self.file.is_file():
            known = json.loads(self.file.read_text())
        if known["given"] != self._settings:
            raise SystemExit(f"{self.file} holds results of other settings ({known['given']}): give another --folder")
        self.results = [Result(**row) for row in known["results"]]
        if given.fresh and self._config("fresh", 0).env.tasks is None:
            raise SystemExit("env.tasks=null: RL may play all games of the train split, none is fresh; give --fresh 0")

    @property
    def _settings(self) -> dict[str, Any]:
        """What decides each result."""
        return {name: value for name, value in vars(self.given).items() if name not in ("seeds", "algorithms")}

    def run(self) -> None:
        given = self.given
        for seed in range(given.seeds):
            self._once("random", seed, lambda seed=seed: self._random(seed))
            sft = f"sft-{given.demonstrations}-seed{seed}"
            self._once("sft", seed, lambda seed=seed, sft=sft: self._sft(sft, seed))
            for algorithm in given.algorithms.split(","):
                self._once(
                    algorithm, seed, lambda seed=seed, sft=sft, algorithm=algorithm: self._rl(algorithm, sft, seed)
                )
        print(table(self.results))

    def _once(self, name: str, seed: int, make: Any) -> None:
        if any(r.name == name and r.seed == seed for r in self.results):
            return
        result: Result = make()
        self.results.append(result)
        told = {"given": self._settings, "results": [asdict(r) for r in self.results]}
        self.file.write_text(json.dumps(told, indent=2))
        print(
            f"{name}, seed {seed}: {result.success:.2f} [{result.low:.2f}, {result.high:.2f}], fresh games "
            f"{'not played' if result.fresh is None else f'{result.fresh:.2f}'}, {result.train_s:.0f} s"
        )

    def _random(self, seed: int) -> Result:
        from agents.language.scripted import RandomScript, play_scripts
        from agents.language.template import ChatTemplate, load_tokenizer
        from envs.registry import make_text
        from orchestration.evaluate import wilson
        from orchestration.language.models import acting_model

        config = self._config("random", seed)
        template = ChatTemplate(load_tokenizer(acting_model(config)), self.given.model)

        def play(split: str, first: int, games: int) -> list[Any]:
            scripts = [(game, RandomScript(1000 * seed + game)) for game in range(first, first + games)]
            options = {**config.env.options, "split": split}
            return play_scripts(lambda: make_text(config.env.id, **options), template, config.agent, scripts)

        episodes, fresh = play("test", 0, self.given.games), play("train", config.env.tasks or 0, self.given.fresh)
        won = sum(bool(episode.success) for episode in episodes)
        low, high = wilson(won, len(episodes))
        length = sum(episode.length for episode in episodes) / len(episodes)
        share = sum(bool(episode.success) for episode in fresh) / len(fresh) if fresh else None
        return Result("random", seed, 0, 0, won / len(episodes), low, high, length, 0.0, 1.0, 0.0, "", share)

    def _sft(self, name: str, seed: int) -> Result:
        words = ["sft", *self._words(name, seed), f"sft.demonstrations={self.given.demonstrations}", *self.given.sft]
        seconds = self._yendor(name, words)
        return self._trained("sft", seed, name, 0, seconds, words)

    def _rl(self, algorithm: str, sft: str, seed: int) -> Result:
        name = f"{algorithm.replace('++', '_pp')}-seed{seed}"
        words = [
            "train",
            *self._words(name, seed, str(self.folder / sft), algorithm),
            f"train.episodes={self.given.episodes + self._demonstrations_cost(seed, sft)}",
            "train.max_wall_s=null",
            *self.given.rl,
        ]
        seconds = self._yendor(name, words, "--plain")
        summary = json.loads((self.folder / name / "summary.json").read_text())
        return self._trained(algorithm, seed, name, summary["episodes"], seconds, words)

    def _demonstrations_cost(self, seed: int, sft: str) -> int:
        """Episodes that the demonstrations take of `train.episodes`."""
        from orchestration.language.models import demonstrations_cost

        return math.ceil(demonstrations_cost(self._config(sft, seed, str(self.folder / sft))))

    def _words(self, name: str, seed: int, model: str | None = None, algorithm: str = "ppo") -> list[str]:
        return [
            f"textworld_{PRESETS.get(algorithm, algorithm)}",
            f"env.id=textworld/{self.given.world}",
            f"agent.model={model or self.given.model}",
            f"run.name={name}",
            f"run.seed={seed}",
            f"run.dir={self.folder}",
            *self.given.set,
        ]

    def _config(self, name: str, seed: int, model: str | None = None) -> Any:
        from orchestration.configuration import load_config

        preset, *overrides = self._words(name, seed, model)
        return load_config(preset, overrides)

    def _yendor(self, name: str, words: Sequence[str], *flags: str) -> float:
        if (self.folder / name / "summary.json").is_file():
            flags = (*flags, "--overwrite")
        began = time.monotonic()
        command = [sys.executable, "-m", "orchestration.cli.main", *words, *flags]
        with (self.folder / f"{name}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        return time.monotonic() - began

    def _evaluate(self, name: str, seed: int, split: str = "test", games: int | None = None) -> dict[str, Any]:
        """What `yendor eval` says of a run."""
        words = ["eval", str(self.folder / name), "--json", f"--seed={seed}", f"--split={split}"]
        words += [f"--episodes={games or self.given.games}", f"--temperature={self.given.temperature}"]
        command = [sys.executable, "-m", "orchestration.cli.main", *words]
        with (self.folder / f"{name}-eval.log").open("a") as log:
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=log, text=True)
        return json.loads(done.stdout)

    def _trained(self, kind: str, seed: int, run: str, episodes: int, train_s: float, words: Sequence[str]) -> Result:
        found, games = self._evaluate(run, seed), self.given.fresh
        return Result(
            name=kind,
            seed=seed,
            demonstrations=self.given.demonstrations,
            train_episodes=episodes,
            success=found["success_rate"],
            low=found["success_low"],
            high=found["success_high"],
            length=found["length_mean"],
            failures=found["metrics"]["unreadable_share"],
            grounded=found["metrics"]["grounded_share"],
            train_s=train_s,
            command=shown(words),
            fresh=self._evaluate(run, seed, "train", games)["success_rate"] if games else None,
        )


def table(results: Sequence[Result]) -> str:
    """Success by name over the seeds, as Markdown."""
    lines = [
        "| | success, mean over seeds | each seed | on fresh games | episodes of RL | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result.name for result in results):
        mine = [result for result in results if result.name == name]
        success = [result.success for result in mine]
        lines.append(
            f"| {name} | {statistics.fmean(success):.3f} | {', '.join(f'{s:.2f}' for s in success)} | "
            f"{', '.join(f'{r.fresh:.2f}' for r in mine if r.fresh is not None)} | "
            f"{statistics.fmean(r.train_episodes for r in mine):,.0f} | {statistics.fmean(r.train_s for r in mine):,.0f} |"
        )
    commands = [result.command for result in results if result.seed == 0 and result.command]
    return "\n".join([*lines, *commands])


def shown(words: Sequence[str]) -> str:
    return "yendor " + " ".join(words)
