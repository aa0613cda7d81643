"""What the learner says of captions: which it does not know, and what traces are told of the others."""

import numpy as np

from envs.captions import EMPTY_CAPTION_ID
from orchestration.configuration import load_config
from orchestration.parts import LearnerPart, action_count, build_rollout

KEYS = [
    "runtime=serial", "env.id=minihack/KeyRoom-S5", "reward.model=counts", "actors.envs=8", "actors.rollout_length=32",
    "learner.batch_size=256", "trace.rate=1",
]  # fmt: skip


def test_a_learner_asks_for_captions_that_it_was_not_told_of() -> None:
    config = load_config("demo", KEYS)
    part, rollout = LearnerPart(config, action_count(config)), build_rollout(config, 0, observer=None)
    rollout.set_weights(part.weights(), 0)
    trajectory, report = rollout.collect()
    met = set(trajectory.caption_id.ravel().tolist()) - {EMPTY_CAPTION_ID}
    assert met == {caption for caption, _ in report.new_captions} and met
    result, _ = part.feed(report.source, trajectory, ())
    assert set(result.unknown) == met and result.scores == {}
    assert result.steps_unknown == np.count_nonzero(trajectory.caption_id != EMPTY_CAPTION_ID)
    assert sum(result.intrinsic_returns.values()) == 0 and result.earned == ()

    rollout.tell_again(result.unknown)
    trajectory, report = rollout.collect()
    again = set(trajectory.caption_id.ravel().tolist()) - {EMPTY_CAPTION_ID}
    assert again & met and again == {caption for caption, _ in report.new_captions}
    known, _ = part.feed(report.source, trajectory, report.new_captions)
    rollout.close()
    assert known.unknown == () and known.steps_unknown == result.steps_unknown
    assert set(known.scores) == again and all(value > 0 for value in known.scores.values()) and known.earned
