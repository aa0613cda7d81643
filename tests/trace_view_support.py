"""Traces to look at, and pages as an independent parser sees them."""

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import zstandard

from orchestration.traces.codec import encode
from orchestration.traces.reader import Trace
from orchestration.traces.schema import (
    SCHEMA,
    SUFFIX,
    Annotation,
    Caption,
    End,
    EnvReset,
    EnvStep,
    Header,
    Reward,
    Text,
)
from orchestration.traces.view.page import unpack


class Elements(HTMLParser):
    """The elements of a page with their attributes and text, as an independent parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1][2].append(data)

    def named(self, name: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements with a tag."""
        return [(attributes, "".join(text)) for tag, attributes, text in self.found if tag == name]

    def block(self, identifier: str) -> str:
        """The text of a data block."""
        return next(text for attributes, text in self.named("script") if attributes.get("id") == identifier)


def read_page(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], Elements]:
    """The index of a page, the trees of its episodes and its elements."""
    elements = Elements(path.read_text("utf-8"))
    index = json.loads(elements.block("index"))
    return index, [unpack(elements.block(f"block-{at}")) for at in range(len(index["episodes"]))], elements


HOSTILE = (
    "</script><script>window.hit = 1</script>",
    '<img src=x onerror="window.hit = 2">',
    "<!--<script>",
    "]]>&lt;b&gt;{{data}}{{script}}",
    "javascript:window.hit=3//`${window.hit = 4}`",
    "\x00\x01\x07\x08\x1b[31mred\x7f\x9b\u2028\u2029\u202egnp.exe\ufeff",
    "\u00e9\u4e2d\U0001f600 \\ \"quoted\" 'single'",
    b"\xff\xfe not UTF-8 \xc3(".decode("utf-8", "replace"),
)
"""Captions that want to be more than text."""

ACTIONS = ("north", "south", "kick")


def header(episode_id: str = "episode", **changes: Any) -> Header:
    """A header with nothing special."""
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "episode_id": episode_id,
        "run": "demo",
        "env_id": "minihack/Room-5x5",
        "env_options": {},
        "action_names": ACTIONS,
        "seeds": {"core": str(2**64 - 1)},
        "policy_version": 3,
        "versions": {"nle": "1.3.0"},
        "code_revision": None,
        "clock": "unpinned",
        "recorded_at": 1.75e9,
        "count_exponent": None,
    }
    return Header(**{**fields, **changes})


def end(**changes: Any) -> End:
    """An end with nothing special."""
    fields: dict[str, Any] = {
        "t": 1.0,
        "events": 0,
        "length": 0,
        "episode_return": 0.0,
        "terminated": True,
        "truncated": False,
        "success": None,
        "metrics": {},
        "error": None,
    }
    return End(**{**fields, **changes})


def trace(
    events: Sequence[Any],
    captions: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    *,
    of: Header | None = None,
    ended: End | None = None,
) -> Trace:
    """A trace in memory."""
    header_ = of or header()
    path = Path(f"{header_.episode_id}{SUFFIX}")
    return Trace(path, header_, captions or {}, tuple(events), ended or end(), None, texts or {})


class Script:
    """Writes events one after the other: each follows the newest, unless told otherwise."""

    def __init__(self, agent: str = "actor-00/0") -> None:
        self.events: list[Any] = []
        self._agent = agent

    def add(
        self, kind: type[Any], *, agent: str | None = None, parents: Sequence[str] | None = None, **fields: Any
    ) -> str:
        """Appends an event; returns its id."""
        seq = len(self.events)
        before = (self.events[-1].id,) if self.events else ()
        self.events.append(
            kind(
                id=f"e{seq}",
                seq=seq,
                t=seq / 100,
                agent=agent or self._agent,
                parents=before if parents is None else tuple(parents),
                **fields,
            )
        )
        return f"e{seq}"

    def reset(self, screen: str = "@", **fields: Any) -> str:
        """An `env_reset`."""
        return self.add(EnvReset, observation_hash="0", screen=screen, **fields)

    def step(self, at: int, screen: str, **changes: Any) -> str:
        """An `env_step`."""
        fields: dict[str, Any] = {
            "step": at,
            "action": at % 3,
            "action_name": ACTIONS[at % 3],
            "log_prob": -0.5,
            "value": 0.25,
            "reward": 0.0,
            "policy_version": 3,
            "observation_hash": "0",
            "screen": screen,
        }
        return self.add(EnvStep, **{**fields, **changes})

    def reward(self, value: float, target: str, source: str = "environment", **changes: Any) -> str:
        """A `reward`."""
        fields: dict[str, Any] = {"family": "outcome", "version": None}
        return self.add(Reward, value=value, source=source, targets=(target,), **{**fields, **changes})


def write_trace(folder: Path, shown: Trace) -> Path:
    """The file of a trace."""
    path = folder / shown.path.name
    captions = [Caption(name, text) for name, text in shown.captions.items()]
    texts = [Text(name, text) for name, text in shown.texts.items()]
    records: list[Any] = [shown.header, *captions, *texts, *shown.events, *([shown.end] if shown.end else [])]
    path.write_bytes(zstandard.ZstdCompressor().compress(b"".join(encode(record) for record in records)))
    return path


def map_screen(at: int) -> str:
    """A map of NetHack's size on which somebody walks; a few rows differ from step to step."""
    rows = [""] * 24
    for y in range(4, 20):
        rows[y] = " " * 10 + "|" + "." * 50 + "|"
    rows[3] = rows[20] = " " * 10 + "-" * 52
    y, x = 4 + at // 50 % 16, 11 + at % 50
    rows[y] = f"{rows[y][:x]}@{rows[y][x + 1 :]}"
    rows[22] = "Agent the Footpad   St:18 Dx:18 Co:9 In:8 Wi:8 Ch:8  Chaotic"
    rows[23] = f"Dlvl:1  $:0  HP:12(12) Pw:2(2) AC:7  Exp:1 T:{at}"
    return "\n".join(rows)


def long_episode(steps: int, captions: int = 40) -> Trace:
    """Steps with screens, captions, rewards, labels and totals, like an episode of NetHack."""
    script = Script()
    script.reset(map_screen(0))
    said = {str(at + 1): f"You see here thing number {at}." for at in range(captions)}
    for at in range(steps):
        caption = str(at // 7 % captions + 1) if at % 7 == 0 else "0"
        reward = float(at % 97 == 96)
        step = script.step(at, map_screen(at + 1), caption_id=caption, caption_count=int(caption != "0"), reward=reward)
        if reward:
            script.reward(reward, step)
        if caption != "0":
            script.reward(0.1, step, "reward_model", family="process", part="component", version=2)
    for at in range(0, captions, 2):
        script.add(Annotation, caption_id=str(at + 1), label=at // 2 % 2, probability=0.75, judge="judge")
    return trace(script.events, said, ended=end(length=steps, episode_return=float(steps // 97), success=True))
