"""The reward server: what annotates captions and distils the labels, as one plain object.

Invariant: whatever the judge does (slow, down, nonsense), the reward model stays at its version and nothing waits.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from reward_server.annotator import Annotator
from reward_server.distiller import Distiller
from reward_server.models.base import RewardModelVersion
from reward_server.pairs import PairSource, Scores
from reward_server.reuse import labels_elsewhere
from reward_server.settings import AnnotatorSettings
from reward_server.status import RewardServerStatus
from reward_server.store import AnnotationStore, AnnotationStoreError, DamagedStoreError
from reward_server.types import Judge, PairJudge

_LOOK_S = 0.5
_RETRY_S = 2.0


class RewardServer:
    """Annotator, store and distiller around one judge: of captions or, with a source of `pairs`, of pairs.

    Either `serve()` runs them until `stop()`, or the serial runtime calls `step()` after each rollout.
    """

    def __init__(
        self,
        judge: Judge | PairJudge,
        store: AnnotationStore,
        settings: AnnotatorSettings,
        distiller: Distiller,
        *,
        seed: int,
        pairs: PairSource | None = None,
    ) -> None:
        self._judge = judge
        self._store = store
        self._settings = settings
        table, labels = (store, (0, 1)) if pairs is None else (store.pairs, (0, 1, 2))
        reuse = (
            None
            if settings.reuse is None
            else labels_elsewhere(Path(settings.reuse), judge.key, store.path, pairs=pairs is not None)
        )
        self._annotator: Annotator[Any] = Annotator(
            cast(Any, judge), cast(Any, table), settings, labels=labels, reuse=reuse, seed=seed
        )
        self._distiller = distiller
        self._pairs = pairs
        self._met: deque[tuple[int, str]] = deque()
        """Captions that `pairs` has not taken yet."""
        self._newest: RewardModelVersion | None = None
        self._training = threading.Lock()
        """Held while the distiller works and pairs are chosen: a checkpoint must not see it half way."""
        self._stopping = False

    def submit(self, captions: Iterable[tuple[int, str]]) -> None:
        """Takes captions that a rollout told of: those that are new to be asked about, or compared."""
        if self._pairs is None:
            self._annotator.submit(captions)
        else:
            self._met.extend(captions)

    async def step(self) -> RewardModelVersion | None:
        """Asks about all that waits (of pairs, one load of requests), then trains. The new reward model, if there is one."""
        self._choose_pairs()
        await self._annotator.drain()
        return self._distil()

    async def serve(self) -> None:
        """Annotates and trains until `stop`. Raises what the annotator or the distiller raises, but for a store that cannot
        be written now: that is tried again."""
        annotation = asyncio.ensure_future(self._annotate())
        try:
            while not self._stopping:
                await asyncio.wait([annotation], timeout=_LOOK_S)
                if annotation.done():
                    break
                if self._pairs_wanted():
                    await asyncio.to_thread(self._choose_pairs)
                if self._distiller.due():
                    await asyncio.to_thread(self._distil)
        finally:
            self._annotator.stop()
            await annotation

    async def _annotate(self) -> None:
        """A full disk may have room again: nothing that is known is lost meanwhile, and nothing is asked."""
        while True:
            try:
                await self._annotator.run()
                return
            except DamagedStoreError:
                raise
            except AnnotationStoreError:
                if self._stopping:
                    raise
                await asyncio.sleep(_RETRY_S)

    def stop(self) -> None:
        """Lets `serve` return."""
        self._stopping = True
        self._annotator.stop()

    def newest(self, known: int) -> RewardModelVersion | None:
        """The newest reward model where it is newer than version `known`, which the learner has."""
        if known > self._distiller.version:
            self._distiller.skip_to(known)
        newest = self._newest
        return newest if newest is not None and newest.version > known else None

    def status(self) -> RewardServerStatus:
        newest = self._newest
        return RewardServerStatus(
            annotator=self._annotator.status(),
            version=0 if newest is None else newest.version,
            metrics=None if newest is None else newest.metrics,
            distil_s=self._distiller.seconds,
            store_error=None if (error := self._annotator.store_error) is None else str(error),
            store_restored=None if self._store.damaged is None else str(self._store.damaged),
        )

    async def close(self) -> None:
        """Closes judge and store; labels are on disk already."""
        await self._judge.close()
        self._store.close()

    def _distil(self) -> RewardModelVersion | None:
        with self._training:
            version = self._distiller.update()
        if version is not None:
            self._newest = version
        return version

    def _pairs_wanted(self) -> int:
        """How many pairs the judge could be given now: as many as it is asked about at once, less those that wait."""
        if self._pairs is None or not (self._met or self._pairs.due > 0):
            return 0
        status = self._annotator.status()
        load = min(self._settings.batch * self._settings.in_flight, self._settings.backlog)
        return max(load - status.queued - status.in_flight, 0)

    def _choose_pairs(self) -> None:
        wanted = self._pairs_wanted()
        if self._pairs is None or not wanted:
            return
        with self._training:
            self._take_met(self._pairs)
            pairs = self._pairs.draw(wanted, self._scores())
        self._annotator.submit(pairs)

    def _take_met(self, pairs: PairSource) -> None:
        pairs.observe(self._met.popleft() for _ in range(len(self._met)))

    def _scores(self) -> Scores | None:
        from reward_server.models.ranking import RankingModel

        model = self._distiller.model
        return model.scores if self._distiller.version and isinstance(model, RankingModel) else None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint. Waits for the round of training that runs, so not to be called on an event loop."""
        with self._training:
            if self._pairs is not None:
                self._take_met(self._pairs)
            return {
                "annotator": self._annotator.state_dict(),
                "distiller": self._distiller.state_dict(),
                "pairs": None if self._pairs is None else self._pairs.state_dict(),
            }

    def load_state_dict(self, state: Mapping[str, Any], *, in_turn: bool = True) -> None:
        """`in_turn`: labels given after the checkpoint come as they did before, so that the run equals one that was not
        interrupted; otherwise they are there at once."""
        self._annotator.load_state_dict(state["annotator"], in_turn=in_turn)
        self._distiller.load_state_dict(state["distiller"])
        if self._pairs is not None and state.get("pairs") is not None:
            self._pairs.load_state_dict(state["pairs"])
        self._newest = self._distiller.current()
