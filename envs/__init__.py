"""Where agents act: NetHack, MiniHack, TextWorld and ALFWorld behind one gymnasium-shaped interface.

`make` builds one environment by its id for a network, `make_text` one for a language model; `VectorEnv` steps many of the
former in one process. Importing this package
registers all ids with gymnasium and loads no game; the first `make` of a family does.
"""

from envs.base import ArraySpec, EnvironmentIdError, EnvSpec, Observation, StepInfo, View, YendorEnv
from envs.captions import EMPTY_CAPTION_ID, caption_id, normalise
from envs.registry import (
    EnvironmentOptionError,
    EnvironmentUnavailableError,
    known_ids,
    make,
    make_text,
    register_family,
    register_gymnasium,
    register_text_family,
    validate_id,
)
from envs.text import SimpleTextEnv, TextEnv, TextEnvSpec, TextInfo
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
    "SimpleTextEnv",
    "StepInfo",
    "TextEnv",
    "TextEnvSpec",
    "TextInfo",
    "VectorEnv",
    "VectorStep",
    "View",
    "YendorEnv",
    "caption_id",
    "known_ids",
    "make",
    "make_text",
    "normalise",
    "register_family",
    "register_gymnasium",
    "register_text_family",
    "validate_id",
]

register_gymnasium()
