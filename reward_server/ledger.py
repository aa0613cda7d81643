"""The ledger: which state each caption is in on its way to a label, and what the budget still lets through.

Every caption is in one state: `unseen -> queued -> in flight -> labelled | failed`. Invariants:

- A caption is in one request at most, and none is asked about again under one key once it is labelled, in this run or
  a later one. One that `failed` may be asked about again by a later run.
- A label counts as given only once the store has it. What the store refuses (a full disk) is kept, and written first
  as soon as it can be.
- `labelled + set aside + on their way <= max_labels`, always.

All of this holds of pairs of captions just as well: where this module says caption, a question of either kind is meant.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, cast

from envs.captions import EMPTY_CAPTION_ID
from reward_server.backlog import Backlog, Q
from reward_server.label_rows import LabelRecord
from reward_server.settings import AnnotatorSettings
from reward_server.types import Answer, JudgeKey


class LabelTable(Protocol[Q]):
    """Where labels are kept: the annotation store itself for captions, its `pairs` for pairs."""

    def write(
        self, key: JudgeKey, records: Sequence[LabelRecord], questions: Iterable[tuple[int, Q]] = (), /
    ) -> int: ...
    def labelled_ids(self, key: JudgeKey, /) -> set[int]: ...
    def aside(self, key: JudgeKey, /) -> dict[int, LabelRecord]: ...
    def set_aside(self, key: JudgeKey, after: int, /) -> int: ...
    def cursor(self, key: JudgeKey, /) -> int: ...
    def question(self, state: Any, /) -> Q: ...


class CaptionState(StrEnum):
    """Where a caption is on its way to a label."""

    UNSEEN = "unseen"
    QUEUED = "queued"
    IN_FLIGHT = "in_flight"
    LABELLED = "labelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Request(Generic[Q]):
    """Captions that are in flight together, newest first."""

    captions: tuple[tuple[int, Q], ...]
    known: Mapping[int, LabelRecord]
    """Answers that were given already (set aside by a resume, or of another run); these captions are not asked about."""

    @property
    def asked(self) -> tuple[tuple[int, Q], ...]:
        return tuple(caption for caption in self.captions if caption[0] not in self.known)


class Ledger(Generic[Q]):
    """Books captions in and out. Not thread-safe: its owner holds a lock around each call."""

    def __init__(
        self,
        store: LabelTable[Q],
        key: JudgeKey,
        settings: AnnotatorSettings,
        reuse: Mapping[int, LabelRecord] | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._settings = settings
        self._backlog: Backlog[Q] = Backlog(settings.backlog)
        self._state: dict[int, CaptionState] = {}
        self._reusable = dict(reuse or {})
        """Labels of other runs under this key: as good as those set aside, once the budget lets them in."""
        self._read_store()
        self._seen: set[int] = set()
        self._failed: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._alone: set[int] = set()
        """Captions of requests that the judge refused for good: sent one by one, to find the one at fault."""
        self._failed_lately: dict[int, Q] = {}
        """Captions that failed since the last readable answer, with their texts."""
        self._forgiven: set[int] = set()
        self._in_flight: dict[int, Q] = {}
        """Captions that left the backlog and have no label or failure in the store yet, in the order of leaving."""
        self._unwritten: list[LabelRecord] = []
        self._new_captions: list[tuple[int, Q]] = []
        self.on_their_way = 0
        """Captions that the judge is being asked about, or has answered without that being written yet."""
        self.dropped = 0
        self.duplicates = 0
        """Captions submitted that were known already (by another actor, say); they are not asked about again."""
        self.reused = 0

    def _read_store(self) -> None:
        self._state = dict.fromkeys(self._store.labelled_ids(self._key), CaptionState.LABELLED)
        self.labelled = len(self._state)
        self._aside = self._store.aside(self._key)

    # -- counts -------------------------------------------------------------------------------------------------

    @property
    def seen(self) -> int:
        return len(self._seen)

    @property
    def queued(self) -> int:
        return len(self._backlog)

    @property
    def failed(self) -> int:
        return len(self._failed)

    @property
    def exhausted(self) -> bool:
        """Whether `max_labels` labels are paid for, those set aside among them."""
        budget = self._settings.max_labels
        return budget is not None and self.labelled + len(self._aside) >= budget

    @property
    def can_take(self) -> bool:
        """Whether `take` would return a request."""
        return len(self._backlog) > 0 and (self._room() >= 1 or self._backlog.newest()[0] in self._aside)

    def state(self, caption_id: int) -> CaptionState:
        return self._state.get(caption_id, CaptionState.UNSEEN)

    # -- out and back -------------------------------------------------------------------------------------------

    def submit(self, captions: Iterable[tuple[int, Q]]) -> bool:
        """Queues what is unseen, in order: the last is the newest. Returns whether there is anything to do now."""
        queued = False
        for caption_id, text in captions:
            if caption_id == EMPTY_CAPTION_ID:
                continue
            if caption_id not in self._seen:
                self._seen.add(caption_id)
                self._new_captions.append((caption_id, text))
                queued = True
            else:
                self.duplicates += 1
            if caption_id not in self._state:
                self._queue(caption_id, text)
                queued = True
        return queued

    def take(self, size: int) -> Request[Q] | None:
        """Up to `size` of the newest captions, from now on in flight; None where none waits or the budget is spent."""
        captions: list[tuple[int, Q]] = []
        known: dict[int, LabelRecord] = {}
        while len(captions) < size and len(self._backlog):
            caption_id, _ = self._backlog.newest()
            if caption_id in self._reusable and caption_id not in self._aside and self._room() >= 1:
                self._aside[caption_id] = self._reusable.pop(caption_id)
                self.reused += 1
            if caption_id in self._aside:
                known[caption_id] = self._aside[caption_id]
            elif self._room() < 1:
                break
            else:
                if caption_id in self._alone:
                    if captions:
                        break
                    size = 1
                self.on_their_way += 1
            self._state[caption_id] = CaptionState.IN_FLIGHT
            caption = self._backlog.pop()
            self._in_flight[caption_id] = caption[1]
            captions.append(caption)
        return Request(tuple(captions), known) if captions else None

    def give_back(self, request: Request[Q]) -> None:
        """No answer came: its captions wait again, where they were, and nothing is counted."""
        for caption_id, text in reversed(request.captions):
            if caption_id not in request.known:
                self.on_their_way -= 1
            self._queue(caption_id, text)

    def refuse(self, request: Request[Q], reason: str, latency_s: float) -> None:
        """The judge will never answer this request. Where it is about one caption, that counts as an answer that
        cannot be read; where it is about several, they are asked about one by one."""
        if len(request.captions) == 1:
            self.answer(request, [Answer(None, None, reason, latency_s)] * len(request.asked))
        else:
            self._alone.update(caption_id for caption_id, _ in request.asked)
            self.give_back(request)

    def answer(self, request: Request[Q], answers: Sequence[Answer]) -> None:
        """Books the answers to `request.asked`. What cannot be read is queued again, behind all others (an odd caption
        does not hold up new ones), and failed after `attempts` times. Nothing counts before `flush`."""
        given = dict(zip((caption_id for caption_id, _ in request.asked), answers, strict=True))
        for caption_id, text in request.captions:
            attempts = self._attempts.get(caption_id, 0) + 1
            known = request.known.get(caption_id)
            record = known or LabelRecord(caption_id, given[caption_id], attempts)
            if known is None:
                again = record.answer.label is None and attempts < self._settings.attempts
            else:
                again = attempts < known.attempts  # as it went when it was asked about: the order is the same then
            if again:
                self.on_their_way -= known is None
                self._attempts[caption_id] = attempts
                self._queue_last(caption_id, text)
                continue
            self._attempts.pop(caption_id, None)
            if record.answer.label is None:
                self._failed_lately[caption_id] = text
            self._unwritten.append(record)

    def flush(self) -> int:
        """Writes what is booked and not in the store. Returns how many labels the judge gave among it.

        Raises `AnnotationStoreError` where it cannot be written; it is kept then, and written by the next call.
        """
        if not self._unwritten and not self._new_captions:
            return 0
        self._store.write(self._key, self._unwritten, self._new_captions)
        given = 0
        for record in self._unwritten:
            known = self._aside.pop(record.caption_id, None)
            if known is None:
                self.on_their_way -= 1
            self._in_flight.pop(record.caption_id, None)
            self._alone.discard(record.caption_id)
            if record.answer.label is None:
                self._state[record.caption_id] = CaptionState.FAILED
                self._failed.add(record.caption_id)
            else:
                self._state[record.caption_id] = CaptionState.LABELLED
                self.labelled += 1
                given += known is None
        self._unwritten.clear()
        self._new_captions.clear()
        return given

    def readable(self, *, recovered: bool) -> None:
        """The judge gave a label. If it had been out of order until now, the captions that failed meanwhile failed for
        its sake: they are queued again, each of them once."""
        if recovered:
            for caption_id, text in self._failed_lately.items():
                if caption_id in self._failed and caption_id not in self._forgiven:
                    self._forgiven.add(caption_id)
                    self._failed.discard(caption_id)
                    self._queue_last(caption_id, text)
        self._failed_lately.clear()

    # -- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The store's cursor, and the captions that wait or are in flight, oldest first.

        A caption that the store does not hold yet is not `seen`: a resumed run must hand it to the store again.
        """
        return {
            "cursor": self._store.cursor(self._key),
            "backlog": [(i, _plain(q)) for i, q in (*self._backlog.oldest_first(), *reversed(self._in_flight.items()))],
            "seen": list(self._seen.difference(caption_id for caption_id, _ in self._new_captions)),
            "failed": sorted(self._failed),
            "forgiven": sorted(self._forgiven),
            "attempts": dict(self._attempts),
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, in_turn: bool = True) -> None:
        """`in_turn`: labels given after the checkpoint are set aside; they are taken from the store when their captions' turn
        comes, and not asked for. Otherwise they count at once."""
        if self._seen:
            raise RuntimeError("load_state_dict: captions have been submitted already")
        if in_turn:
            self._store.set_aside(self._key, int(state["cursor"]))
        self._read_store()
        self._seen = {int(i) for i in state["seen"]}
        self._failed = {int(i) for i in state["failed"]} - set(self._state)
        self._forgiven = {int(i) for i in state["forgiven"]}
        self._state.update(dict.fromkeys(self._failed, CaptionState.FAILED))
        self._attempts = {int(i): int(n) for i, n in state["attempts"].items()}
        self.dropped = int(state["dropped"])
        for caption_id, saved in state["backlog"]:
            if caption_id not in self._state:
                text = self._store.question(saved)
                self._new_captions.append((int(caption_id), text))
                self._queue(int(caption_id), text)

    # -- inside -------------------------------------------------------------------------------------------------

    def _room(self) -> float:
        """How many more captions the budget lets the judge be asked about."""
        if self._settings.max_labels is None:
            return math.inf
        return self._settings.max_labels - self.labelled - len(self._aside) - self.on_their_way

    def _queue(self, caption_id: int, text: Q) -> None:
        self._in_flight.pop(caption_id, None)
        self._state[caption_id] = CaptionState.QUEUED
        self._drop(self._backlog.push(caption_id, text))

    def _queue_last(self, caption_id: int, text: Q) -> None:
        self._in_flight.pop(caption_id, None)
        self._state[caption_id] = CaptionState.QUEUED
        self._drop(self._backlog.push_oldest(caption_id, text))

    def _drop(self, caption: tuple[int, Q] | None) -> None:
        """A caption that fell out of the backlog is unseen again: it is queued anew when it turns up again. One that had
        failed before has failed again: so the store says of it."""
        if caption is not None:
            self.dropped += 1
            if caption[0] in self._forgiven:
                self._state[caption[0]] = CaptionState.FAILED
                self._failed.add(caption[0])
            else:
                self._state.pop(caption[0], None)
            self._attempts.pop(caption[0], None)
            self._alone.discard(caption[0])


def _plain(question: object) -> object:
    """A question out of plain types, which a checkpoint can hold."""
    return question if isinstance(question, str) else tuple(cast(Iterable[object], question))
