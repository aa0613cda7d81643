"""What a checkpoint's language model and progress estimator make of a recorded episode.

A trace keeps the tokens of every turn, so nothing is played again: the model, or the estimator's own, reads each turn's prompt and
answer, and the estimator its hidden state at the last token of the answer, as in training.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.credit.attribution import CreditMethod, Floats
from learner.credit.features import decoder_reader
from learner.language.batch import EpisodeTokens, TokenSequence, pack
from learner.language.checkpoint import model_folder
from learner.language.loading import load_network
from learner.language.model import width_of
from orchestration.config import Config
from orchestration.errors import TraceError
from orchestration.traces.reader import Trace
from orchestration.traces.schema import LlmCall
from reward_server.judge.models import model_identity


class LanguageReader:
    """Model, estimator and method of a checkpoint; on the CPU, in float32."""

    def __init__(self, config: Config, folder: Path, state: Any) -> None:
        """`state`: `load_state` of the checkpoint `folder`."""
        from orchestration.language.parts import build_language_credit

        cpu = torch.device("cpu")
        policy = model_folder(folder)
        self._network: Any = load_network(str(policy), torch.float32).eval()
        device = replace(config.learner, device="cpu", precision="fp32")
        config = replace(config, learner=device)
        self._credit = build_language_credit(config, _beginning(config, policy, state), width_of(self._network), cpu)
        learner = state["learner"]
        if learner.get("credit") is not None:
            self._credit.load_state_dict(learner["credit"])
        self.method: CreditMethod = self._credit.method
        self.bootstraps = self._credit.bootstraps
        self.version = int(learner["version"])

    @property
    def progress_version(self) -> int:
        """Of the estimator; 0 where there is none."""
        return 0 if self._credit.estimator is None else self._credit.estimator.version

    def contributions(self, trace: Trace) -> tuple[Floats, Floats]:
        """ĉ and deviation [T] of the episode's turns. Raises TraceError where one of them has no tokens."""
        if self._credit.estimator is None:
            return np.zeros(len(trace.steps)), np.zeros(len(trace.steps))
        calls = {event.step: event for event in trace.events if isinstance(event, LlmCall)}
        turns: list[TokenSequence] = []
        for number, step in enumerate(trace.steps):
            call = calls.get(step.step)
            if call is None or not call.prompt or not call.output:
                raise TraceError(f"{trace.path}: step {step.step} keeps no tokens of a language model to read")
            turns.append(_turn(call.prompt, call.output, number))
        episode = EpisodeTokens(tuple(turns), (self.version,) * len(turns), terminated=True)
        return self._credit.contributions(pack([episode]), decoder_reader(self._network))


def _turn(prompt: Sequence[int], output: Sequence[int], number: int) -> TokenSequence:
    """What the model read and said in one turn."""
    asked, said = len(prompt), len(output)
    return TokenSequence(
        tokens=torch.tensor([*prompt, *output]),
        action=torch.arange(asked + said) >= asked,
        turn=torch.tensor([-1] * asked + [number] * said),
        behaviour_log_prob=torch.zeros(asked + said),
    )


def _beginning(config: Config, policy: Path, state: Any) -> str:
    """Where a backbone of the estimator's own began. All of its weights are in the checkpoint, or its adapters alone."""
    from orchestration.language.models import acting_model

    if config.credit.backbone != "lora":
        return str(policy)
    model = acting_model(config)
    if model_identity(model) != state["origin"]:
        raise TraceError(
            f"agent.model={config.agent.model} is no longer the model that the run began with ({state['origin']}), which the "
            "estimator's adapters belong to; put that back"
        )
    return model
