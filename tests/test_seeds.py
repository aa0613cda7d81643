"""Held-out seeds: no training ever plays an episode of an evaluation."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from envs.textworld import game_seed
from orchestration.parts import build_rollout
from orchestration.seeds import held_out_seed, is_held_out, training_seed

NAMES = st.tuples(st.integers(0, 2**63 - 1), st.text(max_size=5), st.integers(0, 10**6))


@given(NAMES, NAMES)
def test_training_and_held_out_seeds_are_disjoint_by_construction(one, other) -> None:
    learnt, measured = training_seed(one[0], *one[1:]), held_out_seed(other[0], *other[1:])
    assert not is_held_out(learnt) and is_held_out(measured)
    assert 0 <= learnt < 2**63 and 0 <= measured < 2**63
    # A world that draws from 32 bits of its seed differs too.
    assert learnt % 2**32 != measured % 2**32 and game_seed(learnt, None) != game_seed(measured, None)


def test_a_rollout_plays_training_seeds_and_an_evaluation_held_out_ones(monkeypatch) -> None:
    from orchestration import evaluate, parts
    from orchestration.configuration import load_config

    drawn: list[int] = []

    class Envs:
        def __init__(self, make, count, seed_of) -> None:
            drawn.extend(seed_of(env, episode) for env in range(count) for episode in range(3))
            raise InterruptedError

    monkeypatch.setattr(parts, "VectorEnv", Envs)
    monkeypatch.setattr(evaluate, "VectorEnv", Envs)
    config = load_config("demo", [])
    for play in (
        lambda: build_rollout(config, 0, observer=None),
        lambda: evaluate._play(evaluate._Job(config, None, config.run.seed, 0, 64)),  # type: ignore[arg-type]
    ):
        with contextlib.suppress(InterruptedError):
            play()
    half = len(drawn) // 2
    assert len(set(drawn)) == len(drawn) == 2 * 64 * 3
    assert not any(map(is_held_out, drawn[:half])) and all(map(is_held_out, drawn[half:]))
