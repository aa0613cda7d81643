"""Which model `agent.model` means."""

import math
import time
from pathlib import Path

from agents.language.errors import LanguageModelError
from orchestration.config import Config
from orchestration.language.games import Progress
from orchestration.live import LiveView

_TOLD_EVERY_S = 15.0


def told_by(view: LiveView) -> Progress:
    """Tells the live view what is being made and how far it is: at the start of each part of the work, and now and then."""
    told: dict[str, float] = {}

    def progress(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - told.get(what, -math.inf) >= _TOLD_EVERY_S:
            told[what] = now
            view.event(f"the model is made first, once: {what}, {done:,} of {total:,}")
            view.say()

    return progress


def tell_of_missing(games: int, view: LiveView) -> None:
    """Tells the live view why the first episodes are late, where games are missing."""
    if games:
        view.event(f"{games:,} games are generated first, and kept")
        view.say()


def acting_model(config: Config, progress: Progress | None = None) -> str:
    """The folder or Hugging Face id of the model that acts: `small` is made where it is not there yet (forty minutes, with
    `progress`), a run or a checkpoint stands for the model in it, anything else for itself.

    Raises `LanguageModelError` for a run without a checkpoint, and CheckpointError for a damaged one.
    """
    from learner.language.small import NAME, small_model

    model = config.agent.model
    assert model is not None
    if model == NAME:
        return str(small_model(progress=progress))
    checkpoint = _checkpoint_of(config, model)
    return model if checkpoint is None else str(_in_checkpoint(checkpoint))


def demonstrations_cost(config: Config) -> float:
    """Episodes that the demonstrations cost which `agent.model` learnt from (`sft.demonstration_cost` each, as that run had it);
    0 where the model is no run of `yendor sft`."""
    from learner.checkpoint import load_state

    checkpoint = None if config.agent.model is None else _checkpoint_of(config, config.agent.model)
    tuned = None if checkpoint is None else load_state(checkpoint).get("sft")
    return 0.0 if tuned is None else float(tuned["demonstrations"] * tuned["demonstration_cost"])


def _checkpoint_of(config: Config, model: str) -> Path | None:
    """The checkpoint that `model` names, itself or by its run; None where it names neither."""
    for folder in (Path(model).expanduser(), Path(config.run.dir) / model):
        if (folder / "manifest.json").is_file():
            return folder
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            return _newest_of(folder)
    return None


def _newest_of(run: Path) -> Path:
    from learner.checkpoint import latest_checkpoint

    newest = latest_checkpoint(run / "checkpoints")
    if newest is None:
        raise LanguageModelError(f"agent.model={run}: the run has no checkpoint yet")
    return newest


def _in_checkpoint(checkpoint: Path) -> Path:
    from learner.language.checkpoint import model_folder

    folder = model_folder(checkpoint)
    if not folder.is_dir():
        raise LanguageModelError(f"agent.model={checkpoint}: a network was trained there, not a language model")
    return folder
