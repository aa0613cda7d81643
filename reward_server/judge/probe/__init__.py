"""Can a judge be trusted? Questions whose answers must agree with one another, whatever the judge knows."""

from reward_server.judge.probe.probe import probe
from reward_server.judge.probe.questions import ProbeQuestions
from reward_server.judge.probe.report import LIMITS, Check, Example, ProbeReport, limits_with

__all__ = ["LIMITS", "Check", "Example", "ProbeQuestions", "ProbeReport", "limits_with", "probe"]
