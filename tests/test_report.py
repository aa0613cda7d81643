"""`yendor report`: the page holds the runs' numbers, groups seeds, fetches nothing, and shows hostile text as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestration.cli.main import run
from orchestration.configuration import load_config, to_yaml
from orchestration.metrics import MetricsWriter, write_summary
from orchestration.report.data import Group, group, load, spread
from orchestration.report.svg import Series, line_chart, number_text, ticks
from orchestration.rundir import RunDir
from orchestration.summary import CaptionScore, HackingFlag, RewardWatchReport, Status, Summary

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'too' </svg>"


def make_run(root: Path, name: str, *overrides: str, success: float, flags: tuple[HackingFlag, ...] = ()) -> RunDir:
    """A finished run of eleven lines whose success rises from 0 to `success`."""
    config = load_config("demo", [f"run.dir={root}", f"run.name={name}", *overrides])
    with RunDir(root / name).open_for_training(config) as opened:
        assert opened.config.read_text() == to_yaml(config)
        with MetricsWriter(opened.metrics, None) as writer:
            for n in range(11):
                share = n / 10
                writer.log(
                    10_000 * n,
                    {
                        "episode/success": success * share,
                        "episode/return": 2.0 * share,
                        "episode/intrinsic_return": 1.25,
                        "episode/gold": 40.0 * share,
                        "reward/extrinsic": 0.01,
                        "reward/intrinsic": 0.02,
                        "reward/total": 0.03,
                        "captions/labelled": 20.0 * n,
                        "captions/unique": 25.0 * n,
                        "reward_model/accuracy": 0.9 if n else None,
                        "policy/lag_mean": 1.5,
                        "hacking/top_share": 0.4,
                    },
                    {"wall_s": 60.0 * n, "steps_per_second": 1000.0, "actor/env": 0.5, "actor/policy": 0.25},
                )
        watch = RewardWatchReport(100, 0.4, 0.9, 0.5, bool(flags), flags)
        summary = Summary(
            name, "minihack/KeyRoom-S5", status=Status.DONE, env_steps=100_000, wall_s=600.0, success_rate=success,
            return_mean=2.0, captions_labelled=200, judge_status="ready", judge_latency_p95_s=0.75, judge_requests=17,
            waits={"actor": {"env": 0.5, "policy": 0.25}}, reward_watch=watch,
            liked=(CaptionScore(HOSTILE, 0.987, 1234),), disliked=(CaptionScore("It's a wall.", 0.01, 7),),
        )  # fmt: skip
        write_summary(opened.summary, summary)
    return RunDir(root / name)


class Reader(HTMLParser):
    """Tags, attributes that could fetch something, and the text of a page; fails where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    flag = HackingFlag(HOSTILE, ("grows",), 0.42, 0.5, 1.5, "success", 0.31, 0.3)
    make_run(tmp_path, "demo-seed0", "run.seed=0", success=0.8, flags=(flag,))
    make_run(tmp_path, "demo-seed1", "run.seed=1", success=0.6)
    make_run(tmp_path, "plain", "reward.w_int=0", success=0.1)
    return tmp_path


def test_the_page_holds_the_numbers_and_fetches_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "report.html"
    assert run(["report", "demo-seed0", "demo-seed1", "plain", "--dir", str(runs), "--out", str(out)]) == 0
    assert "3 runs, 2 configurations" in capsys.readouterr().out
    page = out.read_text()
    reader = Reader(page)
    assert reader.links == [] and not {"script", "img", "link", "iframe"} & set(reader.tags)
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == [] and "url(" not in page
    text = " ".join(" ".join(reader.texts).split())
    for shown in (
        "reward.w_int=0.3", "reward.w_int=0", "0.70", "0.60 to 0.80", "100,000", "0.75 s", "0.50 → 1.50", "42%",
        "0.31 → 0.30", "0.99", "1,234", "Return", "Gold", "Time budget", "Reward model: accuracy", "167",
    ):  # fmt: skip
        assert shown in text, shown
    assert reader.texts.count(HOSTILE) == 4, "in the flag, and in the list of each run, as text"
    assert "<script" not in page and "onerror=alert(2)>" not in page


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_a_band(runs: Path) -> None:
    groups = group(load(RunDir(runs / name)) for name in ("demo-seed0", "plain", "demo-seed1"))
    assert [[r.name for r in g.runs] for g in groups] == [["demo-seed0", "demo-seed1"], ["plain"]]
    found = groups[0].metric("episode/success")
    assert (found.x[-1], found.mean[-1], found.low[-1], found.high[-1]) == pytest.approx((100_000, 0.7, 0.6, 0.8))
    middle = found.x.index(min(found.x, key=lambda x: abs(x - 50_000)))
    assert found.mean[middle] == pytest.approx(0.7 * found.x[middle] / 100_000)
    assert groups[1].metric("episode/success").low == []
    alone = group([load(RunDir(runs / "demo-seed0")), load(RunDir(runs / "demo-seed1"))])
    assert [g.label for g in alone] == ["demo"]


def test_no_curve_is_extended_beyond_its_end() -> None:
    found = spread([([0.0, 10.0], [0.0, 1.0]), ([0.0, 5.0], [1.0, 1.0])])
    assert found.mean[0] == 0.5 and found.mean[-1] == 1.0 and found.low[-1] == found.high[-1] == 1.0
    before = max(n for n, x in enumerate(found.x) if x <= 5.0)
    assert found.mean[before] == pytest.approx((found.x[before] / 10 + 1) / 2)


def test_a_run_that_has_only_begun_is_a_report_too(tmp_path: Path) -> None:
    config = load_config("demo", [f"run.dir={tmp_path}", "run.name=new"])
    with RunDir(tmp_path / "new").open_for_training(config):
        out = tmp_path / "report.html"
        assert run(["report", "new", "--dir", str(tmp_path), "--out", str(out)]) == 0
    assert "starting" in out.read_text() or "died" in out.read_text()
    Reader(out.read_text())


def test_charts_keep_to_their_box_and_ticks_are_round() -> None:
    svg = line_chart([Series("a", 0, [0, 5, 10], [-3.0, float("nan"), 7.0])], x_label="steps")
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]  # type: ignore[index]
    assert len(points) == 2 and all(0 <= x <= 460 and 0 <= y <= 250 for x, y in points)
    assert points[0][1] > points[1][1]
    assert ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(-3.0, 7.0) == [-5.0, -2.5, 0.0, 2.5, 5.0, 7.5] and ticks(2.0, 2.0)[0] <= 2.0
    assert [number_text(n) for n in (0.25, 1500, 2e6, 0)] == ["0.25", "1.5k", "2M", "0"]
    assert line_chart([Series("a", 0, [], [])], x_label="") == ""
    assert isinstance(Group("x", ()), Group)
