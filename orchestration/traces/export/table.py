"""Transitions and episodes as tables, for the formats that hold columns."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO

from orchestration.errors import ResourceError, TraceError
from orchestration.traces.export.episode import Episode, environment, numbers
from orchestration.traces.export.text import finite, unicode
from orchestration.traces.schema import TOTAL, Annotation, Reward

Row = dict[str, Any]

_GROUP_ROWS = 4096


def arrow(module: str = "pyarrow") -> Any:
    """A module of `pyarrow`. Raises `ResourceError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(
            f"this format needs pyarrow, which cannot be loaded ({error}); pip install pyarrow"
        ) from error


def transition_schema() -> Any:
    """Columns of `transitions`."""
    pa = arrow()
    reward = pa.struct(
        [
            ("part", pa.string()),
            ("family", pa.string()),
            ("unit", pa.string()),
            ("source", pa.string()),
            ("version", pa.int64()),
            ("value", pa.float64()),
        ]
    )
    annotation = pa.struct(
        [
            ("question", pa.string()),
            ("answer", pa.string()),
            ("label", pa.int64()),
            ("probability", pa.float64()),
            ("judge", pa.string()),
        ]
    )
    return pa.schema(
        [
            ("run", pa.string()),
            ("episode_id", pa.string()),
            ("env_id", pa.string()),
            ("step", pa.int64()),
            ("t", pa.float64()),
            ("agent", pa.string()),
            ("screen", pa.large_string()),
            ("observation_hash", pa.string()),
            ("action", pa.int64()),
            ("action_name", pa.string()),
            ("log_prob", pa.float64()),
            ("value", pa.float64()),
            ("policy_version", pa.int64()),
            ("reward", pa.float64()),
            ("total_reward", pa.float64()),
            ("rewards", pa.list_(reward)),
            ("caption", pa.large_string()),
            ("caption_id", pa.string()),
            ("caption_count", pa.int64()),
            ("annotations", pa.list_(annotation)),
            ("grounded", pa.bool_()),
            ("next_screen", pa.large_string()),
            ("next_observation_hash", pa.string()),
            ("terminated", pa.bool_()),
            ("truncated", pa.bool_()),
        ]
    )


def transitions(episode: Episode) -> Iterator[Row]:
    """A row for each environment step: what was seen, done, earned and said, and what was seen then."""
    reset, steps, end = episode.reset, episode.steps, episode.end
    rewards, totals, annotations = _by_target(episode)
    screen, observation = (reset.screen, reset.observation_hash) if reset else ("", "")
    for at, step in enumerate(steps):
        last = at == len(steps) - 1
        yield {
            "run": unicode(episode.header.run),
            "episode_id": unicode(episode.header.episode_id),
            "env_id": environment(episode.header),
            "step": step.step,
            "t": step.t,
            "agent": unicode(step.agent),
            "screen": unicode(screen),
            "observation_hash": observation,
            "action": step.action,
            "action_name": unicode(step.action_name),
            "log_prob": finite(step.log_prob),
            "value": finite(step.value),
            "policy_version": step.policy_version,
            "reward": finite(step.reward),
            "total_reward": totals.get(step.id),
            "rewards": rewards.get(step.id, []),
            "caption": unicode(episode.captions.get(step.caption_id, "")),
            "caption_id": step.caption_id,
            "caption_count": step.caption_count,
            "annotations": annotations.get(step.id, []),
            "grounded": step.grounded,
            "next_screen": unicode(step.screen),
            "next_observation_hash": step.observation_hash,
            "terminated": last and end is not None and end.terminated,
            # An episode whose trace was cut goes on after it: it did not end here.
            "truncated": last and (end is None or not end.terminated),
        }
        screen, observation = step.screen, step.observation_hash


def _by_target(episode: Episode) -> tuple[dict[str, list[Row]], dict[str, float], dict[str, list[Row]]]:
    rewards: dict[str, list[Row]] = {}
    totals: dict[str, float] = {}
    annotations: dict[str, list[Row]] = {}
    for event in episode.events:
        if isinstance(event, Reward):
            value = finite(event.value)
            row: Row = {
                "part": event.part,
                "family": unicode(event.family),
                "unit": unicode(event.unit),
                "source": unicode(event.source),
                "version": event.version,
                "value": value,
            }
            for target in event.targets:
                rewards.setdefault(target, []).append(row)
                if event.part == TOTAL and value is not None:
                    totals[target] = totals.get(target, 0.0) + value
        elif isinstance(event, Annotation):
            row = {
                "question": _text(episode, event.question_ref),
                "answer": _text(episode, event.answer_ref),
                "label": event.label,
                "probability": finite(event.probability),
                "judge": unicode(event.judge),
            }
            for target in event.targets:
                annotations.setdefault(target, []).append(row)
    return rewards, totals, annotations


def _text(episode: Episode, ref: str | None) -> str | None:
    text = episode.text(ref)
    return None if text is None else unicode(text)


def episode_schema() -> Any:
    """Columns of `episodes`."""
    pa = arrow()
    return pa.schema(
        [
            ("run", pa.string()),
            ("episode_id", pa.string()),
            ("env_id", pa.string()),
            ("seeds", pa.list_(pa.struct([("name", pa.string()), ("seed", pa.string())]))),
            ("clock", pa.string()),
            ("policy_version", pa.int64()),
            ("code_revision", pa.string()),
            ("recorded_at", pa.float64()),
            ("length", pa.int64()),
            ("episode_return", pa.float64()),
            ("terminated", pa.bool_()),
            ("truncated", pa.bool_()),
            ("success", pa.bool_()),
            ("error", pa.string()),
            ("complete", pa.bool_()),
            ("metrics", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ]
    )


def outline(episode: Episode) -> Row:
    """The row of an episode as a whole."""
    header, end = episode.header, episode.end
    steps = episode.steps
    earned = sum(finite(step.reward) or 0.0 for step in steps)
    return {
        "run": unicode(header.run),
        "episode_id": unicode(header.episode_id),
        "env_id": environment(header),
        "seeds": [{"name": unicode(name), "seed": unicode(seed)} for name, seed in header.seeds.items()],
        "clock": header.clock,
        "policy_version": header.policy_version,
        "code_revision": header.code_revision,
        "recorded_at": finite(header.recorded_at),
        "length": end.length if end else len(steps),
        "episode_return": finite(end.episode_return) if end else earned,
        "terminated": end.terminated if end else False,
        "truncated": end.truncated if end else True,
        "success": end.success if end else None,
        "error": unicode(end.error) if end and end.error is not None else None,
        "complete": end is not None,
        "metrics": [{"name": name, "value": value} for name, value in numbers(end.metrics)] if end else [],
    }


def write_parquet(
    episodes: Iterable[Episode], schema: Any, rows: Callable[[Episode], Iterable[Row]], file: BinaryIO
) -> None:
    """Writes the rows of all episodes, compressed, an episode in row groups of its own."""
    pa, parquet = arrow(), arrow("pyarrow.parquet")
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for episode in episodes:
            held = iter(rows(episode))
            while group := list(islice(held, _GROUP_ROWS)):
                try:
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
                except (pa.ArrowException, OverflowError, TypeError) as error:
                    raise TraceError(f"{episode.path}: does not fit into the columns: {error}") from error


def write_rows(rows: list[Row], schema: Any, file: BinaryIO) -> None:
    """Writes a table that fits into memory."""
    pa, parquet = arrow(), arrow("pyarrow.parquet")
    try:
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise TraceError(f"does not fit into the columns: {error}") from error
