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
from orchestration.configuration import learns_progress
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
        own = config.credit.backbone != "shared" and learns_progress(config)
        self._network: Any = None if own else load_network(str(policy), torch.float32).eval()
        """The policy, where the estimator reads with it."""
        width = 0 if own else width_of(self._network)
        beginning = _beginning(config, folder, state) if own and config.credit.backbone == "lora" else str(policy)
        on_cpu = replace(config, learner=replace(config.learner, device="cpu", precision="fp32"))
        self._credit = build_language_credit(on_cpu, beginning, width, cpu)
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
        read = decoder_reader(self._network)
        return self._credit.contributions(pack([episode]), read)


def _turn(prompt: Sequence[int], output: Sequence[int], number: int) -> TokenSequence:
    """What the model read and said in one turn."""
    asked, said = len(prompt), len(output)
    return TokenSequence(
        tokens=torch.tensor([*prompt, *output]),
        action=torch.arange(asked + said) >= asked,
        turn=torch.tensor([-1] * asked + [number] * said),
        behaviour_log_prob=torch.zeros(asked + said),
    )


def _beginning(config: Config, folder: Path, state: Any) -> str:
    """The model that a run began with, which the adapters of its estimator belong to: a checkpoint holds these alone."""
    from orchestration.language.models import acting_model

    runs = folder.resolve().parents[2]  # the run may have been moved, with those beside it
    model = acting_model(replace(config, run=replace(config.run, dir=str(runs))))
    if model_identity(model) != state["origin"]:
        raise TraceError(
            f"--credit: the estimator's adapters belong to the model that the run began with ({state['origin']}); "
            f"agent.model={config.agent.model} is another now, or not to be found from here"
        )
    return model
