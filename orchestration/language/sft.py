"""Supervised fine-tuning as a run: demonstrations, training, a checkpoint that RL starts from (`agent.model=RUN`)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agents.language.episode import LanguageEpisode
from agents.language.errors import LanguageModelError
from agents.language.parsing import parse
from agents.language.scripted import Said, WalkthroughScript, play_scripts
from agents.language.template import ChatTemplate
from envs.registry import make_text
from learner.checkpoint import write_checkpoint
from learner.language.batch import EpisodeTokens, pack
from learner.language.checkpoint import MODEL
from learner.language.model import LanguageModel, Lora, load_model
from learner.language.sft import SFTStep, SFTTrainer, cross_entropy, demonstration_tokens
from learner.learner import resolve_device
from learner.precision import resolve_precision
from orchestration.config import Config
from orchestration.configuration import to_yaml
from orchestration.errors import TraceError
from orchestration.language.games import Progress, make_games
from orchestration.language.models import acting_model
from orchestration.language.tasks import games_of, split_by_share
from orchestration.metrics import MetricsWriter, write_summary
from orchestration.rundir import RunDir
from orchestration.seeds import derive_seed
from orchestration.summary import Status, Summary
from orchestration.traces.reader import Trace, read_trace, trace_files
from orchestration.traces.schema import LlmCall


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a fine-tuning brought."""

    checkpoint: Path
    demonstrations: int
    passed_over: int
    """Walkthroughs that did not reach the end of their episode, in whose place others were played."""
    turns: int
    """Of the demonstrations."""
    episodes_worth: float
    """What the demonstrations cost of a budget of episodes (`sft.demonstration_cost`)."""
    steps: int
    loss: float
    """Of the last step, nats a token."""
    holdout_loss: float | None
    wall_s: float


@dataclass(frozen=True, slots=True)
class _Played:
    """A task and the commands that solve it; None: its own walkthrough."""

    env_id: str
    options: dict[str, Any]
    seed: int
    answers: tuple[Said, ...] | None


def finetune(config: Config, rundir: RunDir, progress: Progress) -> Finetuned:
    """Trains `agent.model` on demonstrations in an open run directory. Ctrl-C writes a checkpoint and is raised.

    Raises `LanguageModelError` where a world has no walkthrough or too few traces were won.
    """
    began = time.monotonic()
    torch.set_num_threads(config.learner.threads)
    torch.manual_seed(derive_seed(config.run.seed, "policy"))
    model = _load(config, acting_model(config, progress))
    played, passed_over = demonstrate(config, ChatTemplate(model.tokenizer, str(config.agent.model)), progress)
    tokens = [demonstration_tokens(episode, model.context) for episode in played]
    held = round(config.sft.holdout * len(tokens))
    trainer = SFTTrainer(model, tokens[held:], config.sft, derive_seed(config.run.seed, "demonstrations"))
    summary = Summary(
        run=rundir.name, env=config.env.id, status=Status.RUNNING, runtime="serial", target_env_steps=trainer.steps,
        started=time.time(), episodes=len(played),
    )  # fmt: skip
    step, loss = 0, 0.0
    with MetricsWriter(rundir.metrics, rundir.tensorboard) as metrics:
        try:
            for done in trainer.run():
                step, loss = done.step, done.loss
                metrics.log(step, _metrics(done), {"wall_s": time.monotonic() - began, "step_s": done.seconds})
                progress(f"fine-tuning, {loss:.3f} nats a token", step, trainer.steps)
        finally:  # also after Ctrl-C: what was trained is worth keeping
            path = _checkpoint(config, rundir, model, step)
        holdout = _holdout_loss(config, model, tokens[:held])
        if holdout is not None:
            metrics.log(step, {"sft/holdout_loss": holdout})
    wall = time.monotonic() - began
    ended = replace(summary, status=Status.DONE, env_steps=step, wall_s=wall, checkpoint=str(path), updated=time.time())
    write_summary(rundir.summary, ended, durable=True)
    return Finetuned(
        checkpoint=path,
        demonstrations=len(played),
        passed_over=passed_over,
        turns=sum(episode.length for episode in played),
        episodes_worth=len(played) * config.sft.demonstration_cost,
        steps=step,
        loss=loss,
        holdout_loss=holdout,
        wall_s=wall,
    )


