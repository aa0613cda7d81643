"""`agent.model=small`: a language model that is made on the spot, where no weights can be fetched.

A Qwen3 of a few million parameters with a byte-level BPE tokenizer of its own, both trained on what games say: random
admissible play in generated TextWorld games whose seeds no split has, every token predicted. So it knows how worlds speak,
which commands there are and that they name what is in sight, and it follows instructions, worded as commands or otherwise
(`instructions.py`). It has read how games word their tasks, never beside the commands that carry them out, and knows nothing
of plans or rewards. Those are for SFT and RL, whose commands take any other model just as well.

It can repeat what it read before it is trained (`induction.py`), and keeps that up on random text that repeats itself,
among the games' text.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.language.prompts import system_message
from agents.language.template import ChatTemplate
from envs import textworld
from envs.cache import cache_folder, digest, locked
from envs.registry import make_text
from learner.language.instructions import drills, hindsight_instructions
from learner.language.transcripts import Transcript, transcript_tokens

if TYPE_CHECKING:
    import torch

    from learner.language.batch import EpisodeTokens
    from learner.language.model import LanguageModel

NAME = "small"
_FORMAT, _INSTRUCTIONS_FORMAT = 2, 1
"""Raised when the way it is made changes, so that older ones are made anew: the whole of it, and what is read last."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True)
class SmallModel:
    """What decides the model; its digest names the folder."""

    seed: int = 0
    worlds: tuple[str, ...] = ("textworld/w2-o3-q4",)
    first_seed: int = 50000
    """Of the games; TextWorld's splits lie below."""
    games: int = 400
    """Of each world."""
    episodes: int = 2
    """Of each game."""
    steps: int = 8
    """Of an episode."""
    listed: float = 0.5
    """Share of the episodes whose prompts list the possible commands, as with `agent.admissible`."""
    repeats: float = 0.75
    """Texts that repeat themselves, for each episode."""
    repeat_tokens: int = 384
    """Length of one."""
    hidden_size: int = 256
    layers: int = 3
    heads: int = 8
    """As many of keys and values; `heads * head_dim` is `hidden_size`, so that what is attended to can be repeated."""
    head_dim: int = 32
    intermediate_size: int = 768
    context: int = 4096
    epochs: float = 3.0
    batch_episodes: int = 8
    learning_rate: float = 1.5e-3
    warmup: float = 0.05
    instructions: int = 6
    """Pieces of each episode whose prompts list the possible commands, with a task that says the piece's commands in their
    order, in their words or in others. They are read last, and only commands are predicted: a twentieth of the text, and what
    an agent says."""
    drills: int = 8000
    """Among them: commands without any world, to be said in the order that the task says."""
    instruction_learning_rate: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of the worlds."""
    threads: int = 2
    """Of the training, which another number rounds differently."""


def small_model(spec: SmallModel | None = None, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """The folder of the model, in Hugging Face format; made now (forty minutes on two cores) where it is not there yet.

    Reproducible from `spec`. Any number of processes may ask: one makes it, the others wait.
    """
    spec = SmallModel() if spec is None else spec
    root = cache_folder("models", cache)
    parts = (_FORMAT, _INSTRUCTIONS_FORMAT) if spec.instructions or spec.drills else (_FORMAT,)
    folder = root / f"small-{digest(*parts, asdict(spec))[:12]}"
    if (folder / "config.json").is_file():
        return folder
    with locked(root / f".{folder.name}.lock"):
        if not (folder / "config.json").is_file():
            part = Path(tempfile.mkdtemp(dir=root, prefix=".new-"))
            try:
                _make(spec, part, progress or _silent, cache)
                (part / "small.json").write_text(json.dumps(asdict(spec), indent=2))
                part.chmod(0o755)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def transcripts(spec: SmallModel, progress: Progress) -> list[Transcript]:
    """Random admissible play in all games; the same for the same `spec`."""
    found: list[Transcript] = []
    rng = random.Random(f"transcripts {spec.seed}")
    for world in spec.worlds:
        _prepare(world, spec, progress)
        env = make_text(world, **spec.options)
        for game in range(spec.games):
            for _ in range(spec.episodes):
                observation, info = env.reset(seed=spec.first_seed + game)
                lists = rng.random() < spec.listed
                observations, commands, over = [observation], list[str](), False
                listed = [info["admissible"] if lists else None]
                while not over and len(commands) < spec.steps and info["admissible"]:
                    commands.append(rng.choice(info["admissible"]))
                    observation, _, terminated, truncated, info = env.step(commands[-1])
                    observations.append(observation)
                    listed.append(info["admissible"] if lists else None)
                    over = terminated or truncated
                found.append(Transcript(info["objective"], tuple(observations), tuple(commands), tuple(listed)))
            progress(f"play in {world}", game + 1, spec.games)
        env.close()
    return found


def _prepare(world: str, spec: SmallModel, progress: Progress) -> None:
    """Generates the games of a TextWorld task, as many at once as there are threads."""
    if world.startswith("textworld/"):
        seeds = range(spec.first_seed, spec.first_seed + spec.games)

        def told(done: int, total: int) -> None:
            if total:
                progress(f"games of {world}", done, total)

        textworld.prepare(world, seeds, spec.threads, told, **spec.options)


def repeating_tokens(vocabulary: int, length: int, generator: "torch.Generator") -> "EpisodeTokens":
    """Random tokens, then pieces of 3 to 24 tokens from anywhere before, with up to 5 new ones between; to be predicted is
    each token of a piece but its first.

    A text has between 16 different tokens and all of them: where they are few, one token does not say which piece it is
    (`type J chest`, `type J keycard`), and what stood before it has to match as well.
    """
    import torch

    from learner.language.batch import EpisodeTokens, TokenSequence

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    least = min(16, vocabulary)
    kinds = round(least * (vocabulary / least) ** torch.rand((), generator=generator).item())
    tokens = torch.randint(vocabulary, (kinds,), generator=generator)[
        torch.randint(kinds, (length,), generator=generator)
    ]
    action = torch.zeros(length, dtype=torch.bool)
    at = min(draw(16, 96), length // 2)
    while at < length:
        size = min(draw(3, 25), at, length - at)
        begin = draw(0, at - size + 1)
        tokens[at : at + size] = tokens[begin : begin + size].clone()
        action[at + 1 : at + size] = True
        at += size + draw(0, 6)
    sequence = TokenSequence(tokens, action, torch.zeros_like(tokens), torch.zeros(length))
    return EpisodeTokens((sequence,), (0,), terminated=False)


def _make(spec: SmallModel, folder: Path, progress: Progress, cache: Path | None) -> None:
    """From nothing, or what follows instructions from the same model without them, which is made first and kept."""
    import torch

    from agents.language.template import load_tokenizer
    from learner.language.loading import load_network
    from learner.language.model import LanguageModel

    # In the one precision that all processors have, so that it is the same everywhere.
    device, dtype = torch.device("cpu"), torch.float32
    if spec.instructions or spec.drills:
        base = replace(spec, instructions=0, drills=0, instruction_learning_rate=SmallModel.instruction_learning_rate)
        uninstructed = str(small_model(base, progress, cache))
        tokenizer = load_tokenizer(uninstructed)
        said, template = transcripts(spec, progress), ChatTemplate(tokenizer, NAME)
        rng = random.Random(f"orders {spec.seed}")
        tasks = hindsight_instructions(said, spec.instructions, rng) + drills(said, spec.drills, rng)
        texts = [transcript_tokens(t, template, "command", spec.context, commands=True) for t in tasks]
        network = load_network(uninstructed, dtype)
        stage = "instructions", 1.0, spec.instruction_learning_rate
    else:
        said = transcripts(spec, progress)
        tokenizer = _tokenizer(said)
        template = ChatTemplate(tokenizer, NAME)
        generator = torch.Generator().manual_seed(spec.seed)
        texts = [transcript_tokens(t, template, "command", spec.context) for t in said]
        texts += [
            repeating_tokens(len(tokenizer), spec.repeat_tokens, generator)
            for _ in range(round(spec.repeats * len(said)))
        ]
        network = _network(spec, tokenizer)
        stage = "text", spec.epochs, spec.learning_rate
    with _threads(spec.threads):
        model = LanguageModel(network, tokenizer, device=device, dtype=dtype)
        if texts:  # worlds in which little can be done give no instructions
            _train(model, texts, spec, stage, progress)
    model.save(folder)


def _train(
    model: "LanguageModel",
    texts: "Sequence[EpisodeTokens]",
    spec: SmallModel,
    stage: tuple[str, float, float],
    progress: Progress,
) -> None:
    """`stage`: its name, epochs and learning rate."""
    from learner.language.settings import SFTSettings
    from learner.language.sft import SFTTrainer

    name, epochs, rate = stage
    settings = SFTSettings(
        epochs=epochs, batch_episodes=spec.batch_episodes, learning_rate=rate, warmup=spec.warmup, weight_decay=0.05
    )
    for step in SFTTrainer(model, texts, settings, spec.seed).run():
        progress(name, step.step, step.steps)


def _tokenizer(said: Sequence[Transcript]) -> Any:
    """Trained on the worlds' words and on the instructions, which every prompt begins with."""
    from reward_server.embedded import tokenizer

    texts = [text for t in said for text in (t.objective, *t.observations, *t.commands)]
    return tokenizer.train(texts, [system_message("command"), system_message("thought")])


def _network(spec: SmallModel, tokenizer: Any) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from learner.language.induction import build_induction_circuit

    torch.manual_seed(spec.seed)
    network = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.heads,
            head_dim=spec.head_dim,
            max_position_embeddings=spec.context,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    ).float()
    build_induction_circuit(network, spec.seed)
    return network


@contextmanager
def _threads(count: int) -> Generator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total
