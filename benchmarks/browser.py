"""A real browser, driven over the DevTools protocol through a pair of pipes."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
