"""Where a run's numbers go beside its folder: names, Prometheus, and services that are slow, gone or resumed."""

import dataclasses
import json
import mmap
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.report import RolloutReport
from learner.update import Update
from orchestration.configuration import load_config
from orchestration.errors import ConfigError, MetricsError, ResourceError
from orchestration.live import LiveView
from orchestration.metrics import MetricsLine, read_metrics, scalars
from orchestration.observability import remote
from orchestration.observability.memory import MemoryMeter
from orchestration.observability.names import FAMILIES, METRICS, OTHER, RUN_LABELS, Kind, names_table, samples
from orchestration.observability.prometheus import Endpoint
from orchestration.observability.remote import RemoteRun, RemoteSink
from orchestration.observability.sinks import Sinks, check_sinks
from orchestration.observability.trackers import MlflowRun, WandbRun, parameters
from orchestration.results import FeedResult
from orchestration.rundir import RunDir
from orchestration.session import Session
from orchestration.summary import Status, read_summary
from reward_server.annotator_status import AnnotatorStatus
from reward_server.types import JudgeStatus
from tests.processes import Command, summary

ROOT = Path(__file__).resolve().parent.parent
NAMES = {metric.name for metric in (*METRICS, *FAMILIES)}


def line(env_steps: int, **metrics: float) -> MetricsLine:
    return MetricsLine(env_steps, metrics, {"unix": 1_700_000_000.0 + env_steps})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scrape(url: str) -> dict[str, float]:
    """Name with labels, in the order in which they are written, by value."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    rows = [row.rpartition(" ") for row in text.splitlines() if row and not row.startswith("#")]
    return {name: float(value) for name, _, value in rows}


# Names.


def test_names_are_prometheus_names() -> None:
    assert len(NAMES) == len(METRICS) + len(FAMILIES)
    for metric in (*METRICS, *FAMILIES):
        assert re.fullmatch(r"yendor_[a-z][a-z0-9_]*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help and not set(metric.labels) & set(RUN_LABELS)
        # A family that counts would need a memory for each of its series.
        assert metric.kind is Kind.GAUGE or not metric.labels
    sources = [source for metric in METRICS for source in metric.sources]
    assert len(sources) == len(set(sources))


def test_every_number_has_one_name() -> None:
    found = samples(
        MetricsLine(
            64,
            {"policy/lag_mean": 0.5, "episode/gold": 2.0, "reward/total": 1.0, "captions/queued": 3, "policy/kl": 0.1,
             "reward_model/accuracy": None},
            {"unix": 7.0, "annotator/queued": 3, "reward server/annotate and distil": 0.2, "new": 9.0},
        )
    )  # fmt: skip
    assert {(s.metric.name, s.labels): s.value for s in found} == {
        ("yendor_env_steps_total", ()): 64.0,
        ("yendor_policy_lag_mean", ()): 0.5,
        ("yendor_episode_metric_mean", ("gold",)): 2.0,
        ("yendor_reward_mean", ("total",)): 1.0,
        ("yendor_captions_queued", ()): 3.0,
        ("yendor_diagnostic", ("policy/kl",)): 0.1,
        ("yendor_part_time_ratio", ("reward server", "annotate and distil")): 0.2,
        ("yendor_diagnostic", ("time/new",)): 9.0,
    }


def test_the_annotators_numbers_have_names_of_their_own() -> None:
    names = [field.name for field in dataclasses.fields(AnnotatorStatus)]
    status = AnnotatorStatus(**dict.fromkeys(names, 1) | {"judge_status": JudgeStatus.READY, "last_error": None})
    found = samples(MetricsLine(1, {}, {"unix": 1.0, **status.counters()}))
    assert len(found) == 1 + len(status.counters()) and OTHER not in {sample.metric for sample in found}


def test_the_documentation_has_all_names() -> None:
    assert names_table() in (ROOT / "docs/observability.md").read_text()


# A run's own numbers.


def test_a_run_is_scraped_at_its_port(tmp_path: Path) -> None:
    port = free_port()
    config = load_config("demo", ["runtime=serial", "reward.w_int=0", f"metrics.port={port}", f"run.dir={tmp_path}"])
    with RunDir(tmp_path / "run").open_for_training(config) as rundir:
        session = Session(config, rundir, LiveView(plain=True), resumed=None)
        session.env_steps = 640
        session.report(due=True)
        standing = read_summary(rundir.summary)
        assert standing is not None and standing.metrics_url == f"http://127.0.0.1:{port}/metrics"
        found = scrape(standing.metrics_url)
        labels = f'{{env="{config.env.id}",run="run"}}'
        assert found[f"yendor_env_steps_total{labels}"] == 640
        assert found[f"yendor_memory_bytes{labels}"] > 10e6
        (logged,) = read_metrics(rundir.metrics)
        assert len(found) == 1 + sum(value is not None for value in scalars(logged).values())
        with pytest.raises(MetricsError, match=rf"metrics.port={port}: is taken"):
            check_sinks(config)
        session.end(Status.DONE)
        check_sinks(config)
        ended = read_summary(rundir.summary)
        assert ended is not None and ended.metrics_url is None


def test_updates_of_one_line_need_not_have_the_same_metrics(tmp_path: Path) -> None:
    """One that has nothing to learn from, as no group of episodes differs, brings no loss."""
    config = load_config("demo", ["runtime=serial", "reward.w_int=0", f"run.dir={tmp_path}"])
    updates = [
        Update(version, samples, metrics, 0.0, 0, 0.0, 0.0)
        for version, samples, metrics in (
            (1, 30, {"batch/return": 0.0}),
            (2, 10, {"batch/return": 0.4, "policy/entropy": 2.0}),
            (3, 30, {"policy/entropy": 1.0, "batch/return": 0.8}),
        )
    ]
    report = RolloutReport("actor-00", 1, 70, (), (), (), 0, 0.0, 0.0, 0.0)
    with RunDir(tmp_path / "run").open_for_training(config) as rundir:
        session = Session(config, rundir, LiveView(plain=True), resumed=None)
        session.learned(report, FeedResult(tuple(updates), {}, 3, 0, 0, (), (), {}, 0.0, 0.0), 1)
        session.report(due=True)
        session.end(Status.DONE)
        logged = [line.metrics for line in read_metrics(rundir.metrics) if "batch/return" in line.metrics]
    assert [line["batch/return"] for line in logged] == [pytest.approx((10 * 0.4 + 30 * 0.8) / 70)]
    assert logged[0]["policy/entropy"] == pytest.approx((10 * 2.0 + 30 * 1.0) / 40)


def test_counts_of_what_could_not_be_recorded_go_on_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        "demo", ["runtime=serial", "reward.w_int=0", f"metrics.port={free_port()}", f"run.dir={tmp_path}"]
    )
    told: list[str] = []
    view = LiveView(plain=True)
    monkeypatch.setattr(view, "event", lambda message, *, warning=False: told.append(message))

    def refuse(*_: object) -> None:
        raise OSError("nobody takes it")

    monkeypatch.setattr(Endpoint, "export", refuse)
    state: dict | None = None
    with RunDir(tmp_path / "run").open_for_training(config) as rundir:
        for part in (1, 2):
            session = Session(config, rundir, view, resumed=state)
            session.trouble("the disk is full")
            session.trouble("the disk is full")
            session.report(due=True)
            found = session.summary(Status.RUNNING)
            assert found.trace_errors == 2 * part and found.sink_errors >= part
            before, state = found.sink_errors, session.state_dict()
            assert (state["trace_errors"], state["sink_errors"]) == (2 * part, before)
            session.end(Status.DONE)
    assert sum("not recorded: the disk is full" in message for message in told) == 2, "once in each part"


def test_a_counter_never_falls() -> None:
    endpoint = Endpoint(free_port(), "r", "e")
    assert endpoint.url is not None
    for steps, lag in ((100, 2.0), (60, 1.0), (80, 1.5)):
        endpoint.export(samples(line(steps, **{"policy/lag_mean": lag})))
    endpoint.export(samples(MetricsLine(101, {}, {"unix": 1.0})))
    found = scrape(endpoint.url)
    assert found == {
        'yendor_env_steps_total{env="e",run="r"}': 101.0,
        'yendor_policy_lag_mean{env="e",run="r"}': 1.5,
    }
    endpoint.close()
    with pytest.raises(OSError, match="refused"):
        scrape(endpoint.url)


def test_a_cluster_has_ports_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ConfigError, match=r"metrics.port=9400: RAY_ADDRESS"):
        check_sinks(load_config("demo", ["metrics.port=9400"]))


@pytest.mark.long
def test_rays_agent_exports_a_run(tmp_path: Path) -> None:
    """Real Ray, started as a run does it: what Prometheus gets at the metrics port of the cluster."""
    port = free_port()
    arguments = (
        "train", "demo", "reward.w_int=0", f"run.dir={tmp_path}", "run.name=run", "actors.envs=4", "log.interval_s=0.5",
        "actors.rollout_length=16", "learner.batch_size=128", "train.env_steps=100000000", f"metrics.port={port}", "--plain",
    )  # fmt: skip
    found: dict[str, float] = {}

    def exported() -> bool:
        found.clear()
        try:
            found.update(scrape(f"http://127.0.0.1:{port}/metrics"))
        except OSError:
            return False
        return any("yendor_policy_lag_mean" in name for name in found)

    with Command(*arguments) as command:
        command.until(exported)
        assert summary(tmp_path / "run")["metrics_url"].endswith(f":{port}/metrics")
    ours = {name: value for name, value in found.items() if "yendor" in name}
    assert all(name.startswith("ray_yendor_") and 'run="run"' in name and 'env="' in name for name in ours)
    assert {name.partition("{")[0].removeprefix("ray_") for name in ours} <= NAMES
    (steps,) = (value for name, value in ours.items() if name.startswith("ray_yendor_env_steps_total{"))
    assert steps >= 128


def test_memory_counts_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    meter = MemoryMeter(lambda: now[0])
    before = meter.read()
    held = mmap.mmap(-1, 50_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the heap may have as much to spare
    held.write(b"x" * len(held))
    assert meter.read() == before  # It does not look so often.
    now[0] = 11.0
    assert meter.read() - before > 0.8 * len(held)


# Services.


class Service:
    """A tracker that remembers, and can be slow or gone."""

    name = "service"

    def __init__(self, run_id: str = "id") -> None:
        self.run_id = run_id
        self.told: list[int] = []
        self.status: Status | None = None
        self.free = threading.Event()
        self.free.set()
        self.gone = False

    def log(self, lines: Sequence[MetricsLine]) -> None:
        self.free.wait()
        if self.gone:
            raise ConnectionError("gone")
        self.told.extend(line.env_steps for line in lines)

    def close(self, status: Status) -> None:
        self.status = status


def test_a_slow_service_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BACKLOG", 10)
    service = Service()
    service.free.clear()
    sink = RemoteSink(service, RemoteRun(tmp_path / "s.json"))
    began = time.monotonic()
    for step in range(100):
        sink.put(line(step))
    assert time.monotonic() - began < 1.0
    assert sink.errors >= 100 - 10 - remote._AT_ONCE and sink.trouble == "service: 10 lines wait"
    service.free.set()
    sink.close(Status.INTERRUPTED)
    assert len(service.told) == 100 - sink.errors and service.status is Status.INTERRUPTED


def test_a_service_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CLOSE_S", 0.2)
    service = Service()
    service.free.clear()
    sink = RemoteSink(service, RemoteRun(tmp_path / "s.json"))
    sink.put(line(1))
    sink.close(Status.DONE)
    assert sink.errors == 1 and sink.trouble is not None and "did not take the last lines" in sink.trouble
    service.free.set()


def test_a_service_that_goes_away_is_warned_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    service = Service()
    sink = RemoteSink(service, RemoteRun(tmp_path / "s.json"))
    sinks = Sinks(None, [sink], lambda message, *, warning: said.append(message))
    sinks.log(line(1))
    while service.told != [1]:
        time.sleep(0.01)
    service.gone = True
    for step in range(2, 7):
        sinks.log(line(step))
    sinks.close(Status.DONE)
    assert sinks.errors == 5
    assert said == [
        "metrics not handed on to service: ConnectionError: gone; the run goes on, further such errors are counted"
    ]


def test_a_resumed_run_tells_nothing_twice(tmp_path: Path) -> None:
    first = Service()
    sink = RemoteSink(first, RemoteRun(tmp_path / "s.json"))
    for step in (10, 20, 30):
        sink.put(line(step))
    sink.close(Status.FAILED)
    remembered = RemoteRun(tmp_path / "s.json")
    assert (remembered.run_id, remembered.env_steps) == ("id", 30)
    second = Service()
    sink = RemoteSink(second, remembered)
    for step in (20, 30, 40):  # from a checkpoint at 10
        sink.put(line(step))
    sink.close(Status.DONE)
    assert first.told + second.told == [10, 20, 30, 40]


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(MetricsError, match=r"s\.json"):
        RemoteRun(tmp_path / "s.json")


@pytest.mark.parametrize(("key", "value", "package"), [("wandb", "p", "wandb"), ("mlflow", "http://h:1", "mlflow")])
def test_a_missing_package_is_named(key: str, value: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.observability.trackers.find_spec", lambda name: None)
    config = load_config("demo", [f"metrics.{key}={value}"])
    with pytest.raises(ResourceError, match=rf"metrics.{key}={value}: .*pip install {package}"):
        check_sinks(config)


def test_passwords_are_refused_and_never_shown() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load_config("demo", ["metrics.mlflow=https://me:secret@host/"])
    assert "secret" not in str(caught.value)
    for url in ("http://me:secret@host/v1", "http://host/v1?api-key=secret"):
        with pytest.raises(ConfigError, match=r"judge\.api_key_env") as caught:
            load_config("demo", ["judge.engine=openai", "judge.model=m", f"judge.url={url}"])
        assert "secret" not in str(caught.value)
    told = parameters(load_config("demo", ["judge.engine=openai", "judge.model=m", "judge.url=http://host/v1"]))
    assert told["judge.url"] == "http://host/v1"
    assert told["env.id"] == load_config("demo").env.id and told["learner.threads"] == 1


def test_mlflow_really(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = load_config("demo", [f"metrics.mlflow={uri}"])
    run = MlflowRun(config, "name", None)
    run.log([line(step, **{"policy/lag_mean": 0.5, "episodes": step}) for step in (64, 128)])
    run.close(Status.FAILED)
    again = MlflowRun(load_config("demo", [f"metrics.mlflow={uri}", "checkpoint.keep=9"]), "name", run.run_id)
    again.log([line(192, episodes=7)])
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("yendor").experiment_id])
    assert found.info.run_name == "name" and found.info.status == "RUNNING"
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "episodes")] == [
        (64, 64),
        (128, 128),
        (192, 7),
    ]
    assert found.data.params["env.id"] == config.env.id and found.data.params["checkpoint.keep"] == "3"
    assert found.data.tags["checkpoint.keep"] == "9"
    again.close(Status.DONE)
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_wandb_really(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = load_config("demo", ["metrics.wandb=me/project"])
    check_sinks(config)
    run = WandbRun(config, tmp_path, None)
    run.log([line(64, episodes=1), line(128, episodes=2)])
    run.close(Status.DONE)
    again = WandbRun(config, tmp_path, run.run_id)
    again.close(Status.DONE)
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and all(name.endswith(run.run_id) for name in folders)


# The dashboard.


@pytest.fixture(scope="module")
def dashboard() -> dict:
    return json.loads((ROOT / "deploy/grafana.json").read_text())


def panels_of(dashboard: dict) -> list[dict]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_dashboard_asks_for_what_is_exported(dashboard: dict) -> None:
    metrics = {metric.name: metric for metric in (*METRICS, *FAMILIES)}
    for panel in panels_of(dashboard):
        assert panel["targets"]
        for target in panel["targets"]:
            selectors = re.findall(r"\{(.*?)\}", target["expr"])
            assert selectors and target["expr"].count("yendor_") == len(selectors)
            known = set(RUN_LABELS)
            for selector in selectors:
                (name,) = re.findall(r'__name__=~"\(ray_\)\?(\w+)"', selector)
                known |= set(metrics[name].labels)
                assert set(re.findall(r"(\w+)\s*[!=]", selector)) <= {"__name__", *RUN_LABELS, *metrics[name].labels}
                grows = metrics[name].kind is Kind.COUNTER
                assert grows or "rate(" not in target["expr"]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known


def test_all_that_goes_wrong_is_on_the_dashboard(dashboard: dict) -> None:
    asked = " ".join(target["expr"] for panel in panels_of(dashboard) for target in panel["targets"])
    wrong = [m.name for m in METRICS if re.search(r"restarts|errors|lost|standing_still|running_out|disk_free", m.name)]
    assert len(wrong) >= 10 and not [name for name in wrong if f'{name}"' not in asked]


def test_the_dashboard_is_one(dashboard: dict) -> None:
    assert dashboard["uid"] == "yendor" and dashboard["title"] and dashboard["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert {"run", "env"} <= variables.keys()
    for asked in (*panels_of(dashboard), variables["run"], variables["env"]):
        assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) and all(panel["title"] for panel in dashboard["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["w"] > 0 and at["h"] > 0 and at["x"] >= 0 and at["x"] + at["w"] <= 24
        assert not covered & cells, panel["title"]
        cells |= covered
    for panel in panels_of(dashboard):
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
