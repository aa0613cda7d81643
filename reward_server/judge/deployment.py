"""The judge as a Ray Serve application: replicas that hold an engine, health-checked, restarted, scaled by Serve.

Nobody waits for it: `start` returns at once, and a client whose judge is not up gets `JudgeUnavailableError`, which the
annotator takes as "later". Only handles are used, so no port is opened.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from reward_server.judge.judge import PromptedJudge, build_judge, judge_key
from reward_server.judge.models import looks_like_path
from reward_server.judge.prompts import Subject
from reward_server.settings import JudgeSettings
from reward_server.types import Answer, JudgeError, JudgeKey, JudgeUnavailableError

DEPLOYMENT = "Judge"
HEALTH_PERIOD_S = 3.0
"""Serve looks so often whether a replica's engine answers; a dead engine is started again by that look."""
_HEALTH_TIMEOUT_S = 45.0
_SHUTDOWN_S = 10.0
_UPSCALE_S = 10.0
"""So long requests must have waited before there is another replica, which takes longer than that to start."""
_STATUS_PERIOD_S = 1.0
OWNER_GONE_S = 60.0
"""So long after its owner has gone an application ends itself: time enough for a run that goes on to find it there."""
_OWNER_LOOKS = 12
"""Looks for the owner within that time, all of which must find none."""
_NICENESS = 5
"""The judge yields the processor to the training where both want it."""


class DeploymentState(StrEnum):
    """How the application stands."""

    ABSENT = "absent"
    STARTING = "starting"
    """Being deployed, or a replica that died is being replaced."""
    READY = "ready"
    FAILED = "failed"
    """Serve gave up: the replicas cannot be built."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """What `status` says."""

    state: DeploymentState
    replicas: int
    """Replicas that answer questions now."""
    message: str
    """Root cause where the state is `failed`, otherwise empty or what Serve says."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A named actor of Ray. An application whose owner is gone ends itself, so that a driver that was killed leaves no judge
    behind on a cluster that goes on."""

    name: str
    namespace: str
    gone_s: float = OWNER_GONE_S

    def lives(self) -> bool:
        """Also where Ray cannot say."""
        try:
            ray.get_actor(self.name, self.namespace)
        except ValueError:  # there is none of this name
            return False
        except RayError:
            return True
        return True


class _Replica:
    """One replica: a judge with its engine, in a process of its own."""

    async def __init__(self, settings: JudgeSettings, pairwise: bool = False, owner: Owner | None = None) -> None:  # pyright: ignore[reportGeneralTypeIssues]
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self._judge: PromptedJudge = await asyncio.to_thread(build_judge, settings, pairwise=pairwise)
        try:
            await self._judge.start()
        except BaseException:
            await self._judge.close()
            raise
        # Only now: a start that yields to the training takes three times as long, and labels come as much later.
        _yield_processor()
        self._watch = None if owner is None else asyncio.create_task(_end_without(owner))

    async def ask(self, captions: list[Subject]) -> list[Answer]:
        return await self._judge.ask(captions)

    async def check_health(self) -> None:
        """Asks the engine for one token; starts it again if it died. Where that fails, Serve replaces this replica."""
        await self._judge.check()

    async def __del__(self) -> None:  # Serve awaits it when it stops a replica
        judge: PromptedJudge | None = getattr(self, "_judge", None)
        if judge is not None:
            await judge.close()


async def _end_without(owner: Owner) -> None:
    """Ends this replica's application when its owner has been gone for long enough."""
    missed = 0
    while missed < _OWNER_LOOKS:
        await asyncio.sleep(owner.gone_s / _OWNER_LOOKS)
        missed = 0 if await asyncio.to_thread(owner.lives) else missed + 1
    # Not waited for: what it ends is this process.
    await asyncio.to_thread(serve.delete, serve.get_replica_context().app_name, _blocking=False)


