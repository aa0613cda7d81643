"""Settings of the learning side. Plain frozen dataclasses: the configuration of a run is built from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LearnerSettings:
    """APPO with the settings of ONI (arXiv 2410.23022, appendix) as defaults."""

    algorithm: str = "appo"
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`."""
    precision: str = "auto"
    """Of matrix products, for learner and actors: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it)."""
    workers: int = 1
    """Learners that share each batch and act as one, on CPUs over gloo, on GPUs (one each) over NCCL."""
    threads: int = 1
    """CPU threads of one worker."""
    batch_size: int = 2048
    """Samples of one optimisation step, all workers' together; a multiple of the rollout length."""
    learning_rate: float = 1e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-6
    discount: float = 0.99
    vtrace_rho: float = 1.0
    """Bound of the importance weight in the temporal difference (rho-bar of IMPALA, arXiv 1802.01561, eq. 1)."""
    vtrace_c: float = 1.0
    """Bound of the importance weight in the trace (c-bar)."""
    ratio_clip: float = 0.1
    """PPO: the ratio is clipped to [1 / (1 + x), 1 + x]."""
    value_clip: float = 1.0
    """The value may move so far from the behaviour policy's estimate before the loss is clipped."""
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.003
    max_grad_norm: float = 4.0
    normalise_advantage: bool = True
    max_lag: int = 20
    """Samples of a policy more than so many versions old are dropped (and counted), never trained on."""


@dataclass(frozen=True)
class RewardSettings:
    """R_t = w_ext clip(scale r_t) + w_int r_int(c_t) / N(c_t)^count_exponent + w_prog ĉ_t + w_ground g_t."""

    model: str = "classification"
    """Where r_int comes from: `hash`, `classification`, `ranking` (learnt from a judge), `counts`, `rnd`, `ellm`, `offline`
    (no judge), or `none`."""
    offline_path: str | None = None
    """Of `offline`: a trained reward model, or an annotation store to train it from when the run starts."""
    w_ext: float = 1.0
    w_int: float = 0.1
    w_prog: float = 0.0
    """Of the progress ĉ_t that the turn made (α; `credit.method`)."""
    w_ground: float = 0.0
    """Of g_t, 1 where the action could be executed (β; `credit.method=spa+grounding`)."""
    scale: float = 1.0
    clip: float = 10.0
    """Bound of |scale r_t|."""
    count_exponent: float = 3.0
    """N counts how often the caption came in this episode, this time included; 3 in ONI."""
