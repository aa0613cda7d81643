"""A language model that goes on from the step at which an episode of words is forked.

It is spoken to as in training: the same instructions, task, observations and answers, in the model's own chat template.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from agents.language.conversation import Budget, Conversation, Prompt
from agents.language.engines import Sampling
from agents.language.engines.transformers_engine import TransformersGenerator
from agents.language.parsing import parse, write
from agents.language.prompts import observation_message, opening, system_message
from agents.language.template import ChatTemplate, load_tokenizer
from agents.settings import AgentSettings
from envs.base import View
from learner.checkpoint import load_state
from learner.language.checkpoint import model_folder
from orchestration.configuration.loader import read_config
from orchestration.errors import UsageError
from orchestration.seeds import derive_seed
from orchestration.traces.reader import Trace
from orchestration.traces.replay.policies import Choice
from orchestration.traces.replay.worlds import Seen
from orchestration.traces.schema import EnvStep, LlmCall
from orchestration.traces.spoken import Spoken


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said in the parent's episode: an answer as it was sampled."""

    output: tuple[int, ...]
    text: str
    failure: str | None


class LanguagePolicy:
    """A model of `transformers` and its conversation. What it says follows from the seed (on one machine)."""

    view: View | None = None

    def __init__(
        self, folder: Path, settings: AgentSettings, trace: Trace, *, label: str, version: int, seed: int
    ) -> None:
        """`folder`: the model, in Hugging Face format. `trace` of the parent, for what was said in it.

        Raises `LanguageModelError` for a folder without a tokenizer or chat template.
        """
        self.name, self.label, self.version = str(folder), f"{label}-v{version}", version
        logging.disable_progress_bar()
        self._settings, self._seed = settings, seed
        self._template = ChatTemplate(load_tokenizer(self.name), self.name)
        context = self._context = _context(folder, settings)
        budget = Budget(context, settings.max_new_tokens, settings.history)
        self._talk = Conversation(self._template, system_message(settings.answer), budget, settings.template)
        self._said = said_in(trace)
        self._loop = asyncio.new_event_loop()
        self._engine = TransformersGenerator(
            self.name, stop_ids=self._template.stop_ids, context=context, dtype=settings.dtype, sequences=1
        )
        self._prompt: Prompt | None = None
        self._failure: str | None = None
        self._begun = False
        self._turn = 0

    def read(self, seen: Seen) -> None:
        listed = seen.admissible if self._settings.admissible else None
        message = observation_message(seen.text, listed, self._failure)
        self._prompt = self._talk.follow(message) if self._begun else self._talk.begin(opening(seen.objective), message)
        self._begun = True

    def recall(self, step: EnvStep) -> None:
        """What the parent's episode did at a step. Its model's own words, where it had one; raises `UsageError` where the
        conversation does not fit into this model's context."""
        if self._prompt is None:
            raise UsageError(
                f"--from: {self.name} reads at most {self._context:,} tokens, and the conversation has more from step "
                f"{step.step:,} on; fork there or before"
            )
        said = self._said.get(step.step)
        if said is None:
            said = Said((), write(step.action_name, self._settings.answer), None)
        ids = list(said.output) if self._knows(said) else self._template.answer(said.text)
        self._talk.answered(ids, said.text)
        self._failure = said.failure
        self._turn += 1

    def _knows(self, said: Said) -> bool:
        """Whether the tokens are this model's, too."""
        if not said.output or max(said.output) >= len(self._template.tokenizer):
            return False
        return self._template.decode(said.output) == said.text

    def choose(self) -> Choice | None:
        prompt = self._prompt
        if prompt is None:
            return None
        began = time.perf_counter()
        settings, seed = self._settings, derive_seed(self._seed, "fork", self._turn)
        sampling = Sampling(settings.max_new_tokens, settings.temperature, seed)
        generation = self._loop.run_until_complete(self._engine.generate(prompt.ids, sampling))
        ids = generation.ids.tolist()
        text = self._template.decode(ids)
        answer = parse(text, settings.answer, complete=generation.stop == "stop")
        self._talk.answered(ids, text)
        self._failure = answer.failure
        self._turn += 1
        told = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens, "seed": str(seed)}
        spoken = Spoken(prompt.ids, generation, text, answer.failure, time.perf_counter() - began, told)
        return Choice(-1, answer.command, spoken.log_prob, None, spoken)

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.close())
        self._loop.close()


def language_policy(target: Path, trace: Trace, seed: int) -> LanguagePolicy:
    """The language model in `target`: a folder in Hugging Face format, or the checkpoint of a run in which one was trained.

    A checkpoint's model is spoken to with the settings of its run, a folder with those of the run that `trace` lies in,
    where a language model acted there, and else with those that a run has by default.
    """
    if not (target / "manifest.json").is_file():
        return LanguagePolicy(target, _settings_beside(trace), trace, label=target.name, version=0, seed=seed)
    config, folder = read_config(target / "config.yaml"), model_folder(target)
    version = int(load_state(target)["learner"]["version"])
    return LanguagePolicy(folder, config.agent, trace, label=config.run.name, version=version, seed=seed)


def _settings_beside(trace: Trace) -> AgentSettings:
    path = trace.path.resolve().parent.parent / "config.yaml"
    settings = read_config(path).agent if path.is_file() else AgentSettings()
    return settings if settings.model is not None else AgentSettings()


def said_in(trace: Trace) -> Mapping[int, Said]:
    """What a model said in an episode, by the step whose command it was."""
    found: dict[int, Said] = {}
    for call in trace.events:
        if isinstance(call, LlmCall) and call.step is not None and call.output_ref in trace.texts:
            text = trace.texts[call.output_ref or ""]
            found[call.step] = Said(call.output or (), text, call.sampling.get("failure"))
    return found


def _context(folder: Path, settings: AgentSettings) -> int:
    """The longest prompt and answer together: what the settings allow, as far as the model reads."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return settings.context if longest is None else min(settings.context, int(longest))