def demonstrate(config: Config, template: ChatTemplate, progress: Progress) -> tuple[list[LanguageEpisode], int]:
    """The demonstrations, played with the prompts that RL has, and how many walkthroughs were passed over for them, as they do
    not reach the end. Raises `LanguageModelError` where there are too few."""
    play = partial(_play, config, template, progress, config.sft.demonstrations)
    return (_of_traces(config, play), 0) if config.sft.traces else _of_walkthroughs(config, play)


_Play = Callable[[Sequence[_Played], int], list[LanguageEpisode]]
"""Plays tasks, when so many demonstrations are there already."""


def _play(
    config: Config, template: ChatTemplate, progress: Progress, total: int, sources: Sequence[_Played], before: int
) -> list[LanguageEpisode]:
    episodes: list[LanguageEpisode] = []
    for (env_id, options), group in _by_world(sources):
        there = before + len(episodes)
        make_games(env_id, options, [source.seed for source in group], progress)
        scripts = [(source.seed, WalkthroughScript(source.answers)) for source in group]
        episodes += play_scripts(
            _maker(env_id, options), template, config.agent, scripts,
            lambda done, there=there: progress("demonstrations", there + done, total),
        )  # fmt: skip
    return episodes


def _reaches_the_end(episode: LanguageEpisode) -> bool:
    return bool(episode.success or episode.terminated)


def _short(lost: Sequence[LanguageEpisode], played: int) -> LanguageModelError:
    return LanguageModelError(
        f"{len(lost)} of {played} demonstrations do not reach the end of their episode, the first with seed "
        f"{lost[0].seed} of {lost[0].env_id}; raise env.options.max_episode_steps or agent.context"
    )


