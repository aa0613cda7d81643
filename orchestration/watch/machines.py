"""Looks at all machines of a run: this one at once, the others through an actor on each. Never holds the coordinator up."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestration.watch import ray_state
from orchestration.watch.machine import MachineLook, MachineWatch

_NODES_S = 5.0
_STORES_S = 5.0
_LATE_S = 3.0
"""A machine that has not answered for so long does not answer."""

Then = Callable[[Any, Callable[[Future[Any]], None]], None]


class _Host:
    """Hosts the look at one machine."""

    def __init__(self) -> None:
        self._watch = MachineWatch(ray_state.temp_dir())

    def look(self, pids: Sequence[int]) -> MachineLook:
        return self._watch.look(pids)

    def kill(self, pids: Sequence[int]) -> None:
        self._watch.kill(pids)


@dataclass(slots=True)
class Machine:
    """One machine, as it is known here."""

    node: str
    name: str
    look: MachineLook | None = None
    """The newest."""
    sent_at: float = 0.0
    """When that was asked for, and when it came: by the clock of this machine, seconds since the epoch."""
    came_at: float = 0.0
    own: bool = False
    """Whether the coordinator is on it."""
    host: Any = None
    """Of another machine: the actor."""
    asked: tuple[float, float] | None = field(default=None)
    """When it was asked what it has not answered: by the monotonic clock, and since the epoch."""

    @property
    def silent(self) -> bool:
        """Whether it does not answer, though it did."""
        late = self.asked is not None and time.monotonic() - self.asked[0] > _LATE_S
        return late and self.look is not None


class Machines:
    """Those of the cluster that are alive."""

    def __init__(self, then: Then) -> None:
        """`then` has a function called with the answer to a reference."""
        self._then = then
        self._here = ray_state.here()
        self._own = MachineWatch(ray_state.temp_dir())
        self._due = 0.0
        self.known: dict[str, Machine] = {}

    def look(self, pids: Mapping[str, Sequence[int]]) -> None:
        """Looks at the machines, and at these processes of each node; what others answer is there at a later look."""
        self._refresh()
        for machine in self.known.values():
            if machine.node == self._here:
                now = time.time()
                machine.look, machine.sent_at, machine.came_at = self._own.look(pids.get(machine.node, ())), now, now
            elif machine.asked is None:
                self._ask(machine, pids.get(machine.node, ()))

    def kill(self, node: str, pids: Sequence[int]) -> None:
        """Ends processes of a machine."""
        machine = self.known.get(node)
        if node == self._here:
            self._own.kill(pids)
        elif machine is not None and machine.host is not None:
            machine.host.kill.remote(pids)

    def close(self) -> None:
        for machine in self.known.values():
            if machine.host is not None:
                ray.kill(machine.host)

    def _refresh(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _NODES_S
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        self.known = {node: machine for node, machine in self.known.items() if node in alive}
        for node, about in alive.items():
            if node not in self.known:
                name = f"{about['NodeManagerHostname']} ({about['NodeManagerAddress']})"
                self.known[node] = Machine(
                    node, name, own=node == self._here, host=None if node == self._here else self._start(node)
                )

    def _start(self, node: str) -> Any:
        options: dict[str, Any] = {
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        return ray.remote(_Host).options(**options).remote()

    def _ask(self, machine: Machine, pids: Sequence[int]) -> None:
        asked = machine.asked = (time.monotonic(), time.time())

        def answered(answer: Future[Any]) -> None:
            machine.asked = None
            if isinstance(answer.exception(), RayError):
                # The machine went away, or this process of it: another has to be started where it is still there.
                self.known.pop(machine.node, None)
                return
            machine.look, machine.sent_at, machine.came_at = answer.result(), asked[1], time.time()

        self._then(machine.host.look.remote(list(pids)), answered)


class Stores:
    """Asks the object stores of all machines, in a thread: Ray's raylets answer soon, or not at all."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._spilled: dict[str, int] = {}
        threading.Thread(target=self._serve, name="object stores", daemon=True).start()

    def spilled(self) -> dict[str, int]:
        """Bytes that each machine has written to disk so far, by node."""
        return self._spilled

    def close(self) -> None:
        self._ended.set()

    def _serve(self) -> None:
        while not self._ended.wait(_STORES_S):
            found: dict[str, int] = {}
            for node in ray.nodes() if ray.is_initialized() else ():
                # One that is about to go does not answer; it is asked again, or gone.
                with contextlib.suppress(Exception):
                    if node["Alive"] and not self._ended.is_set():
                        found[node["NodeID"]] = ray_state.spilled(node)
            self._spilled = found
