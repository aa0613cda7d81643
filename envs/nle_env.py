"""One game of NLE (NetHack or MiniHack) as an environment of this system."""

# pyright: reportPrivateUsage=false

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from nle import nethack
from numpy.typing import NDArray

from envs.base import ArraySpec, EnvSpec, Observation, StepInfo, Terminal, View
from envs.clock import PINNED, birth_of, pin_birth
from envs.direct import DirectEnv
from envs.messages import text_of
from envs.nle_constants import (
    BLSTATS_SIZE,
    DEPTH,
    DUNGEON,
    EXPERIENCE_LEVEL,
    GOLD,
    LEVEL,
    MESSAGE_SIZE,
    SCORE,
    TIME,
    X,
    Y,
)
from envs.nle_game import GameRules

BLANK = ord(" ")

BUFFERS = (
    "glyphs",
    "chars",
    "colors",
    "blstats",
    "message",
    "tty_chars",
    "tty_colors",
)
"""What a game is asked for: what the policy reads, what the rules of every task read, and the screen."""

FILLED = (*BUFFERS, "program_state", "internal")
"""What a game fills at every step: NLE adds the two for itself (and warns of them when asked for them)."""

_INT32 = np.iinfo(np.int32)  # its limits are Python's ints


def observation_spec(view: View) -> dict[str, ArraySpec]:
    """The arrays that `view` asks for; raises ValueError where a side of the crop or the message is not positive."""
    for name in ("crop_height", "crop_width", "message_bytes"):
        if getattr(view, name) < 1:
            raise ValueError(f"the view's {name} must be at least 1, not {getattr(view, name)}")
    crop = ArraySpec((view.crop_height, view.crop_width), "uint8")
    return {
        "chars": crop,
        "colors": crop,
        "blstats": ArraySpec((BLSTATS_SIZE,), "int32"),
        "message": ArraySpec((view.message_bytes,), "uint8"),
    }


def action_names(actions: Sequence[int]) -> tuple[str, ...]:
    """NLE's names of its key codes, with `FAR_` before the directions that run; unique within the set."""
    names: list[str] = []
    for action in actions:
        enumeration, _, name = nethack.action_id_to_type(action).rpartition(".")
        if hasattr(action, "name"):
            enumeration, name = type(action).__name__, action.name  # pyright: ignore[reportAttributeAccessIssue]
        name = f"FAR_{name}" if enumeration.endswith("Longer") else name
        names.append(f"{enumeration}.{name}" if name in names else name)
    return tuple(names)