def _of_walkthroughs(config: Config, play: _Play) -> tuple[list[LanguageEpisode], int]:
    """Of the first seeds of each world of the mix, by its share, whose walkthrough reaches the end.

    Some games do not understand their own: TextWorld takes `safe` for either of two safes. As many more seeds are played; where
    more than a tenth of all is lost, something else is wrong.
    """
    options = {**config.env.options, **config.sft.env_options}
    found: list[LanguageEpisode] = []
    passed_over = 0
    for world, count in split_by_share(config.env.mix or {config.env.id: 1.0}, config.sft.demonstrations).items():
        # The others tell their walkthroughs unasked.
        asked = {**options, "walkthrough": True} if world.startswith("textworld/") else options
        games = games_of(world, options)
        reached: list[LanguageEpisode] = []
        lost: list[LanguageEpisode] = []
        while len(reached) < count:
            begin = len(reached) + len(lost)
            end = count + len(lost)
            if games is not None and end > games:
                more = f" and {len(lost)} more that do not reach the end" if lost else ""
                raise LanguageModelError(
                    f"sft.demonstrations={config.sft.demonstrations}: {count} are of {world}{more}, whose split "
                    f"{options.get('split', 'train')} has {games} games; set fewer, or another split (sft.env_options.split)"
                )
            episodes = play(
                [_Played(world, asked, seed, None) for seed in range(begin, end)], len(found) + len(reached)
            )
            reached += filter(_reaches_the_end, episodes)
            lost += (episode for episode in episodes if not _reaches_the_end(episode))
            if len(lost) > max(1, count // 10):
                raise _short(lost, end)
        found += reached
        passed_over += len(lost)
    return found, passed_over


def _of_traces(config: Config, play: _Play) -> list[LanguageEpisode]:
    episodes = play(_won_traces(config), 0)
    lost = [episode for episode in episodes if not _reaches_the_end(episode)]
    if lost:
        raise _short(lost, len(episodes))
    return episodes


def _won_traces(config: Config) -> list[_Played]:
    """The first `sft.demonstrations` episodes that were won among the traces, by name. One in which an answer could not be read
    is none to learn from."""
    folder = Path(str(config.sft.traces))
    found: list[_Played] = []
    unread = 0
    for path in trace_files(folder if folder.is_dir() else Path(config.run.dir) / str(config.sft.traces)):
        trace = read_trace(path)
        if trace.end is None or not trace.end.success or len(found) == config.sft.demonstrations:
            continue
        header = trace.header
        if "seed" not in header.seeds:
            raise TraceError(f"{path}: names no seed, so it is no episode of a text world")
        answers = _answers(trace)
        if answers is None:
            unread += 1
            continue
        found.append(_Played(header.env_id, dict(header.env_options), int(header.seeds["seed"]), answers))
    if len(found) < config.sft.demonstrations:
        others = f" ({unread} more with an answer that could not be read)" if unread else ""
        raise LanguageModelError(
            f"sft.demonstrations={config.sft.demonstrations}: only {len(found)} traced episodes of {config.sft.traces} were "
            f"won{others}; set fewer, or trace more with trace.rate"
        )
    return found


def _answers(trace: Trace) -> tuple[Said, ...] | None:
    """What was said at each step, thoughts and tokens included where a model said it; None where one could not be read."""
    calls = {event.step: event for event in trace.events if isinstance(event, LlmCall)}
    said: list[Said] = []
    for step in trace.steps:
        call = calls.get(step.step)
        if call is None:
            said.append(Said(step.action_name))
            continue
        if "failure" in call.sampling:
            return None
        words = trace.texts.get(call.output_ref or "", "")
        thought = parse(words, "thought").thought if parse(words, "thought").failure is None else ""
        said.append(Said(step.action_name, thought, call.output or ()))
    return tuple(said)


def _by_world(sources: Sequence[_Played]) -> Iterator[tuple[tuple[str, dict[str, Any]], list[_Played]]]:
    groups: dict[str, list[_Played]] = {}
    for source in sources:
        groups.setdefault(f"{source.env_id} {sorted(source.options.items())}", []).append(source)
    for group in groups.values():
        yield (group[0].env_id, group[0].options), group


def _maker(env_id: str, options: dict[str, Any]) -> Callable[[], Any]:
    return lambda: make_text(env_id, **options)


def _load(config: Config, model: str) -> LanguageModel:
    settings = config.language
    device = resolve_device(config.learner.device)
    return load_model(
        model,
        device=device,
        dtype=resolve_precision(config.learner.precision, device),
        lora=Lora(settings.lora_rank, settings.lora_alpha, settings.lora_targets) if settings.lora_rank else None,
        checkpointing=settings.gradient_checkpointing,
    )


def _checkpoint(config: Config, rundir: RunDir, model: LanguageModel, step: int) -> Path:
    return write_checkpoint(
        rundir.checkpoints, step, lambda part: model.save(part / MODEL), state={"sft": asdict(config.sft)},
        config=to_yaml(config), keep=config.checkpoint.keep,
    )  # fmt: skip


def _holdout_loss(config: Config, model: LanguageModel, held: list[EpisodeTokens]) -> float | None:
    if not held:
        return None
    return cross_entropy(model, pack(held).to(model.device), config.sft.micro_batch_tokens, train=False)


def _metrics(step: SFTStep) -> dict[str, float]:
    return {
        "sft/loss": step.loss,
        "sft/tokens": float(step.tokens),
        "sft/action_tokens": float(step.action_tokens),
        "sft/learning_rate": step.learning_rate,
        "sft/grad_norm": step.grad_norm,
    }
