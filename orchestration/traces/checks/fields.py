"""What a record of a trace promises by itself, whatever stands before it. Each check yields rule and message."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from envs.captions import caption_id
from envs.clock import PINNED, birth_of
from orchestration.traces.codec import tree_of
from orchestration.traces.schema import (
    EPISODE,
    POLICY,
    REWARD_MODEL,
    RUN,
    Annotation,
    AnyEvent,
    Caption,
    End,
    EnvReset,
    EnvStep,
    Header,
    LlmCall,
    Record,
    Text,
    WeightsUpdate,
    text_ref,
)
from orchestration.traces.versions import WORLD_PACKAGES, clock_text

Wrong = Iterator[tuple[str, str]]
"""Rule and message."""

_KEPT = ("rate", "asked", "best", "worst", "failed", RUN)
_GAME = "game"
"""The one of an environment's `seeds` that names something: a game, by digest, name or path."""
_HEX = re.compile(r"[0-9a-f]+")
_LOST = "\ufffd"
"""Stands in a text for what was no Unicode: its name is that of the text before."""
_LAST_S = 230 * 365.25 * 24 * 3600
"""The wall clock shows less than that: 2200."""
_SLACK = 1e-3
"""Log-probabilities are rounded, and computed in 32 bits or fewer."""


def of_record(record: Record) -> Wrong:
    """What is wrong with any record."""
    for place, value in _numbers(tree_of(record), ""):
        if not math.isfinite(value):
            yield "finite", f"{place} is {value}"


def of_header(header: Header) -> Wrong:
    """Scope, branch, seeds, clock, versions."""
    if header.scope not in (EPISODE, RUN):
        yield "header", f"scope {header.scope!r} is neither {EPISODE} nor {RUN}"
    if (header.forked_from is None) != (header.forked_at is None):
        yield "header", "names a parent without the step at which it was left, or the other way round"
    elif header.forked_at is not None and header.forked_at < 0:
        yield "header", f"was forked at step {header.forked_at}"
    for name, value in header.seeds.items():
        if name != _GAME and not _is_decimal(value, 0, 2**64):
            yield "seed", f"the seed {name} is {value!r}"
    told = clock_text(header.seeds)
    if header.clock != told:
        yield "clock", f"the clock is {header.clock!r}, by the seeds it was {told!r}"
    core, birth = header.seeds.get("core", ""), header.seeds.get(PINNED)
    if birth is not None and _is_decimal(core, 0, 2**64) and birth != str(birth_of(int(core))):
        yield "clock", f"the hero was born at {birth}, by the seed core at {birth_of(int(core))}"
    if not is_moment(header.recorded_at):
        yield "time", f"was recorded at {header.recorded_at:g} s since 1970"
    family = header.env_id.partition("/")[0]
    missing = [name for name in WORLD_PACKAGES.get(family, ()) if name not in header.versions]
    if missing:
        yield "versions", f"the versions lack {', '.join(missing)}"


def is_moment(seconds: float) -> bool:
    """Whether a wall clock can show so many seconds since the epoch."""
    return 0 <= seconds < _LAST_S


def of_caption(caption: Caption) -> Wrong:
    """Its id is that of its text."""
    if not _is_decimal(caption.caption_id, -(2**63), 2**63):
        yield "text", f"the caption {caption.caption_id!r} is not named by a number of 64 bits"
    elif _LOST not in caption.text and caption.caption_id != str(caption_id(caption.text)):
        yield "text", f"the caption {caption.caption_id} is called {caption_id(caption.text)} by its text"


def of_text(text: Text) -> Wrong:
    """Its name is that of its content."""
    if text.ref != text_ref(text.text):
        yield "text", f"the text {text.ref} is called {text_ref(text.text)} by its content"


def of_event(event: AnyEvent) -> Wrong:
    """What its own fields say."""
    if event.duration < 0:
        yield "time", f"event {event.id}: took {event.duration} s"
    for rule, message in _of_kind(event):
        yield rule, f"event {event.id}: {message}"


