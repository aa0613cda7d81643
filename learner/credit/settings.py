"""Settings of credit attribution. Plain frozen dataclasses: the configuration of a run is built from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CreditSettings:
    """How rewards are attributed to turns, and how the progress estimator learns (SPA, arXiv 2505.20732)."""

    method: str = "turn"
    """`turn` (each turn what the environment paid it), `outcome` (all at the end), `spa` (progress beside it),
    `spa+grounding`, `potential` (the change of progress so far, which leaves the best policy as it is)."""
    outcome: str = "success"
    """What R of an episode is: `success` (1 or 0), or `return`, from `return_low` (0) to `return_high` (1)."""
    return_low: float = 0.0
    return_high: float = 1.0
    conserve: bool = False
    """Pay what the estimator leaves unexplained, R less the sum of its contributions, on an episode's last turn."""
    hidden: int = 128
    """Width of the estimator's layer."""
    backbone: str = "shared"
    """What a language model's turns are read with: `shared` (the policy, to which no gradient goes back), `full` (a model of the
    estimator's own, which begins as `agent.model` and is trained), `lora` (the same, adapters alone)."""
    backbone_learning_rate: float = 1e-4
    """Of a backbone of the estimator's own."""
    lora_rank: int = 8
    """Of its adapters, on all linear layers, scaled by 2."""
    heads: int = 1
    """Estimators of an ensemble; their mean is the contribution, their disagreement the uncertainty."""
    constraint: str = "none"
    """Of contributions: `none`, `bounded` (in [-1, 1]), `non_negative`, or `unit` (in [0, 1])."""
    learning_rate: float = 1e-3
    batch_episodes: int = 16
    """Episodes of one gradient step, half of them of either outcome."""
    steps_per_update: int = 1
    """Gradient steps of the estimator for each optimisation step of the policy."""
    publish_every: int = 8
    """Gradient steps between two versions of the estimator."""
    min_episodes: int = 8
    """Episodes of either outcome that there must be before the estimator learns; of either, so many are kept whatever
    their age."""
    replay_turns: int = 32768
    """Turns of whole episodes that are kept to learn from, half of them for either outcome."""
    max_turns: int = 1024
    """Turns kept of one episode. Of a longer one every second is left out, as often as it takes, and the rest count double."""
    max_age: int = 500
    """Episodes that came more than so many versions of the policy ago are forgotten: its hidden states have moved on, and what it
    does."""
    holdout: float = 0.125
    """Share of episodes that the estimator never learns from, to report how well it does."""
    uncertainty: float | None = None
    """Contributions count 1 / (1 + (d / x)^2), where d is the deviation among the heads and x this; null: all count."""
    squash: float | None = None
    """Contributions are centred and bounded to [-x, x] by a sigmoid; null: as they are."""
    advantage: str = "joint"
    """`joint`: one critic and one advantage; `separate`: a critic for each component of the reward, whose advantages are
    normalised one by one, and then weighted and added up."""
    schedule: str = "online"
    """`online`: estimator and policy learn together; `staged`: explore with the first policy, fit the estimator, then train
    the policy with it (the stages of the paper)."""
    explore_steps: int = 100_000
    """Staged: environment steps of the first policy; more, where an outcome is still missing."""
    estimate_steps: int = 1000
    """Staged: gradient steps of the estimator after that."""
