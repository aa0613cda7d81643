"""Starting a Ray cluster on a busy machine."""

import subprocess

import psutil
import pytest

from orchestration.cluster import start_patiently

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Starts:
    """Starts of a node; the first `late` of them leave a process behind and are not up in time."""

    def __init__(self, late: int, error: str = LATE) -> None:
        self.late, self.error = late, error
        self.left: list[subprocess.Popen[bytes]] = []
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls > self.late:
            return "up"
        self.left.append(subprocess.Popen(["sleep", "60"]))
        raise Exception(self.error)


def test_a_node_that_was_not_up_in_time_is_started_again_and_leaves_nothing() -> None:
    others = subprocess.Popen(["sleep", "60"])
    try:
        starts = Starts(late=2)
        assert start_patiently(starts) == "up"
        assert starts.calls == 3
        assert not [process for process in starts.left if psutil.pid_exists(process.pid)]
        assert psutil.pid_exists(others.pid) and others.poll() is None
    finally:
        others.kill()
        others.wait()


def test_what_never_comes_up_or_fails_otherwise_is_an_error() -> None:
    never = Starts(late=9)
    with pytest.raises(Exception, match="timed out during startup"):
        start_patiently(never)
    assert never.calls == 3
    other = Starts(late=9, error="the port is taken")
    with pytest.raises(Exception, match="the port is taken"):
        start_patiently(other)
    assert other.calls == 1
    for process in (*never.left, *other.left):
        process.kill()
        process.wait()
