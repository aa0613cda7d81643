"""Which world and seed a group plays, and the recipe as commands: demonstrations, RL from them, demonstrations from its traces."""

import asyncio
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from agents.language.errors import LanguageModelError
from agents.language.template import ChatTemplate, load_tokenizer
from envs import registry
from envs.textworld import games
from learner.checkpoint import checkpoints
from orchestration.cli.main import run
from orchestration.configuration import load_config, read_config
from orchestration.configuration.loader import to_yaml
from orchestration.errors import ConfigError
from orchestration.language import games as game_making
from orchestration.language.games import GameMaker, make_games
from orchestration.language.models import acting_model
from orchestration.language.sft import demonstrate
from orchestration.language.tasks import Tasks, draw, permuted, split_by_share
from tests.language_agents_support import tiny_model
from tests.test_language_sft import Ways

FAMILY = ("one", "two", "three")


class Numbered(Ways):
    """A world that says which it is."""

    def __init__(self, name):
        super().__init__(f"ways/{name}")
        self.name = name

    def begin(self, seed):
        self.seed = seed
        return f"{self.name} {super().begin(seed)}"


@pytest.fixture(autouse=True, scope="module")
def _ways():
    registry.register_text_family("ways", lambda name, **_: Numbered(name), lambda: [f"ways/{name}" for name in FAMILY])
    yield
    del registry._families["ways"]


def _config(*keys):
    given = [] if any(key.startswith("learner.algorithm") for key in keys) else ["learner.algorithm=ppo"]
    return load_config(None, ["env.id=ways/one", "agent.model=./x", "reward.w_int=0", *given, *keys])


def test_shares_are_kept():
    assert split_by_share({"a": 1, "b": 2, "c": 1}, 10) == {"a": 3, "b": 5, "c": 2}
    assert sum(split_by_share({"a": 0.3, "b": 0.3, "c": 0.3}, 7).values()) == 7
    drawn = Counter(draw({"a": 1.0, "b": 3.0}, i * 2**63 // 1000) for i in range(1000))
    assert drawn == {"a": 250, "b": 750}


def test_a_curriculum_goes_from_world_to_world_and_then_to_the_mix():
    tasks = Tasks(
        _config(
            "env.curriculum.ways/one=8", "env.curriculum.ways/two=4", "env.mix.ways/three=1", "env.mix.ways/two=1",
            "agent.group_size=2", "env.tasks=5",
        )
    )  # fmt: skip
    worlds = [tasks.world_of(group) for group in range(200)]
    assert worlds[:6] == ["ways/one"] * 4 + ["ways/two"] * 2
    assert set(worlds[6:]) == {"ways/two", "ways/three"} and 70 < worlds[6:].count("ways/two") < 125
    env = tasks.make_env()
    played = set()
    for group in range(60):
        observation, _ = env.reset(seed=tasks.seed_of(group))
        assert observation.startswith(worlds[group].removeprefix("ways/"))
        played.add(int(env.seeds["seed"]))
    assert played == set(range(5))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 200, 1000])
def test_a_permutation_is_one_and_each_seed_has_its_own(count):
    orders = [tuple(permuted(place, count, seed) for place in range(count)) for seed in range(20)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count >= 5:
        assert len(set(orders)) > 15
        firsts = Counter(permuted(0, 5, seed) for seed in range(1000))
        assert all(abs(firsts[task] - 200) < 65 for task in range(5)), "five standard deviations"
    assert 0 <= permuted(10**12, 10**13, 7) < 10**13


def test_each_task_is_played_once_before_any_is_played_again():
    tasks = Tasks(_config("env.tasks=50", "agent.group_size=2"))
    passes = [[tasks.seed_of(50 * number + place) for place in range(50)] for number in range(4)]
    assert all(sorted(seeds) == list(range(50)) for seeds in passes)
    assert len(set(map(tuple, passes))) == 4, "in another order each time"
    assert passes[0] == [Tasks(_config("env.tasks=50")).seed_of(group) for group in range(50)], (
        "whatever the group's size"
    )
    assert passes[0] != [Tasks(_config("env.tasks=50", "run.seed=1")).seed_of(group) for group in range(50)]
    unbound = [Tasks(_config()).seed_of(group) for group in range(50)]
    assert len(set(unbound)) == 50 and max(unbound) > 2**40


def test_a_world_of_a_mix_may_be_a_file(tmp_path):
    """Its name has dots, which part keys elsewhere."""
    for name in ("a.z8", "a.json", "b.c.z8", "b.c.json"):
        (tmp_path / name).write_text("{}")
    one, two = f"textworld/{tmp_path}/a.z8", f"textworld/{tmp_path}/b.c.z8"
    config = _config(f"env.mix.{one}=1", f"env.mix.{two}=2.5", f"env.curriculum.{one}=10")
    assert config.env.mix == {one: 1.0, two: 2.5} and config.env.curriculum == {one: 10}
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path / "config.yaml") == config


