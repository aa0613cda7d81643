"""The Ray cluster that a run lives on: the one that RAY_ADDRESS names, or one of its own on this machine."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

import psutil

from orchestration.config import Config
from orchestration.machine import available_cpus
from orchestration.preflight import check_cluster

_OBJECT_STORE_BYTES = 1 << 29
_TRIES = 3
"""Of starting a cluster."""
_END_S = 10.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def connect(config: Config) -> None:
    """Joins or starts the cluster. Raises ResourceError where it lacks what the run needs, which would be waited for for
    ever; with `cluster.autoscaling` that is a matter of minutes, and not looked at."""
    if "RAY_ADDRESS" not in os.environ:
        # A cluster of its own is for this machine alone. Ray reads this when it is imported, and then binds all that it starts
        # to the loopback; otherwise it listens on every interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    # The cluster's processes take seconds to start, and so does importing what the run needs: both at once.
    preload = threading.Thread(target=import_module, args=("orchestration.ray_runtime",), name="preload")
    preload.start()
    _init(config)
    preload.join()
    if config.cluster.autoscaling:
        return
    try:
        check_cluster(config, ray.cluster_resources())
    except BaseException:
        ray.shutdown()
        raise


def _init(config: Config) -> None:
    import ray

    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Workers inherit it: every process of a run bounds its threads, or they would fight for the cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(config.learner.threads))
        # Ray's default of 15 leaves no room below for the judge and the reward server, which yield to acting and learning.
        os.environ.setdefault("RAY_worker_niceness", "0")
        start_patiently(lambda: _start(config))


def _start(config: Config) -> None:
    import ray

    ray.init(
        # Otherwise Ray would join whatever cluster `ray start` made on this machine last.
        address="local",
        num_cpus=max(int(available_cpus()), 1),
        include_dashboard=False,  # The agent that exports metrics runs all the same.
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _metrics_export_port=config.metrics.port,
    )


def start_patiently(start: Callable[[], _T]) -> _T:
    """What `start` returns, which starts a node of Ray: called again where the node was not up in time.

    Ray allows its processes 30 s, which no setting changes: not enough for a machine that is busy with other things. What a
    failed try left running is ended.
    """
    for tries_left in reversed(range(_TRIES)):
        before = set(psutil.Process().children())
        try:
            return start()
        except Exception as error:
            # Ray raises a bare Exception.
            if not tries_left or "timed out during startup" not in str(error):
                raise
            _log.warning("Ray was not up within the time it allows itself (is the machine busy?); it is started again")
        # The processes of a node are this one's own children; those of their children are a node's that runs already, too.
        _end([child for child in psutil.Process().children() if child not in before])
    raise AssertionError


def _end(roots: list[psutil.Process]) -> None:
    """Kills processes with all below them, and waits until their ports are free."""
    doomed = list(roots)
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            doomed += root.children(recursive=True)
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=_END_S)


def disconnect() -> None:
    """Leaves the cluster; one that this process started ends with all its processes."""
    import ray

    ray.shutdown()
