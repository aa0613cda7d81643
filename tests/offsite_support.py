"""A file system of fsspec in memory that fails, hangs or dies where a test says so, and runs to put there."""

import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import torch
from fsspec.implementations.memory import MemoryFileSystem

from learner.checkpoint import write_checkpoint
from orchestration.offsite.location import open_location
from orchestration.offsite.runs import OffsiteRun
from orchestration.rundir import RunDir
from reward_server.label_rows import LabelRecord
from reward_server.store import AnnotationStore
from reward_server.types import Answer, JudgeKey

KEY = JudgeKey("classification-1", "goal", "rules", "direct", "t=0")


class Killed(BaseException):
    """The process is gone: nobody handles it."""


class FaultyFileSystem(MemoryFileSystem):
    """`faulty://`; what it holds and what is wrong with it belongs to the class, as in `memory://`."""

    protocol = ("faulty",)
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failing: ClassVar[int] = 0
    """So many operations that change something fail from now on."""
    left: ClassVar[int | None] = None
    """After so many operations the process dies over the next; what that was to write is half there."""
    open_gate: ClassVar[threading.Event] = threading.Event()
    """Cleared: nothing is answered."""
    operations: ClassVar[int] = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

    @classmethod
    def mend(cls) -> None:
        """Empty and sound."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.failing, cls.left, cls.operations = 0, None, 0
        cls.open_gate.set()

    def _operate(self, path: str, content: bytes | None = None) -> None:
        cls = type(self)
        cls.open_gate.wait()
        if cls.failing:
            cls.failing -= 1
            raise OSError(f"503 Slow Down: {path}")
        if cls.left is not None:
            if cls.left == 0:
                if content is not None:
                    self._put(path, content[: len(content) // 2])
                raise Killed
            cls.left -= 1
        cls.operations += 1

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb":
            return super().open(path, mode, **options)
        self._operate(path, b"half of a file that was being written")
        return super().open(path, mode, **options)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> Any:
        self._operate(path, value)
        self._put(path, value)

    def _put(self, path: str, content: bytes) -> None:
        with super().open(path, "wb") as file:
            file.write(content)

    def rm_file(self, path: str) -> Any:
        self._operate(path)
        return MemoryFileSystem._rm(self, path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> Any:
        """File by file, so that it can be cut off; in the order that is the worst for who relies on one."""
        files = reversed(self.find(path)) if recursive else [path]
        for file in files:
            self.rm_file(file)
        if recursive:
            super().rm(path, recursive=True)

    def cp_file(self, path1: str, path2: str, **options: Any) -> Any:
        self._operate(path2, self.cat_file(path1))
        return super().cp_file(path1, path2, **options)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def offsite(url: str = "faulty://bucket/runs", run: str = "run") -> OffsiteRun:
    return OffsiteRun(open_location(url), run)


def run_dir(folder: Path, labels: int = 3) -> RunDir:
    """A run's folder with so many labels."""
    path = folder / "run"
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text("run:\n  name: run\n")
    if labels:
        with AnnotationStore(path / "annotations.sqlite") as store:
            label(store, range(labels))
    return RunDir(path)


def label(store: AnnotationStore, captions: range) -> None:
    for caption in captions:
        record = LabelRecord(caption, Answer(1, 0.9, "yes", 0.1), 1)
        store.write(KEY, [record], [(caption, f"caption {caption}")])


def checkpoint(rundir: RunDir, steps: int, keep: int = 5) -> Path:
    """A checkpoint as a language model's learner writes it: with a folder in it."""

    def model(part: Path) -> None:
        (part / "model").mkdir()
        (part / "model" / "config.json").write_text("{}")
        (part / "model" / "weights.bin").write_bytes(bytes(range(256)) * 40)

    state = {"n": steps, "t": torch.full((64,), float(steps))}
    config = f"run:\n  name: run\n  seed: {steps}\n"
    return write_checkpoint(rundir.checkpoints, steps, model, state=state, config=config, keep=keep)


def labels_in(path: Path) -> list[int]:
    with AnnotationStore(path, read_only=True) as store:
        return sorted(store.labelled_ids(KEY))
