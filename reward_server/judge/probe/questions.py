"""What a judge is asked when it is probed, as data (`questions.yaml`)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

import yaml

from reward_server.types import JudgeError

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class ProbeQuestions:
    """Captions by what they test; the file says of each part what it is."""

    helpful: tuple[str, ...]
    unhelpful: tuple[str, ...]
    paraphrases: Groups
    numbers: Groups
    fooling: tuple[str, ...]
    injections: tuple[str, ...]

    @classmethod
    def load(cls, path: Path | None = None) -> "ProbeQuestions":
        """The questions of the package, or of a file with the same parts. Raises `JudgeError` for one that lacks some."""
        if path is None:
            text = resources.files("reward_server.judge.probe").joinpath("questions.yaml").read_text("utf-8")
        else:
            try:
                text = path.read_text("utf-8")
            except OSError as error:
                raise JudgeError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise JudgeError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
        names = [field.name for field in fields(cls)]
        if not isinstance(tree, dict) or set(tree) != set(names):
            raise JudgeError(f"{path}: must have exactly the parts {', '.join(names)}")
        parts = {name: _part(f"{path}: {name}", tree[name], grouped=name in _GROUPED) for name in names}
        if any("{caption}" not in text or "{label}" not in text for text in parts["injections"]):
            raise JudgeError(f"{path}: each of injections must have {{caption}} and {{label}}")
        return cls(**parts)

    @property
    def plain(self) -> tuple[tuple[str, int], ...]:
        """Plain captions with their expected label."""
        return (*((text, 1) for text in self.helpful), *((text, 0) for text in self.unhelpful))


_GROUPED = ("paraphrases", "numbers")


def _part(where: str, values: object, *, grouped: bool) -> "tuple[str, ...] | Groups":
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise JudgeError(f"{where}: must be a list")
    if grouped:
        return tuple(_texts(where, group) for group in values)
    return _texts(where, values)


def _texts(where: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        raise JudgeError(f"{where}: must hold texts")
    return tuple(str(value) for value in values)
