"""Traces with every kind of event, written record by record, for the tests of exports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import zstandard
from hypothesis import strategies as st

from orchestration.traces.codec import encode
from orchestration.traces.export.episode import Episode, open_episode
from orchestration.traces.schema import (
    COMPONENT,
    SCHEMA,
    TOTAL,
    Aggregate,
    Annotation,
    Caption,
    Delegate,
    End,
    EnvReset,
    EnvStep,
    Error,
    Event,
    Header,
    LlmCall,
    Message,
    Record,
    Return,
    Reward,
    Spawn,
    Stop,
    Text,
    ToolCall,
    ToolResult,
    WeightsUpdate,
    text_ref,
)

HOSTILE = (
    "</script><script>alert(1)</script>",
    "\x1b]0;title\x07\x1b[2J\x9b31m\x00\r\b\x7f",
    "\u202eright to left \U0001f600 \ufffe\u2028",
    "x" * 1_000_000,
)
"""Texts that a world or a model may say."""

RECORDED_AT = 1_700_000_000.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Mystery(Event):
    """An event of a kind that no format knows."""

    type: ClassVar[str] = "mystery"

    riddle: str
    depth: float


def write_trace(folder: Path, records: Sequence[Record], name: str = "ep1") -> Path:
    """A finished trace file of `records`."""
    path = folder / f"{name}.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"".join(map(encode, records))))
    return path


def header(episode_id: str = "ep1", **more: Any) -> Header:
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "episode_id": episode_id,
        "run": "demo",
        "env_id": "minihack/X",
        "env_options": {"max_episode_steps": 9},
        "action_names": ("north", "kick"),
        "seeds": {"core": str(2**64 - 1)},
        "policy_version": 3,
        "versions": {"yendor": "0.1.0", "nle": None},
        "code_revision": "abc",
        "clock": "unpinned",
        "recorded_at": RECORDED_AT,
        "count_exponent": None,
        "policy": "oni",
    }
    return Header(**fields | more)


def end(events: int, **more: Any) -> End:
    fields: dict[str, Any] = {
        "t": 5.0,
        "events": events,
        "length": 2,
        "episode_return": 1.5,
        "terminated": True,
        "truncated": False,
        "success": True,
        "metrics": {"depth": 2.0},
        "error": None,
        "components": {"reward_model": 0.25},
        "costs": {"tokens": 17.0, "wall_clock_s": 6.0},
    }
    return End(**fields | more)


def events(said: str = "a plan") -> list[Any]:
    """One event of every kind and some twice: a lead that plays, and a helper that it asks."""
    made: list[Any] = []
    ref = text_ref(said)

    def add(kind: type[Any], t: float, agent: str, *parents: str, **fields: Any) -> str:
        made.append(kind(id=f"e{len(made)}", seq=len(made), t=t, agent=agent, parents=parents, **fields))
        return made[-1].id

    step: dict[str, Any] = {"log_prob": -0.5, "policy_version": 3, "caption_id": "7", "caption_count": 1}
    reset = add(EnvReset, 0.0, "lead", observation_hash="aa", screen="@.\n..", colors="f7\n12")
    spawn = add(Spawn, 0.5, "lead", reset, child="helper", role="critic", details={"pid": 12, "bad": float("nan")})
    task = add(Delegate, 0.6, "lead", spawn, to="helper", task_ref=ref)
    message = add(Message, 0.7, "lead", task, to="helper", content_ref=ref, trusted=False)
    call = add(ToolCall, 1.0, "helper", message, tool="search", arguments={"query": said})
    result = add(ToolResult, 1.5, "helper", call, call=call, tool="search", ok=False, content_ref=ref)
    llm = add(
        LlmCall,
        2.5,
        "helper",
        result,
        duration=0.75,
        model="judge-1",
        version=4,
        prompt=(1, 2, 3),
        prompt_ref=ref,
        output_ref=ref,
        prompt_tokens=12,
        output_tokens=5,
        sampling={"temperature": 0.5, "max_tokens": 64, "odd": [1]},
        latency_s=0.75,
        finish_reason="stop",
    )
    back = add(Return, 2.6, "helper", llm, call=task, to="lead", content_ref=ref)
    both = add(Aggregate, 2.7, "lead", back, message, method="vote", content_ref=ref)
    first = add(
        EnvStep, 3.0, "lead", both, duration=0.2, step=0, action=0, action_name="north", value=None, reward=0.0,
        observation_hash="bb", screen=f".@\n{said[:300]}", colors="7c", **step,
    )  # fmt: skip
    note = add(
        Annotation, 3.1, "judge", first, targets=(first,), caption_id="7", question_ref=ref, answer_ref=ref, label=1,
        probability=0.875, judge="judge-1", latency_s=0.05,
    )  # fmt: skip
    earned: dict[str, Any] = {"targets": (first,), "version": 2}
    part = add(
        Reward, 3.1, "judge", note, family="process", value=0.25, source="reward_model", part=COMPONENT, **earned
    )
    add(Reward, 3.2, "judge", part, family="process", value=0.25, source="fusion", part=TOTAL, **earned)
    update = add(WeightsUpdate, 3.3, "lead", part, from_version=3, to_version=3)
    second = add(
        EnvStep, 4.0, "lead", update, step=1, action=1, action_name="kick", value=0.5, reward=1.5,
        observation_hash="cc", screen="..\n.@", **step,
    )  # fmt: skip
    add(Reward, 4.0, "lead", second, family="outcome", value=1.5, source="environment", version=None, targets=(second,))
    add(Error, 4.5, "helper", message, message=said[:200], source="helper", traceback_ref=ref)
    add(Stop, 5.0, "lead", second, target="helper", reason="done")
    return made


def rich_trace(folder: Path, said: str = "a plan", name: str = "ep1", **more: Any) -> Path:
    """A trace file with `events(said)`."""
    made = events(said)
    records = [header(name, **more), Caption("7", said), Text(text_ref(said), said), *made, end(len(made))]
    return write_trace(folder, records, name)


def mysterious(folder: Path) -> Episode:
    """An episode with events of an unknown kind among those that are known."""
    episode = open_episode(rich_trace(folder))
    more = [
        Mystery(id="m1", seq=90, t=4.6, agent="sphinx", parents=("e5",), riddle="</script>", depth=float("inf")),
        Mystery(id="m2", seq=91, t=4.9, agent="sphinx", parents=("m1",), duration=0.2, riddle="?", depth=1.0),
    ]
    return Episode(
        episode.path, episode.header, episode.captions, episode.texts, (*episode.events, *more), episode.end, None
    )


@st.composite
def graphs(draw: st.DrawFn) -> list[Any]:
    """Events of three agents in any order of kinds; times in eighths of a second, which all encodings hold exactly."""
    made: list[Any] = [EnvReset(id="e0", seq=0, t=0.0, agent="a", parents=(), observation_hash="", screen="")]
    t = 0.0
    for seq in range(1, draw(st.integers(1, 12))):
        t += draw(st.integers(0, 4)) / 8
        common: dict[str, Any] = {
            "id": f"e{seq}",
            "seq": seq,
            "t": t,
            "agent": draw(st.sampled_from("abc")),
            "parents": (draw(st.sampled_from(made)).id,),
            "duration": draw(st.integers(0, 8)) / 8,
        }
        calls = [event.id for event in made if isinstance(event, ToolCall)]
        kind = draw(st.sampled_from(("llm", "call", "result", "message", "reward")))
        if kind == "llm":
            made.append(LlmCall(**common, model="m", prompt_tokens=1, output_tokens=1, latency_s=0.25))
        elif kind == "call":
            made.append(ToolCall(**common, tool="t"))
        elif kind == "result" and calls:
            made.append(ToolResult(**common, call=draw(st.sampled_from(calls)), tool="t"))
        elif kind == "reward":
            targets = (draw(st.sampled_from(made)).id,)
            made.append(Reward(**common, family="tool", value=1.0, source="x", version=None, targets=targets))
        else:
            made.append(Message(**common, to=draw(st.sampled_from("abc"))))
    return made
