"""Who goes on from the step at which an episode is forked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agents.networks import NETWORKS, build_policy
from agents.networks.base import RecurrentPolicy
from envs.base import View
from learner.checkpoint import latest_checkpoint, load_policy, load_state
from orchestration.configuration.loader import read_config
from orchestration.errors import UsageError
from orchestration.traces.reader import Trace
from orchestration.traces.replay.worlds import Seen
from orchestration.traces.schema import EnvStep
from orchestration.traces.spoken import Spoken

RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy does next."""

    action: int
    """-1 where actions are commands in words."""
    name: str
    log_prob: float | None
    value: float | None
    """Its estimate before the action; None where it has none."""
    spoken: Spoken | None = None
    """What a language model said to choose it."""


class ForkPolicy(Protocol):
    """Reads every observation of an episode in order; asked at some of them what to do."""

    name: str
    label: str
    """What branches are called by it."""
    version: int
    view: View | None
    """What it has to be shown; None where it does not look."""

    def read(self, seen: Seen) -> None: ...

    def recall(self, step: EnvStep) -> None:
        """What the parent's episode did after what was read last."""
        ...

    def choose(self) -> Choice | None:
        """Its choice after what it read last; None where it cannot go on, as its context is full."""
        ...

    def close(self) -> None: ...


class RandomPolicy:
    """Any action, or any command that the world would execute now, each as likely as the others."""

    name = label = RANDOM
    version = 0
    view: View | None = None

    def __init__(self, action_names: tuple[str, ...], seed: int) -> None:
        self._names = action_names
        self._random = np.random.default_rng(seed)
        self._choices: tuple[str, ...] = action_names

    def read(self, seen: Seen) -> None:
        if not self._names:
            self._choices = seen.admissible

    def recall(self, step: EnvStep) -> None: ...

    def choose(self) -> Choice:
        """Raises `UsageError` in a text world that does not say which commands it would execute."""
        if not self._choices:
            raise UsageError("--policy random: this world does not say which commands it would execute")
        index = int(self._random.integers(len(self._choices)))
        log_prob = -float(np.log(len(self._choices)))
        return Choice(index if self._names else -1, self._choices[index], log_prob, None)

    def close(self) -> None: ...


class CheckpointPolicy:
    """The recurrent policy of a checkpoint. Actions are drawn from it, as in training."""

    def __init__(
        self, policy: RecurrentPolicy, action_names: tuple[str, ...], *, name: str, version: int, view: View, seed: int
    ) -> None:
        self.name, self.label, self.version = name, f"{name}-v{version}", version
        self.view: View | None = view
        self._policy = policy.eval()
        self._names = action_names
        self._generator = torch.Generator().manual_seed(seed)
        self._state = policy.initial_state(1)
        self._is_first = True
        self._log_probs = torch.zeros(len(action_names))
        self._value = 0.0

    @torch.inference_mode()
    def read(self, seen: Seen) -> None:
        tensors = {name: _batched(array) for name, array in seen.observation.items()}
        start = torch.full((1, 1), self._is_first)
        output = self._policy(tensors, start, self._state)
        self._state, self._is_first = output.state[0], False
        self._log_probs = torch.log_softmax(output.logits[0, 0], dim=-1)
        self._value = float(output.value[0, 0])

    def recall(self, step: EnvStep) -> None: ...

    def log_probs(self) -> NDArray[np.float32]:
        """Of each action, after what was read last: [A]."""
        return self._log_probs.numpy()

    def choose(self) -> Choice:
        action = int(torch.multinomial(self._log_probs.exp(), 1, generator=self._generator).item())
        return Choice(action, self._names[action], float(self._log_probs[action]), self._value)

    def close(self) -> None: ...


def _batched(array: NDArray[Any]) -> torch.Tensor:
    """[...] as [T = 1, B = 1, ...]."""
    return torch.from_numpy(np.array(array))[None, None]


def build_fork_policy(policy: str, trace: Trace, seed: int) -> ForkPolicy:
    """`random`, the policy of the checkpoint or run in the folder `policy`, or the language model in it.

    Raises `UsageError` for a checkpoint that is not there or cannot play the world of `trace`, `CheckpointError` for a
    damaged one, `LanguageModelError` for a model that cannot be spoken to.
    """
    header = trace.header
    if policy == RANDOM:
        return RandomPolicy(header.action_names, seed)
    folder = Path(policy).expanduser()
    checkpoint = folder if (folder / "config.json").is_file() else _checkpoint(folder)
    if _speaks(checkpoint):
        if header.action_names:
            raise UsageError(
                f"--policy {policy}: {header.env_id} was played by a network, with keys; this model says commands"
            )
        from orchestration.traces.replay.language import language_policy

        return language_policy(checkpoint, trace, seed)
    if not header.action_names:
        raise UsageError(f"--policy {policy}: {header.env_id} was played with words, which this policy does not speak")
    config = read_config(checkpoint / "config.yaml")
    weights: Mapping[str, torch.Tensor] = load_policy(checkpoint)
    actions = int(weights["actor.weight"].shape[0])
    if actions != len(header.action_names):
        raise UsageError(
            f"--policy {policy}: it plays {config.env.id} with {actions} actions, "
            f"{header.env_id} has {len(header.action_names)}"
        )
    network = build_policy(config.agent.network, actions)
    network.load_state_dict(weights)
    version = int(load_state(checkpoint)["learner"]["learner"]["version"])
    return CheckpointPolicy(
        network,
        header.action_names,
        name=config.agent.network,
        version=version,
        view=NETWORKS[config.agent.network].view,
        seed=seed,
    )


def _speaks(folder: Path) -> bool:
    """Whether a language model is in the folder of a model or checkpoint."""
    return (folder / "config.json").is_file() or read_config(folder / "config.yaml").agent.model is not None


def _checkpoint(folder: Path) -> Path:
    if (folder / "manifest.json").is_file():
        return folder.resolve()
    if not folder.is_dir():
        raise UsageError(
            f"--policy {folder}: no such folder; name a checkpoint, a run's folder, a model's, or {RANDOM!r}"
        )
    newest = latest_checkpoint(folder / "checkpoints") or latest_checkpoint(folder)
    if newest is None:
        raise UsageError(
            f"--policy {folder}: holds no checkpoint and no model; name a checkpoint, a run's folder, a model's, or {RANDOM!r}"
        )
    return newest.resolve()
