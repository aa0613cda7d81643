"""How a `Config` comes about: presets, overrides, and what is checked before anything starts."""

from orchestration.configuration.checks import (
    attributes_credit,
    compares_pairs,
    is_traced,
    learns_intrinsic,
    learns_progress,
    uses_judge,
)
from orchestration.configuration.loader import load_config, read_config, resume_config, to_yaml
from orchestration.configuration.presets import preset_names

__all__ = [
    "attributes_credit",
    "compares_pairs",
    "is_traced",
    "learns_intrinsic",
    "learns_progress",
    "load_config",
    "preset_names",
    "read_config",
    "resume_config",
    "to_yaml",
    "uses_judge",
]
