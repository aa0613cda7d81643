"""An episode as the page reads it: one tree of plain values.

The tree has `header`, `end`, `cut`, `file`; the tables `rows`, `screens`, `texts` and `agents`, which all else refers
to by number; `events`; and what is drawn over them. A *frame* is a place of the scrubber: a reset or step of the
environment, or, in a trace without steps, an event. Kinds and fields that this module does not know are kept as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestration.traces.reader import Trace
from orchestration.traces.schema import Event
from orchestration.traces.view.plain import number, plain
from orchestration.traces.view.screens import ScreenTable

_FRAME_KINDS = frozenset({"env_reset", "env_step"})
_COMMON = frozenset({"type", "id", "seq", "t", "agent", "parents", "screen", "colors"})
_NO_CAPTION = "0"
_PARTS = ("total", "component", "raw")
"""Of rewards, in the order in which their lanes are drawn."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a replay of an episode left its trace."""

    episode_id: str
    step: int
    """The first step whose observation, reward or end differs; -1 for the reset."""
    reason: str
    """What differs, as a person reads it."""
    screen: str | None = None
    """What the replay saw there."""


@dataclass(slots=True)
class _Lane:
    source: str
    family: str
    unit: str
    part: str
    points: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


class _Texts:
    """Numbers texts, the same text with the same number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._ids: dict[str, int] = {}

    def add(self, text: str) -> int:
        known = self._ids.setdefault(text, len(self.all))
        if known == len(self.all):
            self.all.append(text)
        return known


class _Document:
    """Collects one episode."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.records = [_record(event) for event in trace.events]
        self.index = {str(record.get("id", at)): at for at, record in enumerate(self.records)}
        self.texts = _Texts()
        self.table = ScreenTable()
        self.agents: dict[str, int] = {}
        self.frames: list[int] = []
        """The event of each frame."""
        self.frame_of: list[int] = []
        """The frame of each event."""
        self._place()

    def _place(self) -> None:
        """Every event belongs to the newest frame before it, or to that of the event that it is about."""
        stepped = any(_kind(record) == "env_step" for record in self.records)
        for at, record in enumerate(self.records):
            if not stepped or _kind(record) in _FRAME_KINDS:
                self.frames.append(at)
            about = _targets(record) or (_names(record.get("parents")) if _kind(record) == "annotation" else [])
            target = next((self.index[name] for name in about if name in self.index), at)
            frame = self.frame_of[target] if target < at else max(0, len(self.frames) - 1)
            self.frame_of.append(frame)

    def event(self, at: int) -> list[Any]:
        """[kind, agent, t, frame, parents, fields, texts by name] of an event."""
        record = self.records[at]
        parents = [self.index[name] for name in _names(record.get("parents")) if name in self.index]
        agent = self.agents.setdefault(_text(record.get("agent")) or "?", len(self.agents))
        fields, texts = self.fields(record)
        return [_kind(record), agent, number(record.get("t")) or 0.0, self.frame_of[at], parents, fields, texts]

    def fields(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """What an event says of itself: values by name, and numbers of the texts that it refers to."""
        fields: dict[str, Any] = {}
        texts: dict[str, int] = {}
        for name, value in record.items():
            if name in _COMMON:
                continue
            text = self.trace.texts.get(value) if name.endswith("_ref") and isinstance(value, str) else None
            if text is None:
                fields[name] = value
            else:
                texts[name.removesuffix("_ref")] = self.texts.add(text)
        return fields, texts

    def frame(self, at: int) -> list[int]:
        """[event, screen, caption] of a frame, -1 for what it has not."""
        record = self.records[at]
        screen = record.get("screen")
        caption = self.caption(record)
        return [
            at,
            self.table.add(screen, _text(record.get("colors"))) if isinstance(screen, str) and screen else -1,
            -1 if caption is None else self.texts.add(caption),
        ]

    def caption(self, record: Mapping[str, Any]) -> str | None:
        caption_id = record.get("caption_id")
        if caption_id is None or str(caption_id) == _NO_CAPTION:
            return None
        return self.trace.captions.get(str(caption_id), f"caption {caption_id}")

    def lanes(self) -> list[_Lane]:
        """Every component of reward and credit, one lane for each source, family, unit and part."""
        lanes: dict[tuple[str, ...], _Lane] = {}
        for at, record in enumerate(self.records):
            value = number(record.get("value"))
            if value is None or _kind(record) != "reward":
                continue
            source, family, unit, part = (_text(record.get(name)) for name in ("source", "family", "unit", "part"))
            lane = lanes.setdefault((source, family, unit, part), _Lane(source, family, unit, part))
            places = {self.frame_of[self.index[name]] for name in _targets(record) if name in self.index}
            lane.points += [(frame, value) for frame in sorted(places or {self.frame_of[at]})]
        if not any(lane.source == "environment" for lane in lanes.values()):
            self._unsaid_rewards(lanes)
        for lane in lanes.values():
            lane.points.sort()
        order = {part: at for at, part in enumerate(_PARTS)}
        return sorted(lanes.values(), key=lambda lane: order.get(lane.part, len(order)))

    def _unsaid_rewards(self, lanes: dict[tuple[str, ...], _Lane]) -> None:
        """What steps say that they paid, where no event of its own says it."""
        paid = [
            (self.frame_of[at], value)
            for at, record in enumerate(self.records)
            if _kind(record) == "env_step" and (value := number(record.get("reward")))
        ]
        if paid:
            lanes["environment",] = _Lane("environment", "outcome", "turn", "raw", paid)

    def labels(self) -> list[dict[str, Any]]:
        """The judge's questions and answers: the event of each, and the frames that it is about: those with its caption."""
        said: dict[str, list[int]] = {}
        for frame, at in enumerate(self.frames):
            said.setdefault(str(self.records[at].get("caption_id", _NO_CAPTION)), []).append(frame)
        said.pop(_NO_CAPTION, None)
        labels: list[dict[str, Any]] = []
        for at, record in enumerate(self.records):
            if _kind(record) != "annotation":
                continue
            frames = {self.frame_of[self.index[name]] for name in _targets(record) if name in self.index}
            frames.update(said.get(str(record.get("caption_id")), ()))
            caption = self.caption(record)
            labels.append(
                {
                    "frames": sorted(frames or {self.frame_of[at]}),
                    "event": at,
                    "caption": -1 if caption is None else self.texts.add(caption),
                }
            )
        return labels

    def errors(self) -> list[int]:
        """Frames in which something failed."""
        failed = {
            self.frame_of[at]
            for at, record in enumerate(self.records)
            if _kind(record) == "error" or record.get("error") not in (None, "", False)
        }
        if self.trace.end is not None and self.trace.end.error is not None:
            failed.add(max(0, len(self.frames) - 1))
        return sorted(failed)

    def divergences(self, found: Iterable[Divergence]) -> list[dict[str, Any]]:
        """Where replays left the trace, those told of from outside and those among the events."""
        by_step = {
            record["step"]: frame
            for frame, at in enumerate(self.frames)
            if isinstance((record := self.records[at]).get("step"), int)
        }
        by_step[-1] = 0
        marks = [
            {
                "frame": by_step.get(one.step, max(0, len(self.frames) - 1)),
                "reason": one.reason,
                "screen": -1 if one.screen is None else self.table.add(one.screen),
            }
            for one in found
            if one.episode_id == self.trace.header.episode_id
        ]
        marks += [
            {"frame": self.frame_of[at], "reason": _text(record.get("reason")) or _kind(record), "screen": -1}
            for at, record in enumerate(self.records)
            if _kind(record).startswith("diverge")
        ]
        return sorted(marks, key=lambda mark: mark["frame"])


def episode_document(trace: Trace, divergences: Sequence[Divergence] = (), untold: str | None = None) -> dict[str, Any]:
    """The tree of an episode. `untold` says why the components of its rewards are not known."""
    document = _Document(trace)
    events = [document.event(at) for at in range(len(document.records))]
    for record in document.records:
        for name in ("child", "to", "from"):
            if isinstance(other := record.get(name), str) and other:
                document.agents.setdefault(other, len(document.agents))
    frames = [document.frame(at) for at in document.frames]
    lanes, labels = document.lanes(), document.labels()
    found = document.divergences(divergences)
    return {
        "header": plain(trace.header),
        "end": plain(trace.end) if trace.end is None or untold is None else {**plain(trace.end), "components": untold},
        "cut": trace.cut,
        "file": trace.path.name,
        "events": events,
        "frames": frames,
        "lanes": plain(lanes),
        "labels": labels,
        "divergences": found,
        "marks": {
            "reward": _rewarded(lanes),
            "label": sorted({frame for label in labels for frame in label["frames"]}),
            "error": document.errors(),
            "divergence": sorted({mark["frame"] for mark in found}),
        },
        "agents": list(document.agents),
        "texts": document.texts.all,
        "rows": document.table.rows,
        "inks": document.table.inks,
        "screens": document.table.screens,
    }


def _rewarded(lanes: Sequence[_Lane]) -> list[int]:
    """Frames at which something was given. Components and totals repeat it; they count where nothing else is told."""
    raw = [lane for lane in lanes if lane.part not in ("component", "total")]
    return sorted({frame for lane in raw or lanes for frame, value in lane.points if value})


def _record(event: Event) -> dict[str, Any]:
    return {**plain(event), "type": event.type}


def _kind(record: Mapping[str, Any]) -> str:
    return str(record["type"])


def _names(value: object) -> list[str]:
    """Ids out of a field that holds one or several."""
    if isinstance(value, list):
        return [str(name) for name in value]
    return [] if value is None else [str(value)]


def _targets(record: Mapping[str, Any]) -> list[str]:
    """Ids of the events that a reward or annotation is about. (The `target` of a `stop` names an agent.)"""
    return _names(record.get("targets"))


def _text(value: object) -> str:
    return "" if value is None else str(value)
