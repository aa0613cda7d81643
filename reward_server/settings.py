"""The settings of the reward server's parts. Plain frozen dataclasses: the configuration of a run is built from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeSettings:
    """Which language model judges, and how it is asked."""

    engine: str = "vllm"
    """`vllm`, `transformers` (where vLLM cannot run), `openai` (any OpenAI-compatible address), `none`."""
    model: str = "embedded"
    """`embedded` (the small judge that the project makes), a Hugging Face id, or a local folder."""
    url: str | None = None
    """Base address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1; required by `openai` alone."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key of `openai`; the key itself is never written anywhere."""
    goal: str = "default"
    mode: str = "direct"
    """`direct`: one constrained token; `reasoned`: bounded reasoning, then a constrained label."""
    reason_tokens: int = 256
    """Most tokens of reasoning in mode `reasoned`."""
    temperature: float = 0.0
    replicas: int = 1
    """vLLM or transformers replicas behind Ray Serve."""
    max_model_len: int = 2048
    dtype: str = "auto"
    """`auto` (float32 on a CPU without bf16 instructions, otherwise what the model asks for), `float32`, `bfloat16`, `float16`."""
    cache_dir: str = ".cache/judge"
    """Where the embedded judge is built and kept."""


@dataclass(frozen=True)
class AnnotatorSettings:
    """How captions are sent to the judge."""

    max_labels: int | None = None
    """Stop asking after so many labels; null: no bound."""
    max_labels_per_s: float | None = None
    """Ask about so many captions a second at most, on average; null: as many as the judge answers."""
    reuse: str | None = None
    """Take labels that were given under the same key from this `annotations.sqlite`, or from those of the runs in this
    folder, instead of asking again. They count for `max_labels`."""
    backlog: int = 4096
    """Most captions that wait; the oldest are dropped and counted when more come."""
    batch: int = 32
    """Most captions in one request."""
    in_flight: int = 4
    """Most requests on their way at once."""
    attempts: int = 3
    """Times a caption whose answer cannot be read is asked about before it is `failed`."""
    timeout_s: float = 60.0
    """Deadline of one request."""
    breaker_failures: int = 3
    """So many requests in a row fail, and the judge counts as down until a probe succeeds."""
    probe_interval_s: float = 5.0
    """Time between probes of a judge that is down."""
    backoff_s: float = 0.5
    """Wait after a first failed request; doubles with each that follows, with jitter, up to `probe_interval_s`."""
    start_grace_s: float = 180.0
    """A judge that has never answered counts as starting, not as down, for so long."""
    latency_target_s: float = 10.0
    """Requests take more captions (up to `batch`) while answers are quicker than that, fewer while they are slower."""


@dataclass(frozen=True)
class DistillerSettings:
    """Training of the reward model on labels (ONI, section 4 and appendix: cross-entropy, Adam)."""

    learning_rate: float = 1e-3
    """ONI takes 1e-4, which needs over 300 steps to agree with 100 labels, 5 of them positive; 1e-3 needs about 90."""
    batch_size: int = 64
    """ONI takes 256: three times the time of a step on a CPU, for two thirds of the steps."""
    steps_per_update: int = 32
    """Gradient steps of a round while fewer than `warm_labels` labels are known, one afterwards."""
    warm_labels: int = 25_000
    min_labels: int = 8
    """No version is published before so many labels are known."""
    converge: float = 0.99
    """Rounds go on, also without new labels, until the model agrees with this share of either kind of label."""
    patience: int = 10
    """... or until so many rounds in a row brought no better agreement and no lower loss."""
    interval_s: float = 5.0
    """Least time between two rounds (0: with every new label)."""
    max_share: float = 0.05
    """Most of the time of one core that training takes, on average (1: no bound). More is for short runs, where the
    first labels should count within seconds."""
    balanced: bool = False
    """Draw positive and negative labels equally often: quicker and with more recall where positives are rare, but
    probabilities are no longer calibrated."""
    soft_targets: bool = False
    """Train on the label's probability instead of the label."""
    threshold: float = 0.5
    """r = 1 where p(y = 1) exceeds it (the eta of ONI)."""
    holdout: float = 0.1
    """Share of labelled captions kept from training to measure the reward model (chosen by caption id) ..."""
    holdout_after: int = 1_000
    """... of those that come after so many labels: before, each single label may be the one that matters."""
    caption_bytes: int = 256
    """Bytes of a caption that the reward model reads; the rest is cut off."""
