"""The Ray cluster that a run lives on: the one that RAY_ADDRESS names, or one of its own on this machine."""

import logging
import os
import threading
from importlib import import_module

from orchestration.config import Config
from orchestration.machine import available_cpus
from orchestration.preflight import check_cluster

_OBJECT_STORE_BYTES = 1 << 29


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


def disconnect() -> None:
    """Leaves the cluster; one that this process started ends with all its processes."""
    import ray

    ray.shutdown()
