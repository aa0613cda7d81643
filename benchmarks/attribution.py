"""Which step earned what: contributions of a progress estimator, and other ways of giving credit, against the truth.

The truth is TextWorld's planner's: how much shorter each command made the commands still to go. Episodes come from players
that follow the planner but for a share of random admissible commands, drawn anew for each; so some win within the steps
that they have, and some do not. The estimator is told which, and nothing of steps. It is then asked about games that it has
not seen.

    python -m benchmarks attribution [--world w2-o3-q4] [--episodes 600] [--seeds 3] [--model small]
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from agents.language.episode import LanguageEpisode
    from agents.language.template import ChatTemplate
    from envs.text import TextInfo
    from envs.textworld.env import TextWorldEnv
    from learner.language.model import LanguageModel
    from orchestration.config import Config

Floats = NDArray[np.float64]
_BATCH = 16
_TOKENS = 8192
"""Read at once."""
_PLAYERS = 500_000
"""Seeds of those who play held-out games begin here."""


@dataclass(frozen=True)
class Row:
    """One way of giving credit, with one seed."""

    name: str
    seed: int
    within: float
    """Spearman's rank correlation with the truth, the mean over held-out episodes; 0 where all turns are paid alike."""
    pooled: float
    """The same over all of their turns."""
    auc: float
    """Probability that a turn that made progress is paid more than one that made none, or the opposite, within its episode."""
    explained: float | None
    """Share of the variance of outcomes that its sums explain; of estimators."""


class Player:
    """Follows the planner; a share of its commands are random admissible ones."""

    def __init__(self, env: "TextWorldEnv", seed: int) -> None:
        self._env = env
        self._random = random.Random(seed)
        self._share = self._random.uniform(0.2, 1.0)

    def __call__(self, info: "TextInfo") -> str | None:
        admissible = info.get("admissible", ())
        plan = self._env.plan
        if plan and self._random.random() >= self._share:
            return plan[0]
        return self._random.choice(admissible) if admissible else None