def test_worlds_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match=r"env\.mix\.ways/tow: .*did you mean .ways/two"):
        _config("env.mix.ways/tow=1")
    with pytest.raises(ConfigError, match=r"env\.curriculum\.ways/two=0: must be a number above 0"):
        _config("env.curriculum.ways/two=0")
    with pytest.raises(ConfigError, match=r"env\.tasks: has no effect, as a network acts"):
        load_config("demo", ["env.tasks=5"])


def test_games_are_generated_before_they_are_played(tmp_path, monkeypatch):
    """Of both worlds of a mix, each game once; resets then find them."""
    told = []
    small, large = "textworld/w1-o1-q1", "textworld/w1-o1-q2"
    config = _config(
        f"env.mix.{small}=1", f"env.mix.{large}=1", "env.options.split=test", f"env.options.cache_dir={tmp_path}"
    )
    tasks = Tasks(config)
    seeds = [tasks.seed_in(world, game) for world in (small, large) for game in (0, 1, 0)]
    tasks.make_games(seeds, lambda what, done, total: told.append((what, done, total)))
    assert [call for call in told if call[1]] == [(f"games of {w}", n, 2) for w in (small, large) for n in (1, 2)]
    monkeypatch.setattr(games, "_make", lambda *_: pytest.fail("a game was generated later"))
    env = tasks.make_env()
    played = set()
    for seed in seeds:
        env.reset(seed=seed)
        played.add(env.seeds["game"])
    assert len(played) == 4
    tasks.make_games(seeds, lambda *call: pytest.fail(f"there was nothing to do: {call}"))
    make_games("ways/one", {}, [0])  # generates none


def test_games_of_groups_are_generated_side_by_side_and_the_processes_then_end(tmp_path, monkeypatch):
    """In processes of the maker's, each game by one of them however many groups want it."""
    keys = [
        "env.mix.textworld/w1-o1-q1=1",
        "env.options.split=test",
        f"env.options.cache_dir={tmp_path}",
        "env.tasks=3",
    ]
    tasks, maker = Tasks(_config(*keys)), GameMaker(2)
    groups = range(12)
    wanted = {tasks.seed_of(group) for group in groups}
    assert set(tasks.missing(groups)) == wanted and len(wanted) == 3
    others = set(multiprocessing.active_children())
    submitted = []
    submit = maker._submit
    monkeypatch.setattr(maker, "_submit", lambda *call: submitted.append(call[2]) or submit(*call))

    async def make():
        making = asyncio.gather(*(tasks.make_game(tasks.seed_of(group), maker) for group in groups))
        await asyncio.sleep(0.01)
        assert 1 <= len(set(multiprocessing.active_children()) - others) <= 2
        await making
        assert set(multiprocessing.active_children()) - others, "they wait for more to do"
        deadline = time.monotonic() + 20
        while set(multiprocessing.active_children()) - others and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert not set(multiprocessing.active_children()) - others

    monkeypatch.setattr(games, "_make", lambda *_: pytest.fail("a game was generated in this process"))
    monkeypatch.setattr(game_making, "_IDLE_S", 0.5)
    asyncio.run(make())
    assert sorted(submitted) == [0, 1, 2] and tasks.missing(groups) == []
    env = tasks.make_env()
    for group in groups:
        env.reset(seed=tasks.seed_of(group))


