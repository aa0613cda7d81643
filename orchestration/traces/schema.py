"""The records of a trace file: JSON objects, one a line.

A file is one `Header`, then `Caption`, `Text` and event records, then one `End`. A text stands before the first event
that refers to it. Events form a graph: `id`, explicit `parents`, time `t` since the trace began, the acting `agent`, and
a `type` out of the vocabulary of the orchestration-trace schema, extended with `env_reset`, `env_step`, `llm_call`,
`annotation`, `reward`, `weights_update`, `delegate`, `stop` and `error`. 64-bit ids and seeds are decimal strings, as
numbers in JSON are not exact beyond 2^53. A field that has its default is left out of the line.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from orchestration.traces.names import SUFFIX as SUFFIX

SCHEMA = "yendor-trace/4"
"""Name and version: a reader knows the number, whatever the version of the package. See `migrations` for older ones."""

EPISODE, RUN = "episode", "run"
"""What a trace is of (`Header.scope`)."""

FAMILIES = (
    "outcome", "shared_outcome", "individual", "role", "process", "tool", "verifier", "orchestration", "hybrid"
)  # fmt: skip
"""Reward families of the orchestration-trace schema's survey; `outcome` for what the environment pays."""

UNITS = ("team", "orchestrator", "role", "agent", "turn", "message", "tool_call", "token")
"""Units that bear credit, of the same survey; an environment step is a `turn`."""

POLICY, REWARD_MODEL = "policy", "reward_model"
"""`WeightsUpdate.what`."""

FORMAT = "format"
"""Source of the penalty for an answer of a language model that could not be read, or not be executed."""

RAW, COMPONENT, TOTAL = "raw", "component", "total"
"""`Reward.part`."""

RUN_SEED, FORK_SEED = "run", "fork"
"""Of `Header.seeds`, those that are not the world's: of the run, from which its policies' draws follow, and of a branch's
policy."""

CONTEXT = "context"
"""`Stop.reason` where a language model stopped because its next prompt would not fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What an episode (or run) was and what is needed to run it again."""

    record: ClassVar[str] = "header"

    schema: str
    episode_id: str
    """Name of the file before its suffix; of a run's own trace too."""
    run: str
    env_id: str
    env_options: Mapping[str, Any]
    action_names: tuple[str, ...]
    seeds: Mapping[str, str]
    """All that the world set; beside them `run`, the run's own, and of a branch `fork`, that of its policy."""
    policy_version: int
    """Version of the policy at the first step."""
    versions: Mapping[str, str | None]
    """Of the packages that a replay depends on; null where one is not installed."""
    code_revision: str | None
    """Git revision of the project; null outside a checkout."""
    clock: str
    """`unpinned`: the environment could read the time of day (NetHack's `ubirthday`), so a replay may differ rarely.
    `pinned:SECONDS` where it read SECONDS since the epoch throughout."""
    recorded_at: float
    """Seconds since the epoch when the trace began (t = 0)."""
    count_exponent: float | None
    """The exponent that the run divides intrinsic rewards' counts by; null where it has none."""
    scope: str = EPISODE
    """`episode` or `run`."""
    reward_model_version: int | None = None
    """Version of the reward model at the first step; null where whoever recorded it did not know it."""
    policy: str | None = None
    """Name of the network or of the language model that acts."""
    natives: Mapping[str, str | None] = dataclasses.field(default_factory=dict[str, str | None])
    """Native libraries that a replay depends on, by name: version, or digest of the file."""
    view: Mapping[str, int] | None = None
    """What the policy asked the environment to show it (`envs.base.View`); null where it reads text."""
    observation_keys: tuple[str, ...] = ()
    """Names of the arrays that `key_hashes` are of, in order; none where the observation is a text."""
    forked_from: str | None = None
    """Episode that this one is a branch of."""
    forked_at: int | None = None
    """First step that is not its parent's."""