def main(folder: Path, *options: str) -> None:
    """Prints a table, and writes `attribution.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks attribution", description=__doc__)
    parser.add_argument("--world", default="w2-o3-q4")
    parser.add_argument("--model", default="small")
    parser.add_argument("--episodes", type=int, default=600, help="that the estimator learns from")
    parser.add_argument("--test", type=int, default=150, help="episodes of other games")
    parser.add_argument("--turns", type=int, default=16, help="that an episode has at most")
    parser.add_argument("--steps", type=int, default=2000, help="gradient steps of the estimator")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(options)
    rows: list[Row] = []
    for seed in range(chosen.seeds):
        for row in study(chosen, seed):
            rows.append(row)
            print(
                f"seed {seed}: {row.name}: within {row.within:.2f}, pooled {row.pooled:.2f}, AUC {row.auc:.2f}",
                flush=True,
            )
        (folder / "attribution.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))


def study(chosen: argparse.Namespace, seed: int) -> Iterator[Row]:
    """Plays, fits, and compares, with one seed."""
    import torch

    from agents.language.template import ChatTemplate, load_tokenizer
    from learner.language.model import load_model
    from orchestration.configuration import load_config
    from orchestration.language.models import acting_model

    torch.manual_seed(seed)
    config = load_config(
        "textworld_ppo", [f"env.id=textworld/{chosen.world}", f"agent.model={chosen.model}", "agent.max_new_tokens=64"]
    )
    name = acting_model(config)
    template = ChatTemplate(load_tokenizer(name), name)
    learnt = play(chosen, config, template, split="train", first=1000 * seed, count=chosen.episodes)
    held = play(chosen, config, template, split="test", first=_PLAYERS + 1000 * seed, count=chosen.test)
    won = [statistics.fmean(bool(e.success) for e in each) for each in (learnt, held)]
    print(
        f"seed {seed}: {len(learnt)} episodes to learn from, {won[0]:.2f} won; {len(held)} held out, {won[1]:.2f} won, "
        f"{sum(e.length for e in held)} turns",
        flush=True,
    )
    device = torch.device("cpu")
    trained = load_model(name, device=device)
    untrained = load_model(name, device=device)
    for parameter in untrained.network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    truth = [_truth(episode) for episode in held]
    for label, paid in _plain(held).items():
        yield _row(label, seed, truth, paid, None)
    for label, model in (("spa, the policy's hidden states", trained), ("spa, an untrained backbone", untrained)):
        paid, explained = contributions(learnt, held, model, chosen, seed)
        yield _row(label, seed, truth, paid, explained)


def play(
    chosen: argparse.Namespace, config: "Config", template: "ChatTemplate", *, split: str, first: int, count: int
) -> "list[LanguageEpisode]":
    """So many episodes of the games of a split, by players with seeds from `first` on."""
    from agents.language.scripted import play_scripts
    from envs.registry import make_text

    options = {**config.env.options, "split": split, "reward": "dense", "max_episode_steps": chosen.turns}
    env: Any = make_text(config.env.id, **options)
    scripts = [(seed, Player(env, seed)) for seed in range(first, first + count)]
    return play_scripts(lambda: env, template, config.agent, scripts)


def _truth(episode: "LanguageEpisode") -> Floats:
    """[T]: 1 where a command made the way to the end shorter, −1 longer, 0 neither: what `reward=dense` pays."""
    return np.array([turn.reward for turn in episode.turns])


def _plain(episodes: "Sequence[LanguageEpisode]") -> dict[str, list[Floats]]:
    """What ways of giving credit that learn nothing pay the turns."""
    return {
        "outcome: all at the end": [_at_end(e) for e in episodes],
        "grounding alone": [np.array([float(turn.grounded) for turn in e.turns]) for e in episodes],
        "novelty: 1 / how often the text came": [
            np.array([1.0 / max(turn.caption_count, 1) for turn in e.turns]) for e in episodes
        ],
    }


def _at_end(episode: "LanguageEpisode") -> Floats:
    paid = np.zeros(episode.length)
    paid[-1] = float(bool(episode.success))
    return paid


def contributions(
    learnt: "Sequence[LanguageEpisode]", held: "Sequence[LanguageEpisode]", model: "LanguageModel",
    chosen: argparse.Namespace, seed: int,
) -> tuple[list[Floats], float]:  # fmt: skip
    """ĉ of each turn of the held-out episodes, by an estimator that learnt from others; and what its sums explain."""
    import torch

    from learner.credit.calibration import calibrate
    from learner.credit.estimator import ProgressEstimator
    from learner.credit.replay import EpisodeFeatures
    from learner.credit.settings import CreditSettings
    from learner.language.model import width_of

    settings = replace(CreditSettings(), holdout=0.0, replay_turns=1 << 20, publish_every=chosen.steps)
    width = width_of(model.network)
    estimator = ProgressEstimator(settings, width, seed=seed, device=torch.device("cpu"))
    for episode, features in zip(learnt, _features(learnt, model), strict=True):
        estimator.observe(EpisodeFeatures(features.half(), 1.0, float(bool(episode.success)), 0))
    if not estimator.ready:
        raise SystemExit("too few episodes of one outcome: give more --episodes, or other --turns")
    estimator.learn(chosen.steps)
    paid = [estimator.contributions(features.half().float())[0] for features in _features(held, model)]
    sums = np.array([each.sum() for each in paid])
    outcome = np.array([float(bool(e.success)) for e in held])
    return paid, calibrate(sums, outcome).explained


def _features(episodes: "Sequence[LanguageEpisode]", model: "LanguageModel") -> "Iterator[torch.Tensor]":
    """[T, H] of each: hidden states at the last token of each turn's answer."""

    import torch

    from learner.credit.features import turn_features
    from learner.language.batch import pack
    from learner.language.episodes import episode_tokens

    for first in range(0, len(episodes), _BATCH):
        some = episodes[first : first + _BATCH]
        batch = pack([episode_tokens(e, model.context) for e in some])
        with torch.no_grad():
            features = turn_features(model.hidden, batch, _TOKENS)
        yield from features.split([e.length for e in some])


# Measures.


def ranks(x: Floats) -> Floats:
    """From 1, ties share the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation; 0 where one of the two says nothing (Spearman 1904)."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def auc(paid: Floats, progress: NDArray[np.bool_]) -> float | None:
    """Probability that a turn with progress is paid more than one without, ties half (Mann and Whitney 1947)."""
    ahead, other = paid[progress], paid[~progress]
    if not len(ahead) or not len(other):
        return None
    above = (ahead[:, None] > other).mean() + 0.5 * (ahead[:, None] == other).mean()
    return float(above)


def _row(name: str, seed: int, truth: Sequence[Floats], paid: Sequence[Floats], explained: float | None) -> Row:
    pairs = [(t, p) for t, p in zip(truth, paid, strict=True) if len(set(t.tolist())) > 1]
    areas = [area for t, p in pairs if (area := auc(p, t > 0)) is not None]
    return Row(
        name=name,
        seed=seed,
        within=statistics.fmean(spearman(p, t) for t, p in pairs),
        pooled=spearman(np.concatenate(list(paid)), np.concatenate(list(truth))),
        auc=statistics.fmean(areas),
        explained=explained,
    )


def table(rows: Sequence[Row]) -> str:
    """Means over the seeds, and each seed."""
    lines = [
        "| credit | rank correlation within episodes, each seed | mean | over all turns | AUC | outcomes explained |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.name for row in rows):
        same = [row for row in rows if row.name == name]
        within = [row.within for row in same]
        known = [row.explained for row in same if row.explained is not None]
        lines.append(
            f"| {name} | {', '.join(f'{x:.2f}' for x in within)} | {statistics.fmean(within):.2f} | "
            f"{statistics.fmean(row.pooled for row in same):.2f} | {statistics.fmean(row.auc for row in same):.2f} | "
            f"{f'{statistics.fmean(known):.2f}' if known else ''} |"
        )
    return "\n".join(lines)
