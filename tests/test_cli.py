"""The command line: exit codes, one line for every error, and nothing heavy before it is needed."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from orchestration.cli.main import run
from orchestration.configuration import load_config
from orchestration.errors import RunDirError, TraceError, death, first_line, root_cause
from orchestration.metrics import write_summary
from orchestration.rundir import RunDir
from orchestration.summary import Status, Summary, read_summary
from tests.trace_support import CAPTIONS, Played, record, recorder

BASELINE = ["train", "demo", "reward.w_int=0", "--plain"]
"""A run without a judge: what is tested here is the command, not what it starts."""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def a_run(name: str = "demo", **fields: Any) -> RunDir:
    with RunDir(Path("runs") / name).open_for_training(load_config("demo")) as rundir:
        write_summary(rundir.summary, Summary(name, "minihack/KeyRoom-S15", **fields))
    return rundir


# What loads.


def test_the_command_line_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom orchestration.cli.main import run\nrun(['--help'])\n"
        "heavy = {'torch', 'ray', 'nle', 'minihack', 'vllm', 'transformers', 'numpy', 'gymnasium', 'omegaconf'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"


def test_a_misspelt_key_is_told_without_loading_torch_or_ray() -> None:
    script = (
        "import sys\nfrom orchestration.cli.main import run\ncode = run(['train', 'demo', 'reward.w_itn=1'])\n"
        "print(code, sorted({'torch', 'ray', 'nle', 'vllm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "2 []\n"
    assert result.stderr == "yendor: error: reward.w_itn: no such key; did you mean reward.w_int?\n"


# Usage.

COMMANDS = [
    ["train"],
    ["eval"],
    ["runs"],
    ["status"],
    ["stop"],
    ["doctor"],
    ["config", "show"],
    ["trace", "ls"],
    ["trace", "show"],
    ["trace", "validate"],
    ["judge", "build"],
    ["judge", "probe"],
]


@pytest.mark.parametrize("command", [[], ["config"], ["trace"], ["judge"], *COMMANDS], ids=" ".join)
def test_every_command_has_help(command: list[str], said: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = said(*command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: yendor {' '.join(command)}".rstrip() in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'"),
        (["train", "--resum"], "No such option: --resum"),
        (["train", "a", "b"], "b: expected key=value (the preset is a)"),
        (["train", "dmeo"], "dmeo: no such preset; did you mean demo?"),
        (["train", "demo", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["train", "demo", "env.id=minihack/KeyRoom-S16"], "did you mean 'minihack/KeyRoom-S15'?"),
        (["train", "demo", "env.options.max_steps=3", "reward.w_int=0"], "did you mean 'max_episode_steps'?"),
        (["train", "demo", "--resume"], "runs/demo: no run to resume; leave out --resume to start one"),
        (["eval", "demo", "--episodes", "many"], "Invalid value for '--episodes'"),
        (["status"], "Missing argument 'RUN'"),
        (["config", "show", "demo", "actors.count=0"], "actors.count=0: must be at least 1"),
    ],
)
def test_usage_and_configuration_errors_are_one_line_and_code_2(
    arguments: list[str], message: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = said(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("yendor: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nope"], "nope: no such run in runs (there: none)"),
        (["stop", "nope"], "nope: no such run"),
        (["eval", "nope"], "nope: no such run"),
        (["trace", "ls", "nope"], "nope: no such run"),
        (["trace", "show", "nope.jsonl.zst"], "nope.jsonl.zst: cannot be read: No such file"),
    ],
)
def test_failures_are_one_line_and_code_1(
    arguments: list[str], message: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = said(*arguments)
    assert code == 1
    assert err.startswith("yendor: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_debug_lets_the_error_through() -> None:
    with pytest.raises(RunDirError):
        run(["status", "nope", "--debug"])


def test_too_few_cpus_says_what_is_needed_and_what_is_there(said: Callable[..., tuple[int, str, str]]) -> None:
    there = len(os.sched_getaffinity(0))
    code, _, err = said(*BASELINE, "actors.count=500", "learner.threads=3")
    assert code == 1
    assert "too few CPUs: actors.count=500 and learner.threads=3 need 503, this machine has " in err
    assert there < 503


def test_a_gpu_that_is_not_there(said: Callable[..., tuple[int, str, str]]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, err = said(*BASELINE, "learner.device=cuda")
    assert code == 1
    assert "finds no GPU; use learner.device=auto" in err


# train


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Summary]], None]:
    """Replaces what `yendor train` calls."""

    def replace(function: Callable[..., Summary]) -> None:
        module = types.ModuleType("orchestration.train")
        module.train = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "orchestration.train", module)

    return replace


def ends(config: Any, rundir: RunDir, *, resume: bool, view: Any) -> Summary:
    summary = Summary(rundir.name, config.env.id, status=Status.DONE, env_steps=64, checkpoint="c")
    view.update(dataclasses.replace(summary, status=Status.RUNNING))
    write_summary(rundir.summary, summary)
    return summary


def test_training_ends_with_a_summary_and_next_commands(
    training: Callable[..., None], said: Callable[..., tuple[int, str, str]]
) -> None:
    training(ends)
    code, out, err = said(*BASELINE)
    assert (code, err) == (0, "")
    assert "demo: done" in out
    assert "yendor eval demo" in out
    assert "runs/demo" in out
    code, _, err = said(*BASELINE)
    assert code == 2
    assert err == "yendor: error: runs/demo: run exists; --resume goes on with it, --overwrite starts it anew\n"
    assert said(*BASELINE, "--overwrite")[0] == 0
    assert said("train", "demo", "--resume", "--plain")[0] == 0


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    training: Callable[..., None], said: Callable[..., tuple[int, str, str]]
) -> None:
    def interrupted(config: Any, rundir: RunDir, *, resume: bool, view: Any) -> Summary:
        write_summary(rundir.summary, Summary("x", config.env.id, status=Status.RUNNING, checkpoint="c"))
        raise KeyboardInterrupt

    training(interrupted)
    code, out, err = said(*BASELINE, "run.name=x")
    assert (code, err) == (130, "")
    assert "x: interrupted" in out
    assert "yendor train demo run.name=x --resume" in out
    summary = read_summary(Path("runs/x/summary.json"))
    assert summary is not None
    assert summary.status is Status.INTERRUPTED


def test_a_failure_is_in_the_summary_and_its_traceback_in_the_logs(
    training: Callable[..., None], said: Callable[..., tuple[int, str, str]]
) -> None:
    def fails(config: Any, rundir: RunDir, *, resume: bool, view: Any) -> Summary:
        try:
            raise OSError(28, "No space left on device", "/data")
        except OSError as error:
            raise RuntimeError("the learner gave up") from error

    training(fails)
    code, _, err = said(*BASELINE)
    assert code == 1
    cause = "OSError: [Errno 28] No space left on device: '/data'"
    assert err == f"yendor: error: {cause} (--debug shows the traceback)\n"
    summary = read_summary(Path("runs/demo/summary.json"))
    assert summary is not None
    assert (summary.status, summary.error) == (Status.FAILED, cause)
    assert "the learner gave up" in Path("runs/demo/logs/error.txt").read_text()


def test_a_resumed_run_keeps_its_configuration(
    training: Callable[..., None], said: Callable[..., tuple[int, str, str]]
) -> None:
    seen: list[Any] = []

    def remembers(config: Any, rundir: RunDir, *, resume: bool, view: Any) -> Summary:
        seen.append((resume, config))
        return ends(config, rundir, resume=resume, view=view)

    training(remembers)
    assert said(*BASELINE, "run.seed=7", "learner.discount=0.9")[0] == 0
    assert said("train", "demo", "--resume", "--plain", "train.env_steps=5")[0] == 0
    (_, first), (resume, second) = seen
    assert resume
    assert second == dataclasses.replace(first, train=dataclasses.replace(first.train, env_steps=5))
    code, _, err = said("train", "demo", "--resume", "run.seed=8")
    assert code == 2
    assert "run.seed: a run that goes on keeps run.seed=7" in err


def test_a_place_that_cannot_be_written(said: Callable[..., tuple[int, str, str]]) -> None:
    Path("file").write_text("")
    code, _, err = said(*BASELINE, "run.dir=file/runs")
    assert code == 1
    assert "cannot be written: Not a directory; choose another with run.dir=" in err


# Looking at runs.


def test_runs_and_status(said: Callable[..., tuple[int, str, str]]) -> None:
    assert "no runs in runs; `yendor train demo` starts one" in said("runs")[1]
    a_run(status=Status.DONE, env_steps=1234, success_rate=0.5, updated=time.time() - 300)
    a_run("other", status=Status.FAILED, error="RuntimeError: x", waits={"actor": {"env": 0.5}}, updated=time.time())
    code, out, _ = said("runs")
    assert code == 0
    rows = out.splitlines()
    assert rows[1].split()[:3] == ["other", "minihack/KeyRoom-S15", "failed"]
    assert rows[2].split() == ["demo", "minihack/KeyRoom-S15", "done", "1,234", "0.50", "-", "5", "min"]
    assert [each["run"] for each in orjson.loads(said("runs", "--json")[1])] == ["other", "demo"]
    out = said("status", "other")[1]
    assert "RuntimeError: x" in out
    assert "actor: env 50%" in out
    assert orjson.loads(said("status", "runs/demo", "--json")[1])["success_rate"] == 0.5


def test_stop_of_a_run_that_has_ended(said: Callable[..., tuple[int, str, str]]) -> None:
    rundir = a_run(status=Status.DONE)
    # This very process holds the record of the trainer, and is not to be signalled.
    (rundir.path / "process.json").unlink()
    assert said("stop", "demo") == (0, "demo: does not run (done)\n", "")


def test_config_show_reads_back(said: Callable[..., tuple[int, str, str]]) -> None:
    from orchestration.configuration import read_config

    code, out, _ = said("config", "show", "nethack_oracle", "run.seed=3")
    assert code == 0
    Path("config.yaml").write_text(out)
    assert read_config(Path("config.yaml")) == load_config("nethack_oracle", ["run.seed=3"])
    assert "# Environments that one actor steps with one batched inference; " in out
    assert orjson.loads(said("config", "show", "demo", "--json")[1])["run"]["name"] == "demo"


# Traces.


def test_traces_are_listed_shown_and_validated(said: Callable[..., tuple[int, str, str]]) -> None:
    rundir = a_run()
    record(recorder(rundir.traces), Played("e1", [0, 2], ["", CAPTIONS[1]], [0.0, 1.0], [3, 3]))
    record(recorder(rundir.traces), Played("e2", [0], [CAPTIONS[3]], [0.0], [3]), finish=False)
    code, out, _ = said("trace", "ls", "demo")
    assert code == 0
    assert "terminated, success" in out
    assert out.splitlines()[2].split()[:1] == ["e2"]
    listed = orjson.loads(said("trace", "ls", "runs/demo", "--json")[1])
    assert [(each["episode_id"], each["complete"], each["episode_return"]) for each in listed] == [
        ("e1", True, 1.0),
        ("e2", False, None),
    ]
    file = str(rundir.traces / "e1.jsonl.zst")
    code, out, _ = said("trace", "show", file, "--screens")
    assert code == 0
    assert "You see here a key." in out
    assert "--- after step 1 (kick)" in out
    assert len(orjson.loads(said("trace", "show", file, "--limit", "1", "--json")[1])["steps"]) == 1
    assert said("trace", "validate", file)[0] == 0
    assert said("trace", "validate", "demo") == (0, "2 traces, all valid (1 unfinished)\n", "")
    (rundir.traces / "e2.jsonl.zst.part").rename(rundir.traces / "e2.jsonl.zst")
    code, out, err = said("trace", "validate", "demo")
    assert code == 1
    assert "e2.jsonl.zst: has no end record" in out
    assert err == "yendor: error: 1 of 2 traces are not valid\n"


# doctor


def test_doctor(said: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = said("doctor")
    assert code == 0
    for part in ("python", "torch", "nle", "cores", "memory", "nethack_oracle_sober"):
        assert part in out
    diagnosis = orjson.loads(said("doctor", "--json")[1])
    assert diagnosis["healthy"] is True
    import numpy

    assert {check["name"]: check["found"] for check in diagnosis["checks"]}["numpy"] == numpy.__version__


def test_doctor_finds_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, said: Callable[..., tuple[int, str, str]]
) -> None:
    from orchestration import doctor

    monkeypatch.setattr(doctor, "_PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "available_cpus", lambda: 1)
    code, out, _ = said("doctor")
    assert code == 1
    assert "no-such-package" in out
    assert "make setup" in out
    presets = orjson.loads(said("doctor", "--json")[1])["presets"]
    assert presets["demo"] == "missing: no-such-package"


def test_doctor_says_why_a_preset_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration import doctor

    monkeypatch.setattr(doctor, "available_cpus", lambda: 1)
    assert doctor.diagnose().presets["demo"] == "needs 2 CPUs, 1 there; runtime=serial needs one"
    monkeypatch.setattr(doctor, "available_cpus", lambda: 2)
    monkeypatch.setattr(doctor, "_has_vllm", lambda: False)
    assert "judge.engine=transformers works without it" in (doctor.diagnose().presets["demo"] or "")


# Root causes.


class TaskError(Exception):
    """Has what Ray's task errors have."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::LearnerWorker.feed() (pid=42)\n  File ...\nlong traceback")
        self.cause, self.pid, self.proctitle = cause, 42, "ray::LearnerWorker.feed()"


