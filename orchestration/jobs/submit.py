"""`yendor train` as a job on a cluster."""

import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.config import Config
from orchestration.configuration import uses_judge
from orchestration.errors import UsageError
from orchestration.jobs.client import Job, JobError, Jobs, JobStatus
from orchestration.jobs.package import Package, pack
from orchestration.jobs.requirements import pip_environment

RUN_DIR = "$HOME/yendor-runs"
"""Where runs lie on the head, if nothing else is said: a job's own folder goes with the job."""
_YENDOR = "python -m orchestration.cli.main"


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that the cluster has taken."""

    job: str
    run: str
    folder: str
    command: str
    package: Package


def submit(
    jobs: Jobs,
    config: Config,
    preset: str | None,
    overrides: Sequence[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    install: str = "none",
) -> Submitted:
    """Packs the project and submits the training of `config` (made of `preset` and `overrides`) as a job.

    A run that is not named gets the preset's name and the time. `install`: what the cluster installs for it (`none`, `cpu`,
    `gpu`). Raises `UsageError`, `PackageError` and `JobError`.
    """
    given: dict[str, str] = {key: value for key, _, value in (word.partition("=") for word in overrides)}
    if resume and "run.name" not in given:
        raise UsageError("--resume needs run.name=…: the run on the cluster to go on with")
    run = given.get("run.name") or f"{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = given.get("run.dir", RUN_DIR)
    more: dict[str, Path] = {}
    words = ["train"]
    if preset is not None:
        words.append(_preset(preset, more))
    embedded = uses_judge(config) and config.judge.model == "embedded"
    if (resume or embedded) and (cache := Path(config.judge.cache_dir)).is_dir():
        # Otherwise the cluster would train it anew. A run that goes on knows what its judge is, and where it lies.
        more["judge-cache"] = cache
        if not resume:
            given.setdefault("judge.cache_dir", "judge-cache")
    words += [f"{key}={value}" for key, value in given.items() if key not in ("run.name", "run.dir")]
    words += [f"run.name={run}", *(["--resume"] if resume else []), *(["--overwrite"] if overwrite else []), "--plain"]
    command = f"{_YENDOR} {shlex.join(words)} run.dir={_in_shell(folder)}"
    environment: dict[str, Any] = {} if install == "none" else {"pip": pip_environment(install)}
    with tempfile.TemporaryDirectory(prefix="yendor-job-") as temporary:
        package = pack(Path(temporary) / "yendor.zip", more=more)
        environment["working_dir"] = str(package.path)
        metadata = {"yendor.run": run, "yendor.folder": folder}
        job = jobs.submit(command, name=run, runtime_env=environment, metadata=metadata)
    return Submitted(job, run, folder, command, package)


def _preset(preset: str, more: dict[str, Path]) -> str:
    """The preset's name on the cluster; a file of the user's goes along."""
    path = Path(preset)
    if not path.is_file():
        return preset
    more[f"presets/{path.name}"] = path
    return f"presets/{path.name}"


def _in_shell(folder: str) -> str:
    """Quoted, but for a leading `$HOME`, which the cluster's shell knows."""
    if folder.startswith("$HOME"):
        return f'"$HOME"{shlex.quote(folder[5:])}' if folder[5:] else '"$HOME"'
    return shlex.quote(folder)


def run_there(jobs: Jobs, job: Job, words: Sequence[str], write: Callable[[str], object]) -> Job:
    """Runs a `yendor` command about the run of `job` on the cluster's head, with the job's own files, and writes what it
    prints. Raises `JobError` for a job that `yendor submit` did not make."""
    if job.run is None or job.folder is None:
        raise JobError(f"{job.id}: not submitted by `yendor submit`, so its run is not known")
    command = f"{_YENDOR} {shlex.join([words[0], job.run, *words[1:]])} --dir {_in_shell(job.folder)}"
    environment: Mapping[str, Any] = {k: v for k, v in job.runtime_env.items() if k in ("working_dir", "pip")}
    helper = jobs.submit(command, name=f"{job.id}.{words[0]}", runtime_env=environment, metadata={})
    done = jobs.follow(helper, write, lambda _: None)
    if done.status is not JobStatus.SUCCEEDED:
        raise JobError(f"{job.id}: `yendor {words[0]}` failed on the cluster: {done.message or done.status}")
    return done
