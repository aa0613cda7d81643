"""What a checkpoint's language model and progress estimator make of a recorded episode.

A trace keeps the tokens of every turn, so nothing is played again: the model reads each turn's prompt and answer, and the
estimator its hidden state at the last token of the answer, as in training.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.credit.attribution import CreditMethod, Floats
from learner.credit.estimator import ProgressEstimator
from learner.language.checkpoint import model_folder
from learner.language.loading import load_network
from learner.language.model import width_of
from orchestration.config import Config
from orchestration.errors import TraceError
from orchestration.traces.reader import Trace
from orchestration.traces.schema import LlmCall


class LanguageReader:
    """Model, estimator and method of a checkpoint; on the CPU, in float32."""

    def __init__(self, config: Config, folder: Path, state: Any) -> None:
        """`state`: `load_state` of the checkpoint `folder`."""
        from orchestration.language.parts import build_language_credit

        cpu = torch.device("cpu")
        self._network: Any = load_network(str(model_folder(folder)), torch.float32).eval()
        config = replace(config, learner=replace(config.learner, device="cpu"))
        credit = build_language_credit(config, width_of(self._network), cpu)
        learner = state["learner"]
        if learner.get("credit") is not None:
            credit.load_state_dict(learner["credit"])
        self.method: CreditMethod = credit.method
        self.estimator: ProgressEstimator | None = credit.estimator
        self.bootstraps = credit.bootstraps
        self.version = int(learner["version"])

    def contributions(self, trace: Trace) -> tuple[Floats, Floats]:
        """ĉ and deviation [T] of the episode's turns. Raises TraceError where one of them has no tokens."""
        if self.estimator is None:
            return np.zeros(len(trace.steps)), np.zeros(len(trace.steps))
        calls = {event.step: event for event in trace.events if isinstance(event, LlmCall)}
        features: list[torch.Tensor] = []
        for step in trace.steps:
            call = calls.get(step.step)
            if call is None or not call.prompt or not call.output:
                raise TraceError(f"{trace.path}: step {step.step} keeps no tokens of a language model to read")
            features.append(self._read([*call.prompt, *call.output]))
        # As the estimator read them while it learned.
        return self.estimator.contributions(torch.stack(features))

    @torch.inference_mode()
    def _read(self, tokens: list[int]) -> torch.Tensor:
        """[H]: the hidden state at the last token."""
        decoder = self._network.get_decoder()
        return decoder(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0, -1].float()
