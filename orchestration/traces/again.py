"""Plays an episode again from its seeds and actions, to record what nobody followed the first time."""

from collections.abc import Callable, Iterator

import numpy as np

from agents.observer import EpisodeStart, Recalled, StepRecord
from envs.base import YendorEnv
from envs.captions import EMPTY_CAPTION_ID, caption_id
from orchestration.traces.recorder import Player, Recorded


def player(make_env: Callable[[], YendorEnv]) -> Player:
    """Plays in an environment of its own, which is made when it is first needed and after one that raised."""
    kept: list[YendorEnv] = []

    def play(episode: Recalled) -> Recorded:
        env = kept.pop() if kept else make_env()
        observation, info = env.reset(seed=int(episode.seeds["seed"]))
        versions = episode.policy_versions
        start = EpisodeStart(
            episode_id=episode.episode_id,
            env_id=episode.env_id,
            env_options=episode.env_options,
            action_names=episode.action_names,
            seeds=episode.seeds,
            policy_version=int(versions[0]) if len(versions) else 0,
            observation=observation,
            screen=env.screen(),
        )
        del info
        return start, steps(env, episode)

    def steps(env: YendorEnv, episode: Recalled) -> Iterator[StepRecord]:
        counts: dict[int, int] = {}
        for number, action in enumerate(episode.actions.tolist()):
            try:
                observation, reward, _, _, info = env.step(action)
            except Exception:  # as it did the first time: the trace ends with that step and the error of then
                observation, reward, info = {}, 0.0, {"grounded": False}
                screen, failed = "", True
            else:
                screen, failed = env.screen(), False
            caption = str(info.get("caption", ""))
            key = caption_id(caption) if caption else EMPTY_CAPTION_ID
            if caption:
                counts[key] = counts.get(key, 0) + 1
            yield StepRecord(
                step=number,
                action=action,
                log_prob=float(episode.log_probs[number]),
                value=float(episode.values[number]),
                reward=float(np.float32(reward)),  # as the rollout has it
                caption=caption,
                caption_id=key,
                caption_count=counts.get(key, 0),
                grounded=bool(info.get("grounded", True)),
                policy_version=int(episode.policy_versions[number]),
                observation=observation,
                screen=screen,
            )
            if failed:
                env.close()
                return
        kept.append(env)

    return play
