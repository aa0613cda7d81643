"""The checks of a probe as a chart."""

from orchestration.report.svg import Bar, limit_bars
from reward_server.judge.probe import ProbeReport


def probe_plot(report: ProbeReport) -> str:
    """The checks as an SVG file: how much each found, and how much it may find."""
    bars = [
        Bar(check.name, None if check.verdict == "not measured" else check.value, check.at_most)
        for check in report.checks
    ]
    return limit_bars(bars, standalone=True)
