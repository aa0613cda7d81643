"""Ids, options and the registration with gymnasium."""

import re
import subprocess
import sys
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import registry
from tests.envs_support import CountingEnv

NETHACK_NAMES = ["Challenge", "Oracle", "OracleSober", "Score", "StaircaseLvl3", "StaircaseLvl4"]


def test_every_nethack_id_is_known() -> None:
    listed = [env_id for env_id in envs.known_ids() if env_id.startswith("nethack/")]
    assert listed == [f"nethack/{name}" for name in NETHACK_NAMES]


def test_the_built_in_list_is_minihacks_registry() -> None:
    from envs.minihack import registered_names

    listed = {env_id.partition("/")[2] for env_id in envs.known_ids() if env_id.startswith("minihack/")}
    assert listed == registered_names()
    assert len(listed) == 159
    for env_id in envs.known_ids():
        envs.validate_id(env_id)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("KeyRoom-S15", "minihack/KeyRoom-S15"),
        ("minihack/KeyRom-S15", "minihack/KeyRoom-S15"),
        ("MiniHack-KeyRoom-S5-v0", "minihack/KeyRoom-S5"),
        ("minihak/Room-5x5", "minihack/Room-5x5"),
        ("nethack/score", "nethack/Score"),
        ("nethack/Oracel", "nethack/Oracle"),
    ],
)
def test_an_unknown_id_names_the_near_miss(wrong: str, near: str) -> None:
    with pytest.raises(envs.EnvironmentIdError, match=re.escape(f"{wrong!r}; did you mean {near!r}?")):
        envs.validate_id(wrong)


@pytest.mark.parametrize("wrong", ["", "foo", "nethack/", "minihack/Navigation-Custom"])
def test_an_id_like_no_other_names_the_prefixes(wrong: str) -> None:
    with pytest.raises(envs.EnvironmentIdError, match="ids begin with nethack/, minihack/"):
        envs.make(wrong)


def test_checking_an_id_loads_no_game() -> None:
    code = (
        "import sys, envs; envs.validate_id('minihack/KeyRoom-S15'); envs.validate_id('nethack/Score');"
        "print([name for name in ('nle', 'minihack', 'torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("nethack/Score", {"max_step": 3}, "nethack/Score has no option 'max_step'; did you mean 'max_episode_steps'?"),
        ("nethack/Score", {"actions": "all"}, "actions must be one of oni, task, full, not 'all'"),
        ("nethack/Score", {"max_episode_steps": 0}, "max_episode_steps must be a whole number of at least 1, not 0"),
        ("nethack/Score", {"character": "monk"}, "character must be '@' or role-race-alignment-gender"),
        ("nethack/Challenge", {"actions": "oni"}, "nethack/Challenge has no option 'actions'"),
        ("minihack/Room-5x5", {"max_episode_steps": True}, "at least 1, not True"),
        ("minihack/Room-5x5", {"fish": 1}, "minihack/Room-5x5 has no option 'fish'"),
        ("minihack/Eat", {"reward_win": 2}, "reward_win=2 has no effect there"),
        ("minihack/Sokoban1a", {"penalty_step": -1.0}, "penalty_step=-1.0 has no effect there"),
    ],
)
def test_an_option_that_is_wrong_or_without_effect_is_named(env_id: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(envs.EnvironmentOptionError, match=re.escape(message)):
        envs.make(env_id, **options)


def test_what_is_not_installed_is_said() -> None:
    with pytest.raises(envs.EnvironmentUnavailableError, match=r"^minihack/Boxoban-Hard cannot be .*download"):
        envs.make("minihack/Boxoban-Hard")


@pytest.mark.parametrize("side", ["crop_height", "crop_width", "message_bytes"])
def test_a_view_of_nothing_is_an_error(side: str) -> None:
    with pytest.raises(ValueError, match=f"{side} must be at least 1, not 0"):
        envs.make("nethack/Score", envs.View(**{side: 0}))


def test_a_family_is_added_with_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_families", dict(registry._families))

    def factory(name: str, view: envs.View, **options: Any) -> CountingEnv:
        assert name == "Count"
        return CountingEnv(**options)

    envs.register_family("toy", factory, lambda: ["toy/Count"])
    assert "toy/Count" in envs.known_ids()
    assert envs.make("toy/Count", limit=7).env_spec.max_episode_steps == 7
    with pytest.raises(ValueError, match="'toy' is registered already"):
        envs.register_family("toy", factory, list)


def test_all_ids_are_registered_with_gymnasium_once() -> None:
    envs.register_gymnasium()  # importing `envs` did so; tests collected beside this one may have added families since
    before = dict(gym.registry)
    assert set(envs.known_ids()) <= set(before)
    envs.register_gymnasium()
    assert gym.registry == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("env_id", ["nethack/Score", "nethack/Challenge", "minihack/Room-5x5"])
def test_gymnasiums_own_checks_pass(env_id: str) -> None:
    check_env(gym.make(env_id).unwrapped)


def test_making_a_minihack_task_does_not_load_what_it_never_uses():
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); from envs import make; make('minihack/Room-5x5').close(); "
        "assert 'typeguard' not in sys.modules, 'inflect was loaded'; "
        "import inflect; assert inflect.engine().plural('key') == 'keys'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
