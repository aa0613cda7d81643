"""Which keys do something. A key that somebody set and that does nothing is an error, never silently ignored."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestration.config import Config
from orchestration.configuration.checks import attributes_credit, learns_intrinsic, learns_progress, uses_judge


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
    return "judge.engine=none" if learns_intrinsic(config) else f"{_no_intrinsic(config)} turns the judge off"


def _no_intrinsic(config: Config) -> str | None:
    if learns_intrinsic(config):
        return None
    return "reward.model=none" if config.reward.model == "none" else "reward.w_int=0"


def _not_openai(config: Config) -> str | None:
    return None if config.judge.engine == "openai" else f"judge.engine={config.judge.engine} (only openai has it)"


def _remote_judge(config: Config) -> str | None:
    return "judge.engine=openai (the server decides that)" if config.judge.engine == "openai" else None


def _no_progress(config: Config) -> str | None:
    if learns_progress(config):
        return None
    method = config.credit.method
    return f"credit.method={method}" if method in ("turn", "outcome") else "reward.w_prog=0"


def _no_credit(config: Config) -> str | None:
    return None if attributes_credit(config) else (_no_progress(config) or "nothing is attributed")


def _staged(config: Config) -> str | None:
    return "credit.schedule=staged fits the estimator once" if config.credit.schedule == "staged" else None


RULES = (
    Rule(("judge.", "annotator.", "distiller."), _no_judge, unless=("judge.engine",)),
    Rule(("judge.engine",), lambda c: _no_judge(c) if c.judge.engine != "none" else None),
    Rule(("reward.w_int",), lambda c: "reward.model=none" if c.reward.model == "none" and c.reward.w_int else None),
    Rule(("reward.count_exponent",), _no_intrinsic),
    Rule(("credit.method",), lambda c: _no_credit(c) if c.credit.method != "turn" else None),
    Rule(("reward.w_prog",), lambda c: _no_progress(c) if c.reward.w_prog else None),
    Rule(
        ("reward.w_ground",),
        lambda c: (
            f"credit.method={c.credit.method}" if c.reward.w_ground and c.credit.method != "spa+grounding" else None
        ),
    ),
    Rule(("credit.advantage", "credit.learning_rate"), _no_credit),
    Rule(("credit.",), _no_progress, unless=("credit.method", "credit.advantage", "credit.learning_rate")),
    Rule(
        ("credit.learning_rate",),
        lambda c: None if learns_progress(c) or c.credit.advantage == "separate" else "there is no progress estimator",
    ),
    Rule(("credit.conserve",), lambda c: "credit.method=potential" if c.credit.method == "potential" else None),
    Rule(
        ("credit.return_low", "credit.return_high"),
        lambda c: "credit.outcome=success" if c.credit.outcome == "success" else None,
    ),
    Rule(
        ("credit.explore_steps", "credit.estimate_steps"),
        lambda c: "credit.schedule=online" if c.credit.schedule == "online" else None,
    ),
    Rule(("credit.steps_per_update",), _staged),
    Rule(("reward.scale", "reward.clip"), lambda c: "reward.w_ext=0" if c.reward.w_ext == 0 else None),
    Rule(("judge.url", "judge.api_key_env"), _not_openai),
    Rule(("judge.replicas", "judge.dtype", "judge.max_model_len"), _remote_judge),
    Rule(("judge.replicas",), lambda c: "runtime=serial has one judge" if c.runtime == "serial" else None),
    Rule(("judge.cache_dir",), lambda c: None if c.judge.model == "embedded" else "judge.model is not embedded"),
    Rule(("judge.reason_tokens",), lambda c: "judge.mode=direct" if c.judge.mode == "direct" else None),
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
