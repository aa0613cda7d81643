"""Starts Sample Factory on what a configuration of this project says, and reads off what it did."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sample_factory import environment
from orchestration.config import Config

START_S = 240.0
"""Most time that start and end of a run may take."""


@dataclass(frozen=True)
class Setting:
    """How Sample Factory spreads the same games and the same batch over processes."""

    mode: str
    """`asynchronous`, `synchronous` (actors wait while the learner works), `serial` (one process)."""
    workers: int = 1
    splits: int = 1
    """Groups of games of each worker; with 2 one group steps while the other waits for its actions."""
    threads: int = 1
    """CPU threads of the learner and of the policy worker, each."""
    batched: bool = False
    """Our batched stepper as a vectorised environment, in place of one environment at a time."""
    affinity: bool = True
    """Whether workers are tied to cores."""
    plain: bool = False
    """The network encodes every step by itself (`benchmarks.plain`), in place of each distinct crop and window once."""

    @property
    def name(self) -> str:
        """As it is printed."""
        counts = (("worker", self.workers), ("split", self.splits), ("thread", self.threads))
        parts = [self.mode, *(f"{n} {what}{'s' if n > 1 else ''}" for what, n in counts)]
        return ", ".join(
            parts + ["batched"] * self.batched + ["no affinity"] * (not self.affinity) + ["plain network"] * self.plain
        )


@dataclass(frozen=True)
class Progress:
    """How far a run was at one time."""

    t: float
    """Seconds on a clock of the run."""
    env_steps: int


@dataclass(frozen=True)
class SampleFactoryRun:
    """One finished run."""

    flags: tuple[str, ...]
    progress: tuple[Progress, ...]
    profile: Mapping[str, Mapping[str, float]]
    """Seconds of the whole run by component and activity, as Sample Factory measures them."""


def flags(config: Config, setting: Setting) -> list[str]:
    """The flags of Sample Factory that mean what `config` says, spread as `setting` says.

    Sample Factory multiplies rewards and then clips them, so w_ext clip(s r, ±b) becomes clip(w_ext s r, ±w_ext b).
    Raises ValueError where the games cannot be divided so.
    """
    actors, learner, reward = config.actors, config.learner, config.reward
    games = actors.count * actors.envs
    if games % (setting.workers * setting.splits):
        raise ValueError(f"{games} games cannot be divided among {setting.workers} workers x {setting.splits} splits")
    group = games // (setting.workers * setting.splits)
    values = {
        "algo": "APPO",
        "env": config.env.id,
        "network": config.agent.network,
        "seed": config.run.seed,
        "device": "cpu",
        "serial_mode": setting.mode == "serial",
        "async_rl": setting.mode == "asynchronous",
        "num_workers": setting.workers,
        "worker_num_splits": setting.splits,
        "num_envs_per_worker": setting.splits if setting.batched else setting.splits * group,
        "games": group,
        "threads": setting.threads,
        "plain": setting.plain,
        "batched_sampling": setting.batched,
        "set_workers_cpu_affinity": setting.affinity,
        "policy_workers_per_policy": 1,
        "decorrelate_envs_on_one_worker": False,
        "rollout": actors.rollout_length,
        "batch_size": learner.batch_size,
        "num_batches_per_epoch": 1,
        "num_epochs": 1,
        "max_policy_lag": learner.max_lag,
        "use_rnn": True,
        "rnn_type": "gru",
        "gamma": learner.discount,
        "with_vtrace": False,
        "normalize_returns": False,
        "normalize_input": False,
        "reward_scale": reward.w_ext * reward.scale,
        "reward_clip": reward.w_ext * reward.clip,
        "learning_rate": learner.learning_rate,
        "adam_beta1": learner.adam_beta1,
        "adam_beta2": learner.adam_beta2,
        "adam_eps": learner.adam_eps,
        "max_grad_norm": learner.max_grad_norm,
        "ppo_clip_ratio": learner.ratio_clip,
        "ppo_clip_value": learner.value_clip,
        "value_loss_coeff": learner.value_coefficient,
        "exploration_loss_coeff": learner.entropy_coefficient,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def train(folder: Path, config: Config, setting: Setting, seconds: float) -> SampleFactoryRun:
    """Trains for `seconds` from the first update on. Raises RuntimeError with the first error in its log where it fails.

    Where one of its workers dies Sample Factory may wait for ever, so its time is bounded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = flags(config, setting)
    command = [
        str(environment.python()), "-m", "benchmarks.sample_factory.adapter", *given,
        f"--seconds={seconds}", f"--out={folder}", f"--train_dir={folder}", "--experiment=run",
        "--restart_behavior=overwrite",
    ]  # fmt: skip
    threads = {name: str(setting.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables = {**os.environ, **threads, "PYTHONPATH": str(environment.ROOT)}
    log = folder / "log.txt"
    code = run_bounded(command, log, variables, seconds + START_S)
    if code != 0:
        how = f"exited with {code}" if code is not None else f"did not end within {seconds + START_S:.0f} s"
        raise RuntimeError(f"Sample Factory ({setting.name}) {how}: {_cause(log)} (all it said: {log})")
    lines = (folder / "progress.jsonl").read_text().splitlines()
    profile = json.loads((folder / "profile.json").read_text())
    return SampleFactoryRun(tuple(given), tuple(Progress(**json.loads(line)) for line in lines), profile)


def run_bounded(command: list[str], log: Path, variables: Mapping[str, str], timeout_s: float) -> int | None:
    """The exit code of `command`; None where it did not end in time. None of its processes outlives this call."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of them ended by themselves
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _cause(log: Path) -> str:
    """The first line in which Python names an exception, and the last of all where there is none."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)), lines[-1])
