"""What the tests of the environments share: a player that solves KeyRoom, and toy environments that fail on demand."""

from collections import deque
from typing import Any

import numpy as np

from envs import ArraySpec, EnvSpec, Observation, YendorEnv

STEPS = {
    "N": (-1, 0),
    "E": (0, 1),
    "S": (1, 0),
    "W": (0, -1),
    "NE": (-1, 1),
    "SE": (1, 1),
    "SW": (1, -1),
    "NW": (-1, -1),
}


def path(chars: np.ndarray, start: tuple[int, int], goal: tuple[int, int], walls: str, straight: bool) -> list[str]:
    """The names of the moves from start to goal around what is in `walls`, without diagonals where `straight`."""
    came: dict[tuple[int, int], tuple[tuple[int, int], str] | None] = {start: None}
    queue = deque([start])
    while queue and goal not in came:
        y, x = queue.popleft()
        for name, (dy, dx) in STEPS.items():
            square = (y + dy, x + dx)
            inside = 0 <= square[0] < chars.shape[0] and 0 <= square[1] < chars.shape[1]
            if (straight and dy and dx) or square in came or not inside:
                continue
            if square == goal or chr(chars[square]) not in walls:
                came[square] = ((y, x), name)
                queue.append(square)
    moves: list[str] = []
    step = came[goal]
    while step is not None:
        moves.append(step[1])
        step = came[step[0]]
    return moves[::-1]


class KeyRoomPlayer:
    """Solves `minihack/KeyRoom-*` by looking at the whole map, where the key and the door are in sight at the start."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.names = env.env_spec.action_names
        self.captions: list[str] = []
        self.log: list[tuple[str, tuple[Any, ...]]] = []

    def act(self, name: str) -> tuple[Any, ...]:
        outcome = self.env.step(self.names.index(name))
        self.captions.append(outcome[4]["caption"])
        self.log.append((name, outcome))
        return outcome

    @property
    def here(self) -> tuple[int, int]:
        x, y = self.env._blstats[:2].tolist()
        return y, x

    def find(self, char: str) -> tuple[int, int]:
        y, x = np.argwhere(self.env._chars == ord(char))[0].tolist()
        return y, x

    def walk(self, goal: tuple[int, int], stop_short: bool = False) -> None:
        moves = path(self.env._chars, self.here, goal, " -|+", straight=True)
        for name in moves[:-1] if stop_short else moves:
            self.act(name)

    def fetch_key_and_face_door(self) -> str:
        """Afterwards the agent holds the key and stands before the closed door. Returns the direction of the door."""
        self.walk(self.find("("))
        self.act("PICKUP")
        door = self.find("+")
        self.walk(door, stop_short=True)
        y, x = self.here
        return next(name for name, step in STEPS.items() if (door[0] - y, door[1] - x) == step)

    def solve(self) -> tuple[Any, ...]:
        """Plays until the stairs; returns what the last step returned."""
        door = self.fetch_key_and_face_door()
        self.act("APPLY")
        self.act(door)
        outcome = self.act(door)
        if not outcome[2]:  # the stairs need not lie right behind the door
            self.walk(self.find(">"))
        return self.log[-1][1]


def toy_spec(limit: int) -> EnvSpec:
    return EnvSpec("toy/Count", {"count": ArraySpec((2,), "int32")}, ("STAY", "GO", "RAISE"), limit, True)


class CountingEnv(YendorEnv):
    """Shows (seed, steps taken); wins when GO was pressed `goal` times; action RAISE raises."""

    def __init__(self, limit: int = 5, goal: int = 3, reset_raises: bool = False) -> None:
        self.env_spec = toy_spec(limit)
        self.limit, self.goal, self.reset_raises = limit, goal, reset_raises
        self.closed = False

    def _observe(self) -> Observation:
        return {"count": np.array([self.seed, self.taken], np.int32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        if self.reset_raises:
            raise OSError("the disk is full")
        assert seed is not None
        self.seed, self.taken, self.gone = seed, 0, 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Any]:
        if action == 2:
            raise KeyError("a game that crashed")
        self.taken += 1
        self.gone += action
        won = self.gone == self.goal
        cut = not won and self.taken == self.limit
        info: dict[str, Any] = {"caption": f"step {self.taken}", "grounded": action == 1}
        if won or cut:
            info |= {"success": won, "metrics": {"gone": float(self.gone)}}
        return self._observe(), float(action), won, cut, info

    @property
    def seeds(self) -> dict[str, str]:
        return {"seed": str(self.seed)}

    def screen(self) -> str:
        return str(self.taken)

    def close(self) -> None:
        self.closed = True
