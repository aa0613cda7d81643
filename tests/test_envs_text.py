"""Text worlds: ids, players, the text view, and a world of one's own."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import registry
from envs.registry import known_ids, make_text, register_text_family, validate_id
from envs.text import AnyText, SimpleTextEnv, TextEnvSpec
from envs.text_view import TextView, objective_of
from tests.envs_support import CountingEnv


def test_a_language_model_plays_every_id_and_a_network_no_text_world() -> None:
    networks, models = set(known_ids()), set(known_ids("language"))
    assert networks < models
    assert {"textworld/simple", "textworld/w2-o3-q4"} <= models - networks
    for env_id in models:
        validate_id(env_id, "language")
    for env_id in models - networks:
        with pytest.raises(
            envs.EnvironmentIdError, match=r"is a text world, which a language model plays.*agent\.model"
        ):
            validate_id(env_id)
    with pytest.raises(envs.EnvironmentIdError, match=r"text world.*agent\.model"):
        envs.make("textworld/simple")


def test_all_ids_are_registered_with_gymnasium() -> None:
    assert set(known_ids("language")) <= set(gym.registry)


def test_checking_a_text_id_loads_no_game() -> None:
    code = (
        "import sys; from envs.registry import validate_id; validate_id('textworld/w3-o5-q2', 'language');"
        "validate_id('textworld/cooking-recipe2+take1', 'language');"
        "print([name for name in ('textworld', 'jericho', 'alfworld', 'nle', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("textworld/w2-o3-p4", "did you mean 'textworld/w2-o3-q4'?"),
        ("textwrld/simple", "did you mean 'textworld/simple'?"),
        ("textworld/w0-o3-q4", "the number of rooms (w) must be at least 1"),
        ("textworld/w101-o3-q4", "no game with more than 100 rooms"),
        ("textworld/w2-o3-q101", "TextWorld does not find quests of more than 100 commands"),
        ("textworld/coin_collector-301", "coin_collector has levels 1 to 300"),
        ("textworld/coin_collector-180", "level 180 has 160 rooms"),
        ("textworld/treasure_hunter-0", "treasure_hunter has levels 1 to 30"),
        ("textworld/cooking-recipe1+tke1", "cooking has no setting 'tke1'; it has recipe<n>, take<n>"),
        ("textworld/cooking-recipe1+take2", "take2 asks for more ingredients than recipe1 has"),
        ("textworld/cooking-recipe9", "recipe must lie between 1 and 5"),
        ("textworld/cooking-go2", "go must be one of 1, 6, 9, 12, not 2"),
        ("textworld/cooking-cut+cut", "cut is given twice"),
        ("textworld/no/such.z8", "there is no such file"),
        ("textworld/game.ulx", ".ulx is no Z-machine game (TextWorld 1.7 plays no Glulx)"),
    ],
)
def test_a_wrong_id_says_what_is_wrong(wrong: str, message: str) -> None:
    with pytest.raises(envs.EnvironmentIdError, match=re.escape(message)):
        validate_id(wrong, "language")


class Guess(SimpleTextEnv):
    """Guess a number from 1 to 8."""

    def begin(self, seed: int) -> str:
        self.number = random.Random(seed).randint(1, 8)
        return "I think of a number from 1 to 8."

    def respond(self, command: str) -> tuple[str, float, bool | None]:
        if command not in self.admissible():
            return "Say: guess 3.", 0.0, None
        guessed = int(command.removeprefix("guess "))
        if guessed == self.number:
            return "That is it!", 1.0, True
        return "More." if guessed < self.number else "Less.", 0.0, None

    def objective(self) -> str:
        return "Guess the number."

    def admissible(self) -> tuple[str, ...]:
        return tuple(f"guess {number}" for number in range(1, 9))

    def walkthrough(self) -> tuple[str, ...]:
        return (f"guess {self.number}",)


@pytest.fixture
def own_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_families", dict(registry._families))

    def make_guess(name: str, **options: Any) -> Guess:
        registry.check_options(f"guess/{name}", options, ("max_episode_steps",))
        return Guess(TextEnvSpec(f"guess/{name}", options.get("max_episode_steps", 4), True, options))

    register_text_family("guess", make_guess, lambda: ["guess/eight"])


@pytest.mark.usefixtures("own_family")
def test_a_world_of_ones_own_is_one_small_class() -> None:
    env = make_text("guess/eight")
    text, info = env.reset(seed=5)
    assert (text, info["objective"]) == ("I think of a number from 1 to 8.", "Guess the number.")
    text, reward, terminated, truncated, last = env.step(info["walkthrough"][0])
    assert (text, reward, terminated, truncated) == ("That is it!", 1.0, True, False)
    assert last["success"] is True and last["grounded"] and last["caption"] == "That is it!"
    with pytest.raises(RuntimeError, match="the episode is over or has not begun"):
        env.step("guess 1")
    env.reset(seed=5)
    outcomes = [env.step("xyzzy\x00\n") for _ in range(4)]
    assert [outcome[3] for outcome in outcomes] == [False, False, False, True]
    assert outcomes[-1][4]["success"] is False and not outcomes[-1][4]["grounded"]
    with pytest.raises(envs.EnvironmentIdError, match="did you mean 'guess/eight'"):
        make_text("guess/eigth")
    with pytest.raises(ValueError, match="takes no options, but was given fish"):
        env.reset(options={"fish": 1})
    with pytest.raises(ValueError, match="registered already"):
        register_text_family("guess", lambda name: env, list)


@pytest.mark.usefixtures("own_family")
def test_the_documented_example_runs() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "text_worlds.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SimpleTextEnv" in block)
    exec(compile(example, "docs/text_worlds.md", "exec"), {"__name__": "example"})
    env = make_text("corridor/short")
    _, info = env.reset(seed=1)
    rewards = [env.step(command)[1:3] for command in info["walkthrough"]]
    assert rewards[-1] == (1.0, True)
    assert env.reset(seed=1)[0] == env.reset(seed=1)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("own_family")
def test_gymnasiums_own_checks_pass() -> None:
    check_env(make_text("guess/eight"))


def test_the_space_takes_any_character_up_to_its_length() -> None:
    space = AnyText(4)
    assert "漢é\x00\n" in space and "12345" not in space and 3 not in space
    assert space.sample() in space


def test_a_module_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_families", dict(registry._families))
    register_text_family("absent", "no_such_module:make", lambda: ["absent/x"])
    with pytest.raises(envs.EnvironmentUnavailableError, match=r"^absent/x cannot be made here: .*'no_such_module'"):
        make_text("absent/x")


def test_the_text_view_counts_what_presses_no_key() -> None:
    env = TextView(CountingEnv(limit=5, goal=3))
    _, info = env.reset(seed=3)
    assert info["admissible"] == ("GO", "RAISE", "STAY")
    assert env.seeds == {"seed": "3"}
    text, reward, *_, info = env.step("dance\x07")
    assert "There is no such action." in text and reward == 0.0 and not info["grounded"]
    assert [env.step(command)[4]["caption"] for command in ("go", " Go. ")] == ["step 1", "step 2"]
    *_, terminated, truncated, info = env.step('"GO"')
    assert terminated and not truncated and info["success"] is True
    env.reset(seed=3)
    outcomes = [env.step("dance") for _ in range(5)]
    assert [outcome[3] for outcome in outcomes] == [False] * 4 + [True]
    assert outcomes[-1][4]["success"] is False
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("go")


def test_the_text_view_shows_the_screen_and_understands_words() -> None:
    view, plain = make_text("minihack/KeyRoom-S5", max_episode_steps=50), envs.make("minihack/KeyRoom-S5")
    text, info = view.reset(seed=11)
    plain.reset(seed=11)
    assert text.strip("\n") == plain.screen().strip("\n")
    assert "@" in text and "HP:" in text and "unlock the door" in info["objective"]
    for said, name in (("go north", "N"), ("south-west", "SW"), ("Walk East", "E"), ("pick up", "PICKUP")):
        text, reward, *_, info = view.step(said)
        _, other, *_, expected = plain.step(plain.env_spec.action_names.index(name))
        assert (reward, info["caption"], info["grounded"]) == (other, expected["caption"], expected["grounded"])
        assert plain.screen().strip("\n") in text
    assert view.seeds == plain.seeds
    view.close()
    plain.close()


def test_running_is_understood_where_the_game_runs() -> None:
    view = make_text("nethack/Score")
    assert isinstance(view, TextView)
    names = view.env.env_spec.action_names
    for said, name in (("far north", "FAR_N"), ("run west", "FAR_W"), ("FAR_SE", "FAR_SE"), ("search", "SEARCH")):
        assert names[view._find(said)] == name
    view.close()


def test_every_task_has_an_objective() -> None:
    assert all(objective_of(env_id) for env_id in known_ids())
    assert objective_of("nethack/OracleSober").endswith("without hallucinating.")
    assert objective_of("minihack/KeyRoom-S15").startswith("Pick up the key")
