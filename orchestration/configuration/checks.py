"""What values are possible: a range or a list of choices for every key, and keys that depend on each other."""

import dataclasses
import math
import re
from collections.abc import Set
from typing import Any

from learner.credit.registry import credit_method, method_names
from orchestration.config import Config
from orchestration.configuration.keys import key_types, near_miss
from orchestration.configuration.objectives import COMPARING, OBJECTIVES, objective_settings
from orchestration.configuration.values import without_password
from orchestration.errors import ConfigError
from reward_server.kinds import KINDS, Source


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` (then more than `low`) or `below`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def fault(self, value: Any) -> str | None:
        """What `value` should have been, or None where it is within."""
        if not math.isfinite(value):
            return "must be finite"
        low_ok = value > self.low if self.above else value >= self.low
        high_ok = value < self.high if self.below else value <= self.high
        return None if low_ok and high_ok else f"must be {self}"

    def __str__(self) -> str:
        parts: list[str] = []
        if self.low > -math.inf:
            parts.append(f"{'more than' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'less than' if self.below else 'at most'} {self.high:g}")
        return " and ".join(parts) or "finite"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def fault(self, value: Any) -> str | None:
        """What `value` should have been, or None where it is one of the words."""
        if value in self.words:
            return None
        near = near_miss(value, list(self.words))
        return f"must be one of {', '.join(self.words)}" + (f"; did you mean {near}?" if near else "")


@dataclasses.dataclass(frozen=True)
class Text:
    """Text that matches `pattern` as a whole; `words` says so in an error."""

    pattern: str = r"(?s).*\S.*"
    words: str = "must not be empty"

    def fault(self, value: Any) -> str | None:
        """What `value` should have been, or None where it matches."""
        return None if re.fullmatch(self.pattern, value) else self.words


POSITIVE = Range(0, above=True)
SHARE = Range(0, 1)
COUNT = Range(1)
NOT_NEGATIVE = Range(0)

NETWORK_ALGORITHM = "appo"
"""Of recurrent networks."""

CHECKS: dict[str, Range | Choice | Text] = {
    "runtime": Choice(("ray", "serial")),
    "run.name": Text(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*", "must be letters, digits and _ . = - (the first: no . = -)"),
    "run.dir": Text(),
    "run.seed": Range(0, 2**63 - 1),
    "env.id": Text(),
    "env.tasks": COUNT,
    "train.env_steps": COUNT,
    "train.max_wall_s": POSITIVE,
    "train.episodes": COUNT,
    "actors.count": COUNT,
    "actors.max": COUNT,
    "actors.cpus": POSITIVE,
    "actors.gpus": NOT_NEGATIVE,
    "actors.envs": COUNT,
    "actors.rollout_length": COUNT,
    "actors.in_flight": Range(1, 16),
    "agent.network": Choice(("fast", "oni")),
    "agent.model": Text(),
    "agent.engine": Choice(("vllm", "transformers")),
    "agent.answer": Choice(("thought", "command")),
    "agent.template": Choice(("append", "exact")),
    "agent.context": Range(64),
    "agent.history": Choice(("stop", "window")),
    "agent.max_new_tokens": COUNT,
    "agent.temperature": Range(0, 2, above=True),
    "agent.failure_penalty": NOT_NEGATIVE,
    "agent.ungrounded_penalty": NOT_NEGATIVE,
    "agent.group_size": COUNT,
    "agent.dtype": Choice(("auto", "float32", "bfloat16", "float16")),
    "learner.algorithm": Choice((NETWORK_ALGORITHM, *OBJECTIVES)),
    "language.batch_episodes": COUNT,
    "language.epochs": COUNT,
    "language.minibatches": COUNT,
    "language.micro_batch_tokens": COUNT,
    "language.learning_rate": POSITIVE,
    "language.critic_learning_rate": POSITIVE,
    "language.critic_warmup": NOT_NEGATIVE,
    "language.warmup": NOT_NEGATIVE,
    "language.weight_decay": NOT_NEGATIVE,
    "language.adam_beta1": Range(0, 1, below=True),
    "language.adam_beta2": Range(0, 1, below=True),
    "language.adam_eps": POSITIVE,
    "language.max_grad_norm": POSITIVE,
    "language.lora_rank": NOT_NEGATIVE,
    "language.lora_alpha": POSITIVE,
    "language.lora_targets": Text(),
    "sft.demonstrations": COUNT,
    "sft.demonstration_cost": POSITIVE,
    "sft.traces": Text(),
    "sft.holdout": Range(0, 0.9),
    "sft.epochs": POSITIVE,
    "sft.batch_episodes": COUNT,
    "sft.learning_rate": POSITIVE,
    "sft.warmup": SHARE,
    "sft.weight_decay": NOT_NEGATIVE,
    "sft.adam_beta2": Range(0, 1, below=True),
    "sft.max_grad_norm": POSITIVE,
    "sft.micro_batch_tokens": COUNT,
    "learner.device": Choice(("auto", "cpu", "cuda")),
    "learner.precision": Choice(("auto", "fp32", "bf16")),
    "learner.workers": COUNT,
    "learner.threads": COUNT,
    "learner.batch_size": COUNT,
    "learner.learning_rate": POSITIVE,
    "learner.adam_beta1": Range(0, 1, below=True),
    "learner.adam_beta2": Range(0, 1, below=True),
    "learner.adam_eps": POSITIVE,
    "learner.discount": SHARE,
    "learner.vtrace_rho": POSITIVE,
    "learner.vtrace_c": POSITIVE,
    "learner.ratio_clip": POSITIVE,
    "learner.value_clip": POSITIVE,
    "learner.value_coefficient": NOT_NEGATIVE,
    "learner.entropy_coefficient": NOT_NEGATIVE,
    "learner.max_grad_norm": POSITIVE,
    "learner.max_lag": NOT_NEGATIVE,
    "reward.model": Choice(("none", *KINDS)),
    "reward.offline_path": Text(),
    "reward.w_ext": Range(),
    "reward.w_int": Range(),
    "reward.w_prog": Range(),
    "reward.w_ground": Range(),
    "reward.scale": POSITIVE,
    "reward.clip": POSITIVE,
    "reward.count_exponent": NOT_NEGATIVE,
    "credit.method": Choice(method_names()),
    "credit.outcome": Choice(("success", "return")),
    "credit.return_low": Range(),
    "credit.return_high": Range(),
    "credit.hidden": COUNT,
    "credit.backbone": Choice(("shared", "full", "lora")),
    "credit.backbone_learning_rate": POSITIVE,
    "credit.lora_rank": COUNT,
    "credit.heads": COUNT,
    "credit.constraint": Choice(("none", "bounded", "non_negative", "unit")),
    "credit.learning_rate": POSITIVE,
    "credit.batch_episodes": Range(2),
    "credit.steps_per_update": COUNT,
    "credit.publish_every": COUNT,
    "credit.min_episodes": COUNT,
    "credit.replay_turns": Range(2),
    "credit.max_turns": COUNT,
    "credit.max_age": NOT_NEGATIVE,
    "credit.holdout": Range(0, 0.9),
    "credit.uncertainty": POSITIVE,
    "credit.squash": POSITIVE,
    "credit.advantage": Choice(("joint", "separate")),
    "credit.schedule": Choice(("online", "staged")),
    "credit.explore_steps": COUNT,
    "credit.estimate_steps": COUNT,
    "judge.engine": Choice(("vllm", "transformers", "openai", "none")),
    "judge.model": Text(),
    "judge.url": Text(
        r"https?://[^\s/@?#]+(/[^\s@?#]*)?",
        "must be an address such as http://127.0.0.1:8000/v1, without user, password or query (a key is taken from the environment "
        "variable that judge.api_key_env names)",
    ),
    "judge.api_key_env": Text(
        r"[A-Za-z_][A-Za-z0-9_]*", "must be the name of an environment variable (never the key itself)"
    ),
    "judge.goal": Text(),
    "judge.goals_file": Text(),
    "judge.pairs": Choice(("auto", "pairwise", "pointwise")),
    "judge.mode": Choice(("direct", "reasoned")),
    "judge.reason_tokens": COUNT,
    "judge.temperature": Range(0, 2),
    "judge.replicas": COUNT,
    "judge.max_model_len": Range(256),
    "judge.dtype": Choice(("auto", "float32", "bfloat16", "float16")),
    "judge.cache_dir": Text(),
    "annotator.max_labels": NOT_NEGATIVE,
    "annotator.max_labels_per_s": POSITIVE,
    "annotator.reuse": Text(),
    "annotator.backlog": COUNT,
    "annotator.batch": COUNT,
    "annotator.in_flight": COUNT,
    "annotator.attempts": COUNT,
    "annotator.timeout_s": POSITIVE,
    "annotator.start_grace_s": NOT_NEGATIVE,
    "annotator.latency_target_s": POSITIVE,
    "annotator.backoff_s": POSITIVE,
    "annotator.breaker_failures": COUNT,
    "annotator.probe_interval_s": POSITIVE,
    "annotator.pair_choice": Choice(("uniform", "informative")),
    "annotator.pair_reservoir": Range(2),
    "annotator.pairs_per_caption": POSITIVE,
    "distiller.learning_rate": POSITIVE,
    "distiller.batch_size": COUNT,
    "distiller.steps_per_update": COUNT,
    "distiller.warm_labels": NOT_NEGATIVE,
    "distiller.min_labels": COUNT,
    "distiller.converge": SHARE,
    "distiller.patience": COUNT,
    "distiller.interval_s": NOT_NEGATIVE,
    "distiller.max_share": Range(0, 1, above=True),
    "distiller.threshold": SHARE,
    "distiller.rank_threshold": Range(),
    "distiller.max_grad_norm": POSITIVE,
    "distiller.holdout": Range(0, 0.9),
    "distiller.holdout_after": NOT_NEGATIVE,
    "distiller.caption_bytes": Range(123, 65536),
    "rnd.learning_rate": POSITIVE,
    "rnd.share": Range(0, 1, above=True),
    "rnd.discount": SHARE,
    "ellm.goals": Text(r"(?s).*[^;\s].*", "must name a goal"),
    "ellm.embedding": Text(),
    "ellm.threshold": Range(-1, 1),
    "cluster.still_s": POSITIVE,
    "trace.rate": SHARE,
    "trace.episodes": Text(r"[\w.*?,\[\]!-]*", "must be names of episodes or patterns of them, separated by commas"),
    "checkpoint.interval_s": POSITIVE,
    "checkpoint.keep": COUNT,
    "checkpoint.url": Text(
        r"(?![^:/]+://[^/@\s]*:[^/@\s]*@)(?!.*::)\S+",
        "must be one address such as s3://BUCKET/PATH, without a password (the environment holds credentials) and without ::",
    ),
    "checkpoint.upload_wait_s": NOT_NEGATIVE,
    "log.interval_s": POSITIVE,
    "metrics.port": Range(1, 65535),
    "metrics.wandb": Text(r"([^/\\#?%:\s]+/)?[^/\\#?%:\s]{1,128}", "must be PROJECT or ENTITY/PROJECT"),
    "metrics.mlflow": Text(
        r"(?!\S*://[^/\s]*@)\S+",
        "must be a tracking URI, without user and password (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD hold them)",
    ),
}
"""What each key may be. Booleans and free mappings have no entry; a test holds that every other key has one."""


def value_at(config: Config, key: str) -> Any:
    """The value of `key` (`a.b`), a key of the schema."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def check_values(config: Config) -> None:
    """Raises `ConfigError` for the first key whose value cannot be, looking at each key alone."""
    for key in key_types():
        value = value_at(config, key)
        check = CHECKS.get(key)
        fault = check.fault(value) if check is not None and value is not None else None
        if fault:
            raise ConfigError(f"{key}={without_password(value)}: {fault}")
    _check_goal(config)
    _check_env(config)


def _check_goal(config: Config) -> None:
    from reward_server.judge.prompts import PromptTemplate, read_goals
    from reward_server.types import JudgeError

    try:
        own = read_goals(config.judge.goals_file) if config.judge.goals_file else {}
    except JudgeError as error:
        raise ConfigError(str(error)) from error
    fault = Choice((*own, *PromptTemplate.load().goals)).fault(config.judge.goal)
    if fault:
        raise ConfigError(f"judge.goal={config.judge.goal}: {fault}")


def _check_env(config: Config) -> None:
    import envs

    player = "language" if config.agent.model else "network"
    worlds = {"env.id": config.env.id}
    for key, values in (("env.mix", config.env.mix), ("env.curriculum", config.env.curriculum)):
        for world, amount in values.items():
            if not 0 < amount < math.inf:
                raise ConfigError(f"{key}.{world}={amount}: must be a number above 0")
            worlds[f"{key}.{world}"] = world
    for key, world in worlds.items():
        try:
            envs.validate_id(world, player=player)
        except envs.EnvironmentIdError as error:
            raise ConfigError(f"{key}={world}: {error}" if key == "env.id" else f"{key}: {error}") from error


def check_consistency(config: Config, given: Set[str]) -> None:
    """Raises `ConfigError` for keys that contradict each other. `given` are the keys that somebody set."""
    learner, actors, reward, judge = config.learner, config.actors, config.reward, config.judge
    if config.agent.model is not None:
        _check_language(config)
    elif learner.algorithm != NETWORK_ALGORITHM:
        raise ConfigError(
            f"learner.algorithm={learner.algorithm}: is for language models; name one with agent.model, or take "
            f"learner.algorithm={NETWORK_ALGORITHM}"
        )
    elif learner.batch_size % actors.rollout_length:
        raise ConfigError(
            f"learner.batch_size={learner.batch_size}: must be a multiple of "
            f"actors.rollout_length={actors.rollout_length}"
        )
    if learner.workers > 1:
        _check_workers(config)
    if reward.w_ext == 0 and not learns_intrinsic(config) and not learns_progress(config):
        raise ConfigError("reward.w_ext=0: nothing is left to learn from, as there is no intrinsic reward either")
    _check_credit(config)
    if wants_judge(config) and judge.engine == "none":
        raise ConfigError(
            f"judge.engine=none: leaves reward.w_int={reward.w_int:g} without labels; "
            "set reward.w_int=0 too, or choose an engine"
        )
    if reward.model == "offline" and reward.offline_path is None:
        raise ConfigError("reward.offline_path: reward.model=offline needs labels or a trained reward model")
    if uses_judge(config):
        _check_judge(config, given)


def _check_workers(config: Config) -> None:
    """Where several learners share a batch."""
    workers, batch, length = config.learner.workers, config.learner.batch_size, config.actors.rollout_length
    if config.runtime == "serial":
        raise ConfigError(
            f"learner.workers={workers}: runtime=serial has one process, so one learner; take runtime=ray"
        )
    if config.agent.model is not None:
        if config.language.batch_episodes < workers:
            raise ConfigError(
                f"learner.workers={workers}: each worker needs an episode of a batch; raise "
                f"language.batch_episodes={config.language.batch_episodes}"
            )
        return
    if batch // length < workers:
        raise ConfigError(
            f"learner.workers={workers}: learner.batch_size={batch} is {batch // length} trajectories of "
            f"actors.rollout_length={length}, and each worker needs one; raise learner.batch_size"
        )


def _check_judge(config: Config, given: Set[str]) -> None:
    judge = config.judge
    if judge.engine == "openai":
        if judge.url is None:
            raise ConfigError("judge.url: judge.engine=openai needs the address of the server")
        if "judge.model" not in given:
            raise ConfigError("judge.model: judge.engine=openai needs the name that the server has for its model")
    if judge.model != "embedded" or judge.engine == "openai":
        return
    if judge.goal != "default":
        raise ConfigError(
            f"judge.goal={judge.goal}: the embedded judge was taught one goal, default; choose another judge.model"
        )
    if judge.pairs == "pairwise" and compares_pairs(config):
        raise ConfigError(
            "judge.pairs=pairwise: the embedded judge was taught to judge one caption at a time; take pointwise, or "
            "another judge.model"
        )


def _check_language(config: Config) -> None:
    """What must fit together where a language model acts."""
    agent, algorithm = config.agent, config.learner.algorithm
    if algorithm not in OBJECTIVES:
        raise ConfigError(
            f"learner.algorithm={algorithm}: is for networks; with agent.model choose one of {', '.join(OBJECTIVES)}"
        )
    objective_settings(algorithm, config.language.objective)
    if algorithm in COMPARING and agent.group_size < 2:
        raise ConfigError(
            f"agent.group_size={agent.group_size}: learner.algorithm={algorithm} compares episodes of the same task, so a "
            "group needs at least 2"
        )
    if agent.max_new_tokens >= agent.context:
        raise ConfigError(
            f"agent.max_new_tokens={agent.max_new_tokens}: leaves no room for a prompt in agent.context={agent.context}"
        )


def _check_credit(config: Config) -> None:
    credit = config.credit
    _check_method(config)
    if config.agent.model and credit.advantage == "separate":
        from orchestration.configuration.objectives import objective_settings

        algorithm = config.learner.algorithm
        if algorithm == "ppo" or objective_settings(algorithm, config.language.objective).kl_in_reward:
            raise ConfigError(
                f"credit.advantage=separate: learner.algorithm={algorithm} has one critic, or its KL in the reward; take "
                "rloo, grpo or reinforce++ with language.objective.kl_place=loss (and k2 or k3 as its estimator)"
            )
    if credit.return_high <= credit.return_low:
        raise ConfigError(
            f"credit.return_high={credit.return_high:g}: must be more than credit.return_low={credit.return_low:g}"
        )
    if learns_progress(config) and credit.uncertainty is not None and credit.heads < 2:
        raise ConfigError(
            f"credit.uncertainty={credit.uncertainty:g}: needs credit.heads of at least 2 that can disagree"
        )


def _check_method(config: Config) -> None:
    """Whether the agent can be paid by `credit.method`."""
    method, algorithm = config.credit.method, config.learner.algorithm
    kind = credit_method(method)
    if kind.is_advantage:
        raise ConfigError(
            f"credit.method={method}: gives advantages, and no rewards of turns; learner.algorithm=rloo is that rule"
        )
    if kind.whole_episodes and not config.agent.model:
        raise ConfigError(
            f"credit.method={method}: wants whole episodes, and networks learn from parts of them; take another, or a language "
            "model (agent.model)"
        )
    if method == "potential" and config.agent.model and learns_progress(config):
        from orchestration.configuration.objectives import objective_settings

        settings: Any = objective_settings(algorithm, config.language.objective)
        if getattr(settings, "discount", 1.0) < 1.0 and getattr(settings, "advantage_level", "token") == "token":
            raise ConfigError(
                f"credit.method=potential: changes which policy is best where language.objective.discount={settings.discount:g} "
                "counts by tokens, as it is paid by turns; take discount=1, or ppo with advantage_level=turn"
            )


def attributes_credit(config: Config) -> bool:
    """Whether a turn's reward is anything but what it was paid."""
    kind = credit_method(config.credit.method)
    return kind.rearranges or (kind.grounds and config.reward.w_ground != 0) or learns_progress(config)


def learns_progress(config: Config) -> bool:
    """Whether a progress estimator learns, and its contributions are part of what the agent learns from."""
    return credit_method(config.credit.method).needs_progress and config.reward.w_prog != 0


def learns_intrinsic(config: Config) -> bool:
    """Whether intrinsic reward is part of what the agent learns from."""
    return config.reward.model != "none" and config.reward.w_int != 0


def wants_judge(config: Config) -> bool:
    """Whether the reward model learns from a judge's labels."""
    return learns_intrinsic(config) and KINDS[config.reward.model].source.asks_judge


def is_traced(config: Config) -> bool:
    """Whether the run records episodes, and itself."""
    return config.trace.rate > 0 or bool(config.trace.episodes)


def uses_judge(config: Config) -> bool:
    """Whether a judge is started: only where its labels end up in the reward."""
    return wants_judge(config) and config.judge.engine != "none"


def compares_pairs(config: Config) -> bool:
    """Whether the judge is asked about pairs of captions."""
    return uses_judge(config) and KINDS[config.reward.model].source is Source.PAIRS
