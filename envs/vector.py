"""Many environments stepped in one process: they reset by themselves, and one that raises is replaced and counted."""

import hashlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from envs.base import Observation, StepInfo, YendorEnv
from envs.direct import DirectEnv, empty_observation

Watcher = Callable[[YendorEnv, Observation, bool], None]
"""Called after each step of one environment, before a next episode begins there: the environment, what is seen (valid
during the call), and whether the episode has ended. Not called for a step that raised."""

MAX_FAILURES_IN_A_ROW = 3
"""So many failures of one place without a single good step between them are no accident, and are raised."""


class ReplacementError(RuntimeError):
    """An environment failed again and again; the message names the last root cause."""


@dataclass(frozen=True, slots=True)
class EpisodeEnd:
    """An episode that ended by the game's rules or at its time limit."""

    env_index: int
    episode_index: int
    seeds: dict[str, str]
    episode_return: float
    """The sum of the environment's own rewards, undiscounted."""
    length: int
    """Steps."""
    success: bool | None
    metrics: dict[str, float]
    terminated: bool
    """False where the time limit cut the episode off."""


@dataclass(frozen=True, slots=True)
class EnvFailure:
    """An episode that was lost because its environment raised; the environment has been replaced."""

    env_index: int
    episode_index: int
    error: str
    """The type and message of the exception."""
    traceback: str


@dataclass(frozen=True, slots=True)
class VectorStep:
    """The outcome of one step of every environment. B is their count."""

    observation: Observation
    """[B, ...], after the reset where an episode ended. The stepper's own arrays: valid until the next step."""
    reward: NDArray[np.float32]
    """[B], as the environments give it."""
    terminated: NDArray[np.bool_]
    """[B], the game was won or lost."""
    truncated: NDArray[np.bool_]
    """[B], the episode was cut off (time limit, failure): bootstrap from `final_observation`."""
    captions: list[str]
    """[B], what this step brought, before any reset."""
    grounded: NDArray[np.bool_]
    """[B], whether the action could be executed."""
    final_observation: dict[int, Observation]
    """Where `truncated`: the last observation of the episode that ended (copies)."""
    episodes: tuple[EpisodeEnd, ...]
    failures: tuple[EnvFailure, ...]


@dataclass(slots=True)
class _Slot:
    """One place of the batch: its environment and the episode that runs there."""

    env: YendorEnv
    row: Observation
    """Views of this place's rows in the batch."""
    episode_index: int = -1
    actions: list[int] = field(default_factory=list[int])
    episode_return: float = 0.0
    failures_in_a_row: int = 0
    opening: str = ""
    """Caption of the reset."""


