"""The configuration of a run: one tree of typed, frozen dataclasses with a docstring under each field."""

from dataclasses import dataclass, field
from typing import Any

from agents.settings import ActorSettings, AgentSettings
from learner.credit.settings import CreditSettings
from learner.language.settings import LanguageSettings, SFTSettings
from learner.settings import LearnerSettings, RewardSettings
from reward_server.settings import (
    AnnotatorSettings,
    DistillerSettings,
    EllmSettings,
    JudgeSettings,
    ModelSettings,
    RndSettings,
)


@dataclass(frozen=True)
class RunSettings:
    name: str = "${preset}"
    """Folder of the run below `run.dir`."""
    dir: str = "runs"
    seed: int = 0
    """Everything random in the run is seeded from it."""


@dataclass(frozen=True)
class EnvSettings:
    id: str = "minihack/KeyRoom-S15"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of the environment's family, such as `max_episode_steps`; an unknown one is an error."""
    tasks: int | None = None
    """For language models: so many different episodes, the seeds from 0 on, none twice in as many groups; null: no bound."""
    mix: dict[str, float] = field(default_factory=dict[str, float])
    """For language models: worlds that are played side by side in place of `env.id`, each with its share."""
    curriculum: dict[str, int] = field(default_factory=dict[str, int])
    """For language models: worlds that are played one after the other before `env.id` or the mix, each for so many
    episodes."""


@dataclass(frozen=True)
class TrainSettings:
    env_steps: int = 1_000_000
    max_wall_s: float | None = None
    """Stop after so many seconds even if `env_steps` is not reached; null: no bound."""
    episodes: int | None = None
    """Stop after so many episodes even if `env_steps` is not reached; null: no bound. The demonstrations that `agent.model`, a
    run of `yendor sft`, learnt from are paid from it, `sft.demonstration_cost` episodes each."""


@dataclass(frozen=True)
class TraceSettings:
    rate: float = 0.01
    """Share of episodes that are traced; 0: none but those of `episodes`."""
    episodes: str = ""
    """Traced in any case: names of episodes, or patterns of them with `*` and `?`, separated by commas."""

    @property
    def asked(self) -> list[str]:
        """The patterns of `episodes`."""
        return [pattern for pattern in self.episodes.split(",") if pattern]


@dataclass(frozen=True)
class CheckpointSettings:
    interval_s: float = 120.0
    keep: int = 3
    """So many newest checkpoints are kept, here and at `url`."""
    url: str | None = None
    """Checkpoints are also copied there, with the labels, to URL/RUN/checkpoints: any file system of fsspec, such as
    s3://BUCKET/PATH, gs://BUCKET/PATH or a folder. Credentials come from the environment. null: this run's folder alone."""
    upload_wait_s: float = 60.0
    """At the end of the run its last copy is waited for so long."""


@dataclass(frozen=True)
class LogSettings:
    interval_s: float = 2.0
    """Time between two lines of `metrics.jsonl`, and between two refreshes of `summary.json`."""


@dataclass(frozen=True)
class MetricsSettings:
    """Where the run's numbers go beside its folder."""

    port: int | None = None
    """Prometheus reads them there. Under `runtime=ray` the metrics port of the run's own Ray cluster (null: any; on the
    cluster that RAY_ADDRESS names, its agents have ports already); under `serial` on the loopback (null: nowhere)."""
    wandb: str | None = None
    """Project of Weights & Biases, PROJECT or ENTITY/PROJECT; needs the package `wandb`."""
    mlflow: str | None = None
    """Tracking URI of MLflow, such as http://host:5000 or sqlite:///mlflow.db; needs the package `mlflow`."""


@dataclass(frozen=True)
class ClusterSettings:
    """Of the Ray cluster that a run lives on."""

    groups: bool = False
    """Each part keeps to the machines of its group: actors to those with the resource `actor`, the learner to those with
    `learner`, the judge's replicas to those with `judge`."""
    autoscaling: bool = False
    """The cluster gets machines when they are asked for: a part that it has no room for yet waits, and is not refused."""
    still_s: float | None = 60.0
    """A part that stands still for so long is ended and replaced, as one that died; null: it is only told of."""


@dataclass(frozen=True)
class Config:
    """All keys that `key=value` can set."""

    runtime: str = "ray"
    """`ray`: actors, learner and reward server run as processes; `serial`: all in this process, deterministic."""
    run: RunSettings = field(default_factory=RunSettings)
    env: EnvSettings = field(default_factory=EnvSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    actors: ActorSettings = field(default_factory=ActorSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    sft: SFTSettings = field(default_factory=SFTSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    credit: CreditSettings = field(default_factory=CreditSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    annotator: AnnotatorSettings = field(default_factory=AnnotatorSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    rnd: RndSettings = field(default_factory=RndSettings)
    ellm: EllmSettings = field(default_factory=EllmSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    trace: TraceSettings = field(default_factory=TraceSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=LogSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def model_settings(self, seed: int = 0) -> ModelSettings:
        """What the side of the reward model that rewards depends on."""
        return ModelSettings(self.distiller, self.rnd, self.ellm, self.reward.offline_path, seed)
