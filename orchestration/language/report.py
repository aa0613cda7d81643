"""What a group of episodes tells the session: the same report as a rollout call of a network."""

from agents.language.rollout import GroupResult
from agents.report import FinishedEpisode, RolloutReport
from envs.vector import EnvFailure, EpisodeEnd


def report_of(source: str, result: GroupResult, version: int, seconds: float) -> RolloutReport:
    """The report of a group; episode `member` counts as the environment of that number.

    seconds: of the actor's time that the group stands for. Episodes wait side by side, so they share it.
    """
    turns = [turn for episode in result.episodes for turn in episode.turns]
    spent = sum(episode.wall_s for episode in result.episodes)
    share = seconds / spent if spent else 0.0
    env_s, inference_s = share * sum(turn.env_s for turn in turns), share * sum(turn.generate_s for turn in turns)
    return RolloutReport(
        source=source,
        policy_version=version,
        steps=len(turns),
        new_captions=result.new_captions,
        episodes=tuple(
            FinishedEpisode(
                0,
                EpisodeEnd(
                    env_index=episode.member,
                    episode_index=episode.group,
                    seeds={"seed": str(episode.seed)},
                    episode_return=episode.episode_return,
                    length=episode.length,
                    success=episode.success,
                    metrics=episode.metrics,
                    terminated=episode.terminated,
                ),
            )
            for episode in result.episodes
        ),
        failures=tuple(EnvFailure(0, result.group, failure.error, "") for failure in result.failures),
        trajectory_bytes=sum(episode.nbytes for episode in result.episodes),
        env_s=env_s,
        inference_s=inference_s,
        other_s=max(seconds - env_s - inference_s, 0.0),
        output_tokens=sum(len(turn.output) for turn in turns),
        trouble=result.trouble,
    )
