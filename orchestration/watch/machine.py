"""What one machine of a run has left, and how the parts on it stand."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestration.machine import available_memory, free_disk, total_memory
from orchestration.watch.processes import ProcessLook, ProcessWatch, kill


@dataclass(frozen=True, slots=True)
class MachineLook:
    """Bytes, but for the clock."""

    at: float
    """Seconds since the epoch, by this machine's clock."""
    memory_free: int
    memory_total: int
    temp_free: int
    """Where Ray keeps its files, spilled objects among them."""
    processes: Mapping[int, ProcessLook]


class MachineWatch:
    """Looks at this machine. Hosted by a Ray actor on the machines of a cluster that the coordinator is not on."""

    def __init__(self, temp: Path) -> None:
        self._temp = temp
        self._processes = ProcessWatch()

    def look(self, pids: Sequence[int]) -> MachineLook:
        """How the machine stands, and the parts of the run with these processes."""
        processes = self._processes.look(pids)
        memory = available_memory()
        return MachineLook(time.time(), memory, total_memory(), free_disk(self._temp), processes)

    def kill(self, pids: Sequence[int]) -> None:
        """Ends processes at once."""
        kill(pids)
