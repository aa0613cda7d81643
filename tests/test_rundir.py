"""Run directories: who may write where, and what a run looks like from outside, dead or alive."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from orchestration.config import Config
from orchestration.configuration import load_config
from orchestration.errors import RunDirError, RunExistsError
from orchestration.metrics import write_summary
from orchestration.rundir import RunDir, Trainer, code_revision, find_run, list_runs
from orchestration.runs import current_summaries, current_summary, stop
from orchestration.summary import Status, Summary

TRAINER = """
import dataclasses, signal, sys, time
from pathlib import Path
from orchestration.configuration import load_config
from orchestration.metrics import write_summary
from orchestration.rundir import RunDir
from orchestration.summary import Status, Summary

rundir = RunDir(Path(sys.argv[1])).open_for_training(load_config("demo"))
summary = Summary(rundir.name, "minihack/KeyRoom-S15", status=Status.RUNNING, env_steps=64)
write_summary(rundir.summary, summary)
# As `yendor train` does: a background job of a shell has SIGINT ignored.
signal.signal(signal.SIGINT, signal.SIG_IGN if "deaf" in sys.argv else signal.default_int_handler)
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    write_summary(rundir.summary, dataclasses.replace(summary, status=Status.INTERRUPTED, env_steps=128))
"""


@pytest.fixture
def config() -> Config:
    return load_config("demo")


def start_trainer(path: Path, *words: str) -> subprocess.Popen[str]:
    """A real process that holds a run directory."""
    process = subprocess.Popen([sys.executable, "-c", TRAINER, str(path), *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start_trainer(tmp_path / "demo")
    yield process
    process.kill()
    process.wait()


def test_a_new_run_has_its_folders_and_its_configuration(tmp_path: Path, config: Config) -> None:
    with RunDir(tmp_path / "a" / "demo").open_for_training(config) as rundir:
        assert rundir.config.read_text().startswith("runtime: ")
        for folder in (rundir.traces, rundir.checkpoints, rundir.logs, rundir.tensorboard):
            assert folder.is_dir()
        assert rundir.trainer() == Trainer.this_process()


def test_an_existing_run_names_both_options(tmp_path: Path, config: Config) -> None:
    RunDir(tmp_path / "demo").open_for_training(config).close()
    with pytest.raises(RunExistsError, match="--resume goes on with it, --overwrite starts it anew"):
        RunDir(tmp_path / "demo").open_for_training(config)


def test_resume_keeps_what_is_there(tmp_path: Path, config: Config) -> None:
    with RunDir(tmp_path / "demo").open_for_training(config) as rundir:
        (rundir.checkpoints / "x").write_text("kept")
    with RunDir(tmp_path / "demo").open_for_training(config, resume=True) as rundir:
        assert (rundir.checkpoints / "x").read_text() == "kept"


def test_resume_of_nothing_leaves_nothing(tmp_path: Path, config: Config) -> None:
    with pytest.raises(RunDirError, match="no run to resume"):
        RunDir(tmp_path / "demo").open_for_training(config, resume=True)
    assert not (tmp_path / "demo").exists()


def test_overwrite_keeps_the_last_run_aside(tmp_path: Path, config: Config) -> None:
    for text in ("first", "second", "third"):
        with RunDir(tmp_path / "demo").open_for_training(config, overwrite=True) as rundir:
            assert not (rundir.logs / "mark").exists()
            (rundir.logs / "mark").write_text(text)
    assert (tmp_path / ".replaced" / "demo" / "logs" / "mark").read_text() == "second"
    assert [run.name for run in list_runs(tmp_path)] == ["demo"]


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, config: Config) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunDirError, match="exists and is no run"):
            RunDir(tmp_path / "demo").open_for_training(config, **options)
    (tmp_path / "demo" / "thesis.tex").unlink()
    RunDir(tmp_path / "demo").open_for_training(config).close()
    (tmp_path / ".replaced" / "demo").mkdir(parents=True)
    (tmp_path / ".replaced" / "demo" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirError, match="is no run, so it is not removed"):
        RunDir(tmp_path / "demo").open_for_training(config, overwrite=True)
    assert RunDir(tmp_path / "demo").is_run()


@pytest.mark.parametrize("place", ["file/runs", "/proc/runs"])
def test_a_place_that_cannot_be_written(place: str, tmp_path: Path, config: Config) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"cannot be written: .*; choose another with run.dir="):
        RunDir(tmp_path / place / "demo").open_for_training(config)


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, config: Config, trainer: subprocess.Popen[str]
) -> None:
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(RunDirError, match=f"process {trainer.pid} on .* trains in it now; `yendor stop demo`"):
            RunDir(tmp_path / "demo").open_for_training(config, **options)
    trainer.kill()
    trainer.wait()
    # The lock ends with the process, whatever ended it.
    RunDir(tmp_path / "demo").open_for_training(config, resume=True).close()


def test_a_killed_run_is_seen_to_have_died(tmp_path: Path, trainer: subprocess.Popen[str]) -> None:
    run = RunDir(tmp_path / "demo")
    assert current_summary(run).status is Status.RUNNING
    trainer.kill()
    trainer.wait()
    assert current_summary(run).status is Status.DIED
    assert [summary.status for summary in current_summaries(tmp_path)] == [Status.DIED]


def test_a_process_id_that_was_used_again_is_not_taken_for_the_run(tmp_path: Path, config: Config) -> None:
    with RunDir(tmp_path / "demo").open_for_training(config) as rundir:
        write_summary(rundir.summary, Summary("demo", "x", status=Status.RUNNING))
    assert current_summary(rundir).status is Status.RUNNING
    stranger = dataclasses.replace(Trainer.this_process(), created=time.time() - 1e6)
    (rundir.path / "process.json").write_bytes(orjson.dumps(stranger))
    assert current_summary(rundir).status is Status.DIED
    assert not stop(rundir, 1.0).was_running


def test_a_run_on_another_machine_is_believed_and_not_signalled(tmp_path: Path, config: Config) -> None:
    running = Summary("demo", "x", status=Status.RUNNING, updated=time.time())
    with RunDir(tmp_path / "demo").open_for_training(config) as rundir:
        write_summary(rundir.summary, running)
    elsewhere = dataclasses.replace(Trainer.this_process(), host="elsewhere", created=time.time() - 1e6)
    (rundir.path / "process.json").write_bytes(orjson.dumps(elsewhere))
    assert current_summary(rundir).status is Status.RUNNING
    with pytest.raises(RunDirError, match="trains on elsewhere, not here"):
        stop(rundir, 1.0)
    # Until nothing has been heard of that machine for long.
    for silence, status in ((840.0, Status.RUNNING), (1020.0, Status.DIED)):
        write_summary(rundir.summary, dataclasses.replace(running, updated=time.time() - silence))
        assert current_summary(rundir).status is status
    assert current_summary(rundir).error == (
        "nothing was heard of elsewhere for 17 minutes; where it is lost, --resume goes on"
    )
    write_summary(rundir.summary, dataclasses.replace(running, status=Status.STARTING, updated=0.0))
    assert current_summary(rundir).status is Status.STARTING
    # One that goes on again has not written another yet.
    write_summary(rundir.summary, dataclasses.replace(running, updated=time.time() - 1020.0))
    resumed = dataclasses.replace(elsewhere, created=time.time() - 60.0)
    (rundir.path / "process.json").write_bytes(orjson.dumps(resumed))
    assert current_summary(rundir).status is Status.RUNNING


def test_stop_waits_for_the_end(tmp_path: Path, trainer: subprocess.Popen[str]) -> None:
    stopped = stop(RunDir(tmp_path / "demo"), 20.0)
    assert (stopped.was_running, stopped.status, stopped.env_steps) == (True, Status.INTERRUPTED, 128)
    again = stop(RunDir(tmp_path / "demo"), 20.0)
    assert (again.was_running, again.status) == (False, Status.INTERRUPTED)


def test_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    process = start_trainer(tmp_path / "demo", "deaf")
    try:
        with pytest.raises(RunDirError, match=rf"process {process.pid} still runs after 0\.2 s"):
            stop(RunDir(tmp_path / "demo"), 0.2)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_runs_are_found_by_name_and_by_folder(tmp_path: Path, config: Config) -> None:
    RunDir(tmp_path / "demo").open_for_training(config).close()
    assert find_run("demo", tmp_path).path == (tmp_path / "demo").resolve()
    assert find_run(str(tmp_path / "demo"), Path("/nowhere")).path == (tmp_path / "demo").resolve()
    with pytest.raises(RunDirError, match=r"demmo: no such run in .* \(there: demo\)"):
        find_run("demmo", tmp_path)


def test_a_run_without_summary_is_starting_or_died(tmp_path: Path, config: Config) -> None:
    with RunDir(tmp_path / "demo").open_for_training(config) as rundir:
        assert current_summary(rundir).status is Status.STARTING
    (rundir.path / "process.json").unlink()
    summary = current_summary(rundir)
    assert (summary.status, summary.target_env_steps) == (Status.DIED, config.train.env_steps)


def test_the_code_revision_is_that_of_git() -> None:
    root = Path(__file__).parents[1]
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    expected = result.stdout.strip() if result.returncode == 0 else None
    revision = code_revision()
    assert (revision and revision.removesuffix("-dirty")) == expected


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_revision_says_whether_files_were_changed_since(tmp_path):
    def git(*arguments):
        names = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert code_revision(tmp_path) is None
    git("init", "-q")
    assert code_revision(tmp_path) is None
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert code_revision(tmp_path) == head and len(head) == 40
    (tmp_path / "code.py").write_text("2")
    assert code_revision(tmp_path) == f"{head}-dirty"
