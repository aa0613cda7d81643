"""Checkpoints of language-model agents: as `learner/checkpoint.py` has them, with the model as a Hugging Face folder.

`checkpoints/<env steps>/model/` is what `from_pretrained` and vLLM open (`agent.model=…/model` starts another run from
it); the optimiser, the critic, adapters and counters are in `state.pt` beside it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.language.errors import LanguageModelError
from learner.checkpoint import verify_checkpoint, write_checkpoint
from learner.language.learner import LanguageLearner
from reward_server.judge.models import model_identity

MODEL = "model"
_PIN = ".pin"


def save_language_checkpoint(
    root: Path, env_steps: int, learner: LanguageLearner, *, rest: Mapping[str, Any], origin: str, config: str, keep: int
) -> Path:  # fmt: skip
    """Writes `root/<env_steps>`: the learner, and `rest`, the state of the other parts. `origin`: what the run's model was
    loaded from, so that a resumed run has the same reference policy."""
    state = language_state(learner, rest, origin)
    return write_checkpoint(
        root, env_steps, lambda part: learner.save(part / MODEL), state=state, config=config, keep=keep
    )  # fmt: skip


def language_state(learner: LanguageLearner, rest: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What a checkpoint has beside the model; copies of all that changes."""
    return {**rest, "learner": learner.state_dict(), "origin": model_identity(origin)}


def pin_model(published: Path, root: Path, env_steps: int) -> Path:
    """A folder below `root` with the files of a published model, which stay there when it is removed; links where the file
    system has them, otherwise copies."""
    pin = root / f".{env_steps}{_PIN}"
    shutil.rmtree(pin, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(published, pin, copy_function=os.link)
    except (shutil.Error, OSError):
        shutil.rmtree(pin, ignore_errors=True)
        shutil.copytree(published, pin)
    return pin


def move_model(pin: Path, part: Path) -> None:
    """Makes a pinned model that of a checkpoint."""
    pin.rename(part / MODEL)


def remove_pins(root: Path) -> None:
    """Removes what a learner that died had pinned."""
    for pin in root.glob(f".*{_PIN}"):
        shutil.rmtree(pin)


def restore_language_checkpoint(path: Path, learner: LanguageLearner, state: Mapping[str, Any], origin: str) -> None:
    """Puts `learner`, made from `origin`, where it was at `path`, whose `load_state` is `state`.

    Raises `LanguageModelError` where `origin` is no longer the model that the run began with.
    """
    if state["origin"] != model_identity(origin):
        raise LanguageModelError(
            f"agent.model={origin} is not the model that the run began with ({state['origin']}), and it is the reference "
            f"policy; put that back, or start another run from agent.model={path / MODEL}"
        )
    learner.restore(path / MODEL, state["learner"])


def model_folder(checkpoint: Path) -> Path:
    """The Hugging Face folder of a verified checkpoint. Raises CheckpointError where it is damaged."""
    verify_checkpoint(checkpoint)
    return checkpoint / MODEL
