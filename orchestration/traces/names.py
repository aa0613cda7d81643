"""What the files beside each other in a folder of traces are called. Loads nothing, so that a list of them is quick."""

SUFFIX = ".jsonl.zst"
"""Of a finished trace; one that is written now, or whose writer died, has `.part` after it."""

RUN_PREFIX = "run-"
"""The run's own trace is called `run-….jsonl.zst`."""

LABELS = "labels.late.zst"
"""The judge's answers; see `late`."""

WAITING = "the learner has not looked up all of its captions"
"""Why the rewards of an episode are not known, where they may be later."""

SCORES = "scores.late.zst"
"""What the learner's reward model gave captions; see `late`."""
