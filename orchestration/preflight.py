"""What is checked before a run starts, so that it fails at once and says why, rather than late or never."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestration import placement
from orchestration.config import Config
from orchestration.configuration import learns_intrinsic, uses_judge
from orchestration.errors import ConfigError, ResourceError
from orchestration.machine import GIB, available_cpus, available_memory, free_disk, gibibytes
from orchestration.observability.sinks import check_sinks

_MEMORY_WARNING = 2 * GIB
_MEMORY_OF_JUDGE = 2 * GIB
_DISK_WARNING = GIB


def preflight(config: Config, warn: Callable[[str], None], *, fresh: bool = False) -> None:
    """Raises the error that the run would die of; `warn` gets what may become one. `fresh`: nothing may be at
    `checkpoint.url` yet.

    Quick: a judge's address is asked, a few bytes are written to `checkpoint.url`, and an environment with options is made
    once. Raises `ConfigError` for the environment's options, `ResourceError` for the machine and for W&B and MLflow,
    `MetricsError` for a port that is taken, `JudgeError` for the judge, `AnnotationStoreError` for labels that were to be
    reused, and for `checkpoint.url` what `open_location`, `check_writable` and `check_vacant` raise.
    """
    _check_model(config)
    _check_env(config)
    if config.runtime == "serial" or os.environ.get("RAY_ADDRESS", "local") == "local":
        check_cpus(config, available_cpus(), "this machine")
        # Elsewhere the learner has another machine, and this one may well have no GPU.
        check_device(config)
    _check_offline(config)
    check_sinks(config)
    _check_offsite(config, fresh)
    if uses_judge(config):
        from reward_server.judge.judge import preflight as preflight_judge

        preflight_judge(config.judge)
        _check_reuse(config)
    _warn_of_memory(config, warn)
    free = free_disk(Path(config.run.dir).absolute())
    if free < _DISK_WARNING:
        warn(f"only {gibibytes(free)} of disk are free in {config.run.dir}")


def required_cpus(config: Config) -> float:
    """Processors that the parts with a processor of their own need. Judge and annotator share what is there."""
    if config.runtime == "serial":
        return 1
    return config.actors.count * config.actors.cpus + _learner_cpus(config)


def _learner_cpus(config: Config) -> int:
    return config.learner.workers * config.learner.threads


def check_cpus(config: Config, there: float, where: str) -> None:
    """Raises `ResourceError` where `where` (this machine, a cluster) has fewer processors than the run needs."""
    needed = required_cpus(config)
    if there >= needed:
        return
    fits = int((there - _learner_cpus(config)) / config.actors.cpus)
    learner, other = f"learner.threads={config.learner.threads}", "runtime=serial needs only one"
    if config.learner.workers > 1:
        learner = f"learner.workers={config.learner.workers} with {learner} each"
        other = "learner.workers=1 needs fewer"
    advice = f"actors.count={fits} fits" if fits >= 1 else other
    raise ResourceError(
        f"too few CPUs: actors.count={config.actors.count} and {learner} need {needed:g}, {where} has {there:g}; {advice}"
    )


def check_cluster(config: Config, there: Mapping[str, float]) -> None:
    """Raises `ResourceError` where a cluster with the resources `there` lacks what the run needs. The judge is not looked
    for: without it training goes on."""
    check_cpus(config, there.get("CPU", 0.0), "the Ray cluster")
    _check_gpus(config, there.get("GPU", 0.0), "the Ray cluster has")
    _check_group(placement.actor(config), config.actors.count, "actors need", there)
    check_learner_group(config, there)


def check_learner_group(config: Config, there: Mapping[str, float]) -> None:
    """Raises `ResourceError` where a cluster with the resources `there` has no machine for the learner
    (`cluster.groups`)."""
    _check_group(placement.learner(config), config.learner.workers, "the learner needs", there)


def _check_group(asked: Mapping[str, Any], count: int, part: str, there: Mapping[str, float]) -> None:
    for name, amount in asked["resources"].items():
        needed, found = amount * count, there.get(name, 0.0)
        if found < needed:
            raise ResourceError(
                f"cluster.groups=true: {part} {needed:g} of the resource {name!r}, the Ray "
                f"cluster has {found:g}; start machines with ray start --resources='{{\"{name}\": {needed:g}}}'"
            )


def _check_gpus(config: Config, there: float, where: str) -> None:
    """Raises `ResourceError` where `where` (… has) fewer GPUs than the learner's workers and the engines take."""
    workers = config.learner.workers
    if config.learner.device == "cuda" and there < workers:
        if there < 1:
            raise ResourceError(f"learner.device=cuda: {where} no GPU; use learner.device=auto")
        raise ResourceError(
            f"learner.workers={workers}: each needs a GPU, and {where} {there:g}; use learner.workers={there:g}"
        )
    actors = config.actors.count
    if required_gpus(config, actors) <= there:
        return
    fits = [count for count in range(1, actors) if required_gpus(config, count) <= there]
    if fits:
        advice = f"actors.count={fits[-1]} fits"
    elif config.learner.device == "cuda" and config.actors.gpus > 0.5:
        advice = "actors.gpus=0.5 lets an engine share the learner's"
    else:
        advice = "actors.gpus=0 generates on the CPU"
    raise ResourceError(
        f"too few GPUs: actors.count={actors} with actors.gpus={config.actors.gpus:g} beside the learner need "
        f"{required_gpus(config, actors):g}, {where} {there:g}; {advice}"
    )


