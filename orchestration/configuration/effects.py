"""Which keys do something. A key that somebody set and that does nothing is an error, never silently ignored."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from learner.credit.registry import credit_method
from orchestration.config import Config
from orchestration.configuration.checks import (
    attributes_credit,
    compares_pairs,
    learns_intrinsic,
    learns_progress,
    uses_judge,
)
from reward_server.kinds import KINDS


@dataclass(frozen=True)
class Rule:
    """`keys` (a key, or a group as `judge.`), without those in `unless`, do nothing where `reason` gives one."""

    keys: tuple[str, ...]
    reason: Callable[[Config], str | None]
    unless: tuple[str, ...] = ()

    def covers(self, key: str) -> bool:
        """Whether the rule is about `key`."""
        covered = any(key.startswith(name) if name.endswith(".") else key == name for name in self.keys)
        return covered and key not in self.unless


def _no_judge(config: Config) -> str | None:
    if uses_judge(config):
        return None
    if not learns_intrinsic(config):
        return f"{_no_intrinsic(config)} turns the judge off"
    asks = KINDS[config.reward.model].source.asks_judge
    return "judge.engine=none" if asks else f"reward.model={config.reward.model} asks no judge"


def _no_distiller(config: Config) -> str | None:
    return None if _trains_offline(config) else _no_judge(config)


def _trains_offline(config: Config) -> bool:
    """Whether the learner itself trains a reward model, on the labels of a store."""
    path = config.reward.offline_path
    if config.reward.model != "offline" or path is None or not learns_intrinsic(config):
        return False
    from reward_server.models.offline import OfflineModelError, holds_labels

    try:
        return holds_labels(path)
    except OfflineModelError:  # there is no such file, which is said before the run starts
        return True


def _not_model(*models: str) -> Callable[[Config], str | None]:
    """The reward model is none of `models`. What is trained offline may be any kind that a distiller trains."""

    def reason(config: Config) -> str | None:
        trained = any(KINDS[model].source.asks_judge for model in models)
        if config.reward.model in models or (trained and _trains_offline(config)):
            return None
        return f"reward.model={config.reward.model} (only {' and '.join(models)} {'has' if len(models) == 1 else 'have'} it)"

    return reason


def _not_pairs(config: Config) -> str | None:
    return None if compares_pairs(config) else f"reward.model={config.reward.model} asks about no pairs"


def _offline_paced(config: Config) -> str | None:
    return "reward.model=offline trains before the run" if _trains_offline(config) else None


def _no_intrinsic(config: Config) -> str | None:
    if learns_intrinsic(config):
        return None
    return "reward.model=none" if config.reward.model == "none" else "reward.w_int=0"


def _not_openai(config: Config) -> str | None:
    return None if config.judge.engine == "openai" else f"judge.engine={config.judge.engine} (only openai has it)"


def _remote_judge(config: Config) -> str | None:
    return "judge.engine=openai (the server decides that)" if config.judge.engine == "openai" else None


def _is_own_goal(config: Config) -> bool:
    from reward_server.judge.prompts import read_goals

    return config.judge.goals_file is not None and config.judge.goal in read_goals(config.judge.goals_file)


_OF_NETWORKS = tuple(
    f"distiller.{name}"
    for name in (
        "learning_rate", "batch_size", "steps_per_update", "warm_labels", "converge", "patience", "balanced", "holdout",
        "holdout_after", "caption_bytes",
    )
)  # fmt: skip
"""What `hash` does without."""


def _network_acts(config: Config) -> str | None:
    return None if config.agent.model else "a network acts (agent.model is not set)"


def _model_acts(config: Config) -> str | None:
    return "a language model acts (agent.model)" if config.agent.model else None


def _no_critic(config: Config) -> str | None:
    return None if config.learner.algorithm == "ppo" else f"learner.algorithm={config.learner.algorithm} has no critic"


def _one_engine(config: Config) -> str | None:
    alone = config.agent.model and config.runtime == "serial" and config.actors.count != 1
    return "runtime=serial has one engine" if alone else None


def _no_progress(config: Config) -> str | None:
    if learns_progress(config):
        return None
    method = config.credit.method
    return "reward.w_prog=0" if credit_method(method).needs_progress else f"credit.method={method}"


def _no_credit(config: Config) -> str | None:
    return None if attributes_credit(config) else (_no_progress(config) or "nothing is attributed")


def _staged(config: Config) -> str | None:
    return "credit.schedule=staged fits the estimator once" if config.credit.schedule == "staged" else None


RULES = (
    Rule(("judge.", "annotator."), _no_judge, unless=("judge.engine",)),
    Rule(("distiller.",), _no_distiller),
    Rule(("distiller.interval_s", "distiller.max_share"), _offline_paced),
    Rule(
        ("judge.pairs", "annotator.pair_choice", "annotator.pair_reservoir", "annotator.pairs_per_caption"), _not_pairs
    ),
    Rule(("distiller.threshold", "distiller.known_labels"), _not_model("classification")),
    Rule(("distiller.rank_threshold", "distiller.max_grad_norm"), _not_model("ranking")),
    Rule(_OF_NETWORKS, _not_model("classification", "ranking")),
    Rule(("reward.offline_path",), _not_model("offline")),
    Rule(("rnd.",), _not_model("rnd")),
    Rule(("ellm.",), _not_model("ellm")),
    Rule(("rnd.", "ellm.", "reward.offline_path"), _no_intrinsic),
    Rule(
        ("judge.goals_file",), lambda c: None if _is_own_goal(c) else f"judge.goal={c.judge.goal} is not in that file"
    ),
    Rule(("agent.", "language.", "sft."), _network_acts, unless=("agent.network", "agent.model")),
    Rule(("env.tasks", "env.mix", "env.curriculum"), _network_acts),
    Rule(("agent.network", "actors.rollout_length"), _model_acts),
    Rule(
        ("learner.",),
        _model_acts,
        unless=("learner.algorithm", "learner.device", "learner.precision", "learner.threads", "learner.workers"),
    ),
    Rule(("language.critic_learning_rate", "language.critic_warmup"), _no_critic),
    Rule(
        ("language.lora_alpha", "language.lora_targets"),
        lambda c: "language.lora_rank=0" if c.language.lora_rank == 0 else None,
    ),
    Rule(("sft.env_options",), lambda c: "sft.traces has the worlds' options" if c.sft.traces else None),
    Rule(("actors.count",), _one_engine),
    Rule(("actors.auto",), lambda c: "runtime=serial has one process" if c.runtime == "serial" else None),
    Rule(("actors.max",), lambda c: None if c.actors.auto else "actors.auto=false"),
    Rule(("actors.gpus",), _network_acts),
    Rule(("actors.gpus",), lambda c: "runtime=serial has one process" if c.runtime == "serial" else None),
    Rule(("judge.engine",), lambda c: _no_judge(c) if c.judge.engine != "none" else None),
    Rule(("reward.w_int",), lambda c: "reward.model=none" if c.reward.model == "none" and c.reward.w_int else None),
    Rule(("reward.count_exponent",), _no_intrinsic),
    Rule(("credit.method",), lambda c: _no_credit(c) if c.credit.method != "turn" else None),
    Rule(("reward.w_prog",), lambda c: _no_progress(c) if c.reward.w_prog else None),
    Rule(
        ("reward.w_ground",),
        lambda c: (
            f"credit.method={c.credit.method}"
            if c.reward.w_ground and not credit_method(c.credit.method).grounds
            else None
        ),
    ),
    Rule(("credit.advantage", "credit.learning_rate"), _no_credit),
    Rule(("credit.",), _no_progress, unless=("credit.method", "credit.advantage", "credit.learning_rate")),
    Rule(
        ("credit.learning_rate",),
        lambda c: None if learns_progress(c) or c.credit.advantage == "separate" else "there is no progress estimator",
    ),
    Rule(
        ("credit.conserve",),
        lambda c: None if credit_method(c.credit.method).conserves else f"credit.method={c.credit.method}",
    ),
    Rule(
        ("credit.return_low", "credit.return_high"),
        lambda c: "credit.outcome=success" if c.credit.outcome == "success" else None,
    ),
    Rule(
        ("credit.explore_steps", "credit.estimate_steps"),
        lambda c: "credit.schedule=online" if c.credit.schedule == "online" else None,
    ),
    Rule(("credit.steps_per_update",), _staged),
    Rule(("credit.max_turns",), _model_acts),
    Rule(("credit.backbone", "credit.backbone_learning_rate", "credit.lora_rank"), _network_acts),
    Rule(
        ("credit.backbone_learning_rate", "credit.lora_rank"),
        lambda c: "credit.backbone=shared" if c.credit.backbone == "shared" else None,
    ),
    Rule(("credit.lora_rank",), lambda c: "credit.backbone=full" if c.credit.backbone == "full" else None),
    Rule(("reward.scale", "reward.clip"), lambda c: "reward.w_ext=0" if c.reward.w_ext == 0 else None),
    Rule(
        ("checkpoint.upload_wait_s",),
        lambda c: "checkpoint.url=null (nothing is uploaded)" if c.checkpoint.url is None else None,
    ),
    Rule(("judge.url", "judge.api_key_env"), _not_openai),
    Rule(("judge.replicas", "judge.dtype", "judge.max_model_len"), _remote_judge),
    Rule(("judge.replicas",), lambda c: "runtime=serial has one judge" if c.runtime == "serial" else None),
    Rule(("judge.cache_dir",), lambda c: None if c.judge.model == "embedded" else "judge.model is not embedded"),
    Rule(("judge.reason_tokens",), lambda c: "judge.mode=direct" if c.judge.mode == "direct" else None),
    Rule(("cluster.",), lambda c: "runtime=serial has one process" if c.runtime == "serial" else None),
    Rule(("actors.cpus",), lambda c: "runtime=serial has one process" if c.runtime == "serial" else None),
    Rule(("actors.in_flight",), lambda c: "runtime=serial waits for each rollout" if c.runtime == "serial" else None),
    Rule(
        ("distiller.interval_s", "distiller.max_share", "log.interval_s"),
        lambda c: "runtime=serial does everything after each rollout" if c.runtime == "serial" else None,
    ),
    Rule(
        ("annotator.max_labels_per_s",),
        lambda c: "runtime=serial does not look at the clock" if c.runtime == "serial" else None,
    ),
    Rule(("distiller.holdout_after",), lambda c: "distiller.holdout=0" if c.distiller.holdout == 0 else None),
    Rule(("trace.episodes",), lambda c: "trace.rate=1 (every episode is traced)" if c.trace.rate == 1 else None),
    Rule(
        ("learner.normalise_advantage",),
        lambda c: "credit.advantage=separate" if attributes_credit(c) and c.credit.advantage == "separate" else None,
    ),
    Rule(("learner.threads",), lambda c: "learner.device=cuda" if c.learner.device == "cuda" else None),
)
"""The keys whose effect depends on others."""


def without_effect(config: Config, given: Iterable[str]) -> dict[str, str]:
    """Those of the keys in `given` that do nothing in `config`, each with the reason."""
    idle: dict[str, str] = {}
    for key in given:
        for rule in RULES:
            reason = rule.reason(config) if rule.covers(key) and key not in idle else None
            if reason is not None:
                idle[key] = reason
    return idle
