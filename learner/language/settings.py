"""Settings of the objectives of language-model agents. Free of torch: the configuration is built from them."""

from dataclasses import dataclass, field
from typing import Any

AGGREGATIONS = ("token_mean", "episode_mean", "fixed_length")
KL_ESTIMATORS = ("k1", "k2", "k3")
KL_PLACES = ("reward", "loss")
ADVANTAGE_LEVELS = ("token", "turn")


@dataclass(frozen=True)
class LanguageSettings:
    """How a language model is trained, whatever the objective."""

    objective: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the objective that `learner.algorithm` names, such as `clip_high`; an unknown one is an error."""
    batch_episodes: int = 64
    """Episodes of one update, at least: whole groups are taken."""
    epochs: int = 1
    """Passes over the episodes of an update."""
    minibatches: int = 1
    """Optimisation steps of one pass."""
    micro_batch_tokens: int = 16384
    """Tokens of one forward and backward pass: what bounds the memory."""
    learning_rate: float = 1e-6
    critic_learning_rate: float = 1e-5
    """Of PPO's value head."""
    critic_warmup: int = 0
    """So many first updates train the value head alone."""
    warmup: int = 0
    """Optimisation steps over which the learning rates rise to their values."""
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    recompute: bool = True
    """The trainer computes the log-probabilities at the start of an update itself (decoupled PPO); false: those of the
    engine stand for them, which saves a pass and corrects nothing."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    lora_rank: int = 0
    """Rank of low-rank adapters, which are trained instead of the model; 0: the whole model is."""
    lora_alpha: int = 32
    """The adapters' outputs are multiplied by lora_alpha / lora_rank."""
    lora_targets: str = "all-linear"
    """Layers that get adapters: names separated by commas, or `all-linear`."""


