"""What the lines of a trace leave out because it follows from the lines before, and how it is put back.

An event may leave out

- `seq`: one more than the event before; `id`: `e` and the seq; `agent`: that of the event before,
- `parents`: the newest event of the trunk (`env_reset`, `env_step`, `weights_update`) before it,
- of an `env_step`: `step` (one more than the step before), `action_name` (the header has it), `policy_version` (that in
  force); with `paid` it stands for two events: itself, and right after it the environment's `reward` of the same value.

A line `steps` stands for several `env_step` that follow one another, as columns: see `StepPacker.line`. Each of them whose
reward is not 0 is followed by the environment's `reward` event of the same value. A line with all its fields is as good.
What the reader gives has them all.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.observer import Cells, EpisodeStart, EpisodeSteps
from envs.captions import EMPTY_CAPTION_ID, caption_id
from orchestration.errors import TraceError
from orchestration.traces.cells import CellPacker, CellUnpacker
from orchestration.traces.hashes import hashes_of, key_columns
from orchestration.traces.schema import POLICY, REWARD_MODEL, clean

_TRUNK = frozenset({"env_reset", "env_step", "weights_update"})
_UNIT = 1e-4
"""Of log-probabilities and values: the rest of their digits would be a third of a trace's bytes."""
_TICK = 1e-3
"""Of times, seconds."""
_SLOW_S = 0.1
"""Steps that took less have no duration: the environments of a batch step together, so it says little, and takes bytes."""


class StepPacker:
    """Makes the `steps` lines of one episode: steps are added call by call, many become one line."""

    def __init__(self, start: EpisodeStart) -> None:
        """For the steps of an episode that began so."""
        self._began = start.at
        self._versions: dict[str, int | None] = {POLICY: start.policy_version, REWARD_MODEL: start.reward_model_version}
        screen = start.screen
        self._cells = CellPacker(screen.planes[0]) if isinstance(screen, Cells) else None
        self._shown: list[str] = [] if isinstance(screen, Cells) else clean(screen[0]).split("\n")
        self._captions: dict[int, int] = {}
        """Number of each caption, by id: they are numbered in the order of their lines."""
        self.count = 0
        """Steps that wait for their line."""
        self._clear()

    def _clear(self) -> None:
        self.count, self._seen = 0, 0
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._hashes: list[str] = []
        self._keys: dict[str, str] = {}
        self._places: dict[str, list[Any]] = {}
        self._rows: list[tuple[int, list[tuple[int, str]]]] = []

    def opening(self, caption: str) -> list[tuple[int, str]]:
        """The caption (id, text) of the opening; its line has to stand before that of the reset."""
        number = caption_id(caption)
        if number == EMPTY_CAPTION_ID:
            return []
        self._captions[number] = 0
        return [(number, caption)]

    def new_captions(self, steps: EpisodeSteps) -> list[tuple[int, str]]:
        """Captions (id, text) that come for the first time: their lines have to stand before that of the steps."""
        new: list[tuple[int, str]] = []
        ids = steps.caption_id
        for at in np.flatnonzero(ids != EMPTY_CAPTION_ID).tolist():
            caption = int(ids[at])
            if caption not in self._captions:
                self._captions[caption] = len(self._captions)
                new.append((caption, str(steps.captions[at])))
        return new

    def add(self, steps: EpisodeSteps) -> int:
        """Takes more steps, whose captions `new_captions` has seen; how many events they stand for."""
        base, places = self.count, self._places
        reward, observation, ids, grounded = steps.reward, steps.observation, steps.caption_id, steps.grounded
        events = len(steps) + int(np.count_nonzero(reward))
        for what, version in ((POLICY, steps.policy_version), (REWARD_MODEL, steps.reward_model_version)):
            if version is not None and version != self._versions[what]:
                self._versions[what] = version
                places.setdefault(what, []).append((base, version))
                events += 1
        ticks = np.rint((steps.at - self._began) / _TICK).astype(np.int64)
        self._parts.append((ticks, steps.action, steps.log_prob, steps.value, reward))
        self._hashes += hashes_of(observation)
        for name, column in key_columns(observation):
            self._keys[name] = self._keys.get(name, "") + column
        said = np.flatnonzero(ids != EMPTY_CAPTION_ID)
        if len(said):
            numbers = [self._captions[caption] for caption in ids[said].tolist()]
            places.setdefault("said", []).extend(zip((said + base).tolist(), numbers, strict=True))
        if not grounded.all():
            places.setdefault("refused", []).extend((np.flatnonzero(~grounded) + base).tolist())
        slow = np.flatnonzero(steps.duration >= _SLOW_S).tolist()
        if slow:
            places.setdefault("slow", []).extend((base + at, round(float(steps.duration[at]), 3)) for at in slow)
        self._seen += len(steps.screens)
        if self._cells is not None and isinstance(steps.screens, Cells):
            self._cells.add(steps.screens.planes)
        elif not isinstance(steps.screens, Cells):
            self._rows += [self._rows_of(clean(screen)) for screen in steps.screens]
        self.count += len(steps)
        return events

    def line(self, skew: float = 0.0) -> dict[str, Any]:
        """The line of the steps that were added since the last one, as columns. `skew`: of all of them, as it is now.

        `t`, of the first step, and `dt`, of the others since the one before, milliseconds; `action`; `log_prob` and
        `value` in units of 1e-4, null where not finite; `reward`, left out where all are 0; `hash`, of all observations,
        joined, and `keys`, the same of each of their arrays (see `EnvStep.key_hashes`); `policy` and `reward_model`: where
        these have another version from a step on, that step in the line and the version (it stands for a
        `weights_update`); `said`: step in the line and number of the caption, from 0 in the order of their lines;
        `refused`: steps that could not be executed; `slow`: step and seconds; `skew`, of all steps, left out where it is 0; and of
        screens `cells` (see `cells`) or
        `rows`: for each step its height and the rows, number and text, that differ from the screen before.
        """
        ticks, action, log_prob, value, reward = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        line: dict[str, Any] = {
            "record": "steps",
            "t": int(ticks[0]) * _TICK,
            "dt": np.diff(ticks),
            "action": action,
            "log_prob": _in_units(log_prob),
            "value": _in_units(value),
            "hash": "".join(self._hashes),
            "keys": self._keys,
            **self._places,
        }
        if reward.any():
            line["reward"] = reward.astype(np.float64)
        if skew:
            line["skew"] = skew
        if self._cells is not None and self._seen:
            line["cells"] = self._cells.columns()
        elif self._rows:
            line["rows"] = self._rows
        self._clear()
        return line

    def _rows_of(self, screen: str) -> tuple[int, list[tuple[int, str]]]:
        before, self._shown = self._shown, screen.split("\n")
        height = len(self._shown)
        padded = [*before, *[""] * (height - len(before))]
        return height, [(at, row) for at, row in enumerate(self._shown) if row != padded[at]]


