"""What Ray knows of a run's processes and machines. The only place that asks Ray by its private names: its public ones need
the dashboard, which a run with a cluster of its own does not have.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import state, worker
from ray.core.generated import common_pb2


@dataclass(frozen=True, slots=True)
class Place:
    """Where the process of a Ray actor is."""

    node: str
    pid: int


def place_of(handle: Any) -> Place | None:
    """Where the actor's process is, also while it starts; None where it has none."""
    return _place(state.actors(actor_id=handle._actor_id.hex()))


def replicas_of(app_name: str) -> list[Place]:
    """Where the replicas of an application of Ray Serve are."""
    table: dict[str, Any] = state.actors(actor_state_name="ALIVE")
    of_app = (each for each in table.values() if str(each["ActorClassName"]).startswith(f"ServeReplica:{app_name}:"))
    return [place for each in of_app if (place := _place(each)) is not None]


def let_go(place: Place) -> bool:
    """Whether the actor that was there was ended by who had it (Ray Serve scales down), and did not die."""
    table: dict[str, Any] = state.actors(actor_state_name="DEAD")
    reasons = [
        each["DeathCause"].actor_died_error_context.reason
        for each in table.values()
        if (each["Address"]["NodeID"], each["Pid"]) == (place.node, place.pid)
    ]
    generated: Any = common_pb2
    context = generated.ActorDiedErrorContext
    return any(reason in (context.RAY_KILL, context.OUT_OF_SCOPE, context.REF_DELETED) for reason in reasons)


def _place(info: dict[str, Any]) -> Place | None:
    if not info or not info["Pid"] or info["State"] == "DEAD":
        return None
    return Place(info["Address"]["NodeID"], info["Pid"])


def here() -> str:
    """The node of this process."""
    return ray.get_runtime_context().get_node_id()


def temp_dir() -> Path:
    """Where Ray keeps its files on this machine."""
    node: Any = worker._global_node  # pyright: ignore[reportPrivateUsage]
    return Path(node.get_session_dir_path())


def spilled(node: dict[str, Any]) -> int:
    """Bytes that the object store of a machine (as `ray.nodes` tells of it) has written to disk so far, for want of room."""
    from ray._private.internal_api import node_stats

    stats: Any = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return int(stats.store_stats.spilled_bytes_total)
