"""What runs out is told before it kills: rules, a disk that fills under a run, an object store that spills."""

import io
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestration.faults import Faults
from orchestration.live import LiveView
from orchestration.traces.reader import trace_files
from orchestration.traces.room import Room
from orchestration.traces.validate import validate_file
from orchestration.watch.backstops import Backstops
from tests.processes import Command, summary
from tests.test_ray import small

MIB, GIB = 1 << 20, 1 << 30


class Told:
    """Backstops with a clock that is set, and what they told."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.events: list[str] = []
        self.faults = Faults()
        view = LiveView(Console(file=io.StringIO()), plain=True)
        view.event = lambda message, *, warning=False: self.events.append(message)  # type: ignore[method-assign]
        room: Any = SimpleNamespace(folder=folder / "traces", reserve=256 * MIB, share=10 * GIB)
        self.backstops = Backstops(self.faults, view, room, clock=lambda: self.now)

    def take(self) -> list[str]:
        events, self.events = self.events, []
        return events


def test_a_disk_is_told_of_when_it_fills_again_at_the_half_and_when_it_is_over(tmp_path: Path) -> None:
    told = Told(tmp_path)

    def left(free: int) -> list[str]:
        told.backstops.disk("disk of runs", Path("runs"), free)
        return told.take()

    assert left(2 * GIB) == []
    (message,) = left(900 * MIB)
    assert "only 900 MiB free in runs" in message and "below 256 MiB no traces are written" in message
    assert "remove old runs" in message and list(told.faults.running_out) == ["disk of runs"]
    assert left(800 * MIB) == left(500 * MIB) == []
    assert len(left(449 * MIB)) == 1
    halved, traces = left(200 * MIB)
    assert "only 200 MiB free" in halved and traces.startswith("traces: they give way to checkpoints and labels")
    assert left(260 * MIB) == [], "not over and begun again at every byte"
    assert left(1100 * MIB) == ["traces: enough again"]
    assert left(2 * GIB) == ["disk of runs: enough again"] and told.faults.running_out == {}


def test_memory_and_clocks_name_the_machine(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.backstops.memory("two", 7 * GIB, 64 * GIB)
    assert told.take() == []
    told.backstops.memory("two", 5 * GIB, 64 * GIB)
    assert "memory of two: only 5.0 GiB of 64.0 GiB free" in told.take()[0]
    told.backstops.clock("two", 3.0, 2.5)  # measured over a slow network
    assert told.take() == []
    told.backstops.clock("two", -3.0, 0.1)
    assert "clock of two: 3.0 s behind the coordinator's" in told.take()[0]
    told.backstops.clock("two", -0.1, 0.1)
    assert told.take() == ["clock of two: enough again"]
    told.backstops.forget("two")
    assert told.faults.running_out == {}


def test_spilling_is_told_until_it_was_quiet_for_a_while(tmp_path: Path) -> None:
    told = Told(tmp_path)
    for seconds, spilled, events in [
        (0, 0, 0),
        (5, 10 * MIB, 1),
        (10, 90 * MIB, 0),
        (50, 90 * MIB, 0),
        (80, 90 * MIB, 1),
    ]:
        told.now = 100.0 + seconds
        told.backstops.spilled("one", spilled)
        assert len(told.take()) == events, seconds
    assert told.faults.running_out == {}
    # A cluster that spilled before this run began has not begun to do so now.
    told.backstops.spilled("two", 500 * MIB)
    told.backstops.spilled("two", 500 * MIB)
    assert told.take() == []
    told.backstops.spilled("two", 501 * MIB)
    assert len(told.take()) == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leaves about `left` bytes free."""
    free = os.statvfs(disk)
    with (disk / "filler").open("ab") as file:
        try:
            file.write(bytes(max(free.f_bavail * free.f_frsize - left, 0)))
        except OSError:
            return


def test_traces_leave_room_for_checkpoints(disk: Path) -> None:
    (disk / "run" / "checkpoints" / "0001").mkdir(parents=True)
    (disk / "run" / "checkpoints" / "latest").symlink_to("0001")
    now = 0.0
    room = Room(disk / "run" / "traces", clock=lambda: now)
    assert room.reserve == room.share == int(9.6 * MIB) and room.short() is None, "a small disk is not all reserved"
    fill(disk, 8 * MIB)
    assert room.short() is None, "it does not look all the time"
    now = 1.0
    assert re.match(r"only [78] MiB are free", room.short() or "")
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - 2 * MIB)
    now = 2.0
    assert room.short() is not None, "just enough is not enough to begin again"
    (disk / "filler").unlink()
    now = 3.0
    assert room.short() is None


