"""ALFWorld: text games about chores in a house. See `docs/alfworld.md`."""

from typing import Any

from envs.registry import EnvironmentUnavailableError
from envs.text import TextEnv


def make_alfworld(name: str, **options: Any) -> TextEnv:
    """The environment `alfworld/<name>`: see `envs.alfworld.env.make_alfworld`, which is imported by the first call."""
    try:
        from envs.alfworld.env import make_alfworld as make
    except ModuleNotFoundError as error:
        raise EnvironmentUnavailableError(
            f"alfworld/{name} needs the Python module {error.name!r}: pip install alfworld==0.4.2 'textworld[pddl]==1.7.0'"
        ) from error
    return make(name, **options)
