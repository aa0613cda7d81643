"""The page of traces, without a browser: what is in its data, and that nothing of an episode is markup or program."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.traces.schema import (
    Annotation,
    EnvStep,
    Error,
    Event,
    LlmCall,
    Message,
    Spawn,
    ToolCall,
    WeightsUpdate,
)
from orchestration.traces.view import Divergence, episode_document, render, render_traces
from orchestration.traces.view.page import build_page, inert_json, pack, unpack
from orchestration.traces.view.plain import plain
from orchestration.traces.view.screens import ScreenTable
from tests.trace_support import Played, record, recorder
from tests.trace_view_support import (
    HOSTILE,
    Elements,
    Script,
    end,
    header,
    long_episode,
    map_screen,
    read_page,
    trace,
)


def screens(tree: dict[str, Any]) -> list[str]:
    """The screen of each frame, put together again."""
    return ["\n".join(tree["rows"][row] for row in tree["screens"][frame[1]]) for frame in tree["frames"]]


# What is shown.


def test_a_recorded_episode_is_in_the_page(tmp_path: Path) -> None:
    played = Played("ep-1", [0, 1, 2, 0], ["", "It's a wall.", "", "It's a wall."], [0.0, 1.0, -0.5, 0.0], [3, 3, 4, 4])
    record(recorder(tmp_path), played)
    page = render([tmp_path / "ep-1.jsonl.zst"], tmp_path / "out.html")
    index, (tree,), _ = read_page(tmp_path / "out.html")
    assert (page.episodes, page.unreadable, page.left_out) == (1, (), 0)
    assert page.bytes == (tmp_path / "out.html").stat().st_size
    row = index["episodes"][0]
    assert (row["episode"], row["return"], row["success"], row["frames"]) == ("ep-1", 0.5, True, 5)
    assert screens(tree)[:4] == ["@", "@ 0\n.", "@ 1\n.", "@ 2\n."]
    said = [None if caption < 0 else tree["texts"][caption] for _, _, caption in tree["frames"]]
    assert said[2] == said[4] == "It's a wall."
    assert tree["lanes"][0]["points"] == [[2, 1.0], [3, -0.5]]
    assert tree["marks"]["reward"] == [2, 3]
    assert [event[5]["to_version"] for event in tree["events"] if event[0] == "weights_update"] == [4]
    assert tree["header"]["seeds"]["core"] == str(2**64 - 1)


def test_rewards_lie_at_the_events_that_earned_them_and_totals_come_first() -> None:
    script = Script()
    script.reset()
    first, second = script.step(0, "a"), script.step(1, "b")
    script.reward(1.0, second)
    script.reward(0.25, first, "progress", family="process")
    script.reward(0.5, first, "reward_model", family="process", part="component", version=2)
    script.reward(0.5, first, "fusion", part="total")
    tree = episode_document(trace(script.events))
    assert [(lane["source"], lane["part"], lane["points"]) for lane in tree["lanes"]] == [
        ("fusion", "total", [[1, 0.5]]),
        ("reward_model", "component", [[1, 0.5]]),
        ("environment", "raw", [[2, 1.0]]),
        ("progress", "raw", [[1, 0.25]]),
    ]
    assert tree["marks"]["reward"] == [1, 2]


def test_rewards_that_only_the_steps_tell_of_have_a_lane() -> None:
    script = Script()
    script.reset()
    script.step(0, "a", reward=2.0)
    assert episode_document(trace(script.events))["lanes"][0]["points"] == [[1, 2.0]]


def test_an_answer_of_the_judge_is_at_every_step_with_its_caption() -> None:
    script = Script()
    script.reset()
    for at, caption in enumerate(("7", "0", "8", "7")):
        step = script.step(at, "a", caption_id=caption)
    script.add(Annotation, caption_id="7", question_ref="q", answer_ref="gone", label=1, probability=0.9, judge="m")
    script.add(Annotation, targets=(step,), label=None, probability=None, judge="m")
    tree = episode_document(trace(script.events, {"7": "A key.", "8": "A wall."}, {"q": "Is it good?"}))
    assert [label["frames"] for label in tree["labels"]] == [[1, 4], [4]]
    assert tree["marks"]["label"] == [1, 4]
    *_, fields, texts = tree["events"][tree["labels"][0]["event"]]
    assert tree["texts"][texts["question"]] == "Is it good?"
    assert fields["answer_ref"] == "gone", "a text that is not in the file is named by its reference"
    assert tree["texts"][tree["labels"][0]["caption"]] == "A key."


def test_a_trace_without_steps_has_a_frame_for_each_event_and_a_lane_for_each_agent() -> None:
    script = Script("lead")
    begun = script.add(Spawn, parents=(), child="worker", role="executor")
    script.add(Message, to="worker", content_ref="t")
    script.add(ToolCall, agent="worker", parents=(begun,), tool="search")
    script.add(Message, agent="worker", to="silent")
    tree = episode_document(trace(script.events, texts={"t": "please"}))
    assert len(tree["frames"]) == 4
    assert tree["agents"] == ["lead", "worker", "silent"]
    assert [event[4] for event in tree["events"]] == [[], [0], [0], [2]]
    assert [event[3] for event in tree["events"]] == [0, 1, 2, 3]


def test_events_between_steps_belong_to_the_step_before() -> None:
    script = Script()
    script.reset()
    script.add(LlmCall, model="m", prompt=(1, 2), prompt_tokens=2, output_tokens=0, latency_s=0.1)
    script.step(0, "a")
    script.add(WeightsUpdate, from_version=3, to_version=4)
    tree = episode_document(trace(script.events))
    assert [event[3] for event in tree["events"]] == [0, 0, 1, 1]


def test_errors_and_divergences_are_marked() -> None:
    script = Script()
    script.reset()
    for at in range(3):
        script.step(at, "a")
    script.add(Error, message="it broke", source="env")
    shown = trace(script.events, ended=end(error="it broke", terminated=False))
    apart = [
        Divergence("episode", 1, "reward: 0 became 1", "b"),
        Divergence("episode", -1, "seeds"),
        Divergence("x", 0, ""),
    ]
    tree = episode_document(shown, apart)
    assert tree["marks"]["error"] == [3]
    assert [(mark["frame"], mark["reason"]) for mark in tree["divergences"]] == [
        (0, "seeds"),
        (2, "reward: 0 became 1"),
    ]
    seen = tree["screens"][tree["divergences"][1]["screen"]]
    assert [tree["rows"][row] for row in seen] == ["b"]


def test_kinds_and_fields_that_nobody_knows_are_shown_as_they_are() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Dream(Event):
        type: ClassVar[str] = "dream"
        about: dict[str, Any]

    script = Script()
    script.reset()
    script.add(Dream, about={"sheep": float("nan"), "count": 2**70, "raw": b"\xff"})
    kind, *_, fields, _ = episode_document(trace(script.events))["events"][1]
    assert kind == "dream"
    assert fields["about"] == {"sheep": "nan", "count": str(2**70), "raw": "\ufffd"}


def test_colours_travel_with_their_rows() -> None:
    table = ScreenTable()
    plain_one = table.add("ab\ncd")
    assert table.add("ab\ncd") == plain_one
    coloured = table.add("ab\ncd\nef", "12\n\n4")
    inks = [table.inks[row] for row in table.screens[coloured]]
    assert inks == ["12", "7", "4"]
    assert [table.inks[row] for row in table.screens[plain_one]] == ["", ""]
    short = table.add("ab\ncd", "12")
    assert [table.inks[row] for row in table.screens[short]] == ["12", "7"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="ab\n", max_size=12), max_size=20))
def test_screens_come_back_from_the_table(shown: list[str]) -> None:
    table = ScreenTable()
    numbers = [table.add(screen) for screen in shown]
    assert ["\n".join(table.rows[row] for row in table.screens[number]) for number in numbers] == shown
    assert len(table.rows) == len(set(table.rows))


# Nothing of an episode is markup or program.


@settings(max_examples=200, deadline=None)
@given(st.text() | st.sampled_from(HOSTILE) | st.text(alphabet='</script>&!-\u2028\u2029\\"', max_size=40))
def test_no_text_leaves_its_block(text: str) -> None:
    encoded = inert_json({text: [text]})
    assert not set("<>&\u2028\u2029\n") & set(encoded)
    assert encoded.isascii()
    assert json.loads(encoded) == {text: [text]}
    assert unpack(pack(text)) == text
    assert re.fullmatch(r"[A-Za-z0-9+/=]*", pack(text))


def test_a_page_of_hostile_texts_has_the_elements_of_a_harmless_one(tmp_path: Path) -> None:
    def page_of(texts: tuple[str, ...], name: str) -> Elements:
        script = Script(texts[0])
        script.reset(texts[0])
        for at, text in enumerate(texts):
            script.step(at, text, caption_id=str(at + 1), action_name=text)
            script.add(Error, message=text, source=text)
        shown = header(run=texts[0], env_id=texts[1], versions={texts[0]: texts[1]}, env_options={texts[0]: texts})
        captions = {str(at + 1): text for at, text in enumerate(texts)}
        ended = end(error=texts[0], metrics={texts[0]: 1.0})
        render_traces([trace(script.events, captions, of=shown, ended=ended)], tmp_path / name, title=texts[0])
        _, (tree,), elements = read_page(tmp_path / name)
        assert [tree["texts"][caption] for _, _, caption in tree["frames"][1:]] == list(texts)
        return elements

    hostile = page_of(HOSTILE, "hostile.html")
    harmless = page_of(tuple("abcdefgh"), "harmless.html")
    assert [element[:2] for element in hostile.found] == [element[:2] for element in harmless.found]


def test_the_page_lets_only_its_own_program_run_and_nothing_be_loaded(tmp_path: Path) -> None:
    render_traces([trace(())], tmp_path / "out.html")
    elements = read_page(tmp_path / "out.html")[2]
    (policy,) = [a["content"] for a, _ in elements.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy
    programs = [text for attributes, text in elements.named("script") if "type" not in attributes]
    for name, (text,) in (("script-src", programs), ("style-src", [text for _, text in elements.named("style")])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert "require-trusted-types-for 'script'" in policy
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "http:",
        "https:",
    ):
        assert sink not in programs[0]
    loads = [
        a for tag, a, _ in elements.found for name in a if name in ("src", "href", "srcset") or name.startswith("on")
    ]
    assert loads == [], "nothing is referred to"


def test_a_number_that_json_has_not_never_reaches_the_page() -> None:
    assert plain({"a": float("inf"), 3: (1, 2**53 + 1)}) == {"a": "inf", "3": [1, str(2**53 + 1)]}
    with pytest.raises(ValueError, match="JSON"):
        inert_json(float("nan"))


def test_each_part_of_the_page_is_put_in_its_place_once() -> None:
    page = build_page({"title": "{{script}} {{style}}", "episodes": []}, [pack("{{data}}")]).decode()
    assert json.loads(Elements(page).block("index"))["title"] == "{{script}} {{style}}"


# Size.


def test_ten_thousand_steps_are_a_small_file(tmp_path: Path) -> None:
    shown = long_episode(10_000)
    page = render_traces([shown], tmp_path / "out.html")
    _, (tree,), _ = read_page(tmp_path / "out.html")
    assert page.bytes < 1_000_000
    assert screens(tree)[9_999] == map_screen(9_999)
    assert len(tree["frames"]) == 10_001
    assert len(tree["marks"]["reward"]) == 103
    assert sum(isinstance(event, EnvStep) for event in shown.events) == 10_000