def _of_kind(event: AnyEvent) -> Wrong:
    if isinstance(event, EnvReset | EnvStep):
        yield from _observation(event)
    if isinstance(event, EnvStep) and event.log_prob is not None and event.log_prob > _SLACK:
        yield "probability", f"a log-probability of {event.log_prob:g}"
    elif isinstance(event, LlmCall):
        yield from _llm_call(event)
    elif isinstance(event, Annotation):
        if event.caption_id == "0" and not event.targets:
            yield "label", "is about nothing"
        if event.probability is not None and not 0 <= event.probability <= 1:
            yield "probability", f"a probability of {event.probability:g}"
    elif isinstance(event, WeightsUpdate) and event.what not in (POLICY, REWARD_MODEL):
        yield "version", f"{event.what!r} is neither {POLICY} nor {REWARD_MODEL}"


def _observation(event: EnvReset | EnvStep) -> Wrong:
    if event.observation_hash and not _HEX.fullmatch(event.observation_hash):
        yield "observation", f"the hash {event.observation_hash!r} is not hexadecimal"
    if event.key_hashes and not _HEX.fullmatch(event.key_hashes):
        yield "observation", f"the hashes {event.key_hashes!r} of its arrays are not hexadecimal"
    if not event.colors:
        return
    rows, inks = event.screen.split("\n"), event.colors.split("\n")
    if len(inks) > len(rows):
        yield "observation", f"colours of {len(inks)} lines, the screen has {len(rows)}"
    for number, (row, ink) in enumerate(zip(rows, inks, strict=False), start=1):
        if len(ink) > len(row) or (ink and not _HEX.fullmatch(ink)):
            yield "observation", f"the colours of line {number} do not fit to it: {ink!r}"
            return


def _llm_call(event: LlmCall) -> Wrong:
    if event.prompt_tokens < 0 or event.output_tokens < 0 or event.calls < 1:
        yield "cost", "counts of tokens or calls that cannot be"
    for name, tokens, count in (
        ("prompt", event.prompt, event.prompt_tokens),
        ("output", event.output, event.output_tokens),
        ("log_probs", event.log_probs, event.output_tokens),
    ):
        if tokens is not None and len(tokens) != count:
            yield "cost", f"{len(tokens)} in {name}, counted {count}"
    odd = next((token for token in (*(event.prompt or ()), *(event.output or ())) if token < 0), None)
    if odd is not None:
        yield "call", f"a token called {odd}"
    odd = next((value for value in event.log_probs or () if value > _SLACK), None)
    if odd is not None:
        yield "probability", f"a log-probability of {odd:g}"
    if event.latency_s < 0:
        yield "time", f"answered after {event.latency_s} s"


def of_untold(event: LlmCall) -> Wrong:
    """Whether a call of an episode tells what was read and said. (Those of a run stand for batches of the judge's.)"""
    for name, tokens, ref in (
        ("prompt", event.prompt, event.prompt_ref),
        ("output", event.output, event.output_ref),
    ):
        if tokens is None and ref is None:
            yield "call", f"event {event.id}: tells no {name}, neither as tokens nor as a text"


def of_end(end: End, scope: str) -> Wrong:
    """Why it was kept, and costs that can be."""
    if end.kept not in _KEPT or (end.kept == RUN) != (scope == RUN):
        yield "end", f"was kept as {end.kept!r}, which is no reason for the trace of a {scope}"
    for name, value in end.costs.items():
        if value < 0:
            yield "cost", f"{name} cost {value:g}"


def _is_decimal(text: str, low: int, limit: int) -> bool:
    """Whether `text` is a number in [`low`, `limit`) in its only decimal form."""
    number = int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None
    return number is not None and str(number) == text and low <= number < limit


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """All numbers with a fraction in a tree of JSON, by where they are."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(part, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{place}[{index}]")
