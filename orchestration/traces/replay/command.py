"""What `yendor trace replay` does, so that the command line has only to parse."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.cli.output import console, print_json
from orchestration.errors import TraceError, UsageError
from orchestration.traces.reader import Trace, read_trace
from orchestration.traces.replay.isolate import fork_aside, replay
from orchestration.traces.replay.verdict import EXIT_CODES, Outcome, UnreplayableError, Verdict, exit_code

if TYPE_CHECKING:
    from orchestration.traces.replay.rewards import Rescored


def run_replay(
    files: Sequence[Path],
    *,
    start: int | None = None,
    fork: bool = False,
    policy: str | None = None,
    seed: int | None = None,
    out: Path | None = None,
    reward_model: str | None = None,
    force_tokens: bool = False,
    weights: Path | None = None,
    tolerance: float | None = None,
    page: Path | None = None,
    as_json: bool = False,
) -> int:
    """Plays traces again and prints what came out; returns the exit code.

    0: all match; 1: one diverged; 3: one cannot be played again (and none diverged). Without more, each file is executed
    and compared. `reward_model` computes its rewards again instead; `force_tokens` scores the tokens of its language model
    again under `weights`, within a `tolerance`. `fork` goes on from step `start` with `policy`, whose
    choices follow from `seed` (0), and writes the branch to `out`, or beside its parent. `page` shows the traces, with
    the steps at which they diverged. Raises `UsageError` for options
    that do not go together, `TraceError` for a fork of a file that is no trace.
    """
    _check(start, fork, policy, seed, out, reward_model)
    _check_tokens(force_tokens, weights, tolerance, fork or reward_model is not None)
    if page is not None and (fork or force_tokens or reward_model is not None):
        raise UsageError("--view shows where a replay diverged; it goes with no other kind of replay")
    if fork:
        assert start is not None and policy is not None
        return _fork(files, start, policy, seed or 0, out, as_json)
    if force_tokens:
        return _force(files, weights, tolerance, as_json)
    if reward_model is not None:
        return _rescore(files, reward_model, as_json)
    verdicts = [replay(path) for path in files]
    if as_json:
        print_json([tree_of(verdict) for verdict in verdicts])
    else:
        for verdict in verdicts:
            _print(verdict)
    if page is not None:
        _show(verdicts, page)
        if not as_json:
            console().out(f"{page}: `n` goes to where a replay diverged", highlight=False)
    return exit_code(verdicts)


def _show(verdicts: Sequence[Verdict], page: Path) -> None:
    from orchestration.traces.view.document import Divergence
    from orchestration.traces.view.render import render

    found = [
        Divergence(
            verdict.episode_id,
            verdict.divergence.step,
            "; ".join(
                f"{one.key}: recorded {one.recorded}, replayed {one.replayed}" for one in verdict.divergence.differences
            ),
            verdict.divergence.replayed_screen or None,
        )
        for verdict in verdicts
        if verdict.divergence is not None and verdict.episode_id is not None
    ]
    render([Path(verdict.path) for verdict in verdicts], page, divergences=found)


def _check(
    start: int | None, fork: bool, policy: str | None, seed: int | None, out: Path | None, reward_model: str | None
) -> None:
    if fork and reward_model is not None:
        raise UsageError("--fork and --reward-model: one at a time; score the fork's own trace")
    if fork and (start is None or policy is None):
        missing = "--from" if start is None else "--policy"
        raise UsageError(
            f"--fork needs {missing}: the step to fork at, and who goes on (--policy random, or the folder of a run, a checkpoint "
            "or a language model)"
        )
    given = {"--from": start, "--policy": policy, "--seed": seed, "--out": out}
    idle = [name for name, value in given.items() if value is not None]
    if not fork and idle:
        raise UsageError(f"{idle[0]} has no effect without --fork")


def _check_tokens(force: bool, weights: Path | None, tolerance: float | None, other: bool) -> None:
    if force and other:
        raise UsageError("--force-tokens goes with neither --fork nor --reward-model: one at a time")
    idle = "--weights" if weights is not None else "--tolerance" if tolerance is not None else None
    if not force and idle is not None:
        raise UsageError(f"{idle} has no effect without --force-tokens")
    if tolerance is not None and not tolerance >= 0:
        raise UsageError(f"--tolerance must be at least 0, not {tolerance:g}")


def tree_of(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON has it: its fields, its line and its exit code."""
    return {**dataclasses.asdict(verdict), "line": verdict.line, "exit_code": verdict.exit_code}


