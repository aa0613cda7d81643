"""The checks of a probe as a chart."""

from orchestration.report.svg import Bar, limit_bars
from reward_server.judge.probe import ProbeReport


def probe_plot(report: ProbeReport) -> str:
    """The checks as an SVG file: how much each found, and how much it may find."""
    return limit_bars([Bar(check.name, check.value, check.at_most) for check in report.checks], standalone=True)
