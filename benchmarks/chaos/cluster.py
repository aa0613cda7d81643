"""A Ray cluster of several nodes on this machine, whose nodes can be killed, brought back, and cut off.

The head holds coordinator and reward server; the learner and the actors have nodes of their own. Where the user may make network
namespaces (root, with `ip` of iproute2), one of those nodes is in one, behind a link that can be cut and slowed.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_MARK = "YENDOR_CHAOS_NODE"
_STORE_BYTES = 1 << 28
_START_S = 150.0
_GIVES_UP_S = 15
"""After which a node believes that the head is gone; Ray's own default is a minute."""
_ENDS_S = 60.0
_LATE = "timed out during startup"
HEAD, LEARNER_NODE = "head", "learner"
_RUN = ("ray::RolloutWorker", "ray::Learner", "ray::RewardServerWorker")
"""How processes of a run are called."""


@dataclass
class Link:
    """The two ends of a network link: one here, one in a namespace of its own."""

    namespace: str
    here: str
    there: str
    address_here: str
    address_there: str

    @classmethod
    def make(cls) -> "Link | None":
        """None where this user or system makes none."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return None
        tag = uuid.uuid4().hex[:6]
        net = f"10.{os.getpid() % 200 + 20}.{int(tag[:2], 16)}"
        link = cls(f"chaos-{tag}", f"ch{tag}", f"cn{tag}", f"{net}.1", f"{net}.2")
        try:
            for command in (
                f"ip netns add {link.namespace}",
                f"ip link add {link.here} type veth peer name {link.there}",
                f"ip link set {link.there} netns {link.namespace}",
                f"ip addr add {link.address_here}/30 dev {link.here}",
                f"ip link set {link.here} up",
                f"ip netns exec {link.namespace} ip addr add {link.address_there}/30 dev {link.there}",
                f"ip netns exec {link.namespace} ip link set {link.there} up",
                f"ip netns exec {link.namespace} ip link set lo up",
            ):
                subprocess.run(command.split(), check=True, capture_output=True)
        except subprocess.CalledProcessError:
            link.remove()
            return None
        return link

    def cut(self, cut: bool) -> None:
        """Nothing goes through, or all does."""
        subprocess.run(["ip", "link", "set", self.here, "down" if cut else "up"], check=True, capture_output=True)

    def slow(self, slow: bool) -> bool:
        """1 Mbit/s, with what waits delayed by up to 0.4 s; False where the kernel has no such queue."""
        rule = "root tbf rate 1mbit burst 32kbit latency 400ms" if slow else "root"
        command = ["tc", "qdisc", "add" if slow else "del", "dev", self.here, *rule.split()]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def remove(self) -> None:
        for command in (f"ip netns del {self.namespace}", f"ip link del {self.here}"):
            subprocess.run(command.split(), capture_output=True, check=False)


@dataclass
class Node:
    """One Ray node."""

    name: str
    command: list[str]
    mark: str
    process: "subprocess.Popen[bytes] | None" = None

    def processes(self) -> list[psutil.Process]:
        """All that belong to it, whoever adopted them."""
        return marked(_MARK, self.mark)


def marked(name: str, value: str) -> list[psutil.Process]:
    """Processes whose environment has this variable with this value; none that ended."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class LocalCluster:
    """A context manager; its folder, ports and processes go with it."""

    def __init__(self, actor_nodes: int, cpus: float, *, network: bool = True) -> None:
        """`cpus`: of each node for actors, in Ray's count."""
        self.folder = tempfile.mkdtemp(prefix="yc-")
        self.link = Link.make() if network else None
        here = "127.0.0.1" if self.link is None else self.link.address_here
        self.address = f"{here}:{_free_port(here)}"
        self.token = uuid.uuid4().hex * 2
        self._said: dict[str, int] = {}
        """Characters of what each node had said before it was last started."""
        port = self.address.rpartition(":")[2]
        head = ["--head", f"--port={port}", f"--temp-dir={self.folder}/r", "--include-dashboard=false"]
        self.nodes = {HEAD: self._node(HEAD, here, [*head, "--num-cpus=0"])}
        join = f"--address={self.address}"
        self.nodes[LEARNER_NODE] = self._node(LEARNER_NODE, here, [join, "--num-cpus=1", '--resources={"learner": 1}'])
        for index in range(actor_nodes):
            name, away = f"node-{index}", index == 0 and self.link is not None
            options = [join, f"--num-cpus={cpus:g}", f'--resources={{"actor": {cpus:g}}}']
            node = self._node(name, self.link.address_there if away and self.link else here, options)
            if away and self.link is not None:
                node.command = ["ip", "netns", "exec", self.link.namespace, *node.command]
            self.nodes[name] = node

    def _node(self, name: str, ip: str, options: list[str]) -> Node:
        ray = str(Path(sys.executable).parent / "ray")
        common = [
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={ip}",
            f"--object-store-memory={_STORE_BYTES}",
        ]
        return Node(name, [ray, "start", *options, *common], uuid.uuid4().hex)

    def environment(self) -> dict[str, str]:
        """Of a process that joins it."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {
            "RAY_ADDRESS": self.address, "RAY_TMPDIR": self.folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PATH": path, "RAY_worker_niceness": "0",
            # As `cluster.yaml` has it.
            "RAY_health_check_period_ms": "400", "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(_GIVES_UP_S),
        }  # fmt: skip
        return {**os.environ, **own}

    def start(self, name: str) -> None:
        """Starts a node, which must not be there."""
        node = self.nodes[name]
        environment = {**self.environment(), _MARK: node.mark}
        environment.pop("RAY_ADDRESS")
        said = Path(self.folder, f"{name}.out")
        self._said[name] = len(said.read_text()) if said.exists() else 0
        with said.open("ab") as output:
            node.process = subprocess.Popen(
                node.command, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self, name: str) -> None:
        """kill -9 of all processes of a node."""
        node = self.nodes[name]
        for process in node.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if node.process is not None:
            node.process.wait()

    def running(self, name: str) -> bool:
        """Whether the node is there."""
        process = self.nodes[name].process
        return process is not None and process.poll() is None

    def ray_processes(self, title: str | tuple[str, ...]) -> list[tuple[str, psutil.Process]]:
        """Ray's workers whose title begins so, with the node that each is on."""
        found: list[tuple[str, psutil.Process]] = []
        for name, node in self.nodes.items():
            for process in node.processes():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if " ".join(process.cmdline()).startswith(title):
                        found.append((name, process))
        return found

    def __enter__(self) -> Self:
        try:
            for name in self.nodes:
                self.start(name)
                self.await_up(name)
        except BaseException:
            self.close()
            raise
        return self

    def await_up(self, name: str) -> None:
        """Until Ray says that a node which was started has begun; one that was not up within the time that Ray allows itself is
        started again."""
        output = Path(self.folder, f"{name}.out")
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in output.read_text()[self._said[name] :]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Ray's {name} did not start:\n{output.read_text()}")
            if not self.running(name):
                if _LATE not in output.read_text()[self._said[name] :]:
                    raise RuntimeError(f"Ray's {name} did not start:\n{output.read_text()}")
                self.kill(name)
                self.start(name)
            time.sleep(0.2)

    def await_down(self, name: str) -> None:
        """Until a node whose head is gone has ended by itself, with every process of the run that was there; then ends Ray's
        agents, which stay. Raises RuntimeError where the others do."""
        deadline = time.monotonic() + _GIVES_UP_S + _ENDS_S
        while self.running(name) or any(node == name for node, _ in self.ray_processes(_RUN)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Ray's {name} is still there, or processes of the run are, though the head is gone")
            time.sleep(0.2)
        self.kill(name)

    def close(self) -> None:
        """Ends every node."""
        for name in self.nodes:
            self.kill(name)
        if self.link is not None:
            self.link.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free_port(host: str) -> int:
    with socket.socket() as server:
        server.bind((host, 0))
        return int(server.getsockname()[1])
