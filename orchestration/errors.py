"""Errors that a user may see. The first line of each names the root cause and what to do about it."""


class YendorError(Exception):
    """Something failed for a reason that we can name; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(YendorError):
    """A key, value or combination of the configuration that cannot be; one line that names the key."""

    exit_code = 2


class UsageError(YendorError):
    """The command line itself cannot be understood."""

    exit_code = 2


class RunDirError(YendorError):
    """A run directory that cannot be made, read, written or is in use."""


class RunExistsError(RunDirError):
    """The run directory exists, and neither `--resume` nor `--overwrite` was given."""

    exit_code = 2


class MetricsError(YendorError):
    """Metrics or a summary that cannot be read or written."""


class TraceError(YendorError):
    """A trace that cannot be written, or a file that is none."""


class WorkerDiedError(YendorError):
    """A process that the run cannot do without is gone; the message names it and what to do."""


class CheckpointWriteError(YendorError):
    """The last checkpoint of a run cannot be written; the message says which is the newest."""


class ResourceError(YendorError):
    """The machine lacks what was asked for: processors, a GPU, a package."""


_PACKAGES = frozenset({"agents", "envs", "inference", "learner", "orchestration", "reward_server"})


def is_ours(error: BaseException) -> bool:
    """Whether `error` is of a class of this project, whose messages name the root cause by themselves."""
    return type(error).__module__.partition(".")[0] in _PACKAGES


def root_cause(error: BaseException) -> BaseException:
    """The error to tell of: follows the `cause` of Ray's task errors and `raise … from …`, up to the first of ours."""
    seen: set[int] = set()
    while not is_ours(error) and id(error) not in seen:
        seen.add(id(error))
        following = _carried(error) or error.__cause__
        if following is None:
            break
        error = following
    return error


def _carried(error: BaseException) -> BaseException | None:
    """What Ray's errors hold: `cause` is the error of a call; the death of an actor that never began has that as argument."""
    held = getattr(error, "cause", None)
    if held is None and type(error).__module__.startswith("ray.") and error.args:
        held = error.args[0]
    return held if isinstance(held, BaseException) else None


def first_line(error: BaseException) -> str:
    """One line that names the root cause of `error`, and the process that it came from where another one failed."""
    cause = root_cause(error)
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    if not is_ours(cause):
        text = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    return (text or type(cause).__name__) + (_origin(error) or _origin(_carried(error)))


def _origin(error: BaseException | None) -> str:
    """` (in ray::NAME, pid N)` where `error` came out of a Ray worker, otherwise nothing."""
    pid, title = getattr(error, "pid", None), getattr(error, "proctitle", None)
    if not isinstance(pid, int) or not isinstance(title, str):
        return ""
    name = title.removeprefix("ray::").partition("(")[0] or "a worker"
    return f" (in {name}, pid {pid})"


def death(error: BaseException) -> str:
    """Why a Ray actor is gone, in a few words out of the many that Ray says; the root cause of any other error."""
    text = " ".join(str(error).split())
    for opening in ("Worker exit detail: ", "The actor is dead because "):
        if opening in text:
            detail = text.partition(opening)[2]
            return detail.partition(". Some common causes")[0].partition(". There are some potential")[0][:200]
    return first_line(error)