def test_a_game_that_cannot_be_generated_is_left_to_the_world(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("INFORM_HOME", "/no/such/compiler")
    tasks = Tasks(
        _config("env.mix.textworld/w1-o1-q1=1", "env.options.split=test", f"env.options.cache_dir={tmp_path}")
    )
    asyncio.run(tasks.make_game(tasks.seed_of(0), GameMaker(1)))
    assert "a game of textworld/w1-o1-q1 is left to its world: GameGenerationError" in caplog.text
    with pytest.raises(games.GameGenerationError, match="textworld/w1-o1-q1, seed"):
        tasks.make_env().reset(seed=tasks.seed_of(0))


def test_processes_that_make_games_are_ended_in_the_middle_and_know_nothing_of_ctrl_c(tmp_path):
    maker = GameMaker(2)
    others = set(multiprocessing.active_children())
    options = {"split": "train", "cache_dir": str(tmp_path)}

    async def begin():
        making = asyncio.gather(*(maker.make("textworld/w2-o3-q4", options, seed) for seed in range(20)))
        children = set(multiprocessing.active_children()) - others
        while len(list(tmp_path.glob("??/*"))) < 2:  # they are at work
            children |= set(multiprocessing.active_children()) - others
            await asyncio.sleep(0.1)
        processes = [psutil.Process(child.pid) for child in children]
        for process in processes:
            process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.5)
        assert processes and all(process.is_running() for process in processes) and not making.done()
        maker.close()
        await asyncio.wait_for(making, 20)
        return processes

    # The pool's own thread may be the one that takes notice of their end, so that theirs never know.
    _, alive = psutil.wait_procs(asyncio.run(begin()), timeout=20)
    assert not alive


def test_a_game_whose_turn_had_not_come_when_the_pool_was_closed_is_left_to_the_world(monkeypatch):
    """Whether closing cancels what waits or breaks it is a race within the pool: here it is cancelled, for each that wants it."""
    maker = GameMaker(1)

    async def wait():
        waiting = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(maker, "_submit", lambda *_: waiting)
        options = {"split": "train", "cache_dir": "/nonexistent"}
        making = [asyncio.ensure_future(maker.make("textworld/w2-o3-q4", options, 1)) for _ in range(3)]
        await asyncio.sleep(0)
        making[2].cancel()  # a caller that ends, on the other hand, ends
        await asyncio.sleep(0)
        waiting.cancel()
        return await asyncio.gather(*making, return_exceptions=True)

    first, second, ended = asyncio.run(wait())
    assert first is None and second is None and isinstance(ended, asyncio.CancelledError)
    assert not maker._making


@pytest.mark.slow
def test_a_serial_run_has_its_games_made_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(games, "_make", lambda *_: pytest.fail("a game was generated in the run's own process"))
    model = tiny_model(tmp_path / "tiny")
    keys = [
        "env.id=textworld/w1-o1-q1", "env.options.split=train", f"env.options.cache_dir={tmp_path / 'games'}", "env.tasks=4",
        f"agent.model={model}", "agent.engine=transformers", "agent.answer=command", "agent.max_new_tokens=4",
        "reward.model=none", "learner.algorithm=reinforce++", "language.batch_episodes=4", "train.episodes=4",
        "runtime=serial", f"run.dir={tmp_path}", "run.name=beside",
    ]  # fmt: skip
    assert run(["train", *keys, "--plain"]) == 0
    assert len(list((tmp_path / "games").glob("??/*/game.z8"))) >= 1


