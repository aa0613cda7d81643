"""NetHack and MiniHack as text, so that a language model can play them: the screen to read, action names to say."""

import re
from typing import Any

from envs.base import YendorEnv
from envs.captions import normalise
from envs.text import TextEnv, TextEnvSpec, TextInfo

OBJECTIVES = {
    "nethack/Score": "Score as many points as you can.",
    "nethack/Oracle": "Find the Oracle, deep in the dungeon, and stand next to it.",
    "nethack/OracleSober": "Find the Oracle, deep in the dungeon, and stand next to it without hallucinating.",
    "nethack/StaircaseLvl3": "Go down the stairs (>) to dungeon level 3.",
    "nethack/StaircaseLvl4": "Go down the stairs (>) to dungeon level 4.",
    "nethack/Challenge": "Win the game of NetHack: fetch the Amulet of Yendor and ascend.",
    "minihack/KeyRoom": "Pick up the key, unlock the door (+) with it and step on the stairs (>).",
    "minihack/Room": "Step on the stairs (>).",
    "minihack/Corridor": "Step on the stairs (>).",
    "minihack/MazeWalk": "Find the way through the maze to the stairs (>).",
    "minihack/MultiRoom": "Go through all rooms to the stairs (>).",
    "minihack/Sokoban": "Push the boulders into the pits and reach the stairs.",
    "minihack/River": "Push a boulder into the water, cross it and reach the stairs (>).",
}
"""What is asked for, by id or by how it begins; the longest that fits counts."""

DIRECTIONS = {
    "north": "N",
    "east": "E",
    "south": "S",
    "west": "W",
    "northeast": "NE",
    "southeast": "SE",
    "southwest": "SW",
    "northwest": "NW",
}
_VERBS = re.compile(r"^(?:go|move|walk|step|head)_")
_FAR_VERBS = re.compile(r"^(?:run|far|go_far|move_far)_")


def objective_of(env_id: str) -> str:
    """What `env_id` asks for, in words."""
    fitting = [begin for begin in OBJECTIVES if env_id.startswith(begin)]
    if fitting:
        return OBJECTIVES[max(fitting, key=len)]
    return f"Solve the task {env_id.partition('/')[2]}: mostly, to reach the stairs (>)."


class TextView(TextEnv):
    """A world of arrays, shown as text.

    The observation is what the game said during the step, if the screen no longer shows it, and the screen. A command
    is the name of an action in any case; `go north`, `run south-west`, `pick up` are understood too. What is no action's
    name presses no key: the world says so, and the step counts against the limit alone.
    """

    exclusive = "nle"  # a game is a library with state of its own, entered from one thread at a time

    def __init__(self, env: YendorEnv) -> None:
        self.env = env
        inner = env.env_spec
        self.env_spec = TextEnvSpec(inner.id, inner.max_episode_steps, inner.has_success, inner.options)
        self._index = {_key(name): index for index, name in enumerate(inner.action_names)}
        self._admissible = tuple(sorted(inner.action_names))
        self._objective = objective_of(inner.id)
        self._steps = 0
        self._running = False
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Any]:
        _, info = self.env.reset(seed=self.draw_seed(seed, options))
        self._steps, self._running = 0, True
        caption = info.get("caption", "")
        self._text = self._show(caption)
        return self._text, self._info(caption, True)

    def step(self, action: str) -> tuple[str, float, bool, bool, Any]:
        """Presses the key that `action` names. Raises RuntimeError after the end and before the start of an episode."""
        if not self._running:
            raise RuntimeError(f"{self.env_spec.id}: the episode is over or has not begun; call reset first")
        self._steps += 1
        index = self._find(action)
        if index is None:
            return self._misunderstood()
        _, reward, terminated, truncated, inner = self.env.step(index)
        truncated = not terminated and (truncated or self._is_late())
        caption = inner.get("caption", "")
        info = self._info(caption, bool(inner.get("grounded", True)))
        self._running = not (terminated or truncated)
        if not self._running:
            info["success"] = inner.get("success", False if self.env_spec.has_success else None)
            info["metrics"] = inner.get("metrics", {})
        self._text = self._show(caption)
        return self._text, float(reward), bool(terminated), bool(truncated), info

    def _misunderstood(self) -> tuple[str, float, bool, bool, Any]:
        caption = "There is no such action."
        self._text = self._show(caption)
        truncated = self._is_late()
        info = self._info(caption, False)
        self._running = not truncated
        if truncated:
            info["success"] = False if self.env_spec.has_success else None
            info["metrics"] = {}
        return self._text, 0.0, False, truncated, info

    def _is_late(self) -> bool:
        return self._steps >= self.env_spec.max_episode_steps

    def _find(self, command: str) -> int | None:
        """The action that `command` names, if it names one."""
        key = _key(command)
        bare = _VERBS.sub("", key)
        far = _FAR_VERBS.sub("", key)
        names = [key, key.replace("_", ""), bare, DIRECTIONS.get(bare.replace("_", ""), "").lower()]
        if far != key:
            direction = far.replace("_", "")
            names.insert(0, f"far_{DIRECTIONS.get(direction, direction).lower()}")
        return next((self._index[name] for name in names if name in self._index), None)

    def _show(self, caption: str) -> str:
        lines = self.env.screen().split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        while lines and not lines[0].strip():
            lines.pop(0)
        screen = "\n".join(lines)
        on_screen = not caption or normalise(lines[0] if lines else "") == caption
        return screen if on_screen else f"{caption}\n\n{screen}"

    def _info(self, caption: str, grounded: bool) -> TextInfo:
        return {
            "caption": caption,
            "grounded": grounded,
            "objective": self._objective,
            "admissible": self._admissible,
            "facts": (),
        }

    @property
    def seeds(self) -> dict[str, str]:
        return self.env.seeds

    def screen(self) -> str:
        return self._text

    def close(self) -> None:
        self._running = False
        self.env.close()


def _key(text: str) -> str:
    """`text` as action names are compared: lower case, words joined by underscores."""
    return re.sub(r"[\s\-_]+", "_", normalise(text).strip(" .!\"'`").lower())
