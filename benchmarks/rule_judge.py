"""An OpenAI-compatible server that answers by the rule book: a judge for tests of everything but the judge.

It runs in threads of this process; `with RuleServer() as server` gives it an address of its own.
"""

import contextlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from reward_server.embedded.rules import RuleBook


def caption_of(messages: list[dict[str, str]]) -> str:
    """The caption that a prompt of `classification-1` ends with."""
    last = messages[-1]["content"].rsplit("Message:\n", 1)[1]
    return json.loads(last.strip().splitlines()[0])


def pair_of(messages: list[dict[str, str]]) -> tuple[str, str] | None:
    """The two captions that a prompt of `ranking-1` ends with; None for another prompt."""
    _, mark, last = messages[-1]["content"].rpartition("Message 1:\n")
    if not mark:
        return None
    lines = last.strip().splitlines()
    return json.loads(lines[0]), json.loads(lines[2])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asked may be gone: some tests kill it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class RuleServer:
    """`mode`: `ok`, `garbage` (nonsense answers), `error` (HTTP 500), `hang` (no answer for a minute), `slow` (after 2 s)."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.mode = "ok"
        self.latency_s = latency_s
        self.asked: list[str] = []
        self.answered: list[str] = []
        """Captions that a label was sent for, each as often as it was."""
        self.authorizations: set[str | None] = set()
        """What requests bore."""
        self._rules = RuleBook.load()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": "rules", "object": "model"}]})

            def do_POST(self) -> None:
                owner.authorizations.add(self.headers.get("Authorization"))
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = owner.answer(request)
                self._send(status, body)

            def _send(self, status: int, body: dict) -> None:
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(raw)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def answer(self, request: dict) -> tuple[int, dict]:
        pair = pair_of(request["messages"])
        asked = [caption_of(request["messages"])] if pair is None else list(pair)
        self.asked += asked
        labels = [self._rules.label(caption).label for caption in asked]
        right = labels[0] if pair is None else 0 if labels[0] == labels[1] else 1 if labels[0] > labels[1] else 2
        time.sleep(self.latency_s)
        if self.mode == "error":
            return 500, {"error": {"message": "out of order"}}
        if self.mode == "hang":
            time.sleep(60.0)
        if self.mode == "slow":
            time.sleep(2.0)
        text = "purple" if self.mode == "garbage" else str(right)
        if text == str(right):
            self.answered += asked
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {"id": "x", "object": "chat.completion", "model": "rules", "choices": [choice]}

    def __enter__(self) -> "RuleServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
