"""Evaluation of language models: held-out episodes, one of each, side by side on one engine.

Invariant: which episodes are played depends on world, split, seed and count alone, and no training played one of them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from agents.language.episode import LanguageEpisode
from agents.language.rollout import GroupResult, LanguageRollout
from envs.vector import EpisodeEnd
from learner.language.checkpoint import model_folder
from orchestration.config import Config
from orchestration.errors import UsageError
from orchestration.language.parts import build_generator, build_template
from orchestration.language.tasks import Tasks
from orchestration.seeds import derive_seed, held_out_seed

HELD_OUT = {"textworld": "test", "alfworld": "unseen"}
"""The split that evaluations play, by the prefix of the world."""


def held_out(config: Config, split: str | None, seed: int) -> tuple[Tasks, Callable[[int], int]]:
    """The worlds of an evaluation (those of the mix in turns), and what they are reset with for each episode.

    Where training has a split, the evaluation has `split`, or else the family's own of `HELD_OUT`, and plays its games
    from the first on. Without, seeds are held out as for networks. Raises `UsageError` for a split of a world without.
    """
    tasks = Tasks(replace(config, env=replace(config.env, curriculum={}, tasks=None)))
    families = {world.partition("/")[0] for world in tasks.worlds}
    own = HELD_OUT.get(families.pop()) if len(families) == 1 else None
    if split is not None and own is None:
        raise UsageError(f"--split={split}: {', '.join(tasks.worlds)} have no splits in common")
    options = dict(config.env.options)
    splits = own is not None and (split is not None or "split" in options or own == HELD_OUT["alfworld"])
    if splits:
        options["split"] = split or own
    env = replace(config.env, curriculum={}, tasks=None, options=options)
    tasks, count = Tasks(replace(config, env=env)), len(tasks.worlds)

    def seed_of(episode: int) -> int:
        number = episode // count
        task = number if splits else held_out_seed(seed, "eval", number)
        return tasks.seed_in(tasks.worlds[episode % count], task)

    return tasks, seed_of


def play_held_out(
    checkpoint: Path, config: Config, *, episodes: int, seed: int, split: str | None, temperature: float | None
) -> list[EpisodeEnd]:
    """Plays the episodes with the model of a checkpoint; in order of their numbers. Raises RuntimeError where a world breaks."""
    tasks, seed_of = held_out(config, split, seed)
    agent = replace(
        config.agent, group_size=1, temperature=config.agent.temperature if temperature is None else temperature
    )
    config = replace(config, runtime="serial", agent=agent)
    torch.set_num_threads(config.learner.threads)
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
