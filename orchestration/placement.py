"""What each part of a run asks of the Ray cluster, and so on which machines it runs."""

from enum import StrEnum
from typing import Any

from orchestration.config import Config


class Group(StrEnum):
    """Groups of machines. The names are those of Ray's resources that the machines are started with."""

    ACTOR = "actor"
    """Machines for rollout actors: as much of it as they have processors for them."""
    LEARNER = "learner"
    JUDGE = "judge"
    """One for each replica of the judge that the machine holds."""


def actor(config: Config) -> dict[str, Any]:
    """Ray's options of one rollout actor."""
    return {
        "num_cpus": config.actors.cpus,
        "num_gpus": config.actors.gpus,
        "resources": _group(config, Group.ACTOR, config.actors.cpus),
    }


def learner(config: Config, *, gpus: float = 1.0) -> dict[str, Any]:
    """Ray's options of each worker of the learner; `gpus`: how many it takes, if it is to run on one."""
    return {
        "num_cpus": config.learner.threads,
        "num_gpus": gpus if config.learner.device == "cuda" else 0,
        "resources": _group(config, Group.LEARNER),
    }


def judge(config: Config) -> dict[str, float]:
    """Resources that one replica of the judge takes beside its GPU."""
    return _group(config, Group.JUDGE)


def reward_server(config: Config) -> dict[str, Any]:
    """Ray's options of the reward server. Called where the cluster has been joined.

    It takes nothing, so Ray would put it on any machine, a spot one among them. Where the cluster has groups it stays with
    the coordinator.
    """
    if not config.cluster.groups:
        return {"num_cpus": 0}
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    # Not soft: what asks for no resources then goes to any machine all the same.
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def _group(config: Config, group: Group, amount: float = 1.0) -> dict[str, float]:
    """The resource that keeps a part to its machines, where the cluster has groups."""
    return {group.value: amount} if config.cluster.groups else {}