@dataclass(frozen=True)
class SFTSettings:
    """Supervised fine-tuning before RL (`yendor sft`)."""

    demonstrations: int = 100
    """Episodes to learn from: the world's walkthroughs of so many seeds, or the first so many traces."""
    demonstration_cost: float = 10.0
    """What one is worth in episodes of RL, when a budget is split (arXiv 2510.01132, section 5)."""
    traces: str | None = None
    """A run whose successful traced episodes are the demonstrations; null: walkthroughs."""
    env_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of the world that differ from `env.options` for demonstrations, such as `split=sft`."""
    holdout: float = 0.0
    """Share of the demonstrations that is not trained on; its loss is reported."""
    epochs: float = 3.0
    batch_episodes: int = 16
    learning_rate: float = 2e-5
    """The highest; it rises over `warmup` and falls by a cosine to a tenth."""
    warmup: float = 0.03
    """Share of the steps."""
    weight_decay: float = 0.0
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 16384
    """Tokens of one forward and backward pass: what bounds the memory."""


@dataclass(frozen=True)
class PolicySettings:
    """The policy's loss, which all algorithms share. An algorithm's own settings extend these."""

    clip_low: float = 0.2
    """π / π_prox is clipped to [1 − clip_low, 1 + clip_high] (PPO's ε)."""
    clip_high: float = 0.2
    """Larger than `clip_low` it leaves rare tokens room to grow (DAPO, "clip higher")."""
    dual_clip: float | None = None
    """Bound c > 1 on the loss of tokens with a negative advantage, in units of |A|; None: without."""
    importance_cap: float = 2.0
    """Largest weight π_prox / μ that corrects for stale weights and for the engine's numerics."""
    max_lag: int | None = 4
    """Turns sampled by weights more than so many versions old do not train (and are counted); None: all train."""
    aggregation: str = "token_mean"
    """How tokens become one loss: `token_mean`, `episode_mean`, `fixed_length`."""
    fixed_length: int | None = None
    """Tokens that an episode is divided by; wanted by `fixed_length` alone."""
    entropy_coefficient: float = 0.0
    kl_coefficient: float = 0.01
    """Weight of KL(π ‖ π_ref); 0 wants no reference policy."""
    kl_estimator: str = "k1"
    """`k1`, `k2`, `k3`, see `learner/language/kl.py`. As a loss only k2 (reverse KL) or k3 (forward KL)."""
    kl_place: str = "reward"
    """Where the KL goes: `reward` (a penalty on each token), `loss`."""

    def validate(self) -> None:
        """Raises `ValueError`, naming the field, for a value that means nothing or has no effect."""
        _check(0.0 < self.clip_low <= 1.0, f"clip_low must be in (0, 1], not {self.clip_low}")
        _check(self.clip_high > 0.0, f"clip_high must be above 0, not {self.clip_high}")
        _check(self.dual_clip is None or self.dual_clip > 1.0, f"dual_clip must be above 1, not {self.dual_clip}")
        _check(self.importance_cap > 0.0, f"importance_cap must be above 0, not {self.importance_cap}")
        _check(self.max_lag is None or self.max_lag >= 0, f"max_lag must be at least 0, not {self.max_lag}")
        _choice("aggregation", self.aggregation, AGGREGATIONS)
        _choice("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        _choice("kl_place", self.kl_place, KL_PLACES)
        _check(self.entropy_coefficient >= 0.0, f"entropy_coefficient must not be below 0: {self.entropy_coefficient}")
        _check(self.kl_coefficient >= 0.0, f"kl_coefficient must not be below 0: {self.kl_coefficient}")
        fixed = self.aggregation == "fixed_length"
        _check(fixed or self.fixed_length is None, f"fixed_length has no effect with aggregation {self.aggregation!r}")
        _check(
            not fixed or (self.fixed_length is not None and self.fixed_length >= 1),
            f"aggregation 'fixed_length' needs a fixed_length of at least 1, not {self.fixed_length}",
        )
        _check(
            self.kl_place == "reward" or self.kl_estimator != "k1" or self.kl_coefficient == 0.0,
            "kl_estimator 'k1' has a gradient of mean zero as a loss; take k2 or k3, or kl_place=reward",
        )

    @property
    def kl_in_reward(self) -> bool:
        return self.kl_coefficient > 0.0 and self.kl_place == "reward"

    @property
    def kl_in_loss(self) -> bool:
        return self.kl_coefficient > 0.0 and self.kl_place == "loss"


@dataclass(frozen=True)
class PPOSettings(PolicySettings):
    """Defaults follow "A Practitioner's Guide to Multi-turn Agentic RL" (arXiv 2510.01132): γ = λ = 1, clip 0.2, KL 0.01."""

    advantage_level: str = "token"
    """What one step of GAE is: `token` or `turn`."""
    discount: float = 1.0
    """γ, for each token or turn."""
    gae_lambda: float = 1.0
    normalise_advantage: bool = True
    """Whiten advantages over the tokens that train."""
    value_clip: float | None = 0.2
    """The value may move so far from the one at the start of the update before the loss is clipped; None: no clipping."""
    value_coefficient: float = 0.5

    def validate(self) -> None:
        super().validate()
        _choice("advantage_level", self.advantage_level, ADVANTAGE_LEVELS)
        _share("discount", self.discount)
        _share("gae_lambda", self.gae_lambda)
        _check(self.value_clip is None or self.value_clip > 0, f"value_clip must be above 0, not {self.value_clip}")
        _check(self.value_coefficient > 0, f"value_coefficient must be above 0, not {self.value_coefficient}")


@dataclass(frozen=True)
class GRPOSettings(PolicySettings):
    """Defaults are the paper's shape: mean within the episode first, KL (k3) in the loss. Dr. GRPO (arXiv 2503.20783) is
    `scale_by_deviation=False`, `aggregation=fixed_length`."""

    aggregation: str = "episode_mean"
    kl_estimator: str = "k3"
    kl_place: str = "loss"
    scale_by_deviation: bool = True
    """Divide by the group's deviation; without, tasks that are nearly always won or lost weigh no more than others."""


@dataclass(frozen=True)
class RLOOSettings(PolicySettings):
    """The KL is part of the score, as in the paper (section 2.1)."""


@dataclass(frozen=True)
class ReinforcePlusPlusSettings(PolicySettings):
    """No critic and no group: one episode of each task will do."""

    discount: float = 1.0
    """γ, for each action token."""

    def validate(self) -> None:
        super().validate()
        _share("discount", self.discount)


def _check(fine: bool, message: str) -> None:
    """Raises `ValueError(message)` unless `fine`."""
    if not fine:
        raise ValueError(message)


def _choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ValueError`, with the choices there are, unless `value` is one."""
    _check(value in choices, f"{field} must be one of {', '.join(choices)}, not {value!r}")


def _share(field: str, value: float) -> None:
    """Raises `ValueError` unless 0 ≤ value ≤ 1."""
    _check(0.0 <= value <= 1.0, f"{field} must be in [0, 1], not {value}")
