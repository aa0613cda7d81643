"""Evaluation of language models: held-out episodes, one of each, side by side on one engine.

Invariant: which episodes are played depends on world, split, seed and count alone, and no training played one of them.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agents.language.episode import LanguageEpisode
from agents.language.rollout import GroupResult, LanguageRollout
from envs.vector import EpisodeEnd
from learner.language.checkpoint import model_folder
from orchestration.config import Config
from orchestration.errors import UsageError
from orchestration.language.games import Progress
from orchestration.language.parts import build_generator, build_template
from orchestration.language.tasks import Tasks, games_of
from orchestration.seeds import derive_seed, held_out_seed

HELD_OUT = {"textworld": "test", "alfworld": "unseen"}
"""The split that evaluations play, by the prefix of the world."""


def held_out(config: Config, split: str | None, seed: int, episodes: int = 1) -> tuple[Tasks, Callable[[int], int]]:
    """The worlds of an evaluation (those of the mix in turns), and what they are reset with for each episode.

    Where training has a split, the evaluation of each world has `split`, or else the family's own of `HELD_OUT`, and plays
    its games from the first on; of training's own split from number `env.tasks` on, which training does not play (where
    that is null, training may play them all). Without, seeds are held out as for networks. Raises `UsageError` for a split
    of a world without, and where a split has fewer games than `episodes` would play of it.
    """
    trained = config.env.tasks or 0
    env = replace(config.env, curriculum={}, tasks=None)
    config = replace(config, env=env)
    worlds = Tasks(config).worlds
    options = {world: _options(world, env.options, split) for world in worlds}
    # A world that has splits trains on `train` where it is told none.
    first = {w: trained if options[w].get("split") == env.options.get("split", "train") else 0 for w in worlds}
    for world in worlds:
        _check_games(world, options[world], -(-episodes // len(worlds)), first[world])
    tasks = Tasks(config, options.__getitem__)

    def seed_of(episode: int) -> int:
        number, world = episode // len(worlds), worlds[episode % len(worlds)]
        task = first[world] + number if "split" in options[world] else held_out_seed(seed, "eval", number)
        return tasks.seed_in(world, task)

    return tasks, seed_of


def _options(world: str, given: Mapping[str, Any], split: str | None) -> dict[str, Any]:
    """Those of training, but for the split; `split` is among them where games of one are played."""
    family = world.partition("/")[0]
    own = HELD_OUT.get(family)
    if own is None:
        if split is not None:
            raise UsageError(f"--split={split}: {world} has no splits")
        return dict(given)
    options = dict(given)
    if split is not None or "split" in given or family == "alfworld":
        options["split"] = split or own
        if options["split"] != "train":
            options.pop("domain_randomization", None)  # of training alone
    return options


def _check_games(world: str, options: Mapping[str, Any], episodes: int, first: int) -> None:
    """A game that is played twice is no second sample."""
    games = games_of(world, options)
    if games is not None and first + episodes > games:
        left = f"{games} games" + (f", the first {first} of which are trained on (env.tasks)" if first else "")
        raise UsageError(
            f"{episodes} episodes of {world}: its split {options['split']} has {left}; play as many with --episodes"
        )


def play_held_out(
    checkpoint: Path,
    config: Config,
    *,
    episodes: int,
    seed: int,
    split: str | None,
    temperature: float | None,
    progress: Progress | None = None,
) -> list[EpisodeEnd]:
    """Plays the episodes with the model of a checkpoint; in order of their numbers. Raises RuntimeError where a world breaks."""
    tasks, seed_of = held_out(config, split, seed, episodes)
    agent = replace(
        config.agent, group_size=1, temperature=config.agent.temperature if temperature is None else temperature
    )
    config = replace(config, runtime="serial", agent=agent)
    torch.set_num_threads(config.learner.threads)
    tasks.make_games(map(seed_of, range(episodes)), progress)
    model = str(model_folder(checkpoint))
    template = build_template(model)
    rollout = LanguageRollout(
        tasks.make_env,
        build_generator(config, model, template, 0, 0),
        template,
        agent,
        seed_of=seed_of,
        sampling_seed_of=lambda group, _, turn: derive_seed(seed, "eval answers", group, turn),
        episodes=min(config.actors.envs, episodes),
        name="eval",
    )
    try:
        results = asyncio.run(_play(rollout, episodes))
    finally:
        rollout.close()
    return [_end(result) for result in results]


async def _play(rollout: LanguageRollout, episodes: int) -> list[GroupResult]:
    try:
        await rollout.generator.start()
        return list(await asyncio.gather(*(rollout.play_group(group) for group in range(episodes))))
    finally:
        await rollout.generator.close()


def _end(result: GroupResult) -> EpisodeEnd:
    if not result.episodes:
        raise RuntimeError(f"the world of episode {result.group} raised {result.failures[-1].error}")
    (episode,) = result.episodes
    return EpisodeEnd(
        env_index=episode.group,
        episode_index=0,
        seeds={"seed": str(episode.seed)},
        episode_return=episode.episode_return,
        length=episode.length,
        success=episode.success,
        metrics={**episode.metrics, **_answers(episode)},
        terminated=episode.terminated,
    )


def _answers(episode: LanguageEpisode) -> dict[str, float]:
    return {
        "grounded_share": sum(turn.grounded for turn in episode.turns) / episode.length,
        "unreadable_share": episode.failures / episode.length,
        "output_tokens": float(episode.output_tokens),
        "context_full": float(episode.cut == "context"),
    }
