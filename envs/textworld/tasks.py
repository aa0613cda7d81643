"""What the ids of the family `textworld` name, read without loading TextWorld."""

import re
from dataclasses import dataclass
from pathlib import Path

from envs.base import EnvironmentIdError

Setting = int | bool | str

MAX_ROOMS = 100
"""TextWorld 1.7 compiles no game with more rooms (its coin collector says so)."""
MAX_QUEST = 100
"""TextWorld's search for a quest takes 17 s of a core at this length, and beyond it minutes."""
STEPS_PER_COMMAND = 3
"""Default step limit over quest length: 12 steps for quests of 4, 24 for 8 (arXiv 2510.01132)."""
MIN_STEPS = 12
COOKING_STEPS = 100
"""As in TextWorld's own competition, "First TextWorld Problems"."""
FILE_STEPS = 100
SIMPLE_STEPS = 36
"""The longest plan of the simple game has 12 commands."""
MAX_INGREDIENTS = 5

_CUSTOM = re.compile(r"w(\d+)-o(\d+)-q(\d+)")
_LEVEL = re.compile(r"(coin_collector|treasure_hunter)-(-?\d+)")
_GAME_FILE = re.compile(r".*\.(?:z\d|ulx|gblorb|zblorb|json|ni)", re.IGNORECASE)
_SKILL = re.compile(r"(recipe_seed|recipe|take|go)(\d+)")
_FLAGS = ("open", "cook", "cut", "drop")
_FOODS = ("train_foods", "valid_foods", "test_foods")
_LOCATIONS = (1, 6, 9, 12)


@dataclass(frozen=True, slots=True)
class Task:
    """What one id names: games of one kind and size, a game for each seed, or one game file."""

    name: str
    """The id without the prefix, the same for ids that mean the same."""
    kind: str
    """`custom`, `coin_collector`, `treasure_hunter`, `cooking`, `simple` or `file`."""
    settings: tuple[tuple[str, Setting], ...]
    """What TextWorld is told, sorted by name."""
    max_episode_steps: int
    """The limit where none is given."""
    path: Path | None = None
    """Of `file`: the story file, beside which its `.json` lies."""

    @property
    def env_id(self) -> str:
        return f"textworld/{self.name}"


def accepts(name: str) -> bool:
    """Whether `name` is a task of the family. Raises `EnvironmentIdError` where it is nearly one."""
    return parse(name) is not None


def parse(name: str) -> Task | None:
    """The task that `name` (the id without `textworld/`) names; None where it is like none.

    Raises `EnvironmentIdError` where the kind is known and the rest is wrong: a size that cannot be, a file that is not
    there.
    """
    if match := _CUSTOM.fullmatch(name):
        return _custom(name, *(int(number) for number in match.groups()))
    if match := _LEVEL.fullmatch(name):
        kind, level = match[1], int(match[2])
        return _coin_collector(name, level) if kind == "coin_collector" else _treasure_hunter(name, level)
    if name.startswith("cooking-"):
        return _cooking(name)
    if name == "simple":
        return Task(name, "simple", (), SIMPLE_STEPS)
    if _GAME_FILE.fullmatch(name):
        return _file(name)
    return None


def steps_for(quest_length: int) -> int:
    """The default step limit for quests of that many commands."""
    return max(MIN_STEPS, STEPS_PER_COMMAND * quest_length)


def _fail(name: str, fault: str) -> EnvironmentIdError:
    return EnvironmentIdError(f"textworld/{name}: {fault}")


def _custom(name: str, rooms: int, objects: int, quest: int) -> Task:
    for what, letter, count in (
        ("rooms", "w", rooms),
        ("objects", "o", objects),
        ("commands of the quest", "q", quest),
    ):
        if count < 1:
            raise _fail(name, f"the number of {what} ({letter}) must be at least 1")
    if rooms > MAX_ROOMS:
        raise _fail(name, f"TextWorld compiles no game with more than {MAX_ROOMS} rooms (w)")
    if quest > MAX_QUEST:
        raise _fail(name, f"TextWorld does not find quests of more than {MAX_QUEST} commands (q) in any useful time")
    settings = (("objects", objects), ("quest_length", quest), ("rooms", rooms))
    return Task(f"w{rooms}-o{objects}-q{quest}", "custom", settings, steps_for(quest))


