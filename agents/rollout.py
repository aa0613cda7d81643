"""The rollout loop: one policy acts in many environments with one batched inference a step."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.following import Follower
from agents.networks.base import RecurrentPolicy
from agents.networks.crops import CropMemory
from agents.observer import EpisodeObserver
from agents.precision import products_in
from agents.report import FinishedEpisode, RolloutReport
from agents.telling import CaptionTeller
from agents.trajectory import Trajectory
from envs.vector import EnvFailure, VectorEnv, VectorStep


class CaptionCounter:
    """Ids of captions, and how often each came in the running episode of each environment."""

    def __init__(self, envs: int) -> None:
        self._teller = CaptionTeller()
        self._counts: list[dict[int, int]] = [{} for _ in range(envs)]

    def count(self, captions: Sequence[str], ids: NDArray[np.int64], counts: NDArray[np.int32]) -> None:
        """Writes the id [B] of each environment's caption and its count [B] in the episode, this time included."""
        for index, caption in enumerate(captions):
            if not caption:
                continue
            number = self._teller.number(caption)
            seen = self._counts[index]
            seen[number] = seen.get(number, 0) + 1
            ids[index] = number
            counts[index] = seen[number]

    def end_episode(self, index: int) -> None:
        """Forgets the counts of one environment."""
        self._counts[index] = {}

    def take_new(self) -> tuple[tuple[int, str], ...]:
        """Captions to be told of since the last call."""
        return self._teller.take_new()

    def tell_again(self, ids: Iterable[int]) -> None:
        """Captions that the learner does not know."""
        self._teller.tell_again(ids)

    def state_dict(self) -> dict[str, Any]:
        return {"texts": self._teller.told, "counts": [dict(c) for c in self._counts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._teller.remember(state["texts"])
        self._counts = [dict(c) for c in state["counts"]]


class Rollout:
    """Collects trajectories of fixed length; episodes and the recurrent state go on from call to call.

    Actions are drawn with a generator of its own, so a rollout is determined by its seed, its environments' seeds and
    the weights it is given.
    """

    def __init__(
        self,
        envs: VectorEnv,
        policy: RecurrentPolicy,
        *,
        length: int,
        seed: int,
        name: str = "actor-0",
        observer: EpisodeObserver | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.envs = envs
        self.policy = policy.eval()
        self.length = length
        self.dtype = dtype
        """Of the policy's matrix products."""
        self.name = name
        self.policy_version = 0
        self.reward_model_version: int | None = None
        """Of the newest reward model that this rollout was told of; None where there is none. Traces tell of it."""
        self._generator = torch.Generator().manual_seed(seed)
        self._captions = CaptionCounter(envs.count)
        self._state = policy.initial_state(envs.count)
        self._memory = CropMemory()
        self._start = np.ones(envs.count, dtype=np.bool_)
        self._follower = None if observer is None else Follower(observer, envs, name, length)
        self._prepared = self._begun = False

    def prepare(self) -> None:
        """Begins the games, which takes a second or more of NetHack. `collect` does where it was not done before."""
        if not self._prepared:
            self.envs.reset()
            self._prepared = True

    def set_weights(self, weights: Mapping[str, NDArray[Any]], version: int) -> None:
        """Takes new weights at once; the running episodes go on under them."""
        with torch.no_grad():
            own = self.policy.state_dict()
            for key, value in weights.items():
                own[key].copy_(torch.from_numpy(value))
        self.policy_version = version

    def tell_again(self, ids: Iterable[int]) -> None:
        """Captions that the learner does not know: they are told of when they come again."""
        self._captions.tell_again(ids)

    def collect(self) -> tuple[Trajectory, RolloutReport]:
        """T steps of every environment."""
        began = time.perf_counter()
        if not self._begun:
            self.prepare()
            self._begun = True
            if self._follower is not None:
                self._follower.begin(self.policy_version, self.reward_model_version)
        buffers = _Buffers.empty(self.envs, self.length)
        if self._follower is not None:
            self._follower.call(buffers, self.policy_version, self.reward_model_version)
        initial_state = self._state.numpy().copy()
        # Afresh in every call, so that what is computed never depends on where a run was interrupted.
        self._memory.forget()
        env_s = inference_s = first_step_at = 0.0
        episodes: list[FinishedEpisode] = []
        failures: list[EnvFailure] = []
        observation = self.envs.observation
        for t in range(self.length):
            buffers.read(t, observation, self._start)
            t0 = time.perf_counter()
            action, log_prob, value = self._act(observation)
            t1 = time.perf_counter()
            step = self.envs.step(action)
            t2 = time.perf_counter()
            inference_s += t1 - t0
            env_s += t2 - t1
            first_step_at = first_step_at or time.time()
            self._captions.count(step.captions, buffers.caption_id[t], buffers.caption_count[t])
            buffers.write(t, action, log_prob, value, step)
            np.logical_or(step.terminated, step.truncated, out=self._start)
            for index in np.flatnonzero(self._start):
                self._captions.end_episode(int(index))
            if self._follower is not None:
                self._follower.stepped(t, step, t2 - t1)
            episodes.extend(FinishedEpisode(t, end) for end in step.episodes)
            failures.extend(step.failures)
            observation = step.observation
        buffers.read(self.length, observation, self._start)
        if self._follower is not None:
            self._follower.called()
        trajectory = buffers.trajectory(self.policy_version, initial_state)
        spent = time.perf_counter() - began
        return trajectory, RolloutReport(
            source=self.name,
            policy_version=self.policy_version,
            steps=trajectory.steps * trajectory.batch,
            new_captions=self._captions.take_new(),
            episodes=tuple(episodes),
            failures=tuple(failures),
            trajectory_bytes=trajectory.nbytes,
            env_s=env_s,
            inference_s=inference_s,
            other_s=spent - env_s - inference_s,
            first_step_at=first_step_at,
            trouble=() if self._follower is None else self._follower.take_trouble(),
        )

    @torch.inference_mode()
    def _act(
        self, observation: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Samples one action for each environment; also its log-probability and the value estimate."""
        tensors = {k: torch.from_numpy(v).unsqueeze(0) for k, v in observation.items()}
        with products_in(self.dtype, torch.device("cpu")):
            output = self.policy(tensors, torch.from_numpy(self._start).unsqueeze(0), self._state, self._memory)
        self._state = output.state[0]
        log_probs = torch.log_softmax(output.logits[0], dim=-1)
        action = torch.multinomial(log_probs.exp(), 1, generator=self._generator)
        chosen = log_probs.gather(1, action).squeeze(1)
        return action.squeeze(1).numpy(), chosen.numpy(), output.value[0].numpy()

    def close(self) -> None:
        """Gives up running episodes and closes the environments."""
        if self._follower is not None:
            self._follower.close()
        self.envs.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the rollout goes on, the running games included."""
        return {
            "begun": self._begun,
            "envs": self.envs.state_dict(),
            "captions": self._captions.state_dict(),
            "state": self._state.clone(),
            "start": torch.from_numpy(self._start.copy()),
            "generator": self._generator.get_state(),
            "policy_version": self.policy_version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken. Episodes that were being followed are not followed on."""
        self._begun = state["begun"]
        if self._begun:
            self.envs.load_state_dict(state["envs"])
            self._prepared = True
        self._captions.load_state_dict(state["captions"])
        self._state = state["state"].clone()
        self._start = state["start"].numpy().copy()
        self._generator.set_state(state["generator"])
        self.policy_version = state["policy_version"]
        if self._follower is not None:
            self._follower.forget()


@dataclass(slots=True)
class _Buffers:
    """The arrays of one trajectory while it is being filled."""

    observation: dict[str, NDArray[Any]]
    start: NDArray[np.bool_]
    action: NDArray[np.int64]
    log_prob: NDArray[np.float32]
    value: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    caption_id: NDArray[np.int64]
    caption_count: NDArray[np.int32]
    grounded: NDArray[np.bool_]
    final: list[tuple[int, int, Mapping[str, NDArray[Any]]]]

    @classmethod
    def empty(cls, envs: VectorEnv, length: int) -> "_Buffers":
        shape = (length, envs.count)
        return cls(
            observation={
                k: np.empty((length + 1, envs.count, *spec.shape), dtype=spec.dtype)
                for k, spec in envs.env_spec.observation.items()
            },
            start=np.empty((length + 1, envs.count), dtype=np.bool_),
            action=np.empty(shape, dtype=np.int64),
            log_prob=np.empty(shape, dtype=np.float32),
            value=np.empty(shape, dtype=np.float32),
            reward=np.empty(shape, dtype=np.float32),
            terminated=np.empty(shape, dtype=np.bool_),
            truncated=np.empty(shape, dtype=np.bool_),
            caption_id=np.zeros(shape, dtype=np.int64),
            caption_count=np.zeros(shape, dtype=np.int32),
            grounded=np.empty(shape, dtype=np.bool_),
            final=[],
        )

    def read(self, t: int, observation: Mapping[str, NDArray[Any]], start: NDArray[np.bool_]) -> None:
        for key, value in observation.items():
            self.observation[key][t] = value
        self.start[t] = start

    def write(
        self,
        t: int,
        action: NDArray[np.int64],
        log_prob: NDArray[np.float32],
        value: NDArray[np.float32],
        step: VectorStep,
    ) -> None:
        self.action[t] = action
        self.log_prob[t] = log_prob
        self.value[t] = value
        self.reward[t] = step.reward
        self.terminated[t] = step.terminated
        self.truncated[t] = step.truncated
        self.grounded[t] = step.grounded
        self.final.extend((t, index, step.final_observation[index]) for index in sorted(step.final_observation))

    def trajectory(self, policy_version: int, initial_state: NDArray[np.float32]) -> Trajectory:
        final_observation = {
            key: np.stack([o[key] for _, _, o in self.final])
            if self.final
            else np.empty((0, *value.shape[2:]), dtype=value.dtype)
            for key, value in self.observation.items()
        }
        return Trajectory(
            policy_version=policy_version,
            observation=self.observation,
            start=self.start,
            initial_state=initial_state,
            action=self.action,
            log_prob=self.log_prob,
            value=self.value,
            reward=self.reward,
            terminated=self.terminated,
            truncated=self.truncated,
            caption_id=self.caption_id,
            caption_count=self.caption_count,
            grounded=self.grounded,
            final_index=np.array([(t, b) for t, b, _ in self.final], dtype=np.int32).reshape(-1, 2),
            final_observation=final_observation,
        )
