"""The 28 actions of ONI (arXiv 2410.23022): NLE's 23 task actions and five commands that ask further questions.

A question that can be answered without a choice is answered at once: the first spell is cast, the first thing listed is
eaten or drunk, a skill is enhanced when the game says that it can be. Directions, and whether really to attack or to
pray, stay with the agent (its direction keys answer, `NW` is NetHack's "y"). Every other question is escaped.
"""

import re

from nle import nethack
from nle.env.tasks import TASK_ACTIONS

from envs.nle_game import IN_YN, WAITS_FOR_SPACE, Buffers, GameRules

_Command = nethack.Command

ONI_ACTIONS: tuple[int, ...] = (
    *TASK_ACTIONS,
    _Command.CAST,
    _Command.QUAFF,
    _Command.PRAY,
    _Command.PICKUP,
    _Command.PAY,
)

SPACE, ESCAPE, FIRST = ord(" "), 0x1B, ord("a")

_CAN_ENHANCE = (b"more confident in your", b"could be more dangerous")
"""weapon.c: give_may_advance_msg() and skill_advance(), after which `#enhance` has something to offer."""

_CONSUMES = re.compile(rb"\b(?:eat|drink|quaff)\b", re.IGNORECASE)
_CHOICES = re.compile(rb"\[([^\]]*)\]")
_LEFT_TO_AGENT = (b"direction?", b"attack", b"pray")

MAX_ANSWERS = 64
"""A command that asks more than this is escaped for good (getobj() itself gives up after five wrong answers)."""


def first_choice(question: bytes) -> int | None:
    """The first letter that a question lists ("What do you want to eat? [fgh or ?*]" gives f), if it lists any."""
    listed = _CHOICES.search(question)
    if listed is None:
        return None
    letters = re.search(rb"[A-Za-z]", listed[1].partition(b" or ")[0])
    return letters[0][0] if letters else None


class OniKeys(GameRules):
    """Answers the game's questions as above. Comes before the task in the method order."""

    _casts = False
    """Whether the command of this step was CAST and its menu has not been answered yet."""

    def step(self, action: int):
        self._casts = self.actions[action] == _Command.CAST
        return super().step(action)

    def _perform_known_steps(self, observation: Buffers, done: bool, exceptions: bool = True) -> tuple[Buffers, bool]:
        observation, done = self._answer(observation, done, exceptions)
        if not done and any(sign in line for line in self.ear.statements for sign in _CAN_ENHANCE):
            observation, done = self.nethack.step(_Command.ENHANCE)
            if not done and observation[self._internal_index][WAITS_FOR_SPACE]:  # the menu of skills
                observation, done = self.nethack.step(FIRST)
            observation, done = self._answer(observation, done, exceptions)
        return observation, done

    def _answer(self, observation: Buffers, done: bool, exceptions: bool) -> tuple[Buffers, bool]:
        """Goes on until the game waits for a command or for an answer that is the agent's to give."""
        internal, line = observation[self._internal_index], observation[self._message_index]
        for _ in range(MAX_ANSWERS):
            if done:
                break
            in_yn, in_getlin, waits_for_space = internal[IN_YN : WAITS_FOR_SPACE + 1].tolist()
            if waits_for_space:
                key = FIRST if self._casts and not line[0] else SPACE
                self._casts = False
            elif in_getlin:
                key = ESCAPE
            elif in_yn:
                question = line.tobytes()
                key = first_choice(question) if _CONSUMES.search(question) else None
                if key is None:
                    if exceptions and any(text in question for text in _LEFT_TO_AGENT):
                        break
                    key = ESCAPE
            else:
                break
            observation, done = self.nethack.step(key)
        return observation, done
