"""Is it worth choosing which captions to compare? Uniform against informative pairs, on scores that are known.

One free score a caption is fitted by maximum a posteriori to answers drawn from Bradley and Terry's model (captions of equal
strength tie), after every twenty pairs; what is measured is the share of all pairs that are not tied whose order is found. No
network takes part, so nothing is generalised from one caption to another.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reward_server.pairs import PairSource
from reward_server.settings import AnnotatorSettings

Floats = NDArray[np.float64]

CAPTIONS = 60
_BATCH = 20
_ITERATIONS = 300


def strengths() -> dict[str, Floats]:
    """Three problems of 60 captions."""
    return {
        "normal": np.random.default_rng(1).normal(size=CAPTIONS) * 2.0,
        "rare": np.array([0.0] * 51 + [2.0, 2.5, 3.0, 3.5, 4.0, 4.0, 4.5, 5.0, 6.0]),
        "two kinds": np.array([0.0] * 50 + [4.0] * 10),
    }


def fit(pairs: NDArray[np.int64], target: Floats, count: int) -> Floats:
    """Scores [count] under a unit normal prior, by damped diagonal Newton steps; pairs [N, 2], target P(first) [N]."""
    first, second = pairs.T
    scores = np.zeros(count)
    for _ in range(_ITERATIONS):
        p = 1.0 / (1.0 + np.exp(scores[second] - scores[first]))
        gradient, curvature = -scores, np.ones(count)
        np.add.at(gradient, first, target - p)
        np.add.at(gradient, second, p - target)
        np.add.at(curvature, first, p * (1.0 - p))
        np.add.at(curvature, second, p * (1.0 - p))
        scores = scores + 0.5 * gradient / curvature
    return scores


def accuracy(choice: str, strength: Floats, budget: int, seed: int) -> float:
    """Share of the pairs that are not tied in the right order after `budget` answers."""
    rng = np.random.default_rng((seed, budget))
    count = len(strength)
    source = PairSource(AnnotatorSettings(pair_choice=choice, pairs_per_caption=budget / count), seed=seed)
    source.observe((i + 1, str(i)) for i in range(count))
    scores = np.zeros(count)
    asked: list[tuple[int, int]] = []
    answers: list[float] = []
    while drawn := source.draw(_BATCH, lambda texts, known=scores: known[[int(text) for text in texts]]):
        for _, pair in drawn:
            a, b = int(pair.first), int(pair.second)
            margin = strength[a] - strength[b]
            asked.append((a, b))
            answers.append(0.5 if margin == 0 else float(rng.random() < 1.0 / (1.0 + np.exp(-margin))))
        scores = fit(np.array(asked), np.array(answers), count)
    a, b = np.triu_indices(count, 1)
    decided = strength[a] != strength[b]
    return float((np.sign(scores[a] - scores[b]) == np.sign(strength[a] - strength[b]))[decided].mean())


def main(folder: Path, *options: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks pairs", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budgets", type=int, nargs="+", default=(60, 120, 240))
    chosen = parser.parse_args(options)
    print("| strengths | pairs | uniform | informative | difference |\n|---|---|---|---|---|")
    figures: list[dict[str, object]] = []
    for name, strength in strengths().items():
        for budget in chosen.budgets:
            found = {
                choice: [accuracy(choice, strength, budget, seed) for seed in range(chosen.seeds)]
                for choice in ("uniform", "informative")
            }
            gains = [b - a for a, b in zip(found["uniform"], found["informative"], strict=True)]
            error = 2.0 * statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            means = [statistics.mean(found[choice]) for choice in ("uniform", "informative")]
            gain = statistics.mean(gains)
            print(f"| {name} | {budget} | {means[0]:.3f} | {means[1]:.3f} | {gain:+.3f} ± {error:.3f} |", flush=True)
            figures.append({"strengths": name, "pairs": budget, **found})
    (folder / "pairs.json").write_text(json.dumps(figures, indent=1))
