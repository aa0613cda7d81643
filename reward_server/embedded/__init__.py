"""The embedded judge: a language model of a few million parameters, made on this machine from documented rules.

It exists because a machine without internet has no weights. It knows no more than `rules.yaml` taught it.
"""

from reward_server.embedded.builder import build, report
from reward_server.embedded.rules import RuleBook, Verdict
from reward_server.embedded.training import TrainingSettings

__all__ = ["RuleBook", "TrainingSettings", "Verdict", "build", "report"]
