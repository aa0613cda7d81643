"""How many actors a run has where their number follows the cluster (`actors.auto`).

They become more while the learner waits for trajectories and there is room for them, and fewer when machines leave. Where
the cluster can grow (`cluster.autoscaling`), Ray's autoscaler is told what more the run could use.
"""

import time
from typing import Any

import ray

from orchestration import placement
from orchestration.config import Config
from orchestration.session import Session

_LOOK_S = 5.0
_BUSY = 0.1
"""A learner that waits for less than this share of its time is what the run goes as fast as: more actors would only make
its trajectories older."""


def room(config: Config, nodes: list[dict[str, Any]]) -> int:
    """Actors that the machines `nodes` (as `ray.nodes` tells of them) have room for, beside the learner.

    Without groups all workers of the learner are taken to be on the machine with the most processors, and their GPUs where there
    are most.
    """
    asked = placement.actor(config)
    wanted = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"], **asked["resources"]}
    alive = [dict(node["Resources"]) for node in nodes if node["Alive"]]
    largest = max(alive, key=lambda there: there.get("CPU", 0.0), default=None)
    if largest is not None and not config.cluster.groups:
        largest["CPU"] = largest.get("CPU", 0.0) - config.learner.threads * config.learner.workers
    if not config.cluster.groups and config.learner.device == "cuda":
        # The first shares a GPU with engines that leave a part of it (`actors.gpus=0.5`).
        gpus = config.actors.gpus
        leader = 1.0 - gpus if 0 < gpus < 1 else 1.0
        most = max(alive, key=lambda there: there.get("GPU", 0.0), default=None)
        if most is not None:
            most["GPU"] = most.get("GPU", 0.0) - leader - (config.learner.workers - 1)
    # Tenths of processors do not add up to whole ones.
    fits = (min(there.get(name, 0.0) / much + 1e-6 for name, much in wanted.items() if much) for there in alive)
    return sum(max(int(actors), 0) for actors in fits)


def wanted(actors: int, there: int, waited: float, most: int | None) -> int:
    """How many actors there should be, where there is room for `there` and the learner waits for the share `waited` of its
    time; `most`: no more than so many. At least one: it waits for room, as the run does."""
    limit = max(there if most is None else min(there, most), 1)
    if actors > limit:
        return limit
    return actors if waited < _BUSY else min(actors + max(actors // 2, 1), limit)


class Elastic:
    """Looks at cluster and learner every few seconds."""

    def __init__(self, config: Config, session: Session) -> None:
        self._config = config
        self._session = session
        self._began, self._waited = time.monotonic(), 0.0
        self._settled = False
        self._asked: int | None = None
        """None: what a run that was killed asked for may still stand, as the autoscaler forgets nothing by itself."""
        if config.cluster.autoscaling:
            self._ask(0)

    def look(self, actors: int, *, settled: bool) -> int | None:
        """How many actors there should be now, where that is another number. `settled`: the learner has read from all that
        there are, so it is known what they bring."""
        now = time.monotonic()
        if not self._config.actors.auto or now - self._began < _LOOK_S:
            return None
        total = self._session.learner_waited_s
        # What the learner waited while actors began says nothing of how it will be.
        waited = (total - self._waited) / (now - self._began) if settled and self._settled else 0.0
        self._began, self._waited, self._settled = now, total, settled
        there = room(self._config, ray.nodes())
        number = wanted(actors, there, waited, self._config.actors.max)
        if self._config.cluster.autoscaling:
            self._ask(number if waited < _BUSY else wanted(number, 2 * number + 1, waited, self._config.actors.max))
        return None if number == actors else number

    def close(self) -> None:
        """Takes back what the autoscaler was asked for."""
        if self._asked:
            self._ask(0)

    def _ask(self, actors: int) -> None:
        if actors == self._asked:
            return
        from ray.autoscaler.sdk import request_resources

        options = placement.actor(self._config)
        gpus = {"GPU": options["num_gpus"]} if options["num_gpus"] else {}
        request_resources(bundles=[{"CPU": options["num_cpus"], **gpus, **options["resources"]}] * actors)
        self._asked = actors
