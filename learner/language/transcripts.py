"""Episodes in words, and as an agent's episodes lay them out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agents.language.conversation import Budget, Conversation
from agents.language.parsing import write
from agents.language.prompts import observation_message, opening, system_message
from agents.language.template import ChatTemplate

if TYPE_CHECKING:
    from learner.language.batch import EpisodeTokens


@dataclass(frozen=True, slots=True)
class Transcript:
    """One episode in words: T commands, T + 1 observations."""

    objective: str
    observations: tuple[str, ...]
    commands: tuple[str, ...]
    listed: tuple[tuple[str, ...] | None, ...]
    """Possible commands that each observation's message lists; None: it lists none."""


def transcript_tokens(
    said: Transcript, template: ChatTemplate, answer: str, context: int, *, commands: bool = False
) -> "EpisodeTokens":
    """A transcript in the layout of an agent's episode, every token but the first to be predicted; `commands`: those alone."""
    import torch

    from learner.language.batch import EpisodeTokens, TokenSequence

    talk = Conversation(template, system_message(answer), Budget(context, 0, "stop"))
    prompt = talk.begin(opening(said.objective), observation_message(said.observations[0], said.listed[0]))
    ids, acts = [prompt.ids], [np.full(len(prompt.ids), not commands)]
    for command, observation, listed in zip(said.commands, said.observations[1:], said.listed[1:], strict=True):
        output = template.answer(write(command, answer))
        talk.answered(output, command)
        following = talk.follow(observation_message(observation, listed))
        if following is None:
            break
        ids += [np.array(output, np.int32), following.new]
        acts += [np.ones(len(output), bool), np.full(len(following.new), not commands)]
    acts[0][0] = False
    tokens = torch.from_numpy(np.concatenate(ids).astype(np.int64))
    sequence = TokenSequence(
        tokens=tokens,
        action=torch.from_numpy(np.concatenate(acts)),
        turn=torch.zeros_like(tokens),
        behaviour_log_prob=torch.zeros(len(tokens)),
    )
    return EpisodeTokens((sequence,), (0,), terminated=False)