def test_processes_that_make_games_end_with_the_one_that_wanted_them(tmp_path):
    """Killed in the middle: nobody would end them."""
    script = tmp_path / "maker.py"
    script.write_text(
        "import asyncio, multiprocessing, sys\n"
        "from orchestration.language.games import GameMaker\n"
        "async def main():\n"
        "    maker = GameMaker(2)\n"
        "    options = {'split': 'train', 'cache_dir': sys.argv[1]}\n"
        "    work = asyncio.gather(*(maker.make('textworld/w2-o3-q4', options, seed) for seed in range(40)))\n"
        "    await asyncio.sleep(0.5)\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    await work\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    maker = subprocess.Popen([sys.executable, str(script), str(tmp_path / "games")], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    children = [psutil.Process(int(pid)) for pid in maker.stdout.readline().split()]
    assert children
    maker.kill()
    maker.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


class Halting(Numbered):
    """Its walkthrough stops short of the end with some seeds."""

    halts = frozenset[int]()

    def walkthrough(self):
        return super().walkthrough()[: 2 if self.seed in self.halts else 3]


def test_walkthroughs_that_do_not_end_are_passed_over_unless_they_are_many(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry._families, "halts",
        registry.Family("halts", lambda name, **_: Halting(name), lambda: ["halts/one"], lambda name: False, text=True),
    )  # fmt: skip
    model = tiny_model(tmp_path / "tiny")
    template = ChatTemplate(load_tokenizer(str(model)), "tiny")
    keys = ["env.id=halts/one", f"agent.model={model}", "reward.w_int=0", "agent.answer=command", "agent.context=512"]
    config = load_config(None, [*keys, "learner.algorithm=ppo", "sft.demonstrations=20"])
    told = []
    monkeypatch.setattr(Halting, "halts", {1, 20})
    played, passed_over = demonstrate(config, template, lambda *call: told.append(call))
    assert [episode.seed for episode in played] == [*(seed for seed in range(20) if seed != 1), 21]
    assert passed_over == 2 and all(episode.success for episode in played)
    assert told[-1] == ("demonstrations", 20, 20)
    monkeypatch.setattr(Halting, "halts", {1, 5, 8})
    with pytest.raises(LanguageModelError, match=r"3 of 20 demonstrations do not reach the end .* seed 1 of"):
        demonstrate(config, template, lambda *call: None)


@pytest.mark.slow
def test_the_whole_recipe(tmp_path, capsys):
    model = tiny_model(tmp_path / "tiny")
    common = [
        "env.id=ways/one", "agent.engine=transformers", "agent.answer=command", "agent.context=512",
        "agent.max_new_tokens=12", f"run.dir={tmp_path}", "reward.w_int=0", "learner.algorithm=ppo",
    ]  # fmt: skip
    sft = ["sft", *common, f"agent.model={model}", "sft.demonstrations=6", "sft.holdout=0.17", "sft.epochs=60",
           "sft.batch_episodes=5", "sft.learning_rate=5e-3"]  # fmt: skip
    assert run([*sft, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["demonstrations"] == 6 and told["turns"] == 18 and told["episodes_worth"] == 60
    assert told["loss"] < 0.1 and told["holdout_loss"] > told["loss"]
    summary = json.loads((tmp_path / "train-sft" / "summary.json").read_text())
    assert summary["status"] == "done" and summary["checkpoint"] == told["checkpoint"]
    assert run(sft) == 2 and "run exists" in capsys.readouterr().err

    train = ["train", *common, "agent.model=train-sft", "runtime=serial", "language.batch_episodes=6", "env.tasks=6"]
    assert run([*train, "trace.rate=1", "train.env_steps=30", "run.name=rl", "--plain"]) == 0
    rl = json.loads((tmp_path / "rl" / "summary.json").read_text())
    assert rl["success_rate"] > 0.5  # random play wins one in 64
    capsys.readouterr()

    # A budget of 70 episodes, of which 6 demonstrations at 10 each were paid: 10 are left.
    budget = [*train, "train.env_steps=100000", "run.name=budget", "--plain"]
    assert run([*budget, "train.episodes=70"]) == 0
    told = json.loads((tmp_path / "budget" / "summary.json").read_text())
    assert 10 <= told["episodes"] < 22 and told["status"] == "done"
    assert run([*budget, "train.episodes=60", "--overwrite"]) == 2
    assert "cost 60 of them (sft.demonstration_cost each), so none is left to play" in capsys.readouterr().err

    traces = [f"agent.model={model}", f"sft.traces={tmp_path / 'rl'}", "sft.epochs=1", "run.name=again"]
    assert run(["sft", *common, *traces, "sft.demonstrations=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["demonstrations"] == 3
    assert run(["sft", *common, *traces, "sft.demonstrations=999", "--overwrite"]) == 1
    assert "were won; set fewer" in capsys.readouterr().err

    config = load_config(None, [*common, "agent.model=rl"])
    assert acting_model(config) == str(checkpoints(tmp_path / "rl" / "checkpoints")[-1] / "model")
