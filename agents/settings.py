"""Settings of the acting side. Plain frozen dataclasses: the configuration of a run is built from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentSettings:
    """Which policy acts."""

    network: str = "fast"
    """`fast` (embedded characters, small convolutions, GRU 256) or `oni` (the encoder of ONI, GRU 512)."""
    model: str | None = None
    """A language model acts in place of a network: a folder in Hugging Face format, or a Hugging Face id."""
    engine: str = "vllm"
    """What generates: `vllm` (continuous batching) or `transformers` (batches; deterministic with `runtime=serial`)."""
    answer: str = "thought"
    """What the model is asked for each turn: `thought` (a thought and an action) or `command` (the command alone)."""
    admissible: bool = False
    """Whether the prompt lists the commands that the world would execute."""
    template: str = "append"
    """`append`: what was sampled stays as it is, and the chat template's pieces are put around it. `exact`: every prompt is
    what the template makes of the whole conversation; where that rewrites earlier turns, a new sequence begins."""
    context: int = 2048
    """Tokens of the longest prompt and its answer together."""
    history: str = "stop"
    """When the context is full: `stop` cuts the episode; `window` leaves out the oldest turns, until half of it is free."""
    max_new_tokens: int = 64
    """Of one answer."""
    temperature: float = 1.0
    """Of sampling while training."""
    failure_penalty: float = 0.0
    """Taken off the reward of a turn whose answer could not be read."""
    ungrounded_penalty: float = 0.0
    """Taken off the reward of a turn whose answer was read but is none of the commands that the world says are possible. To pay
    for those instead (`reward.w_ground`) makes it worth while to end an episode late."""
    group_size: int = 1
    """Episodes with the same task and seed, which GRPO and RLOO compare."""
    dtype: str = "auto"
    """Of the generating model: `auto`, `float32`, `bfloat16`, `float16`."""


@dataclass(frozen=True)
class ActorSettings:
    """How many act, and how much each brings with one call."""

    count: int = 1
    """Rollout actors, each a process."""
    auto: bool = False
    """Their number follows the cluster: `count` to begin with, more while the learner waits for them and there is room, fewer
    when machines leave."""
    max: int | None = None
    """Of `auto`: no more than so many; null: as many as there is room for."""
    cpus: float = 1.0
    """CPU cores that one actor reserves; 0.5 lets two of them share the core that one would keep busy, and the rest of the
    learner's."""
    gpus: float = 0.0
    """GPUs that one actor reserves, for the engine of a language model; a fraction leaves the rest of one to the learner."""
    envs: int = 64
    """Environments that one actor steps with one batched inference; of a language model: episodes that it plays at once."""
    rollout_length: int = 32
    """Steps T of one trajectory, and of the truncated backpropagation through time."""
    in_flight: int = 2
    """Rollout calls that wait or run on each actor: 2 keeps it busy while the learner works. Of a language model: batches of
    episodes that are played or wait to be trained on; with 1, playing and learning take turns."""