def _print(verdict: Verdict) -> None:
    out = console()
    out.out(f"{verdict.path}: {verdict.line}", highlight=False)
    divergence = verdict.divergence
    if divergence is not None:
        for difference in divergence.differences[1:]:
            out.out(
                f"  also {difference.key}: recorded {difference.recorded}, replayed {difference.replayed}",
                highlight=False,
            )
        out.out(f"--- recorded\n{divergence.recorded_screen or '(no screen was kept)'}", highlight=False)
        out.out(f"--- replayed\n{divergence.replayed_screen}", highlight=False)
    for note in verdict.notes:
        out.out(f"  {note}", highlight=False)


def _fork(files: Sequence[Path], start: int, policy: str, seed: int, out: Path | None, as_json: bool) -> int:
    branches = [fork_aside(path, start, policy, seed=seed, folder=out) for path in files]
    if as_json:
        trees = [{**dataclasses.asdict(branch), "verdict": tree_of(branch.verdict)} for branch in branches]
        print_json(trees)
        return exit_code(branch.verdict for branch in branches)
    for branch in branches:
        if branch.path is None:
            _print(branch.verdict)
            continue
        console().out(
            f"{branch.path}: {branch.at:,} steps as before, {branch.length - branch.at:,} by {branch.policy}, "
            f"return {branch.episode_return:g}",
            highlight=False,
        )
    return exit_code(branch.verdict for branch in branches)


def _rescore(files: Sequence[Path], model: str, as_json: bool) -> int:
    from orchestration.traces.replay.rewards import rescore

    results: list[tuple[Path, Rescored | str]] = []
    for path in files:
        try:
            results.append((path, rescore(_read(path), model)))
        except UnreplayableError as error:
            results.append((path, str(error)))
    if as_json:
        print_json([_rescored_tree(path, result) for path, result in results])
    else:
        for path, result in results:
            console().out(f"{path}: {_rescored_line(result)}", highlight=False)
    return _worst(Outcome.UNREPLAYABLE if isinstance(result, str) else result.outcome for _, result in results)


def _force(files: Sequence[Path], weights: Path | None, tolerance: float | None, as_json: bool) -> int:
    from orchestration.traces.replay.tokens import TOLERANCE, Forced, force_tokens

    results: list[tuple[Path, Forced | str]] = []
    for path in files:
        try:
            results.append((path, force_tokens(_read(path), weights, TOLERANCE if tolerance is None else tolerance)))
        except UnreplayableError as error:
            results.append((path, str(error)))
    if as_json:
        print_json(
            [
                {"path": str(path), "outcome": Outcome.UNREPLAYABLE, "reason": result}
                if isinstance(result, str)
                else {**dataclasses.asdict(result), "outcome": result.outcome, "line": result.line}
                for path, result in results
            ]
        )
    else:
        for path, result in results:
            told = f"UNREPLAYABLE ({result})" if isinstance(result, str) else result.line
            console().out(f"{path}: {told}", highlight=False)
    return _worst(Outcome.UNREPLAYABLE if isinstance(result, str) else result.outcome for _, result in results)


def _worst(outcomes: Iterable[Outcome]) -> int:
    found = set(outcomes)
    return EXIT_CODES[next((o for o in (Outcome.DIVERGED, Outcome.UNREPLAYABLE) if o in found), Outcome.MATCH)]


def _read(path: Path) -> Trace:
    try:
        return read_trace(path)
    except TraceError as error:
        raise UnreplayableError(str(error)) from error


def _rescored_tree(path: Path, result: "Rescored | str") -> dict[str, Any]:
    if isinstance(result, str):
        return {"path": str(path), "outcome": Outcome.UNREPLAYABLE, "reason": result}
    sums = {"sums": result.sums()}
    return {"path": str(path), "outcome": result.outcome, **dataclasses.asdict(result), **sums}


def _rescored_line(result: "Rescored | str") -> str:
    if isinstance(result, str):
        return f"UNREPLAYABLE ({result})"
    sums = ", ".join(f"{name} {value:g}" for name, value in result.sums().items())
    told = f"reward model v{result.version}: {sums}"
    if result.difference is not None:
        difference = result.difference
        return (
            f"DIVERGED at step {result.step} ({difference.key}: recorded {difference.recorded}, "
            f"computed {difference.replayed}); {told}"
        )
    if not result.compared:
        return f"{told} (the trace holds no rewards of this version to compare with)"
    return f"MATCH ({result.compared:,} rewards); {told}"