def test_the_root_cause_of_a_failed_task_names_its_process() -> None:
    wrapped = RuntimeError("training failed")
    wrapped.__cause__ = TaskError(ValueError("the batch is empty\nmore"))
    assert first_line(TaskError(ValueError("the batch is empty"))) == (
        "ValueError: the batch is empty (in LearnerWorker.feed, pid 42)"
    )
    assert root_cause(wrapped).args == ("the batch is empty\nmore",)


def test_the_root_cause_of_an_actor_that_never_began() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    for cause, told in ((ValueError("no such\nfile"), "ValueError: no such"), (TraceError("x: full"), "x: full")):
        raised = RayTaskError(
            "LearnerWorker.__init__", "Traceback", cause, "ray::LearnerWorker.__init__", 12, "127.0.0.1"
        )
        died = ActorDiedError(raised)
        assert root_cause(died) is cause
        assert first_line(died) == death(died) == f"{told} (in LearnerWorker.__init__, pid 12)"


def test_our_own_errors_are_the_root_cause() -> None:
    try:
        try:
            raise OSError("low level")
        except OSError as error:
            raise TraceError("x: cannot be written; free some space") from error
    except TraceError as error:
        assert first_line(error) == "x: cannot be written; free some space"


def test_an_error_without_text_has_a_name() -> None:
    assert first_line(AssertionError()) == "AssertionError"


def test_causes_that_go_in_circles_end() -> None:
    error = RuntimeError("a")
    error.__cause__ = ValueError("b")
    error.__cause__.__cause__ = error
    assert first_line(error) in ("RuntimeError: a", "ValueError: b")
