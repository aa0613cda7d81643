"""The embedded judge: a language model of a few million parameters, made on this machine from documented rules.

It exists because a machine without internet has no weights. It knows no more than `rules.yaml` taught it.
"""

from pathlib import Path

from reward_server.embedded.builder import REPORT, build, default_digest, report
from reward_server.embedded.rules import RuleBook, Verdict
from reward_server.embedded.training import TrainingSettings

__all__ = ["RuleBook", "TrainingSettings", "Verdict", "build", "is_built", "report"]


def is_built(cache_dir: str | Path) -> bool:
    """Whether `build(cache_dir)` would find its judge made already."""
    return (Path(cache_dir) / f"embedded-{default_digest()}" / REPORT).is_file()
