"""The plain parts of a run in which a language model acts. Both runtimes use them: one calls them, one hosts them."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.language.engines import Generator, build_engine
from agents.language.episode import LanguageEpisode
from agents.language.observer import LanguageObserver
from agents.language.rollout import LanguageRollout
from agents.language.template import ChatTemplate, load_tokenizer
from learner.checkpoint import write_checkpoint
from learner.credit.language import LanguageCredit
from learner.language.checkpoint import language_state, move_model, pin_model, remove_pins
from learner.language.episodes import turn_rewards
from learner.language.learner import LanguageLearner
from learner.language.model import LanguageModel, Lora, load_model, width_of
from learner.language.registry import build_objective
from learner.language.step import LanguageStep
from learner.learner import IntrinsicReward, NoIntrinsicReward, learner_device
from learner.precision import resolve_precision
from learner.returns import sums_by_id
from orchestration.config import Config
from orchestration.configuration import attributes_credit, is_traced, learns_progress
from orchestration.configuration.objectives import objective_settings
from orchestration.language.recorder import LanguageRecorder
from orchestration.language.tasks import Tasks
from orchestration.restoring import learned_samples, newest_state
from orchestration.results import FeedResult, Floor, TakenOver, actor_name
from orchestration.rundir import RunDir, code_revision
from orchestration.scoring import CaptionViews, ToldScores, scorer_of
from orchestration.seeds import derive_seed
from orchestration.traces.room import Room
from orchestration.traces.writers import TraceRun

if TYPE_CHECKING:
    from reward_server.models.base import RewardModelVersion

_MOST_OF_A_GPU, _HALF_A_GPU = 0.9, 0.45
"""Share of its memory that vLLM takes of a GPU of its own, and of one that the learner has too (`runtime=serial`)."""
_THREADS = 16
"""In which the worlds of one actor step, at most: a slow world blocks one of them."""


def build_template(model: str) -> ChatTemplate:
    """The chat template of the model's tokenizer."""
    return ChatTemplate(load_tokenizer(model), model)


def build_generator(config: Config, model: str, template: ChatTemplate, index: int, version: int) -> Generator:
    """The engine of one actor, with the weights of a folder, which have this version."""
    share = min(config.actors.gpus, _MOST_OF_A_GPU) if config.runtime == "ray" else _HALF_A_GPU
    return build_engine(
        config.agent,
        model,
        stop_ids=template.stop_ids,
        sequences=config.actors.envs,
        seed=derive_seed(config.run.seed, "engine", index) % 2**31,
        version=version,
        gpu_memory=share,
    )


def build_language_rollout(
    config: Config,
    generator: Generator,
    template: ChatTemplate,
    *,
    index: int = 0,
    incarnation: int = 0,
    observer: LanguageObserver | None = None,
    threads: bool,
) -> LanguageRollout:
    """Rollout number `index`; `threads`: worlds step in threads. Seeds of tasks are named by the group, whoever plays it;
    without threads so are those of answers."""
    seed = config.run.seed
    tasks = Tasks(config)
    return LanguageRollout(
        tasks.make_env,
        generator,
        template,
        config.agent,
        seed_of=tasks.seed_of,
        # Where the order of things is not the same each time, seeds of single answers repeat nothing, and cost the engine a
        # draw for each row instead of one for all.
        sampling_seed_of=None
        if threads
        else lambda group, member, turn: derive_seed(seed, "answer", group, member, turn),
        episodes=config.actors.envs,
        name=actor_name(index, incarnation),
        observer=observer,
        threads=min(config.actors.envs, _THREADS) if threads else 0,
    )


def build_language_observer(
    config: Config, traces: Path, index: int = 0, incarnation: int = 0
) -> LanguageObserver | None:
    """The trace recorder of one actor; None where nothing is traced."""
    if not is_traced(config):
        return None
    run = TraceRun(
        run=config.run.name,
        seed=config.run.seed,
        code_revision=code_revision(),
        count_exponent=config.reward.count_exponent,
        policy=config.agent.model,
    )
    agent = actor_name(index, incarnation)
    return LanguageRecorder(traces, config.trace.rate, run, agent=agent, asked=config.trace.asked, room=Room(traces))


