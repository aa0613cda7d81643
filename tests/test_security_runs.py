"""A real run as others on the network and readers of its files see it: where it listens, and whether it tells a key."""

import ipaddress
import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from benchmarks.rule_judge import RuleServer
from orchestration.traces.reader import read_trace, run_traces, trace_files
from tests.processes import YENDOR, Command, summary
from tests.test_ray import small

pytestmark = pytest.mark.long

KEY = "sk-planted-0123456789abcdef"


def listening(processes: list[psutil.Process]) -> dict[str, set[str]]:
    """Addresses on which processes listen, each with who does."""
    found: dict[str, set[str]] = {}
    for process in processes:
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.ip, set()).add(process.name())
        except psutil.Error:  # it ended while we looked
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def told_in(folder: Path) -> list[Path]:
    """Files below that hold the key, traces as they are read."""
    return [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_run_listens_on_this_machine_alone_and_tells_its_key_to_nobody_but_the_judge(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("YENDOR_TEST_KEY", KEY)
    # NetHack brings new captions all the time, so the judge is asked when it begins to fail.
    options = ["train.env_steps=100000000", "judge.api_key_env=YENDOR_TEST_KEY", "trace.rate=0.5", "metrics.port=null",
               "env.id=nethack/Score", f"checkpoint.url={tmp_path / 'far'}", "checkpoint.interval_s=1"]  # fmt: skip
    with RuleServer() as server, Command(*small(tmp_path, server.url, *options)) as command:
        command.until(lambda: summary(run).get("reward_model_version", 0) >= 1 and summary(run)["uploads"] >= 1)
        assert server.authorizations == {f"Bearer {KEY}"}
        found = listening(command.processes())
        assert {"gcs_server", "raylet"} <= {name for names in found.values() for name in names}
        assert {address: who for address, who in found.items() if not is_loopback(address)} == {}
        server.mode = "error"
        command.until(lambda: summary(run)["judge_status"] == "down" and bool(summary(run)["judge_error"]))
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert KEY not in command.text()
        assert told_in(tmp_path) == []
        assert told_in(Path(command.ray_dir)) == []
    traces = [*run_traces(run), *trace_files(run / "traces")]
    assert len(traces) >= 2 and all(KEY not in repr(read_trace(path)) for path in traces)
    assert json.loads((run / "summary.json").read_text())["judge_error"]


def test_a_judge_that_refuses_the_key_is_told_of_without_it(tmp_path, monkeypatch):
    """The error says which variable the key is from."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Refusing(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            body = json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  the base class calls it so

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        done = subprocess.run([YENDOR, *small(tmp_path, url)], capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "OPENAI_API_KEY" in said and KEY not in said
    assert told_in(tmp_path) == []
