"""Weights & Biases and MLflow: optional packages, imported where a run asks for them.

Keys and passwords are the libraries' own affair (environment, ~/.netrc): none passes through here.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from orchestration.config import Config
from orchestration.configuration.checks import value_at
from orchestration.configuration.keys import key_types
from orchestration.configuration.values import without_password
from orchestration.errors import ResourceError, first_line
from orchestration.metrics import MetricsLine, scalars
from orchestration.summary import Status

_ANSWER_S = 10.0
_OFFLINE = ("offline", "disabled", "dryrun")
_MLFLOW_STATUS = {Status.DONE: "FINISHED", Status.INTERRUPTED: "KILLED"}
_MLFLOW_METRICS, _MLFLOW_PARAMS = 1000, 100
"""Most that MLflow takes in one call."""


def parameters(config: Config) -> dict[str, Any]:
    """The resolved configuration by its keys, as `key=value` has them, without user and password in addresses."""
    return {key: without_password(value_at(config, key)) for key in key_types()}


def _known(line: MetricsLine) -> dict[str, float]:
    return {name: value for name, value in scalars(line).items() if value is not None}


class WandbRun:
    """A run of Weights & Biases; its steps are environment steps."""

    name = "W&B"

    def __init__(self, config: Config, folder: Path, run_id: str | None) -> None:
        """`run_id`: of the run to go on with, None for a new one. Raises `ResourceError` where W&B gives none."""
        wandb = _wandb()
        entity, _, project = (config.metrics.wandb or "").rpartition("/")
        # The console is the live view's, and the machine's numbers are Prometheus' affair.
        settings = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            x_disable_stats=True,
        )
        self.run_id = run_id or uuid4().hex
        try:
            self._run: Any = wandb.init(
                entity=entity or None,
                project=project,
                name=folder.name,
                id=self.run_id,
                resume="allow",
                dir=str(folder),
                config=parameters(config),
                allow_val_change=True,
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise ResourceError(f"metrics.wandb={config.metrics.wandb}: {first_line(error)}") from error

    def log(self, lines: Sequence[MetricsLine]) -> None:
        """Returns before they are sent: the library has a process of its own for that."""
        for line in lines:
            self._run.log(_known(line), step=line.env_steps)

    def close(self, status: Status) -> None:
        """Waits until all is sent; W&B shows runs that failed as such."""
        self._run.finish(exit_code=1 if status is Status.FAILED else 0)


class MlflowRun:
    """A run of MLflow; its steps are environment steps."""

    name = "MLflow"

    def __init__(self, config: Config, name: str, run_id: str | None) -> None:
        """`run_id`: of the run to go on with, None for a new one. Raises `ResourceError` where MLflow gives none."""
        mlflow, self._entities = import_module("mlflow"), import_module("mlflow.entities")
        for logger in ("mlflow", "alembic"):  # What they log of errors they raise too; the console is the live view's.
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=config.metrics.mlflow)
            if run_id is None:
                self.run_id: str = self._client.create_run(self._experiment(), run_name=name).info.run_id
            else:
                self.run_id = run_id
                self._client.update_run(run_id, status="RUNNING")
            self._tell_parameters(parameters(config))
        except mlflow.MlflowException as error:
            raise ResourceError(f"metrics.mlflow={config.metrics.mlflow}: {first_line(error)}") from error

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "yendor")
        known = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if known is None else known.experiment_id

    def _tell_parameters(self, values: Mapping[str, Any]) -> None:
        """MLflow lets no parameter change, so what a resume changed becomes a tag of the same name."""
        known = self._client.get_run(self.run_id).data.params
        new = [self._entities.Param(key, str(value)) for key, value in values.items() if key not in known]
        for start in range(0, len(new), _MLFLOW_PARAMS):
            self._client.log_batch(self.run_id, params=new[start : start + _MLFLOW_PARAMS])
        for key, value in values.items():
            if key in known and known[key] != str(value):
                self._client.set_tag(self.run_id, key, str(value))

    def log(self, lines: Sequence[MetricsLine]) -> None:
        """Returns when the server has them."""
        metrics = [
            self._entities.Metric(name, float(value), int((line.time["unix"] or 0.0) * 1000), line.env_steps)
            for line in lines
            for name, value in _known(line).items()
        ]
        for start in range(0, len(metrics), _MLFLOW_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _MLFLOW_METRICS])

    def close(self, status: Status) -> None:
        """Ends the run there, with its status."""
        self._client.set_terminated(self.run_id, _MLFLOW_STATUS.get(status, "FAILED"))


def check_wandb(project: str) -> None:
    """Raises `ResourceError` without the package or a key; on a terminal W&B asks for one."""
    _check_package("metrics.wandb", project, "wandb")
    if os.environ.get("WANDB_MODE") in _OFFLINE:
        return
    wandb = _wandb()
    try:
        wandb.login(force=True, verify=False)
    except wandb.errors.Error as error:
        raise ResourceError(
            f"metrics.wandb={project}: {first_line(error)} (or set WANDB_API_KEY, or WANDB_MODE=offline)"
        ) from error


def check_mlflow(uri: str) -> None:
    """Raises `ResourceError` without the package, or where nobody answers at an address."""
    _check_package("metrics.mlflow", uri, "mlflow")
    if not uri.startswith(("http://", "https://")):
        return
    import httpx

    try:
        httpx.get(uri, timeout=_ANSWER_S)
    except httpx.HTTPError as error:
        raise ResourceError(f"metrics.mlflow={uri}: no answer: {first_line(error)}") from error


def _wandb() -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")  # It says things on the console, which is the live view's.
    return import_module("wandb")


def _check_package(key: str, value: str, package: str) -> None:
    if find_spec(package) is None:
        raise ResourceError(f"{key}={value}: the package {package} is not installed: pip install {package}")
