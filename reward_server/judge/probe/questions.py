"""What a judge is asked when it is probed, as data (`questions.yaml`)."""

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import cast

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
        if not isinstance(tree, dict) or set(cast("dict[object, object]", tree)) != set(names):
            raise JudgeError(f"{path}: must have exactly the parts {', '.join(names)}")
        parts = cast("dict[str, object]", tree)
        found = cls(
            helpful=_texts(path, "helpful", parts["helpful"]),
            unhelpful=_texts(path, "unhelpful", parts["unhelpful"]),
            paraphrases=_groups(path, "paraphrases", parts["paraphrases"]),
            numbers=_groups(path, "numbers", parts["numbers"]),
            fooling=_texts(path, "fooling", parts["fooling"]),
            injections=_texts(path, "injections", parts["injections"]),
        )
        if any("{caption}" not in text or "{label}" not in text for text in found.injections):
            raise JudgeError(f"{path}: each of injections must have {{caption}} and {{label}}")
        return found

    @property
    def plain(self) -> tuple[tuple[str, int], ...]:
        """Plain captions with their expected label."""
        return (*((text, 1) for text in self.helpful), *((text, 0) for text in self.unhelpful))


def _groups(path: Path | None, part: str, values: object) -> Groups:
    return tuple(_texts(path, part, group) for group in _list(path, part, values))


def _texts(path: Path | None, part: str, values: object) -> tuple[str, ...]:
    texts = _list(path, part, values)
    if not all(isinstance(text, str) for text in texts):
        raise JudgeError(f"{path}: {part} must hold texts")
    return tuple(str(text) for text in texts)


def _list(path: Path | None, part: str, values: object) -> list[object]:
    if not isinstance(values, list) or not values:
        raise JudgeError(f"{path}: {part} must be a list, and not empty")
    return cast("list[object]", values)
