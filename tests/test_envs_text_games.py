"""Games that are generated and kept: whole or not at all, once, in any number of processes."""

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from envs.base import EnvironmentIdError
from envs.cache import cache_folder
from envs.textworld import GameGenerationError, games, prepare
from envs.textworld.games import Recipe, digest_of, story_of
from envs.textworld.tasks import Task, parse
from tests.text_worlds_support import GAMES

ROOT = Path(__file__).resolve().parent.parent


def task_of(name: str) -> Task:
    task = parse(name)
    assert task is not None
    return task


RECIPE = Recipe(task_of("w2-o3-q4"), 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Generation that copies a game made before; the seeds that were asked for."""
    asked: list[int] = []
    made = story_of(RECIPE, GAMES)

    def copy(recipe: Recipe, story: Path) -> None:
        asked.append(recipe.seed)
        shutil.copy(made, story)
        shutil.copy(made.with_suffix(".json"), story.with_suffix(".json"))

    monkeypatch.setattr(games, "_generate", copy)
    return asked


def test_a_game_is_generated_once_and_again_when_damaged(calls: list[int], tmp_path: Path) -> None:
    story = story_of(RECIPE, tmp_path)
    assert story_of(RECIPE, tmp_path) == story and calls == [1]
    whole = digest_of(story)
    for spoil in (
        lambda: story.write_bytes(story.read_bytes()[:-1]),
        lambda: story.with_suffix(".json").write_text("{}"),
        lambda: story.with_name("sums.json").write_text("{"),
        lambda: story.unlink(),
        lambda: story.with_name("sums.json").unlink(),
    ):
        spoil()
        calls.clear()
        assert digest_of(story_of(RECIPE, tmp_path)) == whole and calls == [1]
    assert sorted(path.name for path in story.parent.iterdir()) == ["game.json", "game.z8", "sums.json"]
    assert [path.name for path in story.parent.parent.iterdir()] == [RECIPE.digest]


def test_who_comes_at_the_same_time_waits_and_takes_what_the_first_made(calls: list[int], tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(story_of(RECIPE, tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] and len(set(found)) == 1 and len(found) == 8


def test_a_generation_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(recipe: Recipe, story: Path) -> None:
        story.write_bytes(b"half")
        raise GameGenerationError("no")

    monkeypatch.setattr(games, "_generate", fail)
    with pytest.raises(GameGenerationError):
        story_of(RECIPE, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "locks" / RECIPE.digest]


def test_the_digest_names_all_that_makes_a_game(monkeypatch: pytest.MonkeyPatch) -> None:
    cooking = Recipe(task_of("cooking-recipe2+take1"), 1)
    assert cooking.digest == Recipe(task_of("cooking-take1-recipe2-go1"), 1).digest
    different = {
        RECIPE.digest,
        cooking.digest,
        Recipe(RECIPE.task, 2).digest,
        Recipe(task_of("w2-o3-q5"), 1).digest,
        Recipe(task_of("simple"), 1, (("goal", "brief"), ("rewards", "dense"))).digest,
        Recipe(task_of("simple"), 1, (("goal", "none"), ("rewards", "dense"))).digest,
    }
    monkeypatch.setattr(games, "_textworld_version", lambda: "2")
    assert len(different | {RECIPE.digest}) == 7


def test_where_games_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("YENDOR_CACHE", raising=False)
    assert cache_folder("textworld") == Path(".cache/textworld")
    monkeypatch.setenv("YENDOR_CACHE", str(tmp_path))
    assert cache_folder("textworld") == tmp_path / "textworld"
    assert cache_folder("textworld", "x") == Path("x")


def test_prepare_makes_what_is_missing_and_reports(calls: list[int], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    options = {"split": "test", "cache_dir": tmp_path}
    assert prepare("textworld/w2-o3-q4", [0, 1, 100], progress=progress, **options) == 2  # 0 and 100 are one game
    assert calls == [1, 2] and seen == [(0, 2), (1, 2), (2, 2)]
    assert prepare("textworld/w2-o3-q4", [0, 1, 2], **options) == 1
    with pytest.raises(EnvironmentIdError, match="no task"):
        prepare("textworld/fish", [0])


def test_what_cannot_be_generated_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFORM_HOME", "/no/such/compiler")
    message = "textworld/w1-o1-q1, seed 5: TextWorld could not generate the game: "
    with pytest.raises(GameGenerationError, match=re.escape(message) + ".*/no/such/compiler"):
        prepare("textworld/w1-o1-q1", [5], cache_dir=tmp_path)
    assert not list(tmp_path.rglob("game.*"))


@pytest.mark.slow
def test_two_processes_that_want_the_same_game_and_the_bytes_are_the_seeds(tmp_path: Path) -> None:
    code = f"from envs.textworld import prepare; print(prepare('textworld/w2-o3-q4', [1], cache_dir={str(tmp_path)!r}))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    story = story_of(RECIPE, tmp_path)
    assert digest_of(story) == digest_of(story_of(RECIPE, GAMES))
    assert story.read_bytes()[0x12:0x18] == b"000000", "the day on which it was compiled is in it"
    assert sorted(path.name for path in story.parent.iterdir()) == ["game.json", "game.z8", "sums.json"]


@pytest.mark.slow
def test_prepare_in_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[int] = []
    made = prepare("textworld/w2-o3-q4", [1, 2], 2, lambda done, total: seen.append(done), cache_dir=tmp_path)
    assert made == 2 and seen == [0, 1, 2]
    monkeypatch.setenv("INFORM_HOME", "/no/such/compiler")
    with pytest.raises(GameGenerationError, match=r"w1-o1-q1, seed [56]"):
        prepare("textworld/w1-o1-q1", [5, 6], 2, cache_dir=tmp_path)