def required_gpus(config: Config, actors: int) -> float:
    """GPUs that the learner and so many actors take. One that asks for a part of a GPU shares the learner's, and of the others as
    many share one as there is room for."""
    share, learner = config.actors.gpus, config.learner.workers if config.learner.device == "cuda" else 0
    if config.runtime == "serial" or share == 0:
        return learner
    if share >= 1:
        return learner + actors * share
    others = actors - 1 if learner else actors
    return learner + math.ceil(others / math.floor(1 / share + 1e-9))


def check_device(config: Config) -> None:
    """Raises `ResourceError` where GPUs are asked for and torch finds none, or fewer."""
    if not required_gpus(config, config.actors.count):
        return
    import torch

    if config.learner.device == "cuda" and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise ResourceError(
            f"learner.device=cuda: torch {torch.__version__} (built with {built}) finds no GPU; use learner.device=auto"
        )
    _check_gpus(config, torch.cuda.device_count(), "this machine has")


def _check_env(config: Config) -> None:
    language = config.agent.model is not None
    if not config.env.options and not language:
        return  # The id is known already, and loading the game here would cost the run a second.
    import envs

    try:
        if language:
            from orchestration.language.tasks import Tasks

            Tasks(config).make_env().close()
        else:
            envs.make(config.env.id, **config.env.options).close()
    except envs.EnvironmentOptionError as error:
        raise ConfigError(f"env.options: {error}") from error


def _check_offline(config: Config) -> None:
    if config.reward.model != "offline" or not learns_intrinsic(config) or config.reward.offline_path is None:
        return
    from reward_server.models.offline import OfflineModelError, holds_labels, read_model

    try:
        if not holds_labels(config.reward.offline_path):
            read_model(config.reward.offline_path)
    except OfflineModelError as error:
        raise ConfigError(f"reward.offline_path={error}") from error


def _check_model(config: Config) -> None:
    """Raises `LanguageModelError` for a model that is not there, and for an engine that is not installed."""
    if config.agent.model is None:
        return
    from agents.language.engines import check_engine
    from agents.language.template import check_folder
    from learner.language.small import NAME
    from orchestration.language.models import acting_model

    check_engine(config.agent.engine)
    if config.agent.model != NAME:
        check_folder(acting_model(config))


def _check_reuse(config: Config) -> None:
    if config.annotator.reuse is None:
        return
    from reward_server.reuse import stores_at
    from reward_server.store import AnnotationStore

    for path in stores_at(Path(config.annotator.reuse)):
        AnnotationStore(path, read_only=True).close()


def _check_offsite(config: Config, fresh: bool) -> None:
    url = config.checkpoint.url
    if url is None:
        return
    from orchestration.offsite.location import check_writable
    from orchestration.offsite.resuming import check_vacant
    from orchestration.offsite.runs import open_offsite

    run = open_offsite(url, config.run.name)
    check_writable(run.location)
    if fresh:
        check_vacant(run)


def _warn_of_memory(config: Config, warn: Callable[[str], None]) -> None:
    in_process = uses_judge(config) and config.judge.engine in ("vllm", "transformers")
    wanted = _MEMORY_WARNING + (_MEMORY_OF_JUDGE if in_process else 0)
    there = available_memory()
    if there < wanted:
        warn(f"only {gibibytes(there)} of memory are free; {gibibytes(wanted)} or more are advisable")