class VectorEnv:
    """`count` environments made by `make`, stepped one after the other.

    `seed_of(env_index, episode_index)` gives the seed of every episode, so that what an environment plays depends on
    neither the other environments nor on time. An exception of an environment ends its episode as a truncation, is
    reported in the step's `failures`, and a fresh environment takes its place with the next episode.
    """

    def __init__(self, make: Callable[[], YendorEnv], count: int, seed_of: Callable[[int, int], int]) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        self.count = count
        self.failures = 0
        """How many environments have been replaced so far."""
        self._make = make
        self._seed_of = seed_of
        first = make()
        self.env_spec = first.env_spec
        self.observation = empty_observation(self.env_spec, count)
        """[B, ...], what is seen now. Valid until the next step."""
        envs = [first, *(make() for _ in range(count - 1))]
        self._slots = [
            _Slot(env, {name: batch[index] for name, batch in self.observation.items()})
            for index, env in enumerate(envs)
        ]
        self._unreported: list[EnvFailure] = []
        self.watched: dict[int, Watcher] = {}
        """Who is shown what each step of a place brought, by place."""

    def reset(self) -> Observation:
        """Starts the next episode everywhere (the first ones at first); returns `observation`."""
        for index in range(self.count):
            self._start_next(index)
        return self.observation

    def step(self, actions: NDArray[np.int64]) -> VectorStep:
        """Steps every environment; `actions` [B] are indices into the spec's `action_names`."""
        if actions.shape != (self.count,):
            raise ValueError(f"actions must have shape ({self.count},), not {actions.shape}")
        reward_B = np.zeros(self.count, np.float32)
        terminated_B, truncated_B = np.zeros(self.count, np.bool_), np.zeros(self.count, np.bool_)
        grounded_B = np.zeros(self.count, np.bool_)
        captions: list[str] = []
        final_observation: dict[int, Observation] = {}
        episodes: list[EpisodeEnd] = []
        for index, (slot, action) in enumerate(zip(self._slots, actions.tolist(), strict=True)):
            if slot.episode_index < 0:
                raise RuntimeError("reset must be called before the first step")
            try:
                reward, terminated, truncated, info = _advance(slot, action)
            except Exception as error:  # whatever a game raises costs its own episode and no other
                captions.append("")
                truncated_B[index] = True
                final_observation[index] = {name: row.copy() for name, row in slot.row.items()}
                self._replace(index, error)
                self._start_next(index)
                continue
            if index in self.watched:
                self.watched[index](slot.env, slot.row, terminated or truncated)
            slot.failures_in_a_row = 0
            slot.episode_return += reward
            slot.actions.append(action)
            reward_B[index] = reward
            captions.append(info.get("caption", ""))
            grounded_B[index] = info.get("grounded", True)
            if terminated or truncated:
                terminated_B[index], truncated_B[index] = terminated, truncated
                if truncated:
                    final_observation[index] = {name: row.copy() for name, row in slot.row.items()}
                episodes.append(_end_of(index, slot, info, terminated))
                self._start_next(index)
        failures, self._unreported = tuple(self._unreported), []
        return VectorStep(
            self.observation,
            reward_B,
            terminated_B,
            truncated_B,
            captions,
            grounded_B,
            final_observation,
            tuple(episodes),
            failures,
        )

    def episode_index(self, index: int) -> int:
        """The number of the episode that runs in one environment, 0 for its first; -1 before the first `reset`."""
        return self._slots[index].episode_index

    def seeds(self, index: int) -> dict[str, str]:
        """The seeds of the episode that runs in place `index`."""
        return self._slots[index].env.seeds

    def opening(self, index: int) -> str:
        """What the opening of the episode that runs in place `index` said."""
        return self._slots[index].opening

    def env(self, index: int) -> YendorEnv:
        """The environment in place `index`."""
        return self._slots[index].env

    def close(self) -> None:
        for slot in self._slots:
            slot.env.close()

    def state_dict(self) -> dict[str, Any]:
        """The running games, in plain numbers, strings and lists. NetHack cannot be photographed, so a game is kept as
        its seed (by its episode's number) and the actions since."""
        return {
            "env_id": self.env_spec.id,
            "failures": self.failures,
            "slots": [
                {
                    "episode_index": slot.episode_index,
                    "actions": list(slot.actions),
                    "episode_return": slot.episode_return,
                    "digest": _digest(slot.row),
                }
                for slot in self._slots
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Plays the games of `state` again up to where they were, and returns `observation`.

        A game that does not come out as it was (the digest of what is seen differs) is reported with the next step as
        a failure, and that place goes on with its next episode. Raises ValueError where `state` is of other games.
        """
        if state["env_id"] != self.env_spec.id or len(state["slots"]) != self.count:
            raise ValueError(
                f"the state is of {len(state['slots'])} x {state['env_id']}, "
                f"these environments are {self.count} x {self.env_spec.id}"
            )
        self.failures = int(state["failures"])
        self._unreported = []
        for index, saved in enumerate(state["slots"]):
            slot = self._slots[index]
            slot.episode_index = int(saved["episode_index"])
            slot.failures_in_a_row = 0
            if slot.episode_index < 0:
                continue
            try:
                self._start(index)
                for action in saved["actions"]:
                    _advance(slot, action)
                if _digest(slot.row) != saved["digest"]:
                    raise RuntimeError(
                        f"the game came out differently when {len(saved['actions'])} steps were replayed"
                    )
            except Exception as error:  # the other games are still worth going on with
                self._replace(index, error)
                self._start_next(index)
                continue
            slot.actions = list(saved["actions"])
            slot.episode_return = float(saved["episode_return"])
        return self.observation

    def _start(self, index: int) -> None:
        """Starts the slot's current episode from its seed."""
        slot = self._slots[index]
        slot.actions = []
        slot.episode_return = 0.0
        seed = self._seed_of(index, slot.episode_index)
        if isinstance(slot.env, DirectEnv):
            info: Mapping[str, Any] = slot.env.begin(seed)
            slot.env.observe_into(slot.row)
        else:
            observation, info = slot.env.reset(seed=seed)
            _copy_into(slot.row, observation)
        slot.opening = str(info.get("caption", ""))

    def _start_next(self, index: int) -> None:
        """Starts the slot's next episode, in a fresh environment as often as starting it raises."""
        while True:
            self._slots[index].episode_index += 1
            try:
                return self._start(index)
            except Exception as error:  # counted, and raised when it goes on
                self._replace(index, error)

    def _replace(self, index: int, error: Exception) -> None:
        """Reports what the slot's environment raised, and puts a fresh one in its place."""
        slot = self._slots[index]
        text = f"{type(error).__name__}: {error}"
        self._unreported.append(EnvFailure(index, slot.episode_index, text, "".join(traceback.format_exception(error))))
        self.failures += 1
        slot.failures_in_a_row += 1
        if slot.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise ReplacementError(
                f"{text} (environment {index}, {self.env_spec.id}, failed {slot.failures_in_a_row} times in a row)"
            ) from error
        try:
            slot.env.close()
        except Exception as close_error:  # a broken game need not close; what it left is reported with the failure
            self._unreported[-1] = EnvFailure(
                index, slot.episode_index, f"{text} (and closing it: {close_error})", self._unreported[-1].traceback
            )
        slot.env = self._make()


def _advance(slot: _Slot, action: int) -> tuple[float, bool, bool, StepInfo]:
    """One step of the slot's environment; its rows of the batch change only if it does not raise."""
    env = slot.env
    if isinstance(env, DirectEnv):
        outcome = env.advance(action)
        env.observe_into(slot.row)
        return outcome
    observation, reward, terminated, truncated, info = env.step(action)
    _copy_into(slot.row, observation)
    return float(reward), terminated, truncated, cast(StepInfo, info)


def _copy_into(row: Observation, observation: Observation) -> None:
    for name, array in row.items():
        array[...] = observation[name]


def _end_of(index: int, slot: _Slot, info: StepInfo, terminated: bool) -> EpisodeEnd:
    return EpisodeEnd(
        env_index=index,
        episode_index=slot.episode_index,
        seeds=slot.env.seeds,
        episode_return=slot.episode_return,
        length=len(slot.actions),
        success=info.get("success"),
        metrics=info.get("metrics", {}),
        terminated=terminated,
    )


def _digest(row: Observation) -> str:
    """blake2b of an observation."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(row):
        state.update(row[name].tobytes())
    return state.hexdigest()