class Crop:
    """Cuts the window around the agent out of a map, blank where the window reaches beyond it."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._up, self._left = height // 2, width // 2

    def __call__(self, y: int, x: int, *layers: tuple[NDArray[np.uint8], int, NDArray[np.uint8]]) -> None:
        """For each layer (source, blank, out), all sources of one shape: writes into `out` [height, width] the window
        of `source` with (y, x) at its [height // 2, width // 2]."""
        top, left = y - self._up, x - self._left
        bottom, right = top + self.height, left + self.width
        rows, columns = layers[0][0].shape
        if top >= 0 and left >= 0 and bottom <= rows and right <= columns:
            for source, _, out in layers:
                out[...] = source[top:bottom, left:right]
            return
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = max(min(bottom, rows), y0), max(min(right, columns), x0)
        for source, blank, out in layers:
            out.fill(blank)
            out[y0 - top : y1 - top, x0 - left : x1 - left] = source[y0:y1, x0:x1]


class Tally:
    """What is measured of an episode, from the status lines and the maps that came by."""

    def __init__(self) -> None:
        self.depth = 0
        self.kills = 0
        self._last: list[int] = []
        self._level: tuple[int, int] | None = None
        self._map = b""
        self._seen: dict[tuple[int, int], int] = {}

    def add(self, blstats: list[int], map_chars: bytes) -> None:
        """One step of a game that still runs: its status line and its map."""
        level = (blstats[DUNGEON], blstats[LEVEL])
        if level != self._level:
            self._leave()
            self._level = level
            self.depth = max(self.depth, blstats[DEPTH])
        self._last = blstats
        self._map = map_chars

    def _leave(self) -> None:
        """Counts the squares of the level's last map that show something. Before the level changes it need not be
        counted, as a map hardly ever loses what it has shown."""
        if self._level is not None:
            tiles = len(self._map) - self._map.count(b" ")
            self._seen[self._level] = max(tiles, self._seen.get(self._level, 0))

    def metrics(self) -> dict[str, float]:
        """Deepest dungeon level; gold, experience level and score at last; squares seen, over all levels; kills."""
        self._leave()
        last = self._last
        return {
            "dungeon_level": float(self.depth),
            "gold": float(last[GOLD]),
            "experience_level": float(last[EXPERIENCE_LEVEL]),
            "score": float(last[SCORE]),
            "scout": float(sum(self._seen.values())),
            "kills": float(self.kills),
        }


class NleEnv(DirectEnv):
    """A game behind the interface of all environments. See `docs/environments.md` for what its parts mean.

    `has_won` says of a finished game's end status whether it is a success; without it the task has no such notion.
    `run_reset(game, core)` starts the game anew after its seeds have been set; `core` is the one that fixes the level.
    """

    def __init__(
        self,
        env_id: str,
        game: GameRules,
        view: View,
        options: Mapping[str, Any],
        has_won: Callable[[Any], bool] | None,
        run_reset: Callable[[GameRules, int], None],
    ) -> None:
        super().__init__(
            EnvSpec(
                id=env_id,
                observation=observation_spec(view),
                action_names=action_names(game.actions),
                max_episode_steps=int(game._max_episode_steps),
                has_success=has_won is not None,
                options=dict(options),
                view=view,
            )
        )
        self.game = game
        self._has_won = has_won
        self._run_reset = run_reset
        self._seeds: dict[str, str] = {}
        self._crop = Crop(view.crop_height, view.crop_width)
        self._message_bytes = min(view.message_bytes, MESSAGE_SIZE)
        self._ear = game.ear
        buffers = game.nethack._obs_buffers
        self._chars: NDArray[np.uint8] = buffers["chars"]
        self._colors: NDArray[np.uint8] = buffers["colors"]
        self._blstats: NDArray[np.int64] = buffers["blstats"]
        self._message: NDArray[np.uint8] = buffers["message"]
        self._terminal = Terminal(buffers["tty_chars"], buffers["tty_colors"])
        self._now: list[int] = self._blstats.tolist()
        self._tally = Tally()

    def begin(self, seed: int) -> StepInfo:
        """Sets the game's seeds and starts it. NLE itself ignores the seed of `reset`, so they are set beneath it."""
        core, disp = (int(word) for word in np.random.SeedSequence(seed).generate_state(2, np.uint64))
        game = self.game
        # By the class, since NetHackChallenge replaces the method of its instance by one that raises.
        type(game.nethack).set_initial_seeds(game.nethack, core, disp, False, None)
        self._seeds = {"seed": str(seed), "core": str(core), "disp": str(disp)}
        # Otherwise the list of scores that is shown at the end, and who is a statue on some levels, would depend on the games
        # that this instance played before.
        os.truncate(f"{game.nethack._vardir}/record", 0)
        self._ear.listen()
        self._run_reset(game, core)
        birth = birth_of(core)
        if pin_birth(game.nethack.dlpath, birth):
            self._seeds[PINNED] = str(birth)
        self._now = self._blstats.tolist()
        self._tally = Tally()
        self._tally.add(self._now, self._chars.tobytes())
        # NLE passes over the game's opening without a key press, so the ear may have missed what it said.
        caption = self._ear.said().caption or text_of(self._message.tobytes())
        return {"caption": caption, "grounded": True}

    def advance(self, action: int) -> tuple[float, bool, bool, StepInfo]:
        game, before = self.game, self._now
        self._ear.listen()
        _, reward, done, _, outcome = game.step(action)
        now = self._now = game.now
        said = self._ear.said()
        status = outcome["end_status"]
        dead = status == game.StepStatus.DEATH
        self._tally.kills += said.kills
        if not dead:  # a game that is over shows a status line of zeros and an empty map
            self._tally.add(now, self._chars.tobytes())
        info: StepInfo = {"caption": said.caption, "grounded": dead or _was_executed(before, now, said.refused)}
        if not done:
            return reward, False, False, info
        truncated = status == game.StepStatus.ABORTED
        info["success"] = None if self._has_won is None else self._has_won(status)
        info["metrics"] = self._tally.metrics()
        return reward, not truncated, truncated, info

    def observe_into(self, out: Observation) -> None:
        now = self._now
        self._crop(now[Y], now[X], (self._chars, BLANK, out["chars"]), (self._colors, 0, out["colors"]))
        blstats = out["blstats"]
        if max(now) <= _INT32.max and min(now) >= _INT32.min:
            blstats[...] = self._blstats
        else:
            np.clip(self._blstats, _INT32.min, _INT32.max, out=blstats, casting="unsafe")
        n = self._message_bytes
        out["message"][:n] = self._message[:n]

    @property
    def seeds(self) -> dict[str, str]:
        return dict(self._seeds)

    def screen(self) -> str:
        """The terminal: the message line, the map, two status lines."""
        return "\n".join(row.tobytes().decode("latin-1").rstrip() for row in self._terminal.chars)

    def terminal(self) -> Terminal:
        """The cells that `screen` shows."""
        return self._terminal

    def close(self) -> None:
        self.game.close()


def _was_executed(before: list[int], now: list[int], refused: bool) -> bool:
    """Whether the game carried a command out, by the status lines before and after.

    Time alone does not tell: a fast character moves without its passing, and some refusals cost a turn.
    """
    moved = any(now[index] != before[index] for index in (X, Y, LEVEL, DUNGEON))
    return moved or (now[TIME] != before[TIME] and not refused)
