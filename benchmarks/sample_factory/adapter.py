"""Trains this project's network on this project's environment with Sample Factory; runs in its environment, not in ours.

`python -m benchmarks.sample_factory.adapter --network=… --env=… [flags of Sample Factory]`

What is the same as in `yendor train`: the environment with the network's view, the encoder module (with --plain=True one
that computes the same without sharing anything between steps), a GRU with the same equations and parameters, linear
heads, and the first weights of all of them. What is Sample Factory's own: everything
else. Its GRU is `torch.nn.GRU`, not `agents.networks.base.GRUCore`: its learner cuts sequences where episodes end and
packs them, which `GRUCore` (states zeroed in place) does not read, and the native one is the quicker of the two there.
"""

# pyright: reportMissingImports=false

import functools
import json
import operator
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.make_env import BatchedListToDictWrapper
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.actor_critic import ActorCriticSharedWeights
from sample_factory.model.encoder import Encoder
from sample_factory.model.model_factory import ModelFactory
from sample_factory.train import make_runner
from sample_factory.utils.utils import str2bool
from torch import Tensor, nn

from agents.networks import NETWORKS, build_policy
from agents.networks import crops as networks
from agents.networks.base import RecurrentPolicy
from benchmarks.plain import PlainEncoder
from envs import Observation, VectorEnv, YendorEnv, make

# Wrappers of gymnasium 1.x no longer pass on what they do not have; this one of Sample Factory counts on it.
for _name in ("num_agents", "is_multiagent"):
    setattr(BatchedListToDictWrapper, _name, property(operator.attrgetter(f"env.{_name}")))


class BatchedEnv(gym.Env[Observation, Any]):
    """Our batched stepper as Sample Factory's vectorised environment: as many "agents" as there are games."""

    is_multiagent = True

    def __init__(self, network: str, env_id: str, games: int, first_seed: int) -> None:
        self._envs = VectorEnv(lambda: _make(network, env_id), games, lambda i, n: first_seed + i + n * 1_000_000)
        self.num_agents = games
        one = _make(network, env_id)
        self.observation_space, self.action_space = one.observation_space, one.action_space
        one.close()
        self._infos: list[dict[str, Any]] = [{} for _ in range(games)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """Starts the games. Their seeds were given to the constructor."""
        return self._envs.reset(), self._infos

    def step(self, action: NDArray[np.int32]) -> tuple[Observation, Any, Any, Any, Any]:
        """One step of all games; `action` [games]. A game that ended has begun anew, as Sample Factory expects."""
        step = self._envs.step(action.astype(np.int64))
        return step.observation, step.reward, step.terminated, step.truncated, self._infos

    def close(self) -> None:
        self._envs.close()


class NetworkEncoder(Encoder):
    """The encoder module of our policy."""

    def __init__(self, encoder: networks.Encoder | PlainEncoder, cfg: Any, observation: gym.spaces.Dict) -> None:
        super().__init__(cfg)
        self.module = encoder
        self._types = {name: torch.from_numpy(np.zeros(1, s.dtype)).dtype for name, s in observation.spaces.items()}

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        return self.module(observation)

    def get_out_size(self) -> int:
        return self.module.crop_features + self.module.rest_features

    def type_for_input_tensor(self, input_tensor_name: str) -> torch.dtype:
        """As the environment gives it: our encoders read bytes and integers, and nothing is converted to floats."""
        return self._types[input_tensor_name]


class Network(ActorCriticSharedWeights):
    """Sample Factory's actor-critic around our encoder, with our policy's first weights everywhere."""

    def __init__(
        self, policy: RecurrentPolicy, observation: gym.spaces.Dict, actions: gym.Space[Any], cfg: Any
    ) -> None:
        factory = ModelFactory()
        encoder = PlainEncoder(policy.encoder) if cfg.plain else policy.encoder
        factory.register_encoder_factory(functools.partial(NetworkEncoder, encoder))
        super().__init__(factory, observation, actions, cfg)
        self.core.core.load_state_dict({f"{k}_l0": v for k, v in policy.core.cell.state_dict().items()})
        self.action_parameterization.distribution_linear.load_state_dict(policy.actor.state_dict())
        self.critic_linear.load_state_dict(policy.critic.state_dict())
        ours, theirs = _parameters(policy), _parameters(self)
        if ours != theirs:
            raise RuntimeError(f"not the same network: {theirs} parameters in Sample Factory, {ours} in the policy")

    def initialize_weights(self, layer: nn.Module) -> None:
        """Nothing: the weights are those of our policy."""


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _make(network: str, env_id: str) -> YendorEnv:
    return make(env_id, view=NETWORKS[network].view)


def make_env(full_env_name: str, cfg: Any, env_config: Any, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """What Sample Factory calls for each environment (in batched sampling: for each batch of games)."""
    if not cfg.batched_sampling:
        return _make(cfg.network, full_env_name)
    first = 0 if env_config is None else env_config.env_id * cfg.games
    return BatchedEnv(cfg.network, full_env_name, cfg.games, first)


def make_network(cfg: Any, observation: gym.spaces.Dict, actions: gym.spaces.Discrete) -> Network:
    """What Sample Factory calls in the learner and in each policy worker."""
    torch.set_num_threads(cfg.threads)  # after Sample Factory's own call, which sets one
    torch.manual_seed(0)
    return Network(build_policy(cfg.network, int(actions.n)), observation, actions, cfg)


class Progress(AlgoObserver):
    """Writes a line for each training iteration, and ends the run `seconds` after the first one."""

    def __init__(self, file: TextIO, samples: int, seconds: float) -> None:
        self._file, self._samples, self._seconds = file, samples, seconds
        self._began: float | None = None

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now
        self._file.write(json.dumps({"t": now, "env_steps": training_iteration_since_resume * self._samples}) + "\n")
        if now - self._began >= self._seconds:
            runner.cfg.train_for_env_steps = 0


def main(arguments: Sequence[str]) -> None:
    """Runs to the end; leaves `progress.jsonl` and `profile.json` (seconds by component and activity) in `--out`."""
    parser, _ = parse_sf_args(list(arguments))
    parser.add_argument("--network", choices=sorted(NETWORKS), required=True)
    parser.add_argument("--plain", type=str2bool, required=True, help="encode every step by itself")
    parser.add_argument("--games", type=int, required=True, help="games of one batch, with --batched_sampling=True")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads of learner and policy worker each")
    parser.add_argument("--seconds", type=float, required=True, help="length of the run, from its first update")
    parser.add_argument("--out", required=True, help="an existing folder")
    cfg = parse_full_cfg(parser, list(arguments))
    cfg.rnn_size = build_policy(cfg.network, 1).state_size
    register_env(cfg.env, make_env)
    global_model_factory().register_actor_critic_factory(make_network)
    cfg, runner = make_runner(cfg)
    out = Path(cfg.out)
    with (out / "progress.jsonl").open("w", buffering=1) as file:
        runner.register_observer(Progress(file, cfg.batch_size * cfg.num_batches_per_epoch, cfg.seconds))
        status = runner.init()
        status = runner.run() if status == ExperimentStatus.SUCCESS else status
    if status != ExperimentStatus.SUCCESS:
        sys.exit(f"Sample Factory ended with status {status}")
    components = dict([("runner", runner.timing), *runner.component_profiles])
    profile = {n: {k: v for k, v in timing.items() if isinstance(v, float)} for n, timing in components.items()}
    (out / "profile.json").write_text(json.dumps(profile, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
