"""The machine of a learner, and that of the head, die while a run goes on: real Ray nodes, kill -9 of all that is on one."""

from pathlib import Path

import pytest

from benchmarks.chaos import RUN, stop
from benchmarks.chaos.audit import examine
from benchmarks.chaos.cluster import HEAD, LEARNER_NODE, LocalCluster
from benchmarks.chaos.faults import Injector
from benchmarks.chaos.schedule import Fault, Kind
from benchmarks.chaos.training import Training
from benchmarks.rule_judge import RuleServer


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_goes_on_when_the_learners_machine_dies_and_then_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that actors were to act by lay on the learner's: they wait for those of the next. With the head go driver,
    reward server and all that Ray knew; the other machines end what they had of the run by themselves."""
    monkeypatch.setenv(
        "RAY_worker_niceness", "10"
    )  # tests that run beside this one wait for processors, this one does not
    keys = ["demo", *RUN, "train.env_steps=1000000000"]
    with (
        LocalCluster(1, 1.0, network=False) as cluster,
        RuleServer() as judge,
        Training(cluster, tmp_path / "runs", "run", [*keys, f"judge.url={judge.url}"]) as training,
    ):
        training.path.parent.mkdir()
        training.start()
        began = training.until(
            lambda told: bool(told.get("checkpoint")) and told["captions_labelled"] > 3 and told["policy_version"] > 3,
            120.0,
        )
        assert began is not None, training.text()
        injector = Injector(cluster, training, judge, tmp_path / "runs")
        outcome = injector.cause(Fault(0, Kind.KILL_LEARNER_NODE, 0.5, 12.0, 0.0))
        assert outcome.target == LEARNER_NODE and outcome.ended_run is None, outcome
        assert outcome.noticed_s is not None and outcome.recovered_s is not None, (outcome, training.text())
        assert "the learner waits for a machine: cluster.groups=true: the learner needs 1" in " ".join(
            training.text().split()
        )
        assert training.summary()["learner_restarts"] == 1 and "ObjectLost" not in training.text(), training.text()

        outcome = injector.cause(Fault(1, Kind.KILL_HEAD, 0.5, 0.0, 0.0))
        assert outcome.target == HEAD and outcome.ended_run is None and outcome.recovered_s is not None, training.text()
        # What was labelled before counts again when its captions come again.
        again = training.until(lambda told: told["captions_labelled"] > 3, 120.0)
        assert again is not None, training.text()
        left = stop(training)
        # Before the first checkpoint after it, a restart is not known any more.
        assert training.summary()["learner_restarts"] <= 1, training.text()
        findings = examine(training.path, training.seen, judge.answered, left)
    assert all(finding.holds for finding in findings), findings
