"""The program that translates and plans (`translator.py`), held by whoever needs it."""

import atexit
import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

_PROGRAM = Path(__file__).with_name("translator.py")

PATIENCE_S = 600.0
"""An answer that takes longer is an error. It never decides which game a seed names: the largest scene that is ever
drawn needs a hundredth of it."""


class PlannerError(RuntimeError):
    """A translator that died or does not answer; the message is one line."""


class TranslationError(PlannerError):
    """A problem or grammar that can't be translated; the translator itself is well."""


class Planner:
    """One translator process: started by the first request, ended by `close`, and by the end of this process whatever
    kills it (its input ends then). Safe to share between threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def problem(self, domain: str, problem: str) -> dict[str, Any]:
        """What playing needs of a PDDL problem. Raises `TranslationError` where it can't be translated."""
        return self._ask(do="problem", domain=domain, problem=problem)

    def plan(self, domain: str, problem: str) -> list[str] | None:
        """The operators (name and arguments) that solve a problem, or None where nothing does."""
        return self._ask(do="plan", domain=domain, problem=problem)

    def grammar(self, grammar: str) -> dict[str, Any]:
        """A TWL2 grammar as plain lists. Raises `TranslationError` where it can't be parsed."""
        return self._ask(do="grammar", grammar=grammar)

    def close(self) -> None:
        """Ends the process. The next request starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, **request: str) -> Any:
        with self._lock:
            if self._pid != os.getpid():  # forked: the process that is known here is the parent's
                self._process, self._pid = None, os.getpid()
            process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = self._read(process)
            except BrokenPipeError:
                line = b""
            if not line:
                code = self._stop()
                raise PlannerError(f"the translator of ALFWorld's games died (exit code {code})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TranslationError(answer["error"])
        return answer["ok"]

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the script's own folder is no place to import from.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        atexit.register(self.close)
        return self._process

    def _read(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        if not ready:
            self._stop()
            raise PlannerError(f"the translator of ALFWorld's games gave no answer in {PATIENCE_S:.0f} s")
        return process.stdout.readline()

    def _stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        atexit.unregister(self.close)
        assert process.stdin is not None and process.stdout is not None
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()


@functools.cache
def shared_planner() -> Planner:
    """The translator that all environments of this process share: it has little to do once games are in the cache."""
    return Planner()
