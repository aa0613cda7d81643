"""The reward server: what annotates captions and distils the labels, as one plain object.

Invariant: whatever the judge does (slow, down, nonsense), the reward model stays at its version and nothing waits.
"""

import asyncio
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reward_server.annotator import Annotator
from reward_server.distiller import Distiller, RewardModelVersion
from reward_server.reuse import labels_elsewhere
from reward_server.settings import AnnotatorSettings
from reward_server.status import RewardServerStatus
from reward_server.store import AnnotationStore
from reward_server.types import Judge

_LOOK_S = 0.5


class RewardServer:
    """Annotator, store and distiller around one judge.

    Either `serve()` runs them until `stop()`, or the serial runtime calls `step()` after each rollout.
    """

    def __init__(
        self,
        judge: Judge,
        store: AnnotationStore,
        settings: AnnotatorSettings,
        distiller: Distiller,
        *,
        seed: int,
    ) -> None:
        self._judge = judge
        self._store = store
        reuse = None if settings.reuse is None else labels_elsewhere(Path(settings.reuse), judge.key, store.path)
        self._annotator = Annotator(judge, store, settings, reuse=reuse, seed=seed)
        self._distiller = distiller
        self._newest: RewardModelVersion | None = None
        self._training = threading.Lock()
        """Held while the distiller works: a checkpoint must not see it half way."""
        self._stopping = False

    def submit(self, captions: Iterable[tuple[int, str]]) -> None:
        """Queues captions that a rollout brought for the first time."""
        self._annotator.submit(captions)

    async def step(self) -> RewardModelVersion | None:
        """Asks about all that waits, then trains. The new reward model, if there is one."""
        await self._annotator.drain()
        return self._distil()

    async def serve(self) -> None:
        """Annotates and trains until `stop`. Raises what the annotator or the distiller raises."""
        annotation = asyncio.ensure_future(self._annotator.run())
        try:
            while not self._stopping:
                await asyncio.wait([annotation], timeout=_LOOK_S)
                if annotation.done():
                    break
                if self._distiller.due():
                    await asyncio.to_thread(self._distil)
        finally:
            self._annotator.stop()
            await annotation

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
            accuracy=None if newest is None else newest.metrics.accuracy,
            distil_s=self._distiller.seconds,
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

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint. Waits for the round of training that runs, so not to be called on an event loop."""
        with self._training:
            return {"annotator": self._annotator.state_dict(), "distiller": self._distiller.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._annotator.load_state_dict(state["annotator"])
        self._distiller.load_state_dict(state["distiller"])
        self._newest = self._distiller.current()
