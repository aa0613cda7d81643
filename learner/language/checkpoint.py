"""Checkpoints of language-model agents: as `learner/checkpoint.py` has them, with the model as a Hugging Face folder.

`checkpoints/<env steps>/model/` is what `from_pretrained` and vLLM open (`agent.model=…/model` starts another run from
it); the optimiser, the critic, adapters and counters are in `state.pt` beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.language.errors import LanguageModelError
from learner.checkpoint import verify_checkpoint, write_checkpoint
from learner.language.learner import LanguageLearner
from reward_server.judge.models import model_identity

MODEL = "model"


def save_language_checkpoint(
    root: Path, env_steps: int, learner: LanguageLearner, *, rest: Mapping[str, Any], origin: str, config: str, keep: int
) -> Path:  # fmt: skip
    """Writes `root/<env_steps>`: the learner, and `rest`, the state of the other parts. `origin`: what the run's model was
    loaded from, so that a resumed run has the same reference policy."""
    state = {**rest, "learner": learner.state_dict(), "origin": model_identity(origin)}
    return write_checkpoint(
        root, env_steps, lambda part: learner.save(part / MODEL), state=state, config=config, keep=keep
    )  # fmt: skip


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
