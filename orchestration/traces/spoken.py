"""What a language model read and said in one turn, as a trace keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.language.engines.base import Generation
from agents.language.episode import Ids
from orchestration.traces.schema import LlmCall, Text, clean, text_ref

_DIGITS = 4
"""Of log-probabilities and seconds: the rest takes room and says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """One answer of a model."""

    prompt: Ids
    """[P] all that it read."""
    answer: Generation
    words: str
    """The answer, decoded."""
    failure: str | None
    """Why no command could be read in it."""
    seconds: float
    """From asking to having it."""
    sampling: Mapping[str, Any]

    @property
    def text(self) -> Text:
        """The words, under their name."""
        said = clean(self.words)
        return Text(ref=text_ref(said), text=said)

    @property
    def log_prob(self) -> float:
        """Of the whole answer."""
        return round(float(self.answer.log_prob.sum()), _DIGITS)

    def call(self, event: Mapping[str, Any], *, model: str, version: int | None, step: int) -> LlmCall:
        """The call, before which its `text` has to stand; `event`: what all events have. `version` of the weights, where
        they are trained. It chose the action of step number `step`."""
        answer, seconds = self.answer, round(self.seconds, _DIGITS)
        sampling = dict(self.sampling)
        if self.failure is not None:
            sampling["failure"] = self.failure
        if answer.last_version != answer.version:
            sampling["last_version"] = answer.last_version
        return LlmCall(
            **event,
            duration=seconds,
            model=model,
            version=version,
            prompt=tuple(self.prompt.tolist()),
            output=tuple(answer.ids.tolist()),
            output_ref=self.text.ref,
            prompt_tokens=len(self.prompt),
            output_tokens=len(answer.ids),
            log_probs=tuple(round(x, _DIGITS) for x in answer.log_prob.tolist()),
            sampling=sampling,
            latency_s=seconds,
            finish_reason=answer.stop,
            step=step,
        )