def _coin_collector(name: str, level: int) -> Task:
    if not 1 <= level <= 300:
        raise _fail(name, "coin_collector has levels 1 to 300")
    quest = (level - 1) % 100 + 1
    rooms = quest * ((level - 1) // 100 + 1)
    if rooms > MAX_ROOMS:
        raise _fail(name, f"level {level} has {rooms} rooms and TextWorld compiles {MAX_ROOMS} at most: 1-150, 201-233")
    return Task(f"coin_collector-{level}", "coin_collector", (("level", level),), steps_for(quest))


def _treasure_hunter(name: str, level: int) -> Task:
    if not 1 <= level <= 30:
        raise _fail(name, "treasure_hunter has levels 1 to 30")
    # The ten levels of a mode have quest lengths that lie evenly between its shortest and longest.
    shortest, longest = ((1, 5), (2, 10), (3, 20))[(level - 1) // 10]
    quest = round(shortest + (longest - shortest) * ((level - 1) % 10) / 9)
    return Task(f"treasure_hunter-{level}", "treasure_hunter", (("level", level),), steps_for(quest))


def _cooking(name: str) -> Task:
    settings: dict[str, Setting] = {"recipe": 1, "take": 0, "go": 1, "split": "", **dict.fromkeys(_FLAGS, False)}
    given: set[str] = set()
    for part in re.split(r"[+-]", name.removeprefix("cooking-")):
        key, value = _cooking_part(name, part)
        if key in given:
            raise _fail(name, f"{key} is given twice")
        given.add(key)
        settings[key] = value
    recipe, take, go = settings["recipe"], settings["take"], settings["go"]
    assert isinstance(recipe, int) and isinstance(take, int)
    if not 1 <= recipe <= MAX_INGREDIENTS:
        raise _fail(name, f"recipe must lie between 1 and {MAX_INGREDIENTS}, not {recipe}")
    if take > recipe:
        raise _fail(name, f"take{take} asks for more ingredients than recipe{recipe} has")
    if "recipe_seed" in settings and not take:
        raise _fail(name, "recipe_seed has no effect without take")
    if go not in _LOCATIONS:
        raise _fail(name, f"go must be one of {', '.join(map(str, _LOCATIONS))}, not {go}")
    ordered = tuple(sorted(settings.items()))
    return Task(_cooking_name(settings), "cooking", ordered, COOKING_STEPS)


def _cooking_part(name: str, part: str) -> tuple[str, Setting]:
    if part in _FLAGS:
        return part, True
    if part in _FOODS:
        return "split", part.removesuffix("_foods")
    if match := _SKILL.fullmatch(part):
        return match[1], int(match[2])
    known = "recipe<n>, take<n>, go<n>, recipe_seed<n>, " + ", ".join((*_FLAGS, *_FOODS))
    raise _fail(name, f"cooking has no setting {part!r}; it has {known}")


def _cooking_name(settings: dict[str, Setting]) -> str:
    parts = [f"recipe{settings['recipe']}", f"take{settings['take']}"]
    parts += [flag for flag in _FLAGS if settings[flag]]
    parts.append(f"go{settings['go']}")
    parts += [f"{settings['split']}_foods"] if settings["split"] else []
    parts += [f"recipe_seed{settings['recipe_seed']}"] if "recipe_seed" in settings else []
    return "cooking-" + "-".join(parts)


def _file(name: str) -> Task:
    path = Path(name)
    if not re.fullmatch(r"\.z\d", path.suffix.lower()):
        hint = "TextWorld 1.7 plays no Glulx" if path.suffix.lower() == ".ulx" else "name the compiled game"
        raise _fail(name, f"{path.suffix} is no Z-machine game ({hint}); compile it as .z8")
    if not path.is_file():
        raise _fail(name, "there is no such file")
    if not path.with_suffix(".json").is_file():
        raise _fail(name, f"its {path.with_suffix('.json').name} is missing, which TextWorld writes beside the game")
    return Task(name, "file", (), FILE_STEPS, path)
