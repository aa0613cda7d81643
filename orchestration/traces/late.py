"""What becomes known of episodes after they ended: sidecars beside the traces of a run, which are never written again.

`labels.late.zst`: the judge's answers. A label is a property of a caption, whichever episode brought it. They are copied
from the annotation store, in which they are safe as soon as they are given, in the order of the store's `seq`.
`scores.late.zst`: r_int of captions under each version of the reward model, as the learner looked them up.

Both are JSON lines in zstd frames. What a crash left of a frame is cut off by the next writer.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import zstandard

from orchestration.errors import TraceError
from orchestration.files import write_all
from orchestration.traces.names import LABELS, SCORES
from orchestration.traces.reader import read_lines
from orchestration.traces.schema import clean
from reward_server.store import AnnotationStoreError, GivenAnswer, answers_after

STORE = "annotations.sqlite"
"""The store of a run, beside the folder of its traces."""

_FRAME_SCORES = 4096


@dataclass(frozen=True, slots=True)
class LateLabel:
    """What a judge said of a caption."""

    seq: int
    """Of the annotation store: later ones are higher."""
    caption_id: str
    state: str
    """`labelled`, or `failed` where no answer could be read."""
    label: int | None
    probability: float | None
    answer: str
    """As it came."""
    latency_s: float
    at: float
    """Seconds since the epoch."""
    judge: str
    """Model."""
    prompt_version: str
    goal: str
    mode: str


class Sidecar:
    """Appends to one file; what was in it is read once, by the first call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole: int | None = None
        """Bytes of the file that whole frames take; None until it was read."""

    def lines(self) -> list[bytes]:
        """What is in the file. Raises `TraceError` where it cannot be read."""
        lines, self._whole = _read(self._path)
        return lines

    def append(self, lines: Iterable[bytes]) -> None:
        """Writes lines as one frame. Raises `TraceError` where the file cannot be written; it then ends as before."""
        if self._whole is None:
            self.lines()
        frame = zstandard.compress(b"".join(line + b"\n" for line in lines))
        try:
            with self._path.open("r+b" if self._path.exists() else "w+b", buffering=0) as file:
                file.truncate(self._whole)
                file.seek(self._whole or 0)
                write_all(file, frame)
        except OSError as error:
            raise TraceError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._whole = (self._whole or 0) + len(frame)


class LabelCopier:
    """Copies a run's labels from its annotation store to the sidecar in `traces`."""

    def __init__(self, store: Path, traces: Path) -> None:
        self._store = store
        self._file = Sidecar(traces / LABELS)
        self._newest: int | None = None

    def copy(self) -> int:
        """Appends the labels that are not in the sidecar yet; says how many. Raises `TraceError` where a file cannot be
        read or written."""
        if not self._store.is_file():
            return 0
        if self._newest is None:
            self._newest = max((label.seq for label in _labels(self._file.lines())), default=0)
        labels = _stored(self._store, self._newest)
        if labels:
            self._file.append(orjson.dumps(asdict(label)) for label in labels)
            self._newest = labels[-1].seq
        return len(labels)


class ScoreLog:
    """Writes the learner's scores of captions to the sidecar in `traces`, many at once."""

    def __init__(self, traces: Path) -> None:
        self._file = Sidecar(traces / SCORES)
        self._waiting: list[bytes] = []
        self._count = 0

    def add(self, version: int, scores: Mapping[int, float]) -> None:
        """r_int by caption id under a version of the reward model. Raises `TraceError` where the file cannot be written."""
        tree = {
            "version": version, "caption_id": [str(caption) for caption in scores], "r_int": list(scores.values()),
        }  # fmt: skip
        self._waiting.append(orjson.dumps(tree))
        self._count += len(scores)
        if self._count >= _FRAME_SCORES:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. Raises `TraceError` where the file cannot be written; then it waits no longer."""
        waiting, self._waiting, self._count = self._waiting, [], 0
        if waiting:
            self._file.append(waiting)


@dataclass(frozen=True, slots=True)
class Scores:
    """r_int of captions, by version of the reward model."""

    versions: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    """By caption id: the versions under which the learner looked it up, rising."""
    values: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """By caption id, as `versions`."""

    def of(self, caption_id: str, version: int) -> tuple[int, float] | None:
        """Version and r_int under which a caption counted that came while `version` was in force: the first from then on
        under which the learner looked it up. None where it did not."""
        if version == 0:
            return 0, 0.0
        known = self.versions.get(caption_id, ())
        at = bisect_left(known, version)
        return None if at == len(known) else (known[at], self.values[caption_id][at])


def read_labels(traces: Path) -> list[LateLabel]:
    """The judge's answers about the captions of a run, oldest first: those in the sidecar in `traces`, and those that are
    in the run's annotation store alone. Of one question the newest answer. Raises `TraceError`."""
    labels = _labels(_read(traces / LABELS)[0])
    store = traces.parent / STORE
    if store.is_file():
        labels += _stored(store, max((label.seq for label in labels), default=0))
    newest = {(one.caption_id, one.judge, one.prompt_version, one.goal, one.mode): one for one in labels}
    return sorted(newest.values(), key=lambda one: one.seq)


def read_scores(traces: Path) -> Scores:
    """The scores in the sidecar in `traces`. Raises `TraceError`."""
    path = traces / SCORES
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(_read(path)[0], start=1):
        try:
            tree: dict[str, Any] = orjson.loads(line)
            for caption, value in zip(tree["caption_id"], tree["r_int"], strict=True):
                found.setdefault(caption, {}).setdefault(tree["version"], value)
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: no scores: {error}") from error
    ordered = {caption: dict(sorted(scores.items())) for caption, scores in found.items()}
    return Scores(
        {caption: tuple(scores) for caption, scores in ordered.items()},
        {caption: tuple(scores.values()) for caption, scores in ordered.items()},
    )


def _stored(store: Path, after: int) -> list[LateLabel]:
    try:
        return [_label(given) for given in answers_after(store, after)]
    except AnnotationStoreError as error:
        raise TraceError(str(error)) from error


def _label(given: GivenAnswer) -> LateLabel:
    return LateLabel(
        seq=given.seq,
        caption_id=str(given.caption_id),
        state=given.state,
        label=given.answer.label,
        probability=given.answer.probability,
        answer=clean(given.answer.raw),
        latency_s=given.answer.latency_s,
        at=given.created,
        judge=clean(given.key.model),
        prompt_version=given.key.prompt_version,
        goal=clean(given.key.goal),
        mode=given.key.mode,
    )


def _labels(lines: Sequence[bytes]) -> list[LateLabel]:
    labels: list[LateLabel] = []
    for number, line in enumerate(lines, start=1):
        try:
            labels.append(LateLabel(**orjson.loads(line)))
        except (TypeError, ValueError) as error:
            raise TraceError(f"{LABELS}:{number}: no label: {error}") from error
    return labels


def _read(path: Path) -> tuple[list[bytes], int]:
    """The lines in whole frames of a sidecar, and the bytes that those take; nothing where there is none."""
    if not path.exists():
        return [], 0
    read = read_lines(path, frames_only=True)
    return read.lines, read.whole
