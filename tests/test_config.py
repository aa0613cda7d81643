"""The configuration: presets, overrides, and every way to get one wrong."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.config import Config
from orchestration.configuration import (
    learns_intrinsic,
    load_config,
    preset_names,
    read_config,
    resume_config,
    to_yaml,
    uses_judge,
)
from orchestration.configuration.checks import CHECKS, Choice, Range, value_at
from orchestration.configuration.explain import explained_yaml
from orchestration.configuration.keys import key_types
from orchestration.errors import ConfigError


def error_of(*overrides: str, preset: str | None = "demo") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(preset, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_key_is_checked_and_no_check_is_stale() -> None:
    checkable = {key for key, kind in key_types().items() if kind.kind not in (bool, dict)}
    assert set(CHECKS) == checkable


def test_the_defaults_pass_their_own_checks() -> None:
    config = load_config(None)
    assert config == dataclasses.replace(Config(), run=dataclasses.replace(Config().run, name="train"))


# Keys.


@pytest.mark.parametrize(
    ("given_key", "meant"),
    [
        ("reward.w_itn", "reward.w_int"),
        ("actor.count", "actors.count"),
        ("learner.lerning_rate", "learner.learning_rate"),
        ("w_int", "reward.w_int"),
        ("env_steps", "train.env_steps"),
        ("judge.modell", "judge.model"),
        ("checkpoints.interval_s", "checkpoint.interval_s"),
        ("Runtime", "runtime"),
    ],
)
def test_a_misspelt_key_names_the_near_miss(given_key: str, meant: str) -> None:
    assert error_of(f"{given_key}=1") == f"{given_key}: no such key; did you mean {meant}?"


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(key_types())), st.data())
def test_one_wrong_letter_never_passes_and_never_suggests_what_does_not_exist(key: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    wrong = key[:at] + data.draw(st.sampled_from("abcxyz_")) + key[at + 1 :]
    if wrong in key_types() or "." not in key or key[at] == ".":
        return
    message = error_of(f"{wrong}=1", preset=None)
    assert message.startswith(f"{wrong}: no such key; did you mean ")
    assert message.removesuffix("?").rpartition(" ")[2] in key_types()


def test_a_key_like_nothing_points_to_the_list() -> None:
    assert error_of("zzz.qqq=1") == "zzz.qqq: no such key; `yendor config show` lists all keys"


def test_a_group_is_no_key() -> None:
    assert (
        error_of("env=3")
        == "env: a group of keys, not a value; set one of env.id, env.options, env.tasks, env.mix, env.curriculum"
    )


def test_a_key_given_twice() -> None:
    assert error_of("run.seed=1", "run.seed=2").startswith("run.seed: given twice")


def test_an_override_without_equals_sign() -> None:
    assert error_of("run.seed") == "run.seed: expected key=value"


# Types.


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("actors.count=two", "actors.count=two: expected a whole number"),
        ("actors.count=1.5", "actors.count=1.5: expected a whole number"),
        ("actors.count=true", "actors.count=true: expected a whole number"),
        ("actors.count=", "actors.count=: expected a whole number"),
        ("actors.count=inf", "actors.count=inf: expected a whole number"),
        ("reward.w_int=much", "reward.w_int=much: expected a number"),
        ("reward.w_int=null", "reward.w_int=null: expected a number"),
        ("train.max_wall_s=soon", "train.max_wall_s=soon: expected a number or null"),
        ("distiller.soft_targets=yes", "distiller.soft_targets=yes: expected true or false"),
        ("env.options=3", "env.options=3: expected a mapping"),
    ],
)
def test_a_wrong_type_names_key_value_and_what_was_expected(override: str, expected: str) -> None:
    assert error_of(override) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_whole_numbers_arrive_exactly(seed: int) -> None:
    assert load_config(None, [f"run.seed={seed}"]).run.seed == seed


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-12, 1e12))
def test_numbers_arrive_exactly(rate: float) -> None:
    assert load_config(None, [f"learner.learning_rate={rate!r}"]).learner.learning_rate == rate


@pytest.mark.parametrize(("text", "steps"), [("2e9", 2_000_000_000), ("1_000", 1000), ("64", 64), ("5.0", 5)])
def test_whole_numbers_may_be_written_as_people_do(text: str, steps: int) -> None:
    assert load_config(None, [f"train.env_steps={text}"]).train.env_steps == steps


@pytest.mark.parametrize("name", ["007", "1e3", "true", "null-run", "a=b"])
def test_text_is_taken_as_it_stands(name: str) -> None:
    assert load_config(None, [f"run.name={name}"]).run.name == name


def test_options_of_the_environment_are_yaml() -> None:
    overrides = ["env.options.max_episode_steps=30", "env.options.flags=[a, 1.5e-3, true]"]
    assert load_config("demo", overrides).env.options == {"max_episode_steps": 30, "flags": ["a", 0.0015, True]}


def test_broken_yaml_in_an_option() -> None:
    assert error_of("env.options.x={[").startswith("env.options.x={[: not a YAML value")


# Values.


@pytest.mark.parametrize("key", [key for key, check in CHECKS.items() if isinstance(check, Range) and check.low > -9e9])
def test_a_number_below_its_range_is_refused(key: str) -> None:
    check = CHECKS[key]
    assert isinstance(check, Range)
    value = check.low if check.above else check.low - 1
    message = error_of(f"{key}={value:g}")
    assert message.startswith(f"{key}=")
    assert "must be" in message


@pytest.mark.parametrize("key", [key for key, check in CHECKS.items() if isinstance(check, Choice)])
def test_a_word_that_is_no_choice_is_refused_with_all_choices(key: str) -> None:
    check = CHECKS[key]
    assert isinstance(check, Choice)
    assert error_of(f"{key}=qqqqq") == f"{key}=qqqqq: must be one of {', '.join(check.words)}"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("judge.temperature=nan", "must be finite"),
        ("runtime=rays", "did you mean ray?"),
        ("judge.goal=defalt", "gold, stairs; did you mean default?"),
        ("env.id=minihack/KeyRoom-S16", "did you mean 'minihack/KeyRoom-S15'?"),
        ("run.name=../up", "must be letters"),
        ("run.name=.hidden", "must be letters"),
        ("judge.api_key_env=sk-123", "never the key itself"),
        ("run.name=${nope}", "run.name: Interpolation key 'nope' not found"),
        ("learner.batch_size=100", "must be a multiple of actors.rollout_length=32"),
        ("reward.w_ext=0", None),
    ],
)
def test_impossible_values(override: str, part: str | None) -> None:
    if part is None:
        load_config("demo", [override])
    else:
        assert part in error_of(override)


def test_interpolations_refer_to_keys_and_to_the_preset() -> None:
    assert load_config("demo", ["run.name=${preset}-seed${run.seed}", "run.seed=3"]).run.name == "demo-seed3"


# Keys that depend on each other.


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["reward.w_int=0", "judge.model=x"], "judge.model: has no effect, as reward.w_int=0 turns the judge off"),
        (["reward.model=none", "annotator.batch=3"], "annotator.batch: has no effect, as reward.model=none turns"),
        (["reward.w_int=0", "distiller.holdout=0"], "distiller.holdout: has no effect"),
        (["reward.w_int=0", "judge.engine=vllm"], "judge.engine: has no effect"),
        (["reward.w_int=0", "reward.count_exponent=1"], "reward.count_exponent: has no effect, as reward.w_int=0"),
        (["reward.model=none", "reward.w_int=0.2"], "reward.w_int: has no effect, as reward.model=none"),
        (["reward.w_ext=0", "reward.clip=1"], "reward.clip: has no effect, as reward.w_ext=0"),
        (["judge.url=http://x/v1"], "judge.url: has no effect, as judge.engine=vllm"),
        (["judge.reason_tokens=9"], "judge.reason_tokens: has no effect, as judge.mode=direct"),
        (["judge.cache_dir=x", "judge.model=y"], "judge.cache_dir: has no effect, as judge.model is not embedded"),
        (["reward.model=counts", "judge.model=x"], "judge.model: has no effect, as reward.model=counts asks no judge"),
        (["reward.model=rnd", "judge.engine=transformers"], "judge.engine: has no effect, as reward.model=rnd asks no"),
        (["reward.model=counts", "distiller.holdout=0"], "distiller.holdout: has no effect, as reward.model=counts"),
        (
            ["reward.model=hash", "distiller.converge=1"],
            "distiller.converge: has no effect, as reward.model=hash (only",
        ),
        (["reward.model=ranking", "distiller.threshold=0.4"], "distiller.threshold: has no effect"),
        (["distiller.rank_threshold=0"], "distiller.rank_threshold: has no effect, as reward.model=classification"),
        (["judge.pairs=pointwise"], "judge.pairs: has no effect, as reward.model=classification asks about no pairs"),
        (["annotator.pair_choice=uniform"], "annotator.pair_choice: has no effect"),
        (["rnd.share=0.5"], "rnd.share: has no effect, as reward.model=classification (only rnd has it)"),
        (["reward.model=ellm", "rnd.share=1"], "rnd.share: has no effect"),
        (["reward.offline_path=x"], "reward.offline_path: has no effect"),
        (["runtime=serial", "actors.in_flight=2"], "actors.in_flight: has no effect, as runtime=serial"),
        (["judge.engine=none"], "judge.engine=none: leaves reward.w_int="),
        (["judge.engine=openai", "judge.model=m"], "judge.url: judge.engine=openai needs the address"),
        (["judge.engine=openai", "judge.url=http://x/v1"], "judge.model: judge.engine=openai needs the name"),
        (["reward.w_int=0", "reward.w_ext=0"], "reward.w_ext=0: nothing is left to learn from"),
    ],
)
def test_a_key_without_effect_is_an_error(overrides: list[str], expected: str) -> None:
    assert error_of(*overrides).startswith(expected)


@pytest.mark.parametrize("off", [["reward.w_int=0"], ["reward.model=none"], ["reward.w_int=0", "judge.engine=none"]])
def test_a_baseline_of_a_preset_needs_nothing_else(off: list[str]) -> None:
    config = load_config("demo", off)
    assert not learns_intrinsic(config)
    assert not uses_judge(config)


def test_a_judge_elsewhere() -> None:
    config = load_config("demo", ["judge.engine=openai", "judge.url=http://127.0.0.1:8000/v1", "judge.model=big"])
    assert uses_judge(config)


# Presets.


@pytest.mark.parametrize("preset", preset_names())
def test_presets_load_and_survive_the_way_through_yaml(preset: str, tmp_path: Path) -> None:
    config = load_config(preset, ["env.options.max_episode_steps=7", "train.max_wall_s=1.5"])
    for text in (to_yaml(config), explained_yaml(config)):
        (tmp_path / "config.yaml").write_text(text)
        assert read_config(tmp_path / "config.yaml") == config


def test_presets_have_the_settings_of_oni() -> None:
    """arXiv 2410.23022, table of hyperparameters, column of long runs; weights of Score as in ONI's own instructions."""
    settings = {
        "nethack_score": ("nethack/Score", 0.1, 0.4),
        "nethack_oracle": ("nethack/Oracle", 10, 0.1),
        "nethack_oracle_sober": ("nethack/OracleSober", 10, 0.1),
        "nethack_staircase_lvl3": ("nethack/StaircaseLvl3", 10, 0.1),
        "nethack_staircase_lvl4": ("nethack/StaircaseLvl4", 10, 0.1),
        "nethack_reward_free": ("nethack/Score", 0, 0.4),
    }
    assert set(settings) < set(preset_names())
    for preset, (env, w_ext, w_int) in settings.items():
        config = load_config(preset)
        assert (config.env.id, config.reward.w_ext, config.reward.w_int) == (env, w_ext, w_int)
        assert w_ext == 0 or (config.reward.scale, config.reward.clip) == (0.1, 10.0)
        assert (config.agent.network, config.train.env_steps) == ("oni", 2_000_000_000)
        learner = config.learner
        assert (learner.batch_size, config.actors.rollout_length, config.reward.count_exponent) == (4096, 32, 3)
        assert (learner.discount, learner.learning_rate, learner.entropy_coefficient) == (0.99, 1e-4, 0.003)
        assert (learner.ratio_clip, learner.value_clip, learner.max_grad_norm, learner.adam_eps) == (0.1, 1, 4, 1e-6)
        assert (learner.vtrace_rho, learner.vtrace_c, learner.value_coefficient) == (1, 1, 0.5)