def _yield_processor() -> None:
    """Lowers the priority of every thread of this process (Linux keeps it by thread) and of the processes below it."""
    for process in [Path("/proc/self"), *(Path(f"/proc/{child.pid}") for child in _children())]:
        with contextlib.suppress(OSError):  # a thread or process that ended meanwhile
            for task in (process / "task").iterdir():
                thread = int(task.name)
                lower = min(os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS, 19)
                os.setpriority(os.PRIO_PROCESS, thread, lower)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def start(
    settings: JudgeSettings,
    *,
    app_name: str = "judge",
    num_cpus: float = 0.1,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    in_flight: int = 8,
    pairwise: bool = False,
    owner: Owner | None = None,
) -> None:
    """Deploys the judge on the Ray cluster that this process has joined, and returns while it starts.

    `num_gpus`: for each replica; by default 1 where the cluster has a GPU. `resources`: others of Ray's that each takes.
    `in_flight`: requests that one replica works on at once. `pairwise`: it is asked about pairs of captions. More than
    one `judge.replicas` scales between 1 and that many: there is another while those that are there have more than half of
    `in_flight` each. So whoever asks must keep that many for every replica under way. `owner`: it ends itself when that is
    gone; without one it stays until `stop`.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    gpus = float(ray.cluster_resources().get("GPU", 0) >= 1) if num_gpus is None else num_gpus
    scaling: dict[str, Any] = {"num_replicas": 1}
    if settings.replicas > 1:
        scaling = {
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": settings.replicas,
                "target_ongoing_requests": max(1, in_flight // 2),
                "upscale_delay_s": _UPSCALE_S,
            }
        }
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
    application = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": gpus, "resources": dict(resources or {})},
        max_ongoing_requests=in_flight,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=2,
        logging_config={"log_level": "ERROR", "enable_access_log": False},
        **scaling,
    )(_Replica).bind(_absolute(settings), pairwise, owner)
    serve.run_many(
        [serve.RunTarget(application, name=app_name, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _absolute(settings: JudgeSettings) -> JudgeSettings:
    """Paths as this process means them: a worker of the cluster may run in another folder."""
    model = str(Path(settings.model).expanduser().resolve()) if looks_like_path(settings.model) else settings.model
    goals = None if settings.goals_file is None else str(Path(settings.goals_file).expanduser().resolve())
    return replace(settings, model=model, goals_file=goals, cache_dir=str(Path(settings.cache_dir).resolve()))


def status(app_name: str = "judge") -> DeploymentStatus:
    """How the application stands now. Raises `JudgeUnavailableError` where Serve itself does not answer."""
    try:
        application = serve.status().applications.get(app_name)
    except (RayError, RayServeException) as error:
        raise JudgeUnavailableError(f"Ray Serve does not answer: {_first_line(error)}") from error
    if application is None:
        return DeploymentStatus(DeploymentState.ABSENT, 0, f"no application {app_name!r} is deployed")
    deployments = application.deployments.values()
    counts: list[dict[Any, int]] = [dict(d.replica_states) for d in deployments]
    running = sum(count.get("RUNNING", 0) for count in counts)
    if application.status == "DEPLOY_FAILED":
        return DeploymentStatus(
            DeploymentState.FAILED,
            running,
            _root_cause("\n".join(d.message for d in deployments) or application.message),
        )
    state = DeploymentState.READY if running else DeploymentState.STARTING
    return DeploymentStatus(state, running, _root_cause(application.message))


def stop(app_name: str = "judge", *, keep_serve: bool = False) -> None:
    """Ends the application and its processes; with the last application Serve itself, unless `keep_serve` (the whole
    cluster is about to end). Does nothing where none runs."""
    applications = set(serve.status().applications)
    if app_name in applications and (keep_serve or applications != {app_name}):
        serve.delete(app_name)
    elif not keep_serve and applications <= {app_name}:
        serve.shutdown()


class ServeJudge:
    """A judge that is asked through the application's handle. Any process of the Ray cluster can have one."""

    def __init__(self, settings: JudgeSettings | JudgeKey, app_name: str = "judge") -> None:
        """Asks nothing yet; the application may start later."""
        self._key = settings if isinstance(settings, JudgeKey) else judge_key(settings)
        self._app_name = app_name
        self._handle: Any = None
        self._looked_at = -_STATUS_PERIOD_S
        self._reason = "the judge is starting"
        self._permanent = False

    @property
    def key(self) -> JudgeKey:
        return self._key

    async def ask(self, captions: Sequence[Subject]) -> list[Answer]:
        handle = await self._ready_handle()
        try:
            return await handle.ask.remote(list(captions))
        except RayTaskError as error:  # what the replica raised; it carries the remote traceback, its cause the words
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, JudgeUnavailableError):
                self._handle = None
            if isinstance(cause, JudgeError):
                raise cause from error
            raise JudgeError(f"the judge failed: {type(cause).__name__}: {_first_line(cause)}") from error
        except (RayActorError, RayServeException, RayError) as error:
            self._handle = None
            raise JudgeUnavailableError(f"the judge went away: {_first_line(error)}") from error

    async def close(self) -> None:
        """Leaves the application alone: whoever started it stops it."""
        self._handle = None

    async def _ready_handle(self) -> Any:
        """The handle, while a replica answers. Otherwise Serve is asked, once a second at most, and nobody waits."""
        if self._handle is None:
            if time.monotonic() - self._looked_at >= _STATUS_PERIOD_S:
                await self._look()
                self._looked_at = time.monotonic()
            if self._handle is None:
                raise (JudgeError if self._permanent else JudgeUnavailableError)(self._reason)
        return self._handle

    async def _look(self) -> None:
        now = await asyncio.to_thread(status, self._app_name)
        self._permanent = now.state is DeploymentState.FAILED
        self._reason = (
            f"the judge cannot start: {now.message}" if self._permanent else f"the judge is {now.state.value}"
        )
        if now.state is DeploymentState.READY:
            self._handle = await asyncio.to_thread(serve.get_app_handle, self._app_name)


def _root_cause(message: str) -> str:
    """The line of a traceback in Serve's message that names the error: a `JudgeError`'s text, or the last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        if "JudgeError: " in line:
            return line.partition("JudgeError: ")[2]
    errors = [line for line in lines if ("Error: " in line or "Exception: " in line) and not line.startswith("File ")]
    return (errors or lines or [""])[-1]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
