"""The folder of a run. Invariant: at most one process trains in it, and nobody's files but a run's are ever removed."""

import fcntl
import os
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import orjson
import psutil

from orchestration.errors import RunDirError, RunExistsError
from orchestration.files import write_atomically

if TYPE_CHECKING:
    from orchestration.config import Config

REPLACED = ".replaced"
"""Folder below `run.dir` where `--overwrite` keeps the last run that it replaced, one for each name."""

_LOCK_PATIENCE_S = 1.0
_ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = ("tensorboard", "checkpoints", "traces", "logs")


@dataclass(frozen=True, slots=True)
class Trainer:
    """The process that trains in a run directory, so that others can find it and be sure that it is the one."""

    pid: int
    created: float
    """When the process began, seconds since the epoch: a process id alone is used again by others."""
    host: str

    @classmethod
    def this_process(cls) -> Self:
        """The calling process."""
        process = psutil.Process()
        return cls(pid=process.pid, created=process.create_time(), host=socket.gethostname())

    def is_here(self) -> bool:
        """Whether it ran on this machine, so that `process` can tell whether it lives."""
        return self.host == socket.gethostname()

    def process(self) -> psutil.Process | None:
        """The process where it still runs on this machine, otherwise None."""
        if not self.is_here():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 0.5
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class RunDir:
    """`RUN_DIR/NAME` and the names of what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """State of the run, rewritten atomically while it goes."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder for each checkpoint, and `latest`."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The newest weights of a language model, for the engines that generate with them; gone when the run ends."""
        return self.path / "weights"

    @property
    def uploading(self) -> Path:
        """What is on its way to `checkpoint.url`, and what comes from there."""
        return self.path / ".uploading"

    @property
    def scale(self) -> Path:
        """How many actors are wished for while it goes (`yendor scale`)."""
        return self.path / "scale.json"

    @property
    def annotations(self) -> Path:
        """Captions and labels (SQLite)."""
        return self.path / "annotations.sqlite"

    @property
    def traces(self) -> Path:
        """One file for each traced episode."""
        return self.path / "traces"

    @property
    def logs(self) -> Path:
        """What processes wrote, and the traceback of a failure."""
        return self.path / "logs"

    def remote(self, service: str) -> Path:
        """Under which id `service` (wandb, mlflow) has the run."""
        return self.path / f"{service}.json"

    def is_run(self) -> bool:
        """Whether a run was made here: it has a configuration."""
        return self.config.is_file()

    def trainer(self) -> Trainer | None:
        """The process that trains or trained here last; None where none ever did."""
        try:
            return Trainer(**orjson.loads((self.path / "process.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError) as error:
            raise RunDirError(f"{self.path / 'process.json'}: cannot be read: {error}") from error

    def open_for_training(self, config: "Config", *, resume: bool = False, overwrite: bool = False) -> Self:
        """Makes the folder (or takes it over), locks it for this process and writes `config.yaml`.

        With `overwrite` a run that is there is moved to `.replaced/NAME` beside it, where it takes the place of the one
        that was replaced before. Raises `RunExistsError` where a run is there and neither option was given, and
        `RunDirError` where another process trains in it, it is no run, or it cannot be written.
        """
        from orchestration.configuration import to_yaml

        try:
            self._prepare(resume=resume, overwrite=overwrite)
            for folder in _FOLDERS:
                (self.path / folder).mkdir(exist_ok=True)
            write_atomically(self.config, to_yaml(config).encode())
            self.scale.unlink(missing_ok=True)  # The wish of a run before.
            write_atomically(self.path / "process.json", orjson.dumps(asdict(Trainer.this_process())))
        except OSError as error:
            self.close()
            place = error.filename or self.path
            raise RunDirError(f"{place}: cannot be written: {error.strerror}; choose another with run.dir=…") from error
        except BaseException:
            self.close()
            raise
        return self

    def _prepare(self, *, resume: bool, overwrite: bool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir()
            fresh = True
        except FileExistsError:
            fresh = False
        if fresh and resume:
            self.path.rmdir()
            raise RunDirError(f"{self.path}: no run to resume; leave out --resume to start one")
        if fresh or (self.path.is_dir() and not any(self.path.iterdir())):
            self._acquire()
            return
        if not self.is_run():
            raise RunDirError(f"{self.path}: exists and is no run (it has no config.yaml); choose another run.name")
        if not resume and not overwrite:
            raise RunExistsError(f"{self.path}: run exists; --resume goes on with it, --overwrite starts it anew")
        self._acquire()
        if overwrite:
            self._move_aside()

    def _move_aside(self) -> None:
        """Puts the (locked) run away and an empty, locked folder in its place."""
        aside = self.path.parent / REPLACED / self.name
        aside.parent.mkdir(exist_ok=True)
        if aside.exists():
            if not RunDir(aside).is_run():
                raise RunDirError(f"{aside}: is no run, so it is not removed; move it away yourself")
            shutil.rmtree(aside)
        old = self._lock
        self.path.rename(aside)
        self.path.mkdir()
        self._acquire()
        if old is not None:
            os.close(old)

    def _acquire(self) -> None:
        """Takes the lock of the folder; it ends with this process, whatever ends it."""
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(descriptor)
                trainer = self.trainer()
                who = f"process {trainer.pid} on {trainer.host}" if trainer else "another process"
                raise RunDirError(f"{self.path}: {who} trains in it now; `yendor stop {self.name}` ends that") from None
        self._lock = descriptor

    def close(self) -> None:
        """Gives the lock back. The folder stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_run(run: str, root: Path) -> RunDir:
    """The run called `run` below `root`, or the one whose folder `run` is. Raises `RunDirError` for neither."""
    for path in (root / run, Path(run)):
        if RunDir(path).is_run():
            return RunDir(path.resolve())
    names = ", ".join(found.name for found in list_runs(root)) or "none"
    raise RunDirError(f"{run}: no such run in {root} (there: {names}), and no folder of one")


def list_runs(root: Path) -> list[RunDir]:
    """All runs below `root`, by name."""
    if not root.is_dir():
        return []
    return [RunDir(path) for path in sorted(root.iterdir()) if not path.name.startswith(".") and RunDir(path).is_run()]


def code_revision(root: Path = _ROOT) -> str | None:
    """The git revision of the code that runs, with `-dirty` where tracked files were changed since; None outside a checkout
    of its own, or without git."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return result.stdout.strip() or None
