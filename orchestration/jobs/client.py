"""Talks to a cluster's job server: submits, follows, asks, stops. Nothing here needs a Ray of its own."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestration.errors import YendorError, first_line

_STOP_S = 120
"""So long a run has for its last checkpoint before Ray kills it; Ray's own default is 3 s."""
_AGENT_S = 60.0
"""So long a cluster that starts is waited for."""
_RETRY_S = (0.5, 10.0)
"""Pauses between attempts to reach a cluster that was lost: the first, and the longest."""


class JobError(YendorError):
    """The job server cannot be reached, or refuses."""


class NoSuchJobError(JobError):
    """The job server does not know the job."""


class JobStatus(StrEnum):
    """Of a job, as Ray calls them."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        return self in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)


@dataclass(frozen=True, slots=True)
class Job:
    """How a job stands."""

    id: str
    status: JobStatus
    message: str
    """Ray's words."""
    command: str
    run: str | None
    """Name of the run; None for a job that `yendor submit` did not make."""
    folder: str | None
    """Where the run's folder lies, on the cluster's head."""
    started: float | None
    ended: float | None
    """Seconds since the epoch."""
    exit_code: int | None
    runtime_env: Mapping[str, Any]


def token() -> str | None:
    """The user's token for clusters, from where Ray has it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    None where there is none, or RAY_AUTH_MODE=disabled.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given
    try:
        return _token_file().read_text().strip() or None
    except OSError:
        return None


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _whence() -> str:
    """Why the token was not good enough."""
    if token() is None:
        return f"there is none here (neither RAY_AUTH_TOKEN nor {_token_file()})"
    return f"the one in {'RAY_AUTH_TOKEN' if os.environ.get('RAY_AUTH_TOKEN') else _token_file()} is another"


class Jobs:
    """The jobs of the cluster at `address`, such as http://head:8265. What it is asked bears the user's token (`token`)."""

    def __init__(self, address: str) -> None:
        """Raises `JobError` where no job server answers there."""
        from ray.job_submission import JobSubmissionClient

        self.address = address
        try:
            secret = token()
            headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
            self._client = JobSubmissionClient(address, headers=headers)
        except (
            Exception
        ) as error:  # ConnectionError, RuntimeError (a version), ValueError (no address), AuthenticationError
            if type(error).__name__ == "AuthenticationError":
                raise JobError(
                    f"{address}: the cluster wants its token, and {_whence()}; take it from the head "
                    "(~/.ray/auth_token there) and set RAY_AUTH_TOKEN"
                ) from error
            raise JobError(
                f"{address}: no job server of Ray answers there ({first_line(error)}); give --address "
                "http://HEAD:8265, the address of the cluster's dashboard"
            ) from error

    def submit(
        self,
        command: str,
        *,
        name: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
        cpus: float = 0.0,
    ) -> str:
        """Submits a shell command; the job's id is `name`, or `name-2` and so on where that is taken."""
        environment = dict(runtime_env)
        environment["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), **environment.get("env_vars", {})}
        known = {job.submission_id for job in self._ask(self._client.list_jobs)}
        candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, len(known) + 2))
        job = next(candidate for candidate in candidates if candidate not in known)
        deadline = time.monotonic() + _AGENT_S
        while True:
            try:
                return self._ask(
                    lambda: self._client.submit_job(
                        entrypoint=command,
                        submission_id=job,
                        runtime_env=environment,
                        metadata=dict(metadata),
                        entrypoint_num_cpus=cpus or None,
                    )
                )
            except JobError as error:
                # A cluster that has just been started.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def find(self, job: str) -> Job:
        """How a job stands. Raises `NoSuchJobError` where there is none of that id."""
        try:
            info = self._client.get_job_info(job)
        except Exception as error:
            if "404" in str(error) or "does not exist" in str(error):
                known = ", ".join(sorted(str(j.submission_id) for j in self._ask(self._client.list_jobs))) or "none"
                raise NoSuchJobError(f"{job}: no such job at {self.address} (there: {known})") from error
            raise self._lost(error) from error
        metadata = info.metadata or {}
        return Job(
            id=job,
            status=JobStatus(str(info.status)),
            message=" ".join((info.message or "").split()),
            command=info.entrypoint,
            run=metadata.get("yendor.run"),
            folder=metadata.get("yendor.folder"),
            started=None if info.start_time is None else info.start_time / 1000,
            ended=None if info.end_time is None else info.end_time / 1000,
            exit_code=info.driver_exit_code,
            runtime_env=dict(info.runtime_env or {}),
        )

    def logs(self, job: str) -> str:
        """All that a job has written."""
        self.find(job)
        return self._ask(lambda: self._client.get_job_logs(job))

    def stop(self, job: str, wait_s: float) -> Job:
        """Asks a job to write a checkpoint and end, and waits for that. Raises `JobError` where it takes longer."""
        found = self.find(job)
        if found.status.ended:
            return found
        self._ask(lambda: self._client.stop_job(job))
        deadline = time.monotonic() + wait_s
        while not (found := self.find(job)).status.ended:
            if time.monotonic() > deadline:
                raise JobError(f"{job}: still {found.status} after {wait_s:g} s; it has {_STOP_S} s to end")
            time.sleep(0.2)
        return found

    def follow(self, job: str, write: Callable[[str], object], tell: Callable[[str], object]) -> Job:
        """Writes what the job writes, from its beginning, until it ends; `tell` hears of connections lost and found.

        A connection that drops is made again, for as long as it takes; nothing is written twice.
        """
        self.find(job)
        written, lost, pause = 0, False, _RETRY_S[0]
        while True:
            try:
                written = asyncio.run(self._tail(job, write, written))
                found = self.find(job)
                if found.status.ended:
                    # What it wrote between the last look and its end.
                    write(self._ask(lambda: self._client.get_job_logs(job))[written:])
                    return found
                lost, pause = False, _RETRY_S[0]
            except _Cut as cut:
                written = cut.written
                if not lost:
                    tell(f"connection to {self.address} lost ({cut}); the job goes on, trying again")
                lost = True
            except NoSuchJobError:  # The cluster was started anew: it will not come back.
                raise
            except JobError as error:
                if not lost:
                    tell(f"{error}; trying again")
                lost = True
            time.sleep(pause)
            pause = min(2 * pause, _RETRY_S[1]) if lost else _RETRY_S[0]

    async def _tail(self, job: str, write: Callable[[str], object], written: int) -> int:
        """Writes the log as it grows, its first `written` characters left out; how many there are in the end."""
        seen = 0
        try:
            async for chunk in self._client.tail_job_logs(job):
                new = chunk[max(written - seen, 0) :]
                seen += len(chunk)
                if new:
                    write(new)
                    written = seen
        except Exception as error:  # whatever aiohttp and Ray raise where a connection ends
            raise _Cut(first_line(error), max(written, seen)) from error
        return max(written, seen)

    def _ask(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except Exception as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> JobError:
        return JobError(f"{self.address}: {first_line(error)}")


class _Cut(Exception):  # noqa: N818 - no error that anybody sees
    """The connection ended; `written` characters of the log came before."""

    def __init__(self, why: str, written: int) -> None:
        super().__init__(why)
        self.written = written
