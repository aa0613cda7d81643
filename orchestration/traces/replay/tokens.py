"""Scores the stored tokens of language models again under stored weights (level L3).

Nothing is sampled: each output token of an `llm_call` is forced, and its log-probability under the distribution that it was
drawn from (temperature, top-k, top-p, min-p of the recorded sampling) is compared with the recorded one. Engines batch and
round differently, so what can be promised is a tolerance, never equality.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.safe_loading import SAFE_WEIGHTS, check_safe
from orchestration.errors import TraceError
from orchestration.traces.reader import Trace
from orchestration.traces.replay.verdict import Outcome, UnreplayableError
from orchestration.traces.schema import EnvStep, LlmCall

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 0.1
"""Nats. Two engines in bfloat16 differ by some hundredths; other weights or another prompt by much more."""

_NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0, "top_p": 1.0, "top_k": (0, -1), "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
_WARPED = frozenset({"temperature", "top_p", "top_k", "min_p"})
"""Of those the ones that are carried out here; any of the others has to be neutral."""


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """The token whose log-probability differs most."""

    event: str
    """Id of its `llm_call`."""
    step: int
    """The environment step whose action the call chose; -1 where it chose none."""
    position: int
    """In the output."""
    token: int
    recorded: float
    scored: float

    @property
    def size(self) -> float:
        """Nats."""
        return abs(self.recorded - self.scored)


@dataclass(frozen=True, slots=True)
class Forced:
    """What came of one trace."""

    path: str
    model: str
    """The folder of the weights."""
    tolerance: float
    calls: int
    tokens: int
    mean: float
    """Of the differences, nats."""
    first: TokenDifference | None
    """The first token that differs by more than the tolerance; None where none does."""
    most: TokenDifference

    @property
    def outcome(self) -> Outcome:
        return Outcome.MATCH if self.first is None else Outcome.DIVERGED

    @property
    def line(self) -> str:
        """The verdict in one line."""
        told = f"{self.calls:,} calls, {self.tokens:,} tokens, differences of {self.mean:.2g} nats, at most {self.most.size:.2g}"
        one = self.first
        if one is None:
            return f"MATCH within {self.tolerance:g} ({told})"
        where = f"step {one.step}" if one.step >= 0 else f"event {one.event}"
        return (
            f"DIVERGED at {where} (token {one.position} of {one.event}, id {one.token}: recorded {one.recorded:.4f}, "
            f"scored {one.scored:.4f}; {told})"
        )


def force_tokens(trace: Trace, weights: Path | None = None, tolerance: float = TOLERANCE) -> Forced:
    """Scores the tokens of all `llm_call` of `trace` that kept tokens and log-probabilities.

    `weights` is the folder of a Hugging Face model; without it, the one that the calls name, which a run began with. Raises
    `UnreplayableError` where there are no such calls, no such weights, weights that changed on the way, or a sampling that is
    not known here.
    """
    calls = [(event, step) for event, step in _calls(trace) if event.output and event.log_probs is not None]
    if not calls:
        raise UnreplayableError("no llm_call in it keeps prompt and output tokens with log-probabilities")
    names = sorted({event.model for event, _ in calls})
    if weights is None and len(names) > 1:
        raise UnreplayableError(f"its calls are of several models ({', '.join(names)}); name one with --weights FOLDER")
    folder = weights or Path(names[0])
    _check_versions([event for event, _ in calls], weights is not None, folder)
    model = _load(folder)
    found: list[TokenDifference] = []
    for event, step in calls:
        scored = _score(model, event)
        recorded = event.log_probs or ()
        found += [
            TokenDifference(event.id, step, at, token, told, own)
            for at, (token, told, own) in enumerate(zip(event.output or (), recorded, scored, strict=True))
        ]
    return Forced(
        path=str(trace.path),
        model=str(folder),
        tolerance=tolerance,
        calls=len(calls),
        tokens=len(found),
        mean=sum(each.size for each in found) / len(found),
        # Also what is not a number differs.
        first=next((each for each in found if not each.size <= tolerance), None),
        most=max(found, key=lambda each: each.size),
    )


def _check_versions(calls: Sequence[LlmCall], named: bool, folder: Path) -> None:
    """All calls have to be of the same weights: of those that were named, or of those that the run began with."""
    versions = {event.version for event in calls} | {
        event.sampling.get("last_version", event.version) for event in calls
    }
    if len(versions) > 1:
        told = ", ".join(sorted(map(str, versions)))
        raise UnreplayableError(
            f"its calls are of several versions of the weights ({told}), which one folder does not hold"
        )
    (version,) = versions
    if version and not named:
        raise UnreplayableError(
            f"its calls are of version {version} of the weights, and {folder} holds what the run began with; name the folder "
            "of that version, checkpoints/STEPS/model of the run, with --weights FOLDER"
        )


def _calls(trace: Trace) -> Iterator[tuple[LlmCall, int]]:
    """Each call and the step that it chose the action of: the one that it names, or else the next one."""
    waiting: list[LlmCall] = []
    for event in trace.events:
        if isinstance(event, LlmCall):
            waiting.append(event)
        elif isinstance(event, EnvStep):
            yield from ((call, event.step if call.step is None else call.step) for call in waiting)
            waiting = []
    yield from ((call, -1 if call.step is None else call.step) for call in waiting)


def _load(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise UnreplayableError(
            f"no weights: {folder} is not the folder of a Hugging Face model here; name one with --weights FOLDER"
        )
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        check_safe(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, **SAFE_WEIGHTS
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UnreplayableError(f"{folder}: the weights cannot be loaded: {error}") from error
    return model.eval()


def _score(model: Any, call: LlmCall) -> list[float]:
    """Log-probability of each output token."""
    import torch

    prompt, output = call.prompt, call.output or ()
    if not prompt:
        raise UnreplayableError(f"event {call.id}: its prompt's tokens were not kept")
    if len(output) != len(call.log_probs or ()):
        raise TraceError(f"event {call.id}: {len(output)} tokens, {len(call.log_probs or ())} log-probabilities")
    size = int(model.config.vocab_size)
    strange = next((token for token in (*prompt, *output) if not 0 <= token < size), None)
    if strange is not None:
        raise UnreplayableError(f"event {call.id}: token {strange} is none of the model's {size:,}")
    ids = torch.tensor([[*prompt, *output]])
    with torch.inference_mode():
        # The logits at a position are those of the next token.
        logits: Tensor = model(ids, logits_to_keep=len(output) + 1).logits[0, :-1].float()
        shaped = _warped(ids[0, len(prompt) :], logits, call)
        log_probs = torch.log_softmax(shaped, dim=-1)
        return log_probs.gather(1, torch.tensor(output)[:, None])[:, 0].tolist()


def _warped(output: "Tensor", logits: "Tensor", call: LlmCall) -> "Tensor":
    """The logits [N, V] under the sampling of the call."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    asked = {name: value for name, value in call.sampling.items() if not _is_neutral(name, value)}
    odd = sorted(asked.keys() - _WARPED)
    if odd:
        raise UnreplayableError(f"event {call.id}: was sampled with {odd[0]}={asked[odd[0]]}, which is not known here")
    if asked.get("temperature") == 0:
        raise UnreplayableError(f"event {call.id}: was chosen greedily, so its log-probabilities belong to no sampling")
    ids: Any = output[:, None]
    scores: Any = logits
    # In the order in which vLLM and transformers apply them.
    for name, warper in (
        ("temperature", TemperatureLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):  # fmt: skip
        if name in asked:
            scores = warper(asked[name])(ids, scores)
    return scores


def _is_neutral(name: str, value: Any) -> bool:
    """Whether an option of the sampling leaves the distribution as it is. (Others, such as a seed or a limit, do so.)"""
    if name not in _NEUTRAL or value is None:
        return True
    neutral: Any = _NEUTRAL[name]
    return value in neutral if isinstance(neutral, Sequence) else value == neutral
