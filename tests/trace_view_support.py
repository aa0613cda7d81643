"""A real browser, driven over the DevTools protocol through a pair of pipes; and traces to look at."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
_WAIT_S = 20.0

_LAUNCH = """
import fcntl, os, sys
# The protocol is spoken over descriptors 3 and 4; ours may have just these numbers.
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for descriptor, end in zip((3, 4), ends):
    os.dup2(end, descriptor)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_browser() -> str | None:
    """A Chromium on this machine; `CHROMIUM` names another one."""
    return os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)


class NavigatedError(Exception):
    """The page went while it was asked."""


class Browser:
    """A headless Chromium with one tab. A context manager."""

    def __init__(self, program: str, profile: Path, size: tuple[int, int] = (1500, 950)) -> None:
        there_in, self._write = os.pipe()
        self._read, there_out = os.pipe()
        options = [
            "--headless",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(there_in), str(there_out), program, *options],
            pass_fds=(there_in, there_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there_in)
        os.close(there_out)
        self._buffer = b""
        self._calls = 0
        self.events: list[dict[str, Any]] = []
        """Whatever the browser told unasked, in order."""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a protocol call."""
        self._calls += 1
        request: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session is not None:
            request["sessionId"] = self._session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive(time.monotonic() + _WAIT_S)
            if answer.get("id") == self._calls:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise NavigatedError
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser is gone"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, fragment: str = "") -> float:
        """Opens a file; returns the seconds until it is ready."""
        self.call("Page.navigate", url="about:blank")
        began = time.monotonic()
        self.call("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.until("document.body?.dataset.ready === '1'")
        return time.monotonic() - began

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, wait_s: float = _WAIT_S) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + wait_s
        while True:
            # A page that loads itself again answers nothing meanwhile.
            with contextlib.suppress(NavigatedError):
                if self.run(condition):
                    return
            assert time.monotonic() < deadline, f"never: {condition}"
            time.sleep(0.01)

    def text(self, selector: str) -> str:
        """The text of the first element that `selector` finds."""
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Presses a key: a character or a name (`ArrowLeft`, `Home`); returns when the page has drawn."""
        codes: Mapping[str, int] = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Enter": 13, "Escape": 27}
        typed = key if len(key) == 1 else "\r" if key == "Enter" else ""
        params = {"key": key, "modifiers": 8 if shift else 0, "windowsVirtualKeyCode": codes.get(key, 0)}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=typed, **params)
        self.call("Input.dispatchKeyEvent", type="keyUp", **params)
        self.settle()

    def settle(self) -> None:
        """Waits for the next two frames of the display."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def click(self, x: float, y: float) -> None:
        """Clicks at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        self.settle()

    def screenshot(self, path: Path) -> Path:
        """A picture of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def complaints(self) -> list[str]:
        """Exceptions, errors and violations of the page's policy, and whatever was asked of a network."""
        told: list[str] = []
        for event in self.events:
            method, params = event.get("method", ""), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                told.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
                told.append(params["entry"]["text"])
            elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(
                ("file:", "about:", "data:")
            ):
                told.append(f"requests {params['request']['url']}")
            elif method == "Page.javascriptDialogOpening":
                told.append(f"dialog: {params['message']}")
        return told


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
