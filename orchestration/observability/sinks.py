"""All places beside the run's folder that its numbers go to. A place that fails while a run goes on is warned of once."""

import os
from typing import Protocol

from orchestration.config import Config
from orchestration.errors import ConfigError, first_line
from orchestration.metrics import MetricsLine
from orchestration.observability.names import samples
from orchestration.observability.prometheus import HOST, Endpoint, Exporter, RayExport, check_port
from orchestration.observability.remote import RemoteRun, RemoteSink
from orchestration.rundir import RunDir
from orchestration.summary import Status


class Warn(Protocol):
    """Tells a person of something."""

    def __call__(self, message: str, *, warning: bool) -> None: ...


class Sinks:
    """Takes each line of `metrics.jsonl` once it is written."""

    def __init__(self, exporter: Exporter | None, remotes: list[RemoteSink], warn: Warn) -> None:
        self._exporter = exporter
        self._remotes = remotes
        self._warn = warn
        self._told: set[str] = set()
        self._own_errors = 0

    @property
    def url(self) -> str | None:
        """Where Prometheus can read the run's numbers."""
        return None if self._exporter is None else self._exporter.url

    @property
    def errors(self) -> int:
        """Failures to hand on numbers so far."""
        return self._own_errors + sum(remote.errors for remote in self._remotes)

    def log(self, line: MetricsLine) -> None:
        """Hands on `line`. Never raises, and waits for nobody."""
        if self._exporter is not None:
            try:
                self._exporter.export(samples(line))
            except Exception as error:
                self._own_errors += 1
                self._tell(f"Prometheus: {first_line(error)}")
        for remote in self._remotes:
            remote.put(line)
        self._tell_troubles()

    def close(self, status: Status) -> None:
        """Hands on what waits and says how the run ended; a service that is gone is given up after a while."""
        for remote in self._remotes:
            remote.close(status)
        if self._exporter is not None:
            self._exporter.close()
        self._tell_troubles()

    def _tell_troubles(self) -> None:
        for remote in self._remotes:
            if remote.trouble is not None:
                self._tell(remote.trouble)

    def _tell(self, trouble: str) -> None:
        place = trouble.partition(":")[0]
        if place not in self._told:
            self._told.add(place)
            self._warn(
                f"metrics not handed on to {trouble}; the run goes on, further such errors are counted", warning=True
            )


def open_sinks(config: Config, rundir: RunDir, warn: Warn) -> Sinks:
    """What `config` asks for. A run that goes on is the same run in W&B and MLflow.

    Raises `MetricsError` for a port that is taken, `ResourceError` for a service that gives no run.
    """
    exporter = _exporter(config, rundir.name)
    remotes: list[RemoteSink] = []
    try:
        if config.metrics.wandb is not None:
            remotes.append(_wandb(config, rundir))
        if config.metrics.mlflow is not None:
            remotes.append(_mlflow(config, rundir))
    except BaseException:
        Sinks(exporter, remotes, warn).close(Status.FAILED)
        raise
    return Sinks(exporter, remotes, warn)


def _exporter(config: Config, run: str) -> Exporter | None:
    if config.runtime == "ray":
        import ray

        return RayExport(run, config.env.id) if ray.is_initialized() else None
    return None if config.metrics.port is None else Endpoint(config.metrics.port, run, config.env.id)


def _wandb(config: Config, rundir: RunDir) -> RemoteSink:
    from orchestration.observability.trackers import WandbRun

    remembered = RemoteRun(rundir.remote("wandb"))
    return RemoteSink(WandbRun(config, rundir.path, remembered.run_id), remembered)


def _mlflow(config: Config, rundir: RunDir) -> RemoteSink:
    from orchestration.observability.trackers import MlflowRun

    remembered = RemoteRun(rundir.remote("mlflow"))
    return RemoteSink(MlflowRun(config, rundir.name, remembered.run_id), remembered)


def check_sinks(config: Config) -> None:
    """Raises the error that opening the sinks would end with, before anything is launched."""
    metrics = config.metrics
    if metrics.port is not None:
        if config.runtime == "ray" and "RAY_ADDRESS" in os.environ:
            raise ConfigError(
                f"metrics.port={metrics.port}: RAY_ADDRESS names a cluster, whose own agents export the run's metrics; "
                "leave it out"
            )
        check_port(metrics.port, HOST if config.runtime == "serial" else "")
    if metrics.wandb is not None or metrics.mlflow is not None:
        from orchestration.observability.trackers import check_mlflow, check_wandb

        if metrics.wandb is not None:
            check_wandb(metrics.wandb)
        if metrics.mlflow is not None:
            check_mlflow(metrics.mlflow)
