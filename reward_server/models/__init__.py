"""Reward models: what makes an intrinsic reward of a caption."""

from reward_server.models.base import (
    Evaluation,
    RewardModel,
    RewardModelKind,
    RewardModelMetrics,
    RewardModelTrainer,
    build_reward_model,
    reward_model_kind,
    reward_model_names,
)
from reward_server.models.measures import Measures, measure

__all__ = [
    "Evaluation",
    "Measures",
    "RewardModel",
    "RewardModelKind",
    "RewardModelMetrics",
    "RewardModelTrainer",
    "build_reward_model",
    "measure",
    "reward_model_kind",
    "reward_model_names",
]
