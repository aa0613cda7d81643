"""Checkpoints at a URL (`checkpoint.url`): from there a run goes on where nothing of it is left but the URL.

Every checkpoint is written locally first (`learner.checkpoint`), then copied beside the training (`uploads`), and comes
back when a run is resumed (`resuming`). `runs` is how they lie there, `location` what the URL names.
"""
