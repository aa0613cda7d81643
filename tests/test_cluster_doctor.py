"""`yendor doctor --address`: verdicts on machines that differ, and a real Ray cluster of two nodes."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.util import get_node_ip_address

from orchestration import cluster_doctor
from orchestration.cli.main import run as yendor
from orchestration.cluster_doctor import ClusterDiagnosis, Machine, clock_of, judge
from orchestration.doctor import Verdict
from tests.test_jobs import cluster, free_port  # noqa: F401  a fixture

GIB = 1 << 30
VERSIONS = {
    "python": "3.11.9", "ray": "2.60.0", "nle": "1.2", "minihack": "1.0", "gymnasium": "1.0", "numpy": "2.0", "torch": "2.5.0",
    "transformers": "4.50",
}  # fmt: skip
OWN = {"python": "3.11.9", "ray": "2.60.0"}
GOOD = Machine(
    node="a", address="10.0.0.1", head=True, resources={"CPU": 4, "object_store_memory": 2 * GIB}, host="one",
    versions=VERSIONS, memory_free=8 * GIB, temp="/tmp/ray", temp_free=9 * GIB, runs="/mnt/runs", runs_free=9 * GIB,
    runs_shared=True, skew=0.01, skew_error=0.002,
)  # fmt: skip


def verdicts(*others: Machine, first: Machine = GOOD) -> dict[str, tuple[Verdict, str]]:
    return {check.name: (check.verdict, check.found) for check in judge((first, *others), OWN)}


def other(**changes: object) -> Machine:
    return dataclasses.replace(GOOD, node="b", address="10.0.0.2", head=False, host="two", **changes)  # type: ignore[arg-type]


def test_machines_that_agree() -> None:
    found = verdicts(other())
    assert {verdict for verdict, _ in found.values()} == {Verdict.OK}, found
    assert found["torch"] == (Verdict.OK, "2.5.0") and "vllm" not in found


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "words"),
    [
        ({"versions": VERSIONS | {"torch": "2.4.1"}}, "torch", Verdict.MISSING, "2.4.1 on two (10.0.0.2)"),
        ({"versions": VERSIONS | {"nle": None}}, "nle", Verdict.MISSING, "not installed on two"),
        ({"versions": VERSIONS | {"vllm": "0.9"}}, "vllm", Verdict.NOTE, "0.9, not on one"),
        ({"memory_free": GIB}, "memory", Verdict.NOTE, "1.0 GiB free on two"),
        ({"temp_free": GIB // 10}, "temporary files", Verdict.NOTE, "0.1 GiB free on two"),
        ({"resources": {"object_store_memory": GIB / 8}}, "object store", Verdict.NOTE, "0.1 GiB large on two"),
        ({"runs_shared": False}, "run.dir", Verdict.MISSING, "is not that of two"),
        ({"skew": -4.0}, "clocks", Verdict.NOTE, "-4.0 s on two"),
        ({"error": "GetTimeoutError: 60 s"}, "two (10.0.0.2)", Verdict.MISSING, "does not answer: GetTimeoutError"),
    ],
)
def test_what_one_machine_lacks_is_named(changes: dict[str, object], check: str, verdict: Verdict, words: str) -> None:
    found = verdicts(other(**changes))
    assert found.pop(check)[0] is verdict
    assert words in dict(verdicts(other(**changes)))[check][1]
    assert {each for each, _ in found.values()} == {Verdict.OK}, found


def test_processors_and_groups_are_added_up() -> None:
    def with_resources(*each: dict[str, float]) -> dict[str, tuple[Verdict, str]]:
        first, *others = (
            dataclasses.replace(GOOD, resources={"object_store_memory": 2 * GIB, **told}) for told in each
        )
        return verdicts(*others, first=first)

    found = with_resources({"CPU": 2.0}, {"CPU": 6.5, "GPU": 1.0})
    assert found["processors"] == (Verdict.OK, "8.5, and 1 GPU")
    assert found["groups"] == (Verdict.OK, "none: parts go where there is room (cluster.groups=false)")
    assert with_resources({"CPU": 1.0}, {})["processors"] == (Verdict.MISSING, "1, and 0 GPUs")
    everywhere = with_resources({"CPU": 2, "learner": 1, "judge": 2}, {"CPU": 8, "actor": 8}, {"CPU": 4, "actor": 4})
    assert everywhere["groups"] == (Verdict.OK, "actor 12, learner 1, judge 2")
    assert with_resources({"CPU": 2, "learner": 1}, {"CPU": 8, "actor": 8})["groups"][0] is Verdict.NOTE
    (lacking,) = [
        check
        for check in judge((dataclasses.replace(GOOD, resources={"CPU": 8, "actor": 8, "judge": 1}),), OWN)
        if check.name == "groups"
    ]
    assert lacking.verdict is Verdict.NOTE and "ray start --resources='{\"learner\": 1}'" in str(lacking.remedy)


def test_a_skew_that_was_measured_badly_is_no_skew() -> None:
    assert verdicts(other(skew=3.0, skew_error=2.5))["clocks"][0] is Verdict.OK


def test_the_caller_has_to_have_the_clusters_ray() -> None:
    (found,) = [check for check in judge((GOOD,), OWN | {"ray": "2.9.0"}) if check.name == "ray"]
    assert found.verdict is Verdict.MISSING and found.found == "2.60.0 there, 2.9.0 here"


@pytest.mark.parametrize("ahead", [-3.3, 0.0, 0.4, 17.25])
def test_the_clock_of_a_server_that_tells_whole_seconds(ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    at = 1000.3

    def clock() -> float:
        return at

    def ask(_: str) -> float:
        nonlocal at
        at += 0.02  # there
        told = float(int(at + ahead))
        at += 0.03  # and back
        return told

    monkeypatch.setattr(cluster_doctor.time, "sleep", lambda _: None)
    found, error = clock_of("x", clock=clock, ask=ask)
    assert error < 0.06 and abs(found - ahead) <= error


def test_the_table_and_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machines = (GOOD, other(versions=VERSIONS | {"torch": "2.4.1"}))
    diagnosis = ClusterDiagnosis(machines, tuple(judge(machines, OWN)))
    monkeypatch.setattr(cluster_doctor, "diagnose_cluster", lambda *_: diagnosis)
    monkeypatch.setenv("COLUMNS", "200")
    assert yendor(["doctor", "--address", "http://head:8265"]) == 1
    shown = capsys.readouterr().out
    assert "one (10.0.0.1) head" in shown and "two (10.0.0.2)" in shown and "give all machines the same image" in shown
    assert yendor(["doctor", "--address", "http://head:8265", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["machines"][1]["versions"]["torch"] == "2.4.1"


def test_no_cluster_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert yendor(["doctor", "--address", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1: no job server of Ray answers there" in capsys.readouterr().err


@pytest.fixture
def two_nodes(cluster: tuple[str, str]) -> Iterator[tuple[str, dict[str, str]]]:  # noqa: F811
    """The address of the job server, a second node beside its head, and the environment to reach it."""
    address, secret = cluster
    (head,) = [p for p in psutil.process_iter(["cmdline"]) if _is_head(p.info["cmdline"], address)]
    command = head.cmdline()
    port = next(word.partition("=")[2] for word in command if word.startswith("--port="))
    gcs = f"{get_node_ip_address()}:{port}"
    ray = command[: command.index("start")]
    environment = {**head.environ(), "RAY_AUTH_TOKEN": secret, "RAY_AUTH_MODE": "token"}
    node = subprocess.Popen(
        [
            *ray, "start", f"--address={gcs}", "--block", "--num-cpus=1", '--resources={"judge": 1}',
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address, {**os.environ, "RAY_AUTH_TOKEN": secret, "RAY_AUTH_MODE": "token", "RAY_GCS": gcs}
    finally:
        parts = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        node.terminate()
        for part in psutil.wait_procs(parts, timeout=20)[1]:
            part.kill()
        node.wait()


def _is_head(command: list[str] | None, address: str) -> bool:
    return f"--dashboard-port={address.rpartition(':')[2]}" in (command or []) and "start" in (command or [])


@pytest.mark.long
def test_a_cluster_of_two_nodes(two_nodes: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """By its job server, and joined from this machine."""
    address, environment = two_nodes
    for where in (address, environment["RAY_GCS"]):
        for _ in range(20):  # until the second node has joined
            done = subprocess.run(
                [str(Path(sys.executable).parent / "yendor"), "doctor", "--address", where, "--dir", str(tmp_path), "--json"],
                env=environment, capture_output=True, text=True, timeout=200, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            found = json.loads(done.stdout)
            if len(found["machines"]) == 2:
                break
        first, second = found["machines"]
        assert first["head"] and second["resources"]["judge"] == 1 and second["error"] is None
        assert first["versions"] == second["versions"] and first["versions"]["ray"] is not None
        assert all(abs(machine["skew"]) <= machine["skew_error"] + 0.05 for machine in found["machines"])
        assert first["runs_shared"] and second["runs_shared"] and first["resources"]["object_store_memory"] > 0
        assert not list(tmp_path.iterdir()), "what was written to try it is removed"