@pytest.mark.long
def test_a_disk_that_fills_ends_no_run(disk: Path) -> None:
    """First traces stop, then nothing can be written; what was written is whole, and all goes on when there is room again."""
    run, traces = disk / "run", disk / "run" / "traces"
    options = [
        "train.env_steps=100000000",
        "checkpoint.interval_s=1",
        "checkpoint.keep=1",
        "trace.rate=1",
        "actors.cpus=0.5",
    ]
    arguments = small(disk, "http://unused", *options, "reward.model=none")
    arguments = [a for a in arguments if not a.startswith(("judge.", "distiller.", "annotator."))]
    with Command(*arguments) as command:
        events = run / "logs" / "events.log"
        # The first one has no state of the optimiser, and is small.
        command.until(
            lambda: int(Path(summary(run).get("checkpoint") or "0").name) > 1000 and len(trace_files(run)) > 3
        )
        assert summary(run)["running_out"] == {}

        def gave_way() -> bool:
            # While a checkpoint is being written less is free than there will be.
            if not list((run / "checkpoints").glob(".*.part")):
                fill(disk, Room(traces).reserve - MIB // 2)
            return events.exists() and "give way to checkpoints" in events.read_text()

        command.until(gave_way, 30)
        command.until(lambda: summary(run)["trace_errors"] > 0 and bool(summary(run)["running_out"]), 30)
        time.sleep(1.0)
        there, checkpoint = len(trace_files(run)), summary(run)["checkpoint"]
        command.until(lambda: summary(run)["checkpoint"] != checkpoint, 30)
        assert len(trace_files(run)) == there and not list(traces.glob("actor*.part"))

        fill(disk, 0)
        command.until(lambda: "checkpoint not written" in command.text(), 60)
        time.sleep(2.0)
        assert command.process.poll() is None
        assert not list((run / "checkpoints").glob(".*.part")) or not list(
            (run / "checkpoints").glob(".*.part/state.pt")
        )

        (disk / "filler").unlink()
        command.until(lambda: "checkpoints are written again" in command.text(), 60)
        command.until(lambda: summary(run)["running_out"] == {} and len(trace_files(run)) > there, 60)
        told = summary(run)
        assert told["checkpoint_errors"] >= 1 and told["actor_restarts"] == 0 and told["learner_restarts"] == 0
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130, command.text()
        assert command.left_behind(10.0) == []
    assert all(validate_file(path) == [] for path in trace_files(run))


@pytest.mark.long
def test_an_object_store_that_is_too_small_is_seen_to_spill() -> None:
    import numpy as np
    import ray

    from benchmarks.growth import Case, ray_cluster
    from orchestration.watch import ray_state
    from orchestration.watch.machines import Stores

    with ray_cluster(Case(actors=1)):
        (node,) = ray.nodes()
        assert ray_state.spilled(node) == 0
        size = int(node["Resources"]["object_store_memory"])
        kept = [ray.put(np.ones(size // 6, np.uint8)) for _ in range(9)]
        deadline = time.monotonic() + 60
        while not (spilled := ray_state.spilled(node)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        stores = Stores()
        while stores.spilled().get(node["NodeID"], 0) < spilled:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        stores.close()
        del kept


def test_a_serial_run_goes_on_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from orchestration.cli.main import run as yendor

    save, failed = torch.save, list[bool]()

    def full_at_first(*arguments: Any, **options: Any) -> None:
        if len(failed) < 2:
            failed.append(True)
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(torch, "save", full_at_first)
    arguments = [
        "train", "demo", f"run.dir={tmp_path}", "run.name=run", "runtime=serial", "reward.model=none", "actors.envs=4",
        "actors.rollout_length=8", "learner.batch_size=32", "train.env_steps=256", "checkpoint.interval_s=0.001", "--plain",
    ]  # fmt: skip
    assert yendor(arguments) == 0
    told = summary(tmp_path / "run")
    assert (told["status"], told["checkpoint_errors"]) == ("done", 2)
    events = (tmp_path / "run" / "logs" / "events.log").read_text()
    assert events.count("checkpoint not written: RuntimeError: PytorchStreamWriter failed") == 1
    assert "checkpoints are written again" in events
