"""The records of a trace file: JSON objects, one a line.

A file is one `Header`, then `Caption` and event records, then one `End`. A `Caption` stands before the first event that
refers to it. Events form a graph: `id`, explicit `parents`, time `t` since the episode began, the acting `agent`, and a
`type` out of the vocabulary of the orchestration-trace schema, extended with `env_reset`, `env_step`, `reward` and
`weights_update`. 64-bit ids and seeds are decimal strings, as numbers in JSON are not exact beyond 2^53.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import orjson

from orchestration.errors import TraceError

SCHEMA = "yendor-trace/1"
"""Name and version: a reader knows the number, whatever the version of the package."""

SUFFIX = ".jsonl.zst"
"""Of a finished trace; one that is written now, or whose writer died, has `.part` after it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What an episode was and what is needed to run it again."""

    record: ClassVar[str] = "header"

    schema: str
    episode_id: str
    run: str
    env_id: str
    env_options: Mapping[str, Any]
    action_names: tuple[str, ...]
    seeds: Mapping[str, str]
    policy_version: int
    """Version of the policy at the first step."""
    versions: Mapping[str, str | None]
    """Of the packages that a replay depends on; null where one is not installed."""
    code_revision: str | None
    """Git revision of the project; null outside a checkout."""
    clock: str
    """`unpinned`: the environment could read the time of day (NetHack's `ubirthday`), so a replay may differ rarely."""
    recorded_at: float
    """Seconds since the epoch when the episode began."""
    count_exponent: float | None
    """The exponent that the run divides intrinsic rewards' counts by; null where it has none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Caption:
    """The text of a caption, once for each file."""

    record: ClassVar[str] = "caption"

    caption_id: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have."""

    record: ClassVar[str] = "event"
    type: ClassVar[str]

    id: str
    seq: int
    """Position in the file among the events, from 0."""
    t: float
    """Seconds since the episode began (monotonic)."""
    agent: str
    parents: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnvReset(Event):
    """The episode begins."""

    type: ClassVar[str] = "env_reset"

    observation_hash: str
    screen: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnvStep(Event):
    """One action and what came of it; hash and screen are of the observation after it."""

    type: ClassVar[str] = "env_step"

    step: int
    action: int
    action_name: str
    log_prob: float | None
    """Of the behaviour policy; null where it was not finite."""
    value: float | None
    """The behaviour policy's estimate before the action."""
    reward: float
    """Extrinsic, unscaled."""
    caption_id: str
    """`0` where nothing was said."""
    caption_count: int
    grounded: bool
    policy_version: int
    observation_hash: str
    screen: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reward(Event):
    """A reward that was given while the episode ran. Those that are judged later are not in the file."""

    type: ClassVar[str] = "reward"

    family: str
    """Reward family, as in the orchestration-trace schema: `outcome` for what the environment pays."""
    value: float
    source: str
    version: int | None
    """Of a learned reward model; null for the environment."""
    target: str
    """Id of the event that earned it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightsUpdate(Event):
    """The policy that acts from here on has other weights."""

    type: ClassVar[str] = "weights_update"

    from_version: int
    to_version: int


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How the episode ended. A file without it was cut."""

    record: ClassVar[str] = "end"

    t: float
    events: int
    length: int
    episode_return: float
    terminated: bool
    truncated: bool
    success: bool | None
    metrics: Mapping[str, float]
    error: str | None
    """Set where the environment raised."""


Record = Header | Caption | EnvReset | EnvStep | Reward | WeightsUpdate | End

_EVENTS: Mapping[str, type[Event]] = {kind.type: kind for kind in (EnvReset, EnvStep, Reward, WeightsUpdate)}
_OTHERS: Mapping[str, type[Header | Caption | End]] = {kind.record: kind for kind in (Header, Caption, End)}


def encode(record: Record) -> bytes:
    """One line of JSON with its line feed. Numpy scalars are written as the numbers that they are."""
    tags = {"record": record.record}
    if isinstance(record, Event):
        tags["type"] = record.type
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return orjson.dumps({**tags, **fields}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def decode(line: bytes) -> Record:
    """The record in a line. Raises `TraceError` for one that is not of this schema."""
    try:
        tree = orjson.loads(line)
    except ValueError as error:
        raise TraceError(f"not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise TraceError("not a JSON object")
    name = tree.pop("record", None)
    kind = _EVENTS.get(tree.pop("type", "")) if name == "event" else _OTHERS.get(str(name))
    if kind is None:
        raise TraceError(f"unknown record {name!r}")
    return _build(kind, tree)


def _build(kind: type[Any], tree: dict[str, Any]) -> Any:
    types_of = _FIELDS[kind]
    if tree.keys() != types_of.keys():
        odd = sorted(tree.keys() ^ types_of.keys())
        raise TraceError(f"{kind.__name__}: missing or unknown fields: {', '.join(odd)}")
    for name, accepted in types_of.items():
        value = tree[name]
        if float in accepted and type(value) is int:
            value = tree[name] = float(value)
        if type(value) not in accepted:
            raise TraceError(f"{kind.__name__}.{name}: {value!r} is not of its type")
        if isinstance(value, list):
            tree[name] = tuple(value)
    return kind(**tree)


def _accepted(hint: Any) -> frozenset[type]:
    """The types that JSON gives for a field of type `hint`."""
    if get_origin(hint) in (Union, types.UnionType):
        return frozenset().union(*(_accepted(part) for part in get_args(hint)))
    origin = get_origin(hint) or hint
    return frozenset({dict if origin is Mapping else list if origin is tuple else origin})


def _field_types(kind: type[Any]) -> Mapping[str, frozenset[type]]:
    hints = get_type_hints(kind)
    return {field.name: _accepted(hints[field.name]) for field in dataclasses.fields(kind)}


_FIELDS = {kind: _field_types(kind) for kind in (*_EVENTS.values(), *_OTHERS.values())}
