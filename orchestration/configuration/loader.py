"""From preset and `key=value` overrides to a `Config`.

Invariant: whatever is given is a key of the schema, has a possible value, and has an effect.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestration.config import Config
from orchestration.configuration.checks import check_consistency, check_values
from orchestration.configuration.effects import without_effect
from orchestration.configuration.keys import find_key, key_types
from orchestration.configuration.presets import preset_path, read_yaml
from orchestration.configuration.values import Value, from_text, from_yaml
from orchestration.errors import ConfigError

DEFAULT_NAME = "train"
"""Name of a run without a preset."""

_OF_WORLDS = ("env.mix", "env.curriculum")
"""Keys whose values are named by worlds."""
_ACTORS = "actors"
"""Short for `actors.count`, and `actors=auto` for `actors.auto=true`."""

FIXED_ON_RESUME = ("env.id", "env.options", "run.seed", "agent.", "reward.model", "learner.algorithm", "credit.")
"""What a checkpoint was made for, and cannot be carried into."""


@dataclasses.dataclass(frozen=True)
class _Tree(Config):
    """What interpolations may refer to: all keys, and the name of the preset."""

    preset: str = DEFAULT_NAME


def load_config(preset: str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration that `yendor train PRESET key=value …` means: schema, then the preset, then the overrides.

    `preset` is a name in `configs/` or a path to a YAML file. Raises `ConfigError`, one line that names the key.
    """
    path = None if preset is None else preset_path(preset)
    name = DEFAULT_NAME if path is None else path.stem
    preset_values = {} if path is None else _values_of_file(path)
    given = _values_of_overrides(overrides)
    config = _build({**preset_values, **given}, name)
    _check(config, preset_values.keys() | given.keys())
    _refuse(without_effect(config, given.keys()))
    # An override may make keys of the preset idle (`reward.w_int=0`: a baseline); a preset may not do so by itself.
    idle = without_effect(config, preset_values.keys())
    if idle:
        by_itself = without_effect(_build(preset_values, name), preset_values.keys())
        _refuse({key: reason for key, reason in idle.items() if key in by_itself}, path)
    return config


def resume_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of the run whose `config.yaml` is `path`, changed by the overrides of `yendor train --resume`.

    Raises `ConfigError` for an override of what the run's checkpoints depend on.
    """
    before = read_config(path)
    given = _values_of_overrides(overrides)
    # Where the run lies now: its folder may have been moved, or come from another machine.
    given |= {"run.name": path.parent.name, "run.dir": str(path.parent.parent)}
    config = _build({**_flatten(dataclasses.asdict(before)), **given}, before.run.name)
    old, new = _flatten(dataclasses.asdict(before)), _flatten(dataclasses.asdict(config))
    for key in sorted(old.keys() | new.keys()):
        if key.startswith(FIXED_ON_RESUME) and old.get(key) != new.get(key):
            raise ConfigError(f"{key}: a run that goes on keeps {key}={old.get(key)}; start another with run.name=…")
    _check(config, new.keys())
    _refuse(without_effect(config, given.keys()))
    return config


def read_config(path: Path) -> Config:
    """The configuration in a run's `config.yaml`. Raises `ConfigError` naming the file."""
    try:
        return _build(_values_of_file(path), path.parent.name)
    except ConfigError as error:
        raise _in_file(path, error) from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, which `read_config` reads."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def _check(config: Config, given: Set[str]) -> None:
    check_values(config)
    check_consistency(config, given)


def _refuse(idle: Mapping[str, str], path: Path | None = None) -> None:
    for key, reason in idle.items():
        raise _in_file(path, ConfigError(f"{key}: has no effect, as {reason}"))


def _values_of_file(path: Path) -> dict[str, Value]:
    try:
        return {key: from_yaml(key, value, find_key(key)[1]) for key, value in _flatten(read_yaml(path), path).items()}
    except ConfigError as error:
        raise _in_file(path, error) from error


def _in_file(path: Path | None, error: ConfigError) -> ConfigError:
    if path is None or str(error).startswith(str(path)):
        return error
    return ConfigError(f"{path}: {error}")


def _flatten(tree: Mapping[str, Any], path: Path | None = None, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; an empty group in a file is an error, as it would have no effect."""
    return dict(_flat_items(tree, path, prefix))


def _flat_items(tree: Mapping[str, Any], path: Path | None, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat_items(value, path, f"{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield key, value


def _values_of_overrides(overrides: Sequence[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{override}: expected key=value")
        if key == _ACTORS:
            key, text = ("actors.auto", "true") if text == "auto" else ("actors.count", text)
        if key in values:
            raise ConfigError(f"{key}: given twice, so the first would have no effect")
        values[key] = from_text(key, text, find_key(key)[1])
    return values


def _build(values: Mapping[str, Value], preset: str) -> Config:
    """The schema's defaults with `values` in it, interpolations resolved. Raises `ConfigError`."""
    # A configuration refers to keys, never to the environment: one that somebody else wrote could hand on what is there.
    OmegaConf.clear_resolver("oc.env")
    tree = OmegaConf.structured(_Tree)
    _make_writable(tree)
    tree.preset = preset
    for key, value in values.items():
        try:
            _set(tree, key, value)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={value}: {_said(error)}") from error
    try:
        resolved: Any = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_said(error)}") from error
    return Config(**{field.name: getattr(resolved, field.name) for field in dataclasses.fields(Config)})


def _set(tree: DictConfig, key: str, value: Value) -> None:
    mapping, _ = find_key(key)
    if mapping in _OF_WORLDS and key != mapping:
        # A world may be a file, and its name have dots.
        given = float(value) if mapping == "env.mix" and isinstance(value, int) else value
        OmegaConf.select(tree, mapping)[key.removeprefix(f"{mapping}.")] = given
    else:
        OmegaConf.update(tree, key, value, merge=False, force_add=key not in key_types())


def _make_writable(tree: DictConfig) -> None:
    """OmegaConf marks each node of a frozen dataclass read-only; while we build the tree it is not."""
    OmegaConf.set_readonly(tree, None)
    for name in list(tree):
        child = tree._get_node(name)  # pyright: ignore[reportPrivateUsage]  (`tree[name]` would resolve interpolations)
        if isinstance(child, DictConfig):
            _make_writable(child)


def _said(error: OmegaConfBaseException) -> str:
    return str(error).splitlines()[0]