class LanguageLearnerPart:
    """The learner, the scorer of captions that gives it intrinsic rewards, the weights that it publishes, checkpoints."""

    def __init__(self, config: Config, rundir: Path, model: str, *, takes_over: bool = False) -> None:
        """`model`: the folder or Hugging Face id that the run begins with, and its reference policy. Where another learner
        of the run died, and this one `takes_over`, engines still read what that one published."""
        torch.manual_seed(derive_seed(config.run.seed, "policy"))
        self.config = config
        self._folder = RunDir(rundir).weights
        for old in self._folder.glob(".*" if takes_over else "*"):
            shutil.rmtree(old)
        self._folder.mkdir(exist_ok=True)
        remove_pins(RunDir(rundir).checkpoints)
        self._origin = model
        self.scorer = scorer_of(config)
        self.learner = _build_learner(config, model, NoIntrinsicReward() if self.scorer is None else self.scorer)
        self._views = CaptionViews(self.scorer)
        self._told = ToldScores(config, self.scorer)
        self._idle_since = time.perf_counter()

    def publish(self, needed: int | None = None) -> tuple[int, Path]:
        """Writes the weights where engines read them; version and folder. Older ones than `needed` are removed (None: all
        older ones)."""
        version = self.learner.version
        final, part = self._folder / f"{version:08d}", self._folder / f".{version:08d}.part"
        if not final.exists():
            shutil.rmtree(part, ignore_errors=True)
            self.learner.save(part)
            part.rename(final)
        for old in self._folder.iterdir():
            if int(old.name) < (version if needed is None else min(needed, version)):
                shutil.rmtree(old)
        return version, final

    def adopt(self, version: "RewardModelVersion") -> None:
        """Takes a new reward model: every caption is scored anew when it comes next."""
        if self.scorer is not None:
            self.scorer.update(version)

    def feed(self, episodes: Sequence[LanguageEpisode], new_captions: Sequence[tuple[int, str]]) -> FeedResult:
        """Learns from the episodes of one group; `policy_version` of the result says whether there are new weights."""
        waited = time.perf_counter() - self._idle_since
        began = time.perf_counter()
        captions = np.array([turn.caption_id for episode in episodes for turn in episode.turns], np.int64)
        unknown: tuple[int, ...] = ()
        if self.scorer is not None:
            self.scorer.observe(new_captions)
            unknown = self.scorer.count(captions)
        scores = self._told.new(captions, self.learner.intrinsic.lookup(captions))
        returns, earned = self._earned(episodes, captions)
        self._views.refresh()
        rewarded = time.perf_counter()
        updates = self.learner.feed(episodes)
        if self.scorer is not None:
            self.scorer.learn("episodes", captions[:, None])  # one after the other
        result = FeedResult(
            updates=tuple(updates),
            intrinsic_returns=returns,
            earned=earned,
            policy_version=self.learner.version,
            reward_model_version=0 if self.scorer is None else self.scorer.version,
            samples_dropped=self.learner.dropped_samples,
            unknown=unknown,
            steps_unknown=0 if self.scorer is None else self.scorer.unknown,
            credit={} if self.learner.credit is None else self.learner.credit.metrics(),
            liked=self._views.liked,
            disliked=self._views.disliked,
            scores=scores,
            reward_model=None if self.scorer is None else self.scorer.metrics,
            reward_s=rewarded - began,
            waited_s=waited,
        )
        self._idle_since = time.perf_counter()
        return result

    def _earned(
        self, episodes: Sequence[LanguageEpisode], captions: NDArray[np.int64]
    ) -> tuple[dict[tuple[int, int], float], tuple[tuple[str, float], ...]]:
        """Sum of r_int / N^β of each episode, by (0, member), and of each caption."""
        if self.scorer is None or not episodes:
            return {(0, episode.member): 0.0 for episode in episodes}, ()
        bonus = turn_rewards(episodes, self.learner.intrinsic, self.config.reward).bonus
        ends = np.cumsum([episode.length for episode in episodes])[:-1]
        returns = {
            (0, episode.member): float(part.sum())
            for episode, part in zip(episodes, np.split(bonus, ends), strict=True)
        }
        sums = sums_by_id(captions, bonus)
        return returns, tuple(zip(self.scorer.texts(sums), sums.values(), strict=True))

    def checkpoint(self, root: Path, env_steps: int, rest: Mapping[str, Any], config_yaml: str, keep: int) -> Path:
        """Writes a checkpoint of the learner and of `rest`, the state of the other parts."""
        return self.snapshot(root, env_steps, rest, config_yaml, keep)()

    def snapshot(
        self, root: Path, env_steps: int, rest: Mapping[str, Any], config_yaml: str, keep: int
    ) -> Callable[[], Path]:
        """What writes that checkpoint, also while the learner goes on: it has copies of all that changes. The model is on
        disk already, as engines read it; its files are linked."""
        scorer = None if self.scorer is None else self.scorer.state_dict()
        state = language_state(self.learner, {**rest, "scorer": scorer}, self._origin)
        _, published = self.publish(needed=0)
        pin = pin_model(published, root, env_steps)
        return lambda: write_checkpoint(
            root, env_steps, lambda part: move_model(pin, part), state=state, config=config_yaml, keep=keep
        )

    def take_over(self, root: Path, floor: Floor, captions: Sequence[tuple[int, str]]) -> TakenOver:
        """Takes the place of a learner that died, from the newest sound checkpoint below `root`, or from the beginning.

        `captions`: those that the run met last. Episodes that waited for a full batch are gone.
        """
        newest, state = newest_state(root)
        samples = 0
        if newest is not None and state is not None:
            self.restore(Path(newest), state)
            samples = learned_samples(state) - int(state["learner"].get("waiting_samples", 0))
        self.learner.take_over(floor.policy_version, floor.samples_dropped)
        if self.scorer is not None:
            self.scorer.observe(captions)
            self.scorer.take_over(floor.reward_model_version)
        return TakenOver(self.learner.version, newest, samples)

    def restore(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Goes on where `checkpoint` was written; `state` is its `load_state`."""
        from learner.language.checkpoint import restore_language_checkpoint

        restore_language_checkpoint(checkpoint, self.learner, state, self._origin)
        if self.scorer is not None and state["scorer"] is not None:
            self.scorer.load_state_dict(state["scorer"])


def build_language_credit(config: Config, model: str, width: int, device: torch.device) -> LanguageCredit:
    """What pays turns of a model whose hidden states are [width]. `model`: the folder or id that the run begins with, where a
    backbone of the estimator's own begins too."""
    algorithm = config.learner.algorithm
    objective = build_objective(algorithm, objective_settings(algorithm, config.language.objective))
    return LanguageCredit(
        config.credit,
        config.reward,
        discount=getattr(objective.policy_settings, "discount", 1.0),
        bootstraps=objective.needs_value,
        width=width,
        limit=config.language.micro_batch_tokens,
        seed=derive_seed(config.run.seed, "credit"),
        device=device,
        backbone=_own_backbone(config, model, device),
    )


def _own_backbone(config: Config, model: str, device: torch.device) -> LanguageModel | None:
    """The model that the progress estimator alone reads with; None where it shares the policy's, or there is none."""
    credit = config.credit
    if credit.backbone == "shared" or not learns_progress(config):
        return None
    return load_model(
        model,
        device=device,
        dtype=resolve_precision(config.learner.precision, device),
        lora=Lora(credit.lora_rank, 2 * credit.lora_rank) if credit.backbone == "lora" else None,
        checkpointing=config.language.gradient_checkpointing,
    )


def build_language_step(config: Config, model: str) -> LanguageStep:
    """What a learner of `model` takes its optimisation steps with, or a worker that follows one, whose state it is going to be
    sent."""
    settings, algorithm = config.language, config.learner.algorithm
    objective = build_objective(algorithm, objective_settings(algorithm, settings.objective))
    device = learner_device(config.learner)
    network = load_model(
        model,
        device=device,
        dtype=resolve_precision(config.learner.precision, device),
        lora=Lora(settings.lora_rank, settings.lora_alpha, settings.lora_targets) if settings.lora_rank else None,
        critic=objective.needs_value,
        reference=objective.needs_reference,
        checkpointing=settings.gradient_checkpointing,
    )
    return LanguageStep(network, objective, settings)


def _build_learner(config: Config, model: str, intrinsic: IntrinsicReward) -> LanguageLearner:
    step = build_language_step(config, model)
    width = width_of(step.model.network)
    credit = build_language_credit(config, model, width, step.device) if attributes_credit(config) else None
    seed = derive_seed(config.run.seed, "minibatches")
    return LanguageLearner(step, config.reward, intrinsic, seed=seed, credit=credit)
