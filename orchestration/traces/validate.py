"""Checks that a trace keeps what its schema promises beyond the form of each record. Each fault says line and rule."""

from pathlib import Path

from orchestration.errors import TraceError
from orchestration.traces.checks.order import Check
from orchestration.traces.checks.rules import RULES, Fault
from orchestration.traces.complete import Late
from orchestration.traces.reader import read_lines, read_trace, records_of
from orchestration.traces.schema import SUFFIX, Caption, Text

__all__ = ["RULES", "Fault", "faults_of", "validate_file"]


def validate_file(path: Path) -> list[str]:
    """What is wrong with the trace in `path`, a line each; empty for a valid one. A `.part` may lack its end."""
    return [str(fault) for fault in faults_of(path)]


def faults_of(path: Path) -> list[Fault]:
    """As `validate_file`, apart."""
    try:
        read = read_lines(path)
    except TraceError as error:
        return [Fault(None, "form", _without(path, error))]
    finished = path.suffix != ".part"
    if not finished and not read.lines:
        # Its writer was killed before its first line was whole: nothing was promised of it, and nothing is there.
        return []
    check = Check(finished)
    number = 0
    try:
        for number, record in records_of(path, read.lines):
            check.take(number, record)
    except TraceError as error:
        rule = "header" if number == 0 and "header" in str(error) else "form"
        check.faults.append(Fault(number + 1 if read.lines else None, rule, _without(path, error, number + 1)))
        return check.faults
    if finished and read.cut is not None:
        check.faults.append(Fault(None, "cut", read.cut))
    check.conclude()
    name = path.name.removesuffix(".part").removesuffix(SUFFIX)
    if check.header is not None and name != check.header.episode_id:
        check.faults.append(Fault(1, "name", f"the file is called {name}, its episode {check.header.episode_id}"))
    if finished and not check.faults:
        return _late_faults(path)
    return check.faults


def _late_faults(path: Path) -> list[Fault]:
    """What is wrong with a valid trace and what its run says of it later, together."""
    try:
        trace = Late.beside(path.parent).complete(read_trace(path)).trace
    except TraceError as error:
        return [Fault(None, "late", str(error))]
    check = Check(finished=True)
    texts = [Text(ref, text) for ref, text in trace.texts.items()]
    captions = [Caption(caption, text) for caption, text in trace.captions.items()]
    assert trace.end is not None
    for number, record in enumerate((trace.header, *texts, *captions, *trace.events, trace.end), start=1):
        check.take(number, record)
    check.conclude()
    return [Fault(None, fault.rule, fault.message) for fault in check.faults]


def _without(path: Path, error: TraceError, line: int | None = None) -> str:
    text = str(error).removeprefix(str(path))
    return text.removeprefix(f":{line}").strip(": ")
