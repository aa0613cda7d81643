"""Watches a distributed run: finds the processes of its parts, has them looked at, tells of those that stand still, and ends
those that do for too long, so that they are replaced as parts that died are.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.session import Session
from orchestration.traces.writers import ASIDE_FROM
from orchestration.watch import ray_state
from orchestration.watch.machines import Machines, Stores, Then
from orchestration.watch.processes import ProcessLook
from orchestration.watch.ray_state import Place
from orchestration.watch.watchdog import Finding, Unreachable, Watchdog, Watched, What

_LOOK_S = 0.5
_ALL_TICKS = 4
_FOUND_AT_ONCE = 16
_REPLICAS_S = 5.0
_REPLICAS_SOON_S = 1.0
JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the run that is a Ray actor of the coordinator."""

    name: str
    handle: Any
    heard_at: float
    """When it last answered, by the monotonic clock."""
    owes: bool
    """Whether an answer of it is awaited."""


class RunWatch:
    """Called by the coordinator's loop."""

    def __init__(
        self, session: Session, *, then: Then, parts: Callable[[], list[Part]], judge: Callable[[], str | None]
    ) -> None:
        """`then` has a function called with the answer to a reference; `parts`: what there is; `judge`: the application of
        the judge, None where the run has started none."""
        self._session = session
        self._parts = parts
        self._judge = judge
        self._machines = Machines(then)
        self._watchdog = Watchdog(session.config.cluster.still_s, time.monotonic)
        self._places: dict[Any, Place] = {}
        self._replicas: list[Place] = []
        self._seen_replicas: set[Place] = set()
        """Those whose processes were seen."""
        self._dead_replicas: set[Place] = set()
        """Those that are gone, as long as Ray Serve has not replaced them all."""
        self._replicas_due = 0.0
        self._due = 0.0
        self._ticks = 0
        self._stores = Stores()
        self._names: dict[str, str] = {}
        self._told: set[str] = set()

    def tick(self) -> None:
        """Does what is due. Called a few times a second."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _LOOK_S
        parts = self._parts()
        watched = [Watched(part.name, now - part.heard_at, part.owes) for part in parts]
        judges = self._judges(now)
        watched += [Watched(name, 0.0, False) for name in judges]
        names = {each.name for each in self._watchdog.suspects(watched)} | self._in_turn(parts)
        places = {**self._places_of(parts, names), **judges}
        by_node: dict[str, list[int]] = {}
        for place in places.values():
            by_node.setdefault(place.node, []).append(place.pid)
        self._machines.look(by_node)
        self._look_at_replicas()
        looks = {name: look for name, place in places.items() if (look := self._look(place)) is not None}
        # Where there is no such process Ray has started the part anew, or is about to.
        gone = {place for name, place in places.items() if name not in looks}
        self._places = {handle: place for handle, place in self._places.items() if place not in gone}
        for finding in self._watchdog.look(watched, looks):
            self._tell(finding, places)
        self._look_at_machines()
        still = {name: time.time() - (now - each.since) for name, each in self._watchdog.still.items()}
        self._session.faults.still = still

    def close(self) -> None:
        """Ends what stands still: it would not hear that the run is over."""
        parts = self._parts()
        places = {**self._places_of(parts, {still.part for still in self._watchdog.still.values()})}
        for place in places.values():
            self._machines.kill(place.node, [place.pid])
        self._session.faults.still = {}
        self._machines.close()
        self._stores.close()

    def _in_turn(self, parts: Sequence[Part]) -> set[str]:
        """Parts that are looked at though they answer: an actor does for a while when the process that writes its traces
        stands still. Every fourth time all of them; of those whose place has to be found only a few."""
        self._ticks += 1
        if self._session.config.trace.rate < ASIDE_FROM or self._ticks % _ALL_TICKS:
            return set()
        known = {part.name for part in parts if part.handle in self._places}
        return known | set([part.name for part in parts if part.name not in known][:_FOUND_AT_ONCE])

    def _look_at_machines(self) -> None:
        """Hands what is left on the other machines, and of all object stores, to the backstops."""
        backstops, known = self._session.backstops, self._machines.known
        for node in self._told - set(known):
            backstops.forget(self._names[node])
        self._told = set(known)
        for machine in known.values():
            self._names[machine.node] = machine.name
            look = machine.look
            if look is None:
                continue
            backstops.temporary(machine.name, look.temp_free)
            if not machine.own:  # of which the session knows
                backstops.memory(machine.name, look.memory_free, look.memory_total)
                half = (machine.came_at - machine.sent_at) / 2
                backstops.clock(machine.name, look.at - (machine.sent_at + half), half)
        for node, spilled in self._stores.spilled().items():
            if node in known:
                backstops.spilled(known[node].name, spilled)

    def _judges(self, now: float) -> dict[str, Place]:
        """The replicas of the judge, by name."""
        app = self._judge()
        if app is None:
            return {}
        if now >= self._replicas_due:
            self._replicas_due = now + (_REPLICAS_SOON_S if self._dead_replicas else _REPLICAS_S)
            there = set(ray_state.replicas_of(app)) - self._dead_replicas
            if self._dead_replicas and there - set(self._replicas):
                self._session.view.event("a replica of the judge is there again")
                self._dead_replicas.clear()
            for place in set(self._replicas) - there:
                self._replica_gone(place)
            self._replicas = sorted(there, key=lambda place: place.pid)
        many = len(self._replicas) > 1
        return {f"{JUDGE} {place.pid}" if many else JUDGE: place for place in self._replicas}

    def _look_at_replicas(self) -> None:
        """Tells of replicas of the judge whose processes are gone: Ray Serve looks more seldom, and tells nobody."""
        for place in list(self._replicas):
            machine = self._machines.known.get(place.node)
            if machine is None or machine.look is None:
                continue
            if place.pid in machine.look.processes:
                self._seen_replicas.add(place)
            elif place in self._seen_replicas:
                self._replica_gone(place)

    def _replica_gone(self, place: Place) -> None:
        """Tells of one that was seen and is there no more, nor its machine perhaps, unless Ray Serve let it go."""
        self._replicas.remove(place)
        if place in self._seen_replicas:
            self._seen_replicas.discard(place)
            if not ray_state.let_go(place):
                self._replica_died(place)

    def _replica_died(self, place: Place) -> None:
        self._dead_replicas.add(place)
        self._session.faults.judge_restarts += 1
        self._replicas_due = 0.0
        self._session.view.event(
            f"a replica of the judge died (process {place.pid}); Ray Serve replaces it", warning=True
        )

    def _places_of(self, parts: Sequence[Part], names: set[str]) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for part in parts:
            if part.name not in names:
                continue
            place = self._places.get(part.handle) or ray_state.place_of(part.handle)
            if place is not None:
                places[part.name] = self._places[part.handle] = place
        there = {part.handle for part in parts}
        self._places = {handle: place for handle, place in self._places.items() if handle in there}
        return places

    def _look(self, place: Place) -> ProcessLook | Unreachable | None:
        machine = self._machines.known.get(place.node)
        if machine is None or machine.look is None:
            return None
        return Unreachable(machine.name) if machine.silent else machine.look.processes.get(place.pid)

    def _tell(self, finding: Finding, places: dict[str, Place]) -> None:
        view, record = self._session.view, self._session.record
        if finding.what is What.GOES_ON:
            view.event(f"{finding.name} goes on, after {finding.seconds:.0f} s")
            record.goes_on(finding.part, f"{finding.name} goes on, after {finding.seconds:.0f} s")
        elif finding.what is What.STANDS_STILL:
            limit = self._session.config.cluster.still_s
            then = "" if limit is None else f"; it is replaced if that lasts for {limit:g} s (cluster.still_s)"
            view.event(f"{finding.name} stands still: {finding.why}{then}", warning=True)
            record.stands_still(finding.part, f"{finding.name} stands still: {finding.why}")
        else:
            place = places[finding.part]
            own = () if finding.name != finding.part else (place.pid,)
            view.event(f"{finding.name} has stood still for {finding.seconds:.0f} s and is ended", warning=True)
            self._machines.kill(place.node, (*finding.pids, *own))
            self._watchdog.forget(finding.part)
            self._places = {handle: known for handle, known in self._places.items() if known != place}
            if place in self._replicas:
                self._replicas.remove(place)
                self._replica_died(place)