@dataclasses.dataclass(frozen=True, slots=True)
class Caption:
    """The text of a caption, once for each file."""

    record: ClassVar[str] = "caption"

    caption_id: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A large or repeated text (prompt, answer, message, traceback), once for each file; events name it by `ref`."""

    record: ClassVar[str] = "text"

    ref: str
    """See `text_ref`."""
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
    """Seconds since the trace began, when the event had happened (monotonic)."""
    agent: str
    parents: tuple[str, ...]
    duration: float = 0.0
    """Seconds that it took; it began at `t - duration`."""
    skew: float = 0.0
    """Wall time of the event less `recorded_at + t`, seconds: not 0 where the wall clock was set meanwhile."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnvReset(Event):
    """The episode begins."""

    type: ClassVar[str] = "env_reset"

    observation_hash: str
    key_hashes: str = ""
    """As `EnvStep.key_hashes`."""
    screen: str
    colors: str = ""
    """As `EnvStep.colors`."""
    caption_id: str = "0"
    """Of what the opening said."""


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
    caption_id: str = "0"
    """`0` where nothing was said."""
    caption_count: int = 0
    grounded: bool = True
    policy_version: int
    observation_hash: str
    """Empty where the last observation of an episode was not kept."""
    key_hashes: str = ""
    """Two hexadecimal digits for each of the header's `observation_keys`: too few to tell that two observations are the
    same, enough to name the array in which two differ."""
    screen: str
    """Lines of text. Empty where the last screen of an episode was not kept."""
    colors: str = ""
    """A hexadecimal digit (the terminal's 16 colours) for each character of `screen`, in the same lines; lines may be
    shorter: 7 from there on. Empty where colours are not known."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LlmCall(Event):
    """One call of a language model. Of prompt and output there are token ids, references to texts, or both."""

    type: ClassVar[str] = "llm_call"

    model: str
    version: int | None = None
    """Of the weights, where they are trained."""
    prompt: tuple[int, ...] | None = None
    """Token ids."""
    output: tuple[int, ...] | None = None
    """Token ids."""
    prompt_ref: str | None = None
    output_ref: str | None = None
    prompt_tokens: int
    output_tokens: int
    log_probs: tuple[float, ...] | None = None
    """Of each output token, under the sampling that drew it."""
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    latency_s: float
    finish_reason: str | None = None
    calls: int = 1
    """Requests that the event stands for (a batch of the judge)."""
    step: int | None = None
    """The environment step whose action it chose."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Annotation(Event):
    """What a judge said of a caption or of an event."""

    type: ClassVar[str] = "annotation"

    caption_id: str = "0"
    targets: tuple[str, ...] = ()
    """Ids of the events that it is about; none for a caption wherever it comes."""
    question_ref: str | None = None
    """The prompt, or what names it (template and goal)."""
    answer_ref: str | None = None
    """The raw answer."""
    label: int | None
    """null: the answer could not be read. It is missing, not 0."""
    probability: float | None
    judge: str
    """Model."""
    prompt_version: str | None = None
    latency_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reward(Event):
    """A reward. Those that are judged after the episode are not in the file but in the run's sidecar."""

    type: ClassVar[str] = "reward"

    family: str
    """One of `FAMILIES`."""
    unit: str = "turn"
    """One of `UNITS`: what the credit falls on."""
    value: float
    source: str
    """`environment`, `reward_model`, `progress`, `grounding`, `judge`, ...; `fusion` for a total."""
    version: int | None
    """Of a learned reward model; null for the environment."""
    targets: tuple[str, ...]
    """Ids of the events that earned it."""
    part: str = RAW
    """`raw`: as its source gave it; `component`: what it adds to the reward that is learned from; `total`: that reward,
    the sum of the components with the same targets."""

    @property
    def target(self) -> str:
        """The first event that earned it."""
        return self.targets[0]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightsUpdate(Event):
    """The model that is used from here on has other weights."""

    type: ClassVar[str] = "weights_update"

    from_version: int
    to_version: int
    what: str = POLICY
    """`policy` or `reward_model`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spawn(Event):
    """An agent or process begins to exist."""

    type: ClassVar[str] = "spawn"

    child: str
    """Name of the agent that is there now; the `agent` of its events."""
    role: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Delegate(Event):
    """A task is handed to another agent, which answers with a `return` unless it is stopped before."""

    type: ClassVar[str] = "delegate"

    to: str
    task_ref: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message(Event):
    """An agent says something to another."""

    type: ClassVar[str] = "message"

    to: str
    content_ref: str | None = None
    trusted: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(Event):
    """A tool is called."""

    type: ClassVar[str] = "tool_call"

    tool: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult(Event):
    """What a tool gave back."""

    type: ClassVar[str] = "tool_result"

    call: str
    """Id of the `tool_call`."""
    tool: str
    ok: bool = True
    content_ref: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Return(Event):
    """An agent answers a `delegate`."""

    type: ClassVar[str] = "return"

    call: str
    """Id of the `delegate`."""
    to: str
    content_ref: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate(Event):
    """Several results become one; the parents are what went in."""

    type: ClassVar[str] = "aggregate"

    method: str
    content_ref: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Event):
    """Somebody decides that an agent (or all) ends."""

    type: ClassVar[str] = "stop"

    target: str
    """Name of the agent that ends."""
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Error(Event):
    """Something failed."""

    type: ClassVar[str] = "error"

    message: str
    """One line that names the root cause."""
    source: str
    """What failed: the agent or part."""
    fatal: bool = False
    """Whether it ended the episode or run."""
    traceback_ref: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How the episode (or run) ended. A file without it was cut."""

    record: ClassVar[str] = "end"

    t: float
    events: int
    length: int
    """Environment steps."""
    episode_return: float
    """Sum of the extrinsic rewards."""
    terminated: bool
    truncated: bool
    success: bool | None
    metrics: Mapping[str, float]
    error: str | None
    """Set where the environment raised."""
    kept: str = "rate"
    """Why the trace was kept: `rate`, `asked`, `best`, `worst`, `failed`, or `run`."""
    components: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """Sums of the rewards whose `part` is `component`, by source."""
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """`tokens`, `llm_calls`, `tool_calls`, `messages`: as the events add up; `wall_clock_s`; left out where nothing."""


AnyEvent = (
    EnvReset
    | EnvStep
    | LlmCall
    | Annotation
    | Reward
    | WeightsUpdate
    | Spawn
    | Delegate
    | Message
    | ToolCall
    | ToolResult
    | Return
    | Aggregate
    | Stop
    | Error
)
Record = Header | Caption | Text | AnyEvent | End

EVENTS: Mapping[str, type[Event]] = {kind.type: kind for kind in get_args(AnyEvent)}
"""Event classes by `type`."""
OTHERS: Mapping[str, type[Any]] = {kind.record: kind for kind in (Header, Caption, Text, End)}
"""Classes of the records that are no events, by `record`."""


def text_ref(text: str) -> str:
    """The name of a text: blake2b (64 bits) of its UTF-8, 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def clean(text: str) -> str:
    """`text` as JSON can carry it: what is no Unicode (bytes that were no UTF-8) becomes U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


_SURROGATES = re.compile("[\ud800-\udfff]")
