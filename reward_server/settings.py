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
    """`default`, `zero_knowledge`, `combat`, `gold`, `stairs`, or one of `goals_file`."""
    goals_file: str | None = None
    """YAML file with goals of your own: names and texts."""
    pairs: str = "auto"
    """How pairs are judged (`reward.model=ranking`): `pairwise` (the model is shown both captions), `pointwise` (derived from
    what it says of each alone), `auto` (pointwise for the embedded judge, which knows no other question)."""
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
    """Most requests on their way at once, for each replica that the judge may have (`judge.replicas`)."""
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
    pair_choice: str = "uniform"
    """Which pairs are asked about (`reward.model=ranking`): `uniform` draws them at random, as ONI does; `informative` takes
    those of a random few that say most about scores which are uncertain still."""
    pair_reservoir: int = 4096
    """Captions that pairs are drawn from: a uniform sample of all that were met."""
    pairs_per_caption: float = 8.0
    """Pairs asked about, for each caption met."""


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
    """Train on the label's probability instead of the label; `hash` then rewards with it."""
    known_labels: bool = True
    """Of `classification`: a caption that the judge has labelled has its label's probability (the judge's own with
    `soft_targets`), and the network speaks for the others; false: the network speaks for all, as in ONI."""
    threshold: float = 0.5
    """Of `classification`: r = 1 where p(y = 1) exceeds it (the eta of ONI)."""
    rank_threshold: float = -0.5
    """Of `ranking`: normalised scores at or below it give r = 0."""
    max_grad_norm: float = 10.0
    """Of `ranking`: bound of the gradient's norm."""
    holdout: float = 0.1
    """Share of labelled captions kept from training to measure the reward model (chosen by caption id; of pairs those with
    such a caption) ..."""
    holdout_after: int = 1_000
    """... of those that come after so many labels: before, each single label may be the one that matters."""
    caption_bytes: int = 256
    """Bytes of a caption that the reward model reads; the rest is cut off."""


@dataclass(frozen=True)
class RndSettings:
    """Random network distillation (Burda et al. 2018, arXiv 1810.12894) on captions, for `reward.model=rnd`."""

    learning_rate: float = 1e-4
    share: float = 0.25
    """Share of the captions met that the predictor is trained on: it would learn too fast from all of them (section 3.4)."""
    discount: float = 0.99
    """Of the intrinsic returns whose deviation rewards are divided by."""


@dataclass(frozen=True)
class EllmSettings:
    """Similarity of captions to goals (Du et al. 2023, arXiv 2302.06692), for `reward.model=ellm`."""

    goals: str = "pick up the key; unlock the door; go down the stairs"
    """What to come near to; several goals are parted by semicolons."""
    embedding: str = "words"
    """`words` (bags of words, as in ONI's baseline), or a Hugging Face id or local folder of an encoder."""
    threshold: float = 0.5
    """A similarity below it gives r = 0."""


@dataclass(frozen=True)
class ModelSettings:
    """What the side of a reward model that rewards depends on."""

    distiller: DistillerSettings = DistillerSettings()
    rnd: RndSettings = RndSettings()
    ellm: EllmSettings = EllmSettings()
    offline_path: str | None = None
    """Labels or a trained model, for `reward.model=offline`."""
    seed: int = 0
    """Of what a model that learns without a judge draws."""
