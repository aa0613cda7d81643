"""Where agents act: NetHack and MiniHack behind one gymnasium-shaped interface.

`make` builds one environment by its id, `VectorEnv` steps many of them in one process. Importing this package
registers all ids with gymnasium and loads no game; the first `make` of a family does.
"""

from envs.base import ArraySpec, EnvironmentIdError, EnvSpec, Observation, StepInfo, View, YendorEnv
from envs.captions import EMPTY_CAPTION_ID, caption_id, normalise
from envs.registry import (
    EnvironmentOptionError,
    EnvironmentUnavailableError,
    known_ids,
    make,
    register_family,
    register_gymnasium,
    validate_id,
)
from envs.vector import EnvFailure, EpisodeEnd, ReplacementError, VectorEnv, VectorStep

__all__ = [
    "EMPTY_CAPTION_ID",
    "ArraySpec",
    "EnvFailure",
    "EnvSpec",
    "EnvironmentIdError",
    "EnvironmentOptionError",
    "EnvironmentUnavailableError",
    "EpisodeEnd",
    "Observation",
    "ReplacementError",
    "StepInfo",
    "VectorEnv",
    "VectorStep",
    "View",
    "YendorEnv",
    "caption_id",
    "known_ids",
    "make",
    "normalise",
    "register_family",
    "register_gymnasium",
    "validate_id",
]

register_gymnasium()