def test_a_misspelt_preset() -> None:
    assert error_of(preset="nethack_scor") == "nethack_scor: no such preset; did you mean nethack_score?"
    assert "there are alfworld_grpo, alfworld_ppo, demo, minihack_spa" in error_of(preset="qqq")


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("reward: {w_int: 1e-3}\nlearner.batch_size: 64\n")
    config = load_config(str(path), ["run.seed=4"])
    assert (config.run.name, config.reward.w_int, config.learner.batch_size, config.run.seed) == ("mine", 1e-3, 64, 4)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("reward: {w_itn: 1}", "reward.w_itn: no such key; did you mean reward.w_int?"),
        ("reward: {w_int: high}", "reward.w_int=high: expected a number"),
        ("run: {name: 7}", "run.name=7: expected text; put it in quotes"),
        ("reward: 3", "reward: a group of keys"),
        ("- a", "not a mapping"),
        ("a: [", "not YAML"),
        ("judge: {url: http://x/v1}", "judge.url: has no effect, as judge.engine=vllm"),
    ],
)
def test_errors_in_a_file_name_the_file(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = error_of(preset=str(path))
    assert message.startswith(f"{path}: ")
    assert part in message


# Resuming.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config("demo", ["run.seed=5", "env.options.max_episode_steps=70"])))
    return path


def test_a_resumed_run_keeps_its_own_configuration(saved: Path) -> None:
    config = resume_config(saved, ["train.env_steps=77"])
    before = read_config(saved)
    lies = dataclasses.replace(before.run, name=saved.parent.name, dir=str(saved.parent.parent))
    assert config == dataclasses.replace(before, run=lies, train=dataclasses.replace(before.train, env_steps=77))
    assert config.run.seed == 5


@pytest.mark.parametrize(
    "override",
    ["env.id=nethack/Score", "run.seed=6", "agent.network=oni", "env.options.max_episode_steps=71", "env.options.x=1"],
)
def test_what_checkpoints_depend_on_cannot_change(saved: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="a run that goes on keeps"):
        resume_config(saved, [override])


def test_every_check_reads_an_existing_key() -> None:
    for key in key_types():
        value_at(Config(), key)


# Reward models.


@pytest.mark.parametrize(
    "given_keys",
    [
        ["reward.model=counts"],
        ["reward.model=rnd", "rnd.share=1"],
        ["reward.model=ellm", "ellm.goals=open the door", "judge.engine=none"],
        ["reward.model=ranking", "distiller.rank_threshold=0", "annotator.pair_choice=informative"],
        ["reward.model=hash", "distiller.soft_targets=true"],
        ["reward.model=offline", "reward.offline_path=labels.sqlite", "distiller.patience=3"],
    ],
)
def test_reward_models_take_their_own_keys(given_keys: list[str]) -> None:
    config = load_config("demo", given_keys)
    assert learns_intrinsic(config)
    assert uses_judge(config) == (config.reward.model in ("ranking", "hash"))


def test_what_the_embedded_judge_cannot_do_is_an_error(tmp_path: Path) -> None:
    assert "taught one goal, default" in error_of("judge.goal=combat")
    assert "one caption at a time" in error_of("reward.model=ranking", "judge.pairs=pairwise")
    assert "needs labels or a trained" in error_of("reward.model=offline")
    own = tmp_path / "goals.yaml"
    own.write_text("amulet: to find the amulet.")
    assert "judge.goal=default is not in that file" in error_of(f"judge.goals_file={own}")
    assert "cannot be read" in error_of(f"judge.goals_file={tmp_path / 'absent.yaml'}", "judge.goal=amulet")
    config = load_config("demo", [f"judge.goals_file={own}", "judge.goal=amulet", "judge.model=org/model"])
    assert config.judge.goal == "amulet"


def test_actors_are_a_number_or_follow_the_cluster() -> None:
    assert load_config("demo", ["actors=3"]).actors.count == 3
    assert load_config("demo", ["actors=auto"]).actors.auto
    with pytest.raises(ConfigError, match=r"actors\.count.*many"):
        load_config("demo", ["actors=many"])
    with pytest.raises(ConfigError, match=r"actors\.count: given twice"):
        load_config("demo", ["actors=3", "actors.count=4"])
