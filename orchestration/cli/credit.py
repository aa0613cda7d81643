"""`yendor trace show FILE --credit`."""

from pathlib import Path

from orchestration.cli.output import console, print_json, table
from orchestration.traces.credit import EpisodeCredit, TurnCredit, credit_of, write_credited
from orchestration.traces.reader import Trace

_COMPONENTS = ("extrinsic", "intrinsic", "progress", "grounding")


def show_credit(
    trace: Trace, start: int, limit: int, *, checkpoint: Path | None, out: Path | None, as_json: bool
) -> None:
    """Prints the attribution of an episode, and writes it as a trace to the folder `out`."""
    found = credit_of(trace, checkpoint)
    written = None if out is None else write_credited(trace, found, out)
    if as_json:
        print_json({"credit": found, "sums": found.sums(), "written": written})
        return
    show = console()
    show.print(table(("", ""), _head(found)), markup=False)
    show.print()
    turns = [turn for turn in found.turns if turn.step >= start][:limit]
    columns = ("step", "action", "ĉ", *_COMPONENTS, "total", "why")
    rows = [_row(turn) for turn in turns]
    sums = found.sums()
    rows.append(("Σ", "", _signed(found.contributions), *(_signed(sums[name]) for name in (*_COMPONENTS, "total")), ""))
    show.print(table(columns, rows, right=(columns[0], *columns[2:-1])), markup=False)
    left = sum(turn.step > (turns[-1].step if turns else start) for turn in found.turns)
    if left:
        show.print(f"\n{left:,} more steps; --from {turns[-1].step + 1}")
    if written is not None:
        show.print(f"\n{written}: with these rewards; `yendor trace view {written}` shows them", soft_wrap=True)


def _head(found: EpisodeCredit) -> list[tuple[str, str]]:
    outcome = "-" if found.outcome is None else f"{found.outcome:g}"
    estimator = f"v{found.progress_version}" if found.progress_version else "none yet"
    return [
        ("episode", found.episode_id),
        ("method", found.method),
        ("estimator", f"{estimator}, on the states of policy v{found.policy_version} ({found.checkpoint})"),
        ("R, Σ ĉ", f"{outcome}, {found.contributions:.3f}"),
    ]


def _row(turn: TurnCredit) -> tuple[str, ...]:
    spread = f" ±{turn.deviation:.3f}" if turn.deviation else ""
    parts = (_signed(getattr(turn, name)) for name in (*_COMPONENTS, "total"))
    return (str(turn.step), turn.action, f"{_signed(turn.contribution)}{spread}", *parts, turn.why)


def _signed(value: float) -> str:
    """To a thousandth; nothing for what is nothing."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 else ""
