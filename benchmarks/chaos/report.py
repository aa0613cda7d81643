"""The campaign as a table."""

import statistics
from collections.abc import Sequence

from benchmarks.chaos.audit import Finding
from benchmarks.chaos.faults import Outcome


def by_kind(outcomes: Sequence[Outcome]) -> str:
    """How often each kind happened, what it met, and seconds until the run went on."""
    lines = [
        "| fault | caused | met nothing | said after, s: median | most | back after, s: median | most | not within 90 s "
        "| ended the run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(sorted(outcome.kind for outcome in outcomes)):
        same = [outcome for outcome in outcomes if outcome.kind == kind]
        met = [outcome for outcome in same if outcome.target]
        back = [outcome.recovered_s for outcome in met if outcome.recovered_s is not None]
        said = [outcome.noticed_s for outcome in met if outcome.noticed_s is not None]
        times = f"{_times(said)} | {_times(back)}"
        ended = sum(outcome.ended_run is not None for outcome in same)
        stuck = len(met) - len(back) - sum(o.ended_run is not None and o.recovered_s is None for o in met)
        lines.append(f"| {kind} | {len(same)} | {len(same) - len(met)} | {times} | {stuck} | {ended} |")
    return "\n".join(lines)


def _times(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f} | {max(seconds):.1f}" if seconds else " | "


def invariants(findings: Sequence[Finding]) -> str:
    """Each with how it came out."""
    lines = ["| invariant | holds | |", "|---|---|---|"]
    lines += [f"| {finding.name} | {'yes' if finding.holds else '**no**'} | {finding.detail} |" for finding in findings]
    return "\n".join(lines)
