"""Several learners that act as one: their group, and what they exchange in it (torch.distributed).

On CPUs gloo carries everything; on GPUs NCCL carries gradients and other tensors that are there, and gloo the rest. A
group has one rank for each worker, 0 for the one that leads. Nothing listens on any address but the one that was given.
"""

import contextlib
import io
import os
import socket
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from learner.errors import GroupError

TCPStore = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented, but not exported by name

LOOPBACK = "127.0.0.1"
_APART = timedelta(minutes=5)
"""Workers that begin the same exchange further apart than this have lost each other. Idle ones wait as long as it takes."""
_LOOK = timedelta(minutes=1)


class Workers:
    """One worker, alone. Groups are a subclass: what is a mean here is one over all of their samples."""

    rank: int = 0
    size: int = 1
    exchange_s: float = 0.0
    """Seconds so far that this worker spent on exchanges with others, and on waiting for them there."""

    def average(self, x: Tensor, samples: int) -> Tensor:
        """The mean of the workers' x, each weighted by its number of samples; the same on all."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """[*]: the mean of x [*, n] over all samples of all workers; summed in float64, so that it hardly depends on
        who has which."""
        return self.average(x.mean(-1, dtype=torch.float64), x.shape[-1]).to(x.dtype)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [*] (the sum of squares divided by n) of x [*, n] over all samples of all workers."""
        mean = self.mean(x)
        return mean, self.mean((x - mean.unsqueeze(-1)).square())

    def average_gradients(self, parameters: Iterable[Tensor], samples: int) -> None:
        """Puts in place of each gradient the weighted mean of the workers'."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.average(torch.cat([gradient.flatten() for gradient in gradients]), samples)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def add_gradients(self, parameters: Iterable[Tensor], total: float) -> float:
        """Puts in place of each gradient the sum of the workers', where one has it; the sum of `total`."""
        return total


ALONE = Workers()


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where a group finds together; the worker that leads holds it open."""

    store: TCPStore
    host: str

    @property
    def address(self) -> str:
        """HOST:PORT, for those who join."""
        return f"{self.host}:{self.store.port}"

    @property
    def on_loopback(self) -> bool:
        """Whether all workers are on this machine."""
        return self.host == LOOPBACK


def open_meeting(host: str) -> Meeting:
    """Listens on a free port of `host`, an IPv4 address of this machine."""
    # torch's own socket would listen on every address.
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=_APART, master_listen_fd=listening.detach()
    )
    return Meeting(store, host)


def join_meeting(address: str) -> Meeting:
    """Finds the meeting at `address`. Raises GroupError where nobody is there."""
    host, _, port = address.rpartition(":")
    with _exchange(f"join the group at {address}"):
        return Meeting(TCPStore(host, int(port), is_master=False, timeout=_APART), host)


class Group(Workers):
    """`size` workers, each in a process of its own, which has one group at most."""

    def __init__(self, meeting: Meeting, rank: int, size: int, device: torch.device, *, here: str = LOOPBACK) -> None:
        """Waits for the others. `here`: the IPv4 address of this machine that they reach it by. Raises GroupError."""
        self.rank = rank
        self.size = size
        self._device = device
        self._store = meeting.store
        self._told = [0] * size
        """Calls so far to each worker."""
        interface = _interface(here)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _exchange("find together"):
            dist.init_process_group(backend, store=meeting.store, rank=rank, world_size=size, timeout=_APART)

    def average(self, x: Tensor, samples: int) -> Tensor:
        weighted = torch.cat([x.flatten() * samples, x.new_full((1,), samples)])
        with self._exchange("take the mean over the workers"):
            dist.all_reduce(weighted)
        return (weighted[:-1] / weighted[-1]).view_as(x)

    def add_gradients(self, parameters: Iterable[Tensor], total: float) -> float:
        trained = list(parameters)
        there = trained[0].new_tensor([p.grad is not None for p in trained] + [total])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([there, *(part.flatten() for part in parts)])
        with self._exchange("add up gradients"):
            dist.all_reduce(flat)
        there, *sums = flat.split([len(there), *(p.numel() for p in trained)])
        *counts, total = there.tolist()
        for parameter, count, part in zip(trained, counts, sums, strict=True):
            parameter.grad = part.view_as(parameter) if count else None
        return total

    def call(self, rank: int, word: str) -> None:
        """Wakes a worker that waits in `heed`, with a word for it."""
        with self._exchange(f"call worker {rank}"):
            self._store.set(f"{rank}/{self._told[rank]}", word)
        self._told[rank] += 1

    def heed(self) -> str:
        """Waits for the next `call` to this worker, however long that takes; its word."""
        key = f"{self.rank}/{self._told[self.rank]}"
        self._told[self.rank] += 1
        with _exchange("wait for the worker that leads"):
            while not self._called(key):
                pass
            word = self._store.get(key).decode()
            self._store.delete_key(key)
        return word

    def _called(self, key: str) -> bool:
        try:
            self._store.wait([key], _LOOK)
        except dist.DistNetworkError:
            raise
        except dist.DistStoreError:  # the time is over
            return False
        return True

    def send(self, rank: int, message: Mapping[str, Any]) -> None:
        """Sends nested dicts and lists of tensors, numbers and strings."""
        buffer = io.BytesIO()
        torch.save(dict(message), buffer)
        content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        with self._exchange(f"send to worker {rank}"):
            dist.send(torch.tensor([len(content)]), rank)
            dist.send(content, rank)

    def receive(self, rank: int) -> dict[str, Any]:
        """What that worker sends next, on the CPU. Executes no code that came with it."""
        length = torch.zeros(1, dtype=torch.int64)
        with self._exchange(f"hear from worker {rank}"):
            dist.recv(length, rank)
            content = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(content, rank)
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

    @contextlib.contextmanager
    def _exchange(self, what: str) -> Generator[None]:
        began = time.perf_counter()
        with _exchange(what):
            yield
        self.exchange_s += time.perf_counter() - began

    def close(self) -> None:
        """Leaves the group."""
        dist.destroy_process_group()


@contextlib.contextmanager
def _exchange(what: str) -> Generator[None]:
    """Raises GroupError for torch's errors of communication."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise GroupError(f"learners lost each other (could not {what}): {lines[0] if lines else error!r}") from error


def _interface(address: str) -> str:
    """The network interface that has an address. Raises GroupError where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and each.address == address for each in addresses):
            return name
    raise GroupError(f"no network interface of this machine has the address {address}")
