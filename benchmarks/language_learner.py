"""The learner of language models: tokens/s beside a bare training step of `transformers` on the same model and batch.

A batch is packed episodes of several turns, of which one token in ten or so is an action. *Bare* is the model's own
forward pass with labels, backward pass and AdamW, in the fastest of three ways to feed it without padding's cost: one
packed row with the library's own masks, a padded batch, one sequence after the other. *Step* is the learner's
optimisation step; *update* a whole update, with the passes before it that an algorithm needs. All take turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 5120, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    },
    "qwen3-0.6b": {
        "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, by the makers' data sheets."""


@dataclass(frozen=True)
class Rates:
    """Tokens/s of each repeat, prompts included."""

    shape: str
    device: str
    tokens: int
    action_tokens: int
    bare: dict[str, list[float]]
    step: list[float]
    update: dict[str, list[float]]
    ratio: float
    """Of the learner's step to the fastest bare one, median of neighbouring repeats."""
    utilisation: float | None
    """Model operations of the step over the device's peak; null where that is not known."""


def main(folder: Path, *options: str) -> None:
    """Prints a table and writes `language_learner.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks language_learner", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--turns", type=int, default=8, help="of each episode, on average (default 8)")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(options)
    rates = measure(given.shape, given.device, given.episodes, given.turns, given.repeats)
    (folder / "language_learner.json").write_text(json.dumps(asdict(rates), indent=2))
    print(table(rates))


def measure(shape: str, device: str, episodes: int, turns: int, repeats: int) -> Rates:
    """Runs all in turn, `repeats` times after one to warm up."""
    import torch

    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    played = _episodes(episodes, turns, SHAPES[shape]["vocab_size"])
    works: dict[str, Callable[[], None]] = {**_bare(shape, device, played), **_ours(shape, device, played)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[name].append(time.perf_counter() - began)
    tokens = sum(len(s.tokens) for episode in played for s in episode.sequences())
    rate = {name: [tokens / seconds for seconds in spent] for name, spent in times.items()}
    bare = {name: found for name, found in rate.items() if name.startswith("bare")}
    best = max(bare, key=lambda name: statistics.median(bare[name]))
    step = rate["step"]
    return Rates(
        shape=shape,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
        tokens=tokens,
        action_tokens=sum(episode.output_tokens for episode in played),
        bare=bare,
        step=step,
        update={name: found for name, found in rate.items() if name.startswith("update")},
        ratio=statistics.median(a / b for a, b in zip(step, bare[best], strict=True)),
        utilisation=_utilisation(shape, device, statistics.median(step)),
    )


def table(rates: Rates) -> str:
    """The figures as Markdown."""
    rows = [*rates.bare.items(), ("step", rates.step), *rates.update.items()]
    used = "" if rates.utilisation is None else f"; model operations: {rates.utilisation:.0%} of the peak"
    return "\n".join(
        [
            f"{rates.shape} on {rates.device}: {rates.tokens} tokens, {rates.action_tokens} of them actions",
            "| | tokens/s (median) |\n|---|---|",
            *(f"| {name} | {statistics.median(found):,.0f} |" for name, found in rows),
            f"step / fastest bare: {rates.ratio:.2f}{used}",
        ]
    )


def _episodes(count: int, turns: int, vocabulary: int) -> list[Any]:
    """Episodes in two groups with different outcomes: prompts of 60 to 140 tokens, answers of 4 to 14."""
    from agents.language.episode import LanguageEpisode, LanguageTurn

    rng = np.random.default_rng(0)

    def ids(low: int, high: int) -> Any:
        return rng.integers(0, vocabulary, rng.integers(low, high)).astype(np.int32)

    def turn(first: bool, reward: float) -> LanguageTurn:
        output = ids(4, 15)
        return LanguageTurn(
            prompt=ids(60, 140), rewritten=first, output=output, log_prob=np.full(len(output), -1.0, np.float32),
            version=0, last_version=0, stop="stop", text="", command="", failure=None, penalty=0.0, reward=reward,
            grounded=True, caption_id=0, caption_count=0, generate_s=0.0, env_s=0.0,
        )  # fmt: skip

    def episode(number: int) -> LanguageEpisode:
        length = int(rng.integers(max(1, turns // 2), turns + turns // 2 + 1))
        won = float(number // 2 % 2)
        made = tuple(turn(k == 0, won if k + 1 == length else 0.0) for k in range(length))
        return LanguageEpisode(
            episode_id=str(number), env_id="made", seed=0, group=number % 2, member=number // 2, turns=made,
            final_prompt=np.zeros(0, np.int32), terminated=True, truncated=False, cut=None, success=won > 0, metrics={},
            temperature=1.0, wall_s=0.0,
        )  # fmt: skip

    return [episode(number) for number in range(count)]


def _network(shape: str, device: str) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=40960, bos_token_id=None)
    return Qwen3ForCausalLM(config).to(device)


def _bare(shape: str, device: str, played: list[Any]) -> dict[str, Callable[[], None]]:
    import torch

    from learner.learner import resolve_device
    from learner.precision import resolve_precision

    network = _network(shape, device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    dtype = resolve_precision("auto", resolve_device(device))
    sequences = [s for episode in played for s in episode.sequences()]
    ids = [torch.from_numpy(s.tokens).to(device) for s in sequences]
    labels = [torch.where(torch.from_numpy(s.action).to(device), x, -100) for s, x in zip(sequences, ids, strict=True)]
    actions = sum(int((one != -100).sum()) for one in labels)

    def step(feeds: list[dict[str, Any]]) -> None:
        optimizer.zero_grad(set_to_none=True)
        for feed in feeds:
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                network(**feed, use_cache=False, num_items_in_batch=actions).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    pad = torch.nn.utils.rnn.pad_sequence
    alone = [{"input_ids": x[None], "labels": y[None]} for x, y in zip(ids, labels, strict=True)]
    padded = {
        "input_ids": pad(ids, batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(x) for x in ids], batch_first=True),
    }
    packed = {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(len(x), device=device) for x in ids])[None],
    }
    return {
        "bare, one by one": lambda: step(alone),
        "bare, padded": lambda: step([padded]),
        "bare, packed": lambda: step([packed]),
    }


def _ours(shape: str, device: str, played: list[Any]) -> dict[str, Callable[[], None]]:
    from learner.language.learner import LanguageLearner
    from learner.language.model import LanguageModel
    from learner.language.registry import build_objective, objective_kind
    from learner.language.settings import LanguageSettings
    from learner.language.step import LanguageStep
    from learner.learner import NoIntrinsicReward, resolve_device
    from learner.precision import resolve_precision
    from learner.settings import RewardSettings

    def update(algorithm: str, kl: float) -> Callable[[], None]:
        objective = build_objective(algorithm, objective_kind(algorithm).settings(kl_coefficient=kl, max_lag=None))
        where = resolve_device(device)
        tokenizer: Any = None  # never asked for text
        model = LanguageModel(
            _network(shape, device), tokenizer, device=where, dtype=resolve_precision("auto", where),
            critic=objective.needs_value, reference=objective.needs_reference,
        )  # fmt: skip
        settings = LanguageSettings(learning_rate=1e-6)
        learner = LanguageLearner(LanguageStep(model, objective, settings), RewardSettings(), NoIntrinsicReward())

        def run() -> None:
            learner.update(played)

        return run

    return {
        # REINFORCE++ without a KL: one pass forward, one back and an optimisation step, and every token has a part.
        "step": update("reinforce++", 0.0),
        "update, grpo with a reference": update("grpo", 0.01),
        "update, ppo with a critic and a reference": update("ppo", 0.01),
    }


def _utilisation(shape: str, device: str, tokens_per_second: float) -> float | None:
    """6 operations a token and weight (embeddings apart, the head counted for the action tokens' share is left out)."""
    if device != "cuda":
        return None
    import torch

    peak = next((p for name, p in PEAK.items() if name in torch.cuda.get_device_name()), None)
    s = SHAPES[shape]
    heads = s["head_dim"] * (2 * s["num_attention_heads"] + 2 * s["num_key_value_heads"])
    weights = s["num_hidden_layers"] * s["hidden_size"] * (heads + 3 * s["intermediate_size"])
    return None if peak is None else 6 * weights * tokens_per_second / peak
