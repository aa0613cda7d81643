"""The page of traces in a real headless Chromium, opened from disk: keys pressed, what is then there, pictures."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.browser import Browser, find_browser
from benchmarks.trace_view import SCRUB
from orchestration.traces.schema import (
    Aggregate,
    Annotation,
    Delegate,
    Error,
    Message,
    Return,
    Spawn,
    ToolCall,
)
from orchestration.traces.view import Divergence, follow, render, render_traces
from orchestration.traces.view.render import Page
from tests.trace_view_support import (
    HOSTILE,
    Script,
    end,
    header,
    long_episode,
    map_screen,
    trace,
    write_trace,
)

PROGRAM = find_browser()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None, reason="no Chromium here; `apt-get install chromium-headless-shell` brings one"
    ),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(tab: Browser) -> Iterator[Browser]:
    tab.events.clear()
    yield tab
    assert tab.complaints() == []


def frame(browser: Browser) -> int:
    return int(browser.run("document.body.dataset.frame"))


def rows(browser: Browser, terminal: str = "#terminal") -> list[str]:
    return browser.run(f"Array.from(document.querySelectorAll('{terminal} > div'), row => row.textContent)")


def short_episode() -> Script:
    """Twelve steps: rewards at 3 and 7, something said and judged at 5 and 9, an error at 10."""
    script = Script()
    script.reset(map_screen(0))
    for at in range(12):
        said = "1" if at in (5, 9) else "0"
        step = script.step(at, map_screen(at + 1), caption_id=said, caption_count=(at == 5) + 2 * (at == 9))
        if at in (3, 7):
            script.reward(float(at), step)
            script.reward(-0.5, step, "progress", family="process")
        if at == 10:
            script.add(Error, message="a pipe broke", source="env")
    script.add(
        Annotation, caption_id="1", question_ref="q", answer_ref="a", label=1, probability=0.875, judge="judge-7b"
    )
    return script


def short_trace(name: str = "short"):
    script = short_episode()
    said = {"1": "You see here a key."}
    texts = {"q": "Is this good for the goal?", "a": "<answer>yes</answer>"}
    return trace(script.events, said, texts, of=header(name), ended=end(length=12, episode_return=10.0, success=True))


def test_keys_move_through_the_steps(browser: Browser, tmp_path: Path) -> None:
    render_traces([short_trace()], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert rows(browser) == map_screen(0).split("\n")
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 12),
        ("ArrowRight", 12),
        ("Home", 0),
    ):
        browser.press(key)
        assert frame(browser) == place, key
        assert rows(browser) == map_screen(place).split("\n")
    browser.press("ArrowRight", shift=True)
    assert frame(browser) == 10
    assert "step 9" in browser.text("#position")
    assert "10.000" not in browser.text("#facts") and "north" in browser.text("#facts")


def test_keys_jump_to_rewards_labels_and_errors(browser: Browser, tmp_path: Path) -> None:
    render_traces([short_trace()], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    for key, shift, place in (
        ("r", False, 4),
        ("n", False, 8),
        ("n", False, 8),
        ("p", False, 4),
        ("l", False, 6),
        ("l", False, 10),
        ("L", True, 6),
        ("e", False, 11),
        ("R", True, 8),
    ):
        browser.press(key, shift=shift)
        assert frame(browser) == place, key
    assert (
        "+7" in browser.text("#rewards")
        and "progress" in browser.text("#rewards")
        and "-0.5" in browser.text("#rewards")
    )
    browser.press("d")
    assert (frame(browser), browser.text("#matches")) == (8, "none")


def test_the_judge_is_quoted_at_each_labelled_step(browser: Browser, tmp_path: Path) -> None:
    render_traces([short_trace()], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.run("document.querySelector('#judge-section').hidden")
    for _ in range(2):
        browser.press("l")
        told = browser.text("#judge")
        for part in ("Is this good for the goal?", "<answer>yes</answer>", "0.875", "judge-7b"):
            assert part in told
        assert browser.text("#caption").startswith("You see here a key.")


def test_search_finds_what_is_on_screens_said_and_in_events(browser: Browser, tmp_path: Path) -> None:
    render_traces([short_trace()], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    for wanted, first, found in (("T:4", 4, 1), ("HERE A KEY", 6, 2), ("pipe broke", 11, 1), ("for the goal", 12, 1)):
        browser.press("Home")
        browser.press("/")
        browser.run("document.querySelector('#search').value = ''")
        browser.call("Input.insertText", text=wanted)
        browser.until(f"document.querySelector('#matches').textContent === '{found} found'")
        browser.press("Enter")
        assert frame(browser) == first, wanted
    assert browser.run("document.querySelectorAll('#steps .row.hit').length") == 1
    browser.press("r")
    assert browser.run("document.activeElement.id") != "search", "keys work again after the search"


def test_it_plays_at_its_speed_and_stops_at_the_end(browser: Browser, tmp_path: Path) -> None:
    render_traces([long_episode(300)], tmp_path / "page.html")
    browser.open(tmp_path / "page.html", "#speed=200")
    began = browser.run("performance.now()")
    browser.press(" ")
    browser.until("document.body.dataset.frame === '300'")
    assert 1.2 < (browser.run("performance.now()") - began) / 1000 < 4.0
    browser.until("document.querySelector('#play').textContent.includes('play')")
    browser.press(" ")
    browser.until("document.body.dataset.frame > 5")
    browser.press(" ")
    place = frame(browser)
    assert place < 300
    browser.settle()
    assert frame(browser) == place, "space stops"
    browser.press("]")
    assert browser.run("document.querySelector('#speed').value") == "400"


def test_several_episodes_and_their_addresses(browser: Browser, tmp_path: Path) -> None:
    render_traces([short_trace("one"), long_episode(50), short_trace("three")], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    for key, place in (("j", 1), ("j", 2), ("j", 2), ("k", 1)):
        browser.press(key)
        browser.until(f"document.body.dataset.episode === '{place}'")
    assert browser.run("document.querySelectorAll('#episodes .row').length") == 3
    assert "success" in browser.text("#episodes .row.current")
    browser.press("End")
    browser.until("location.hash.includes('at=50')")
    address = browser.run("location.hash")
    browser.open(tmp_path / "page.html", address)
    assert (browser.run("document.body.dataset.episode"), frame(browser)) == ("1", 50)


def test_hostile_texts_are_only_text(browser: Browser, tmp_path: Path) -> None:
    script = Script(HOSTILE[0])
    script.reset(HOSTILE[1])
    texts = {f"{at:016x}": text for at, text in enumerate(HOSTILE)}
    for at, text in enumerate(HOSTILE):
        step = script.step(at, text, caption_id=str(at + 1), caption_count=1, action_name=text)
        script.add(Message, to=text, content_ref=f"{at:016x}")
        script.add(Error, message=text, source=text)
        script.reward(1.0, step, text, family=text)
        script.add(Annotation, caption_id=str(at + 1), question_ref=f"{at:016x}", label=1, probability=1.0, judge=text)
    captions = {str(at + 1): text for at, text in enumerate(HOSTILE)}
    shown = header(run=HOSTILE[0], env_id=HOSTILE[1], versions={HOSTILE[0]: HOSTILE[1]})
    ended = end(error=HOSTILE[1], metrics={HOSTILE[0]: 1.0})
    found = [Divergence("episode", 0, HOSTILE[0], HOSTILE[1])]
    render_traces(
        [trace(script.events, captions, texts, of=shown, ended=ended)], tmp_path / "page.html", divergences=found
    )
    browser.open(tmp_path / "page.html")
    elements = "document.querySelectorAll('img, iframe, body script:not([type])').length"
    before = browser.run(elements)
    for at in range(len(HOSTILE) + 1):
        if at:
            caption = browser.text("#caption .text")
            assert caption == (HOSTILE[at - 1] if HOSTILE[at - 1].isprintable() else caption)
        browser.press("ArrowRight")
    browser.run("document.querySelectorAll('button').forEach(one => one.textContent.startsWith('show') && one.click())")
    assert browser.run("typeof window.hit") == "undefined"
    assert browser.run(elements) == before == 1
    browser.press("Home")
    for _ in range(6):
        browser.press("ArrowRight")
    said = browser.text("#caption .text")
    assert said == "␀␁␇␈␛[31mred␡⟨U+009B⟩⟨U+2028⟩⟨U+2029⟩⟨U+202E⟩gnp.exe⟨U+FEFF⟩"
    assert rows(browser) == ["␀␁␇␈␛[31mred�����gnp.exe�"]


def test_a_caption_of_a_megabyte_is_shown_in_part_and_whole_on_demand(browser: Browser, tmp_path: Path) -> None:
    text = "<b>" + "x" * 1_000_000 + "</b>"
    script = Script()
    script.reset()
    script.step(0, text, caption_id="1", caption_count=1)
    render_traces([trace(script.events, {"1": text})], tmp_path / "page.html")
    assert browser.open(tmp_path / "page.html") < 2.0
    browser.press("End")
    assert len(browser.text("#caption .text")) == 2000
    assert len(rows(browser)[0]) < 5000
    browser.run("document.querySelector('#caption button').click()")
    assert browser.run("document.querySelector('#caption .text').textContent.length") == len(text)
    assert browser.run("document.querySelectorAll('#caption b').length") == 0


def test_colours_are_those_recorded_or_those_of_the_class(browser: Browser, tmp_path: Path) -> None:
    script = Script()
    script.reset("hello\n |@.d\n\n", colors="\n 7f7c")
    script.step(0, "hello\n |@.d\n\n")
    render_traces([trace(script.events)], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    colour = "Array.from(document.querySelectorAll('#terminal > div:nth-child(2) span'), one => one.textContent + one.className)"
    assert browser.run(colour) == ["@if", "dic"]
    browser.press("ArrowRight")
    assert browser.run(colour) == ["@if", "di3"]
    style = "getComputedStyle(document.querySelector('#terminal span')).color"
    assert browser.run(style) == "rgb(255, 255, 255)"


def agents_trace():
    """A lead that spawns two workers, who use a tool, answer and talk to each other."""
    script = Script("lead")
    first = script.add(Spawn, parents=(), child="worker-1", role="executor")
    second = script.add(Spawn, child="worker-2", role="critic")
    task = script.add(Delegate, to="worker-1", task_ref="t")
    call = script.add(ToolCall, agent="worker-1", parents=(first, task), tool="search", arguments={"q": "key"})
    said = script.add(Message, agent="worker-1", parents=(call,), to="worker-2")
    seen = script.add(Message, agent="worker-2", parents=(second, said), to="lead")
    back = script.add(Return, agent="worker-1", parents=(call,), call=task, to="lead")
    script.add(Aggregate, parents=(seen, back), method="vote")
    return trace(script.events, texts={"t": "find the key"}, of=header("agents", env_id="demo"))


def test_agents_have_lanes_with_edges_and_events_can_be_chosen(browser: Browser, tmp_path: Path) -> None:
    render_traces([agents_trace()], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    gutter = browser.run("Array.from(document.querySelectorAll('#gutter > div'), one => one.textContent)")
    assert gutter[1:] == ["lead", "worker-1", "worker-2"]

    def near(x: float, y: float, colour: tuple[int, int, int]) -> bool:
        patch = picture[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4]
        return bool((np.abs(patch - np.array(colour)).max(axis=2) < 12).any())

    deadline = time.monotonic() + 20
    # Lanes take their place, and the canvas is drawn, with the next frames of the display, which on a busy machine come late.
    while True:
        browser.settle()
        box = browser.run(
            "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('#field').getBoundingClientRect())"
        )
        top, eighth = box[1] + 24, box[2] / 8
        picture = np.asarray(Image.open(browser.screenshot(tmp_path / "agents.png")).convert("RGB")).astype(int)
        if near(box[0] + 3.5 * eighth, top + 36, (0xFF, 0x9D, 0xB1)) or time.monotonic() > deadline:
            break
    assert near(box[0] + 0.5 * eighth, top + 12, (0x5B, 0xE3, 0xC0)), "the first spawn, in the lane of the lead"
    assert near(box[0] + 3.5 * eighth, top + 36, (0xFF, 0x9D, 0xB1)), "the tool call, in that of the first worker"
    # Between the lanes, only edges are drawn.
    between = picture[int(top + 24 + 20) : int(top + 24 + 28), int(box[0]) : int(box[0] + box[2])]
    assert (between.max(axis=2) > 90).any(axis=0).sum() > 10
    browser.click(box[0] + 3.5 * eighth, top + 36)
    assert frame(browser) == 3
    assert browser.text(".event.chosen h3").startswith("tool_call · worker-1")
    assert browser.text("#terminal").startswith("tool_call · worker-1")
    browser.run("document.querySelector('.event.chosen a').click()")
    assert frame(browser) == 0


def test_a_divergence_is_shown_with_both_screens(browser: Browser, tmp_path: Path) -> None:
    found = [Divergence("short", 4, "reward: recorded 0, replayed 1", map_screen(9))]
    render_traces([short_trace()], tmp_path / "page.html", divergences=found)
    browser.open(tmp_path / "page.html")
    browser.press("d")
    assert frame(browser) == 5
    assert "reward: recorded 0, replayed 1" in browser.text("#notice")
    assert rows(browser, "#other-terminal") == map_screen(9).split("\n")
    marked = browser.run("Array.from(document.querySelectorAll('#other-terminal .hit'), row => row.textContent)")
    assert marked == [a for a, b in zip(map_screen(9).split("\n"), map_screen(5).split("\n"), strict=True) if a != b]
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('#other').hidden && document.querySelector('#notice').hidden")


def test_ten_thousand_steps_open_and_scrub(browser: Browser, tmp_path: Path) -> None:
    """How quickly is measured by `python -m benchmarks trace_view`."""
    path = write_trace(tmp_path, long_episode(10_000))
    render([path], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.run("document.querySelectorAll('.row').length") < 100, "only rows that are seen are elements"
    assert len(browser.run(SCRUB)) == 120
    assert frame(browser) > 7_000


def test_lanes_zoom_and_follow_the_head(browser: Browser, tmp_path: Path) -> None:
    render_traces([long_episode(1000)], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    moved = "new DOMMatrix(getComputedStyle(document.querySelector('#head')).transform).e"
    head = f"{moved} / document.querySelector('#field').clientWidth"
    browser.press("End")
    assert browser.run(head) == pytest.approx(1.0, abs=0.01)
    for _ in range(3):
        browser.press("+")
    browser.press("Home")
    browser.settle()
    assert 0 <= browser.run(head) < 0.02
    browser.press("ArrowRight", shift=True)
    assert browser.run(head) == pytest.approx(10.5 / 125.1, abs=0.01)
    browser.press("0")
    browser.settle()
    assert browser.run(head) == pytest.approx(10.5 / 1001, abs=0.002)


def test_following_keeps_the_place_and_shows_what_finished(browser: Browser, tmp_path: Path) -> None:
    write_trace(tmp_path, long_episode(30))
    pages, ended = list[Page](), threading.Event()
    told = threading.Event()

    def on_page(page: Page) -> None:
        pages.append(page)
        told.set()

    options = {"look_s": 0.05, "reload_s": 2.0, "on_page": on_page, "going": lambda: not ended.is_set()}
    thread = threading.Thread(target=follow, args=(tmp_path, tmp_path / "page.html"), kwargs=options)
    thread.start()
    try:
        assert told.wait(20)
        while not pages[-1].episodes:
            time.sleep(0.01)
        browser.open(tmp_path / "page.html")
        browser.until("document.querySelector('#live')?.textContent.endsWith('following')")
        for _ in range(4):
            browser.press("ArrowRight")
        browser.until("document.body?.dataset.frame === '4'")
        write_trace(tmp_path, short_trace("zulu"))
        shown = "[document.querySelectorAll('#episodes .row').length, document.body?.dataset.frame, document.body?.dataset.episode]"
        browser.until(f"{shown}.join() === '2,4,0'")
    finally:
        ended.set()
        thread.join(20)
    browser.until("document.querySelector('#live')?.hidden === true")
    assert [page.episodes for page in pages] == [0, 1, 2, 2]
    assert json.loads(browser.text("#index"))["reload_s"] is None
