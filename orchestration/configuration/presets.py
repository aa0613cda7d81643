"""Presets: YAML files in `configs/`, which lies beside the packages both in a checkout and when installed."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from orchestration.configuration.keys import near_miss
from orchestration.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def preset_names() -> list[str]:
    """Names of the presets that come with the project, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def preset_path(preset: str) -> Path:
    """The file of a preset, given its name or a path to a YAML file. Raises `ConfigError` where there is none."""
    if preset.endswith((".yaml", ".yml")) or "/" in preset:
        path = Path(preset).expanduser()
        if not path.is_file():
            raise ConfigError(f"{preset}: no such file; there are the presets {', '.join(preset_names())}")
        return path
    names = preset_names()
    if preset in names:
        return CONFIGS / f"{preset}.yaml"
    near = near_miss(preset, names)
    if near:
        raise ConfigError(f"{preset}: no such preset; did you mean {near}?")
    raise ConfigError(f"{preset}: no such preset; there are {', '.join(names)}, or give a path to a YAML file")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, interpolations left as they are. Raises `ConfigError` naming file and line."""
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path}: not a mapping of keys to values")
    return {str(key): value for key, value in tree.items()}
