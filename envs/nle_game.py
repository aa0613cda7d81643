"""NLE's base class with what training needs put right, and an ear on everything that the game says.

`GameRules` goes between a task class and `nle.env.base.NLE` (`class Task(NetHackScore, GameRules)`): it derives from
NLE, so Python's method order places it right before NLE, below every task class, whoever wrote that.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Iterable
from typing import Any

import numpy as np
from nle.env.base import NLE
from nle.nethack import Nethack
from numpy.typing import NDArray

from envs.messages import NOTHING, Said, compose, text_of
from envs.nle_constants import TIME

Buffers = tuple[NDArray[Any], ...]
"""One array per observation key of NLE, which the game fills anew at every key press."""

MAX_LINES_PER_STEP = 2000
"""A step that shows more lines than this goes round in circles (a door that never opens), and is given up."""

IN_YN, IN_GETLIN, WAITS_FOR_SPACE = 1, 2, 3
"""Where NLE's `internal` says what kind of input the game waits for."""


class Ear:
    """Hears what one game says. It takes the place of `nethack.step`, through which every key press goes."""

    def __init__(self, game: Nethack) -> None:
        core: Any = game._pynethack
        press, is_done, buffers = core.step, core.done, game._obs
        message: NDArray[np.uint8] = game._obs_buffers["message"]
        internal: NDArray[np.int32] = game._obs_buffers["internal"]
        statements: list[bytes] = []
        questions: list[bytes] = []
        self.statements = statements
        """The raw message lines since `listen`, in their order, without questions that wait for an answer."""
        self.questions = questions
        """The raw message lines since `listen` that asked the player something."""

        def step(action: int) -> tuple[Buffers, bool]:
            press(action)
            if message[0]:
                asks = (internal[IN_YN] or internal[IN_GETLIN]) and not internal[WAITS_FOR_SPACE]
                (questions if asks else statements).append(message.tobytes())
                if len(statements) + len(questions) > MAX_LINES_PER_STEP:
                    raise RuntimeError(
                        f"the game has not come back from one step after {MAX_LINES_PER_STEP} messages; "
                        f"the last was {text_of(message.tobytes())!r}"
                    )
            return buffers, is_done()

        game.step = step

    def listen(self) -> None:
        """Forgets what was said before."""
        self.statements.clear()
        self.questions.clear()

    def said(self) -> Said:
        """What was said since `listen`."""
        if not self.statements and not self.questions:
            return NOTHING
        return compose(tuple(self.statements), tuple(self.questions))


class GameRules(NLE):
    """How a step ends, and what it costs.

    Different from NLE: at the step limit the game is not quit, so that the last observation stays what it was (a
    learner bootstraps from it); a win on the last step allowed counts; the previous observation is not copied whole.
    """

    _steps: int
    last_observation: Buffers
    ear: Ear
    before: list[int]
    """The status line when the last step of NLE began, and `now` when it had ended (nle.nethack.NLE_BL_*)."""
    now: list[int]

    def prepare(self, keys: Iterable[str]) -> None:
        """To be called once, before the first reset: lets the game fill only the arrays named, and listens to it.

        The other arrays become empty, so that copying them costs nothing. Describing every square in words
        (`screen_descriptions`) alone costs as much time as the rest of a step.
        """
        game, wanted = self.nethack, set(keys)
        core: Any = game._pynethack
        core.set_buffers(**{key: array for key, array in game._obs_buffers.items() if key in wanted})
        game._obs = tuple(
            array if key in wanted else np.zeros(0, array.dtype) for key, array in game._obs_buffers.items()
        )
        self._chars_index = self._observation_keys.index("chars")
        self.ear = Ear(game)

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.before = self.last_observation[self._blstats_index].tolist()
        previous = self._remember()
        observation, done = self.nethack.step(self.actions[action])
        if not self._allow_all_modes or observation[self._program_state_index][0] == 1:  # 1: the game is over
            observation, done = self._perform_known_steps(observation, done, exceptions=True)
        self._steps += 1
        self.last_observation = observation
        self.now = observation[self._blstats_index].tolist()
        status = self._get_end_status(observation, done)
        reward = float(self._reward_fn(previous, action, observation, status))
        return {}, reward, bool(status), False, {"end_status": status}

    def _remember(self) -> Buffers:
        """The observation before a step, as far as the reward looks at it: in NLE's own tasks, the status line."""
        index, live = self._blstats_index, self.last_observation
        return (*live[:index], live[index].copy(), *live[index + 1 :])

    def _get_end_status(self, observation: Buffers, done: bool) -> Any:
        status = self._is_episode_end(observation)
        if done:
            return self.StepStatus.DEATH
        if not status and self._check_abort(observation):
            return self.StepStatus.ABORTED
        return status

    def _get_observation(self, observation: Buffers) -> dict[str, Any]:
        del observation  # the arrays are read where the game writes them
        return {}

    def _get_information(self, end_status: Any) -> dict[str, Any]:
        return {"end_status": end_status}

    def _stood_still(self) -> bool:
        """Whether game time did not pass during the last step."""
        return self.before[TIME] == self.now[TIME]
