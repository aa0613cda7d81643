"""What a language model read and said in one turn, as a trace keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.language.episode import Ids, LanguageTurn
from orchestration.traces.schema import LlmCall, Text, clean, text_ref

DIGITS = 4
"""Of log-probabilities: the rest takes room and says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """One answer of a model."""

    prompt: Ids
    """[P] all that it read."""
    turn: LanguageTurn
    sampling: Mapping[str, Any]

    @property
    def text(self) -> Text:
        """The answer, under its name."""
        said = clean(self.turn.text)
        return Text(ref=text_ref(said), text=said)

    @property
    def log_prob(self) -> float:
        """Of the whole answer."""
        return round(float(self.turn.log_prob.sum()), DIGITS)

    def call(self, event: Mapping[str, Any], *, model: str, version: int | None, step: int) -> LlmCall:
        """The call, whose text stands before it; `event`: what all events have. `version` of the weights, where they are
        trained. It chose the action of step number `step`."""
        turn = self.turn
        sampling = dict(self.sampling)
        if turn.failure is not None:
            sampling["failure"] = turn.failure
        if turn.last_version != turn.version:
            sampling["last_version"] = turn.last_version
        return LlmCall(
            **event,
            duration=round(turn.generate_s, 4),
            model=model,
            version=version,
            prompt=tuple(self.prompt.tolist()),
            output=tuple(turn.output.tolist()),
            output_ref=self.text.ref,
            prompt_tokens=len(self.prompt),
            output_tokens=len(turn.output),
            log_probs=tuple(round(x, DIGITS) for x in turn.log_prob.tolist()),
            sampling=sampling,
            latency_s=round(turn.generate_s, 4),
            finish_reason=turn.stop,
            step=step,
        )