def _in_units(values: NDArray[np.float32]) -> NDArray[np.int64] | list[int | None]:
    finite = np.isfinite(values)
    if finite.all():
        return np.rint(values.astype(np.float64) / _UNIT).astype(np.int64)
    return [round(value / _UNIT) if known else None for value, known in zip(values.tolist(), finite, strict=True)]


class Unpacker:
    """Completes the JSON objects of one file, in their order."""

    def __init__(self, header: dict[str, Any]) -> None:
        self._names = header.get("action_names") or []
        self._versions: dict[str, Any] = {
            POLICY: header.get("policy_version"),
            REWARD_MODEL: header.get("reward_model_version"),
        }
        self._seq = -1
        self._step = -1
        self._agent: Any = None
        self._trunk: Any = None
        self._rows: list[str] = []
        self._cells: CellUnpacker | None = None
        self._first: tuple[str, str] = ("", "")
        self._captions: list[str] = []
        self._counts: dict[str, int] = {}

    def unpack(self, tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The complete objects that a line stands for. Raises `TraceError` where it does not fit to those before it."""
        kind = tree.get("record")
        if kind == "steps":
            try:
                yield from self._steps(tree)
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise TraceError(f"steps: its columns do not fit: {type(error).__name__}: {error}") from error
            return
        if kind == "caption":
            self._captions.append(str(tree.get("caption_id")))
        paid = kind == "event" and tree.pop("paid", False)
        if kind == "event":
            self._complete(tree)
        # The reader consumes what it is given.
        name, value = tree.get("id", ""), tree.get("reward", 0.0)
        moment = {"t": tree.get("t", 0.0), **({"skew": tree["skew"]} if "skew" in tree else {})}
        yield tree
        if paid:
            yield self._paid(name, moment, value)

    def _complete(self, tree: dict[str, Any]) -> None:
        kind = tree.get("type")
        if kind == "env_step":
            self._step_of(tree)
        self._event(tree)
        if kind == "weights_update":
            self._versions[str(tree.get("what", POLICY))] = tree.get("to_version")
        if kind == "env_reset" and isinstance(tree.get("screen"), str):
            self._rows = tree["screen"].split("\n")
            self._first = (tree["screen"], str(tree.get("colors", "")))
            self._cells = None

    def _event(self, tree: dict[str, Any]) -> None:
        seq = tree.setdefault("seq", self._seq + 1)
        if isinstance(seq, int):
            self._seq = seq
        tree.setdefault("id", f"e{seq}")
        if self._agent is not None:
            tree.setdefault("agent", self._agent)
        self._agent = tree.get("agent")
        tree.setdefault("parents", [] if self._trunk is None else [self._trunk])
        if tree.get("type") in _TRUNK:
            self._trunk = tree["id"]

    def _step_of(self, tree: dict[str, Any]) -> None:
        step = tree.setdefault("step", self._step + 1)
        if isinstance(step, int):
            self._step = step
        if "action_name" not in tree:
            action = tree.get("action")
            if not isinstance(action, int) or not 0 <= action < len(self._names):
                raise TraceError(f"env_step: action {action!r} has no name in the header")
            tree["action_name"] = self._names[action]
        tree.setdefault("policy_version", self._versions[POLICY])

    # Columns.

    def _steps(self, line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        actions: list[int] = line["action"]
        count = len(actions)
        ticks = round(line["t"] / _TICK)
        times = [ticks, *(ticks := ticks + gap for gap in line["dt"])]
        rewards: list[float] = line.get("reward", [0.0] * count)
        said = {at: self._captions[number] for at, number in line.get("said", ())}
        refused, slow = set(line.get("refused", ())), dict(line.get("slow", ()))
        screens = list(self._screens(line))
        hashes = _cut(line["hash"], len(screens))
        columns = (_cut(column, len(screens)) for _, column in sorted(line.get("keys", {}).items()))
        keys = ["".join(each) for each in zip(*columns, strict=True)]
        if not count - 1 <= len(screens) <= count:
            raise ValueError(f"{len(screens)} screens of {count} steps")
        updates = {what: dict(line.get(what, ())) for what in (POLICY, REWARD_MODEL)}
        skewed = {"skew": line["skew"]} if "skew" in line else {}
        columns = zip(actions, times, line["log_prob"], line["value"], rewards, strict=True)
        for at, (action, tick, log_prob, value, reward) in enumerate(columns):
            moment: dict[str, Any] = {"t": round(tick * _TICK, 3), **skewed}
            for what, versions in updates.items():
                if at in versions:
                    yield self._update(what, versions[at], moment)
            step: dict[str, Any] = {
                "record": "event",
                "type": "env_step",
                **moment,
                "action": action,
                "log_prob": _from_units(log_prob),
                "value": _from_units(value),
                "reward": reward,
                "observation_hash": hashes[at] if at < len(hashes) else "",
                "key_hashes": keys[at] if at < len(keys) else "",
                "screen": "",
            }
            if at < len(screens):
                step["screen"], colors = screens[at]
                if colors:
                    step["colors"] = colors
            if at in said:
                caption = step["caption_id"] = said[at]
                step["caption_count"] = self._counts[caption] = self._counts.get(caption, 0) + 1
            if at in refused:
                step["grounded"] = False
            if at in slow:
                step["duration"] = slow[at]
            self._complete(step)
            name = step["id"]  # the reader consumes what it is given
            yield step
            if reward:
                yield self._paid(name, moment, reward)

    def _update(self, what: str, version: int, moment: Mapping[str, Any]) -> dict[str, Any]:
        before = self._versions.get(what)
        update: dict[str, Any] = {
            "record": "event",
            "type": "weights_update",
            **moment,
            "from_version": version if before is None else before,
            "to_version": version,
            "what": what,
        }
        self._complete(update)
        return update

    def _screens(self, line: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Screen and colours after each step that was seen."""
        if "cells" in line:
            if self._cells is None:
                self._cells = CellUnpacker(*self._first)
            yield from self._cells.unpack(line["cells"])
            return
        for height, rows in line.get("rows", ()):
            self._rows = [*self._rows[:height], *[""] * (height - len(self._rows))]
            for number, text in rows:
                self._rows[number] = text
            yield "\n".join(self._rows), ""

    def _paid(self, step: str, moment: Mapping[str, Any], value: float) -> dict[str, Any]:
        reward = {
            "record": "event",
            "type": "reward",
            **moment,
            "family": "outcome",
            "value": value,
            "source": "environment",
            "version": None,
            "targets": [step],
        }
        self._event(reward)
        return reward


def _cut(hashes: str, count: int) -> list[str]:
    """`count` hashes of the same length, that were joined."""
    if not count:
        return []
    size, rest = divmod(len(hashes), count)
    if rest or not size:
        raise ValueError(f"{len(hashes)} digits of {count} hashes")
    return [hashes[at * size : (at + 1) * size] for at in range(count)]


def _from_units(value: int | None) -> float | None:
    return None if value is None else round(value * _UNIT, 4)
