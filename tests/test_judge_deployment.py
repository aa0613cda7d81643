"""The judge on Ray Serve over a real vLLM engine: it answers, comes back after kill -9, leaves no process behind."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestration.cluster import start_patiently
from reward_server.embedded.corpus import real_messages
from reward_server.judge.judge import build_judge
from reward_server.settings import JudgeSettings
from reward_server.types import Answer, JudgeError, JudgeUnavailableError
from tests.judge_support import tiny_judge
from tests.processes import engines, titled

pytest.importorskip("vllm")
ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

START_S = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "namespace": "judge-test"}
    start_patiently(lambda: ray.init("local", logging_level="ERROR", **options))
    yield
    ray.serve.shutdown()  # the handles' threads with it: they must not outlive the cluster in this process
    ray.shutdown()


def test_a_judge_is_deployed_killed_restarted_and_stopped(cluster: None, folder: Path) -> None:
    from reward_server.judge import deployment

    settings = JudgeSettings(model=str(folder), dtype="float32", max_model_len=1024)
    client = deployment.ServeJudge(settings)
    with pytest.raises(JudgeUnavailableError, match="absent"):
        asyncio.run(client.ask(["The door opens."]))

    began = time.monotonic()
    deployment.start(settings, num_cpus=0)
    assert time.monotonic() - began < 60, "start waits for the judge"
    with pytest.raises(JudgeUnavailableError, match="starting"):
        _once_a_second(client)
    answers = _eventually(client)
    answered = time.time()
    status = deployment.status()
    assert (status.state, status.replicas) == (deployment.DeploymentState.READY, 1)

    # The answers are the model's own, in order, with several requests in flight.
    captions = real_messages()[:64]
    here = build_judge(JudgeSettings(engine="transformers", model=str(folder), dtype="float32"))
    expected = asyncio.run(here.ask(captions))
    asyncio.run(here.close())
    found = asyncio.run(_in_parallel(client, captions))
    for one, other in zip(found, expected, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-4)
    assert client.key.model == here.key.model

    # Only the engine's process is killed. It has to be the one that answered first.
    (core,) = _engines()
    assert core.create_time() < answered, "the engine died by itself"
    _kill(core)
    assert _eventually(client) == pytest.approx(answers, abs=1e-4)
    _gone(core)

    # The whole replica is killed; its engine must not outlive it.
    _settled()
    replica, core = _named("ServeReplica")[0], _engines()[0]
    _kill(replica)
    assert _eventually(client) == pytest.approx(answers, abs=1e-4)
    _gone(core)

    deployment.stop()
    _until(lambda: not _engines() and not _named("ServeReplica") and not _named("ServeController"))
    with pytest.raises(JudgeUnavailableError):
        asyncio.run(client.ask(["The door opens."]))


def test_a_judge_that_cannot_start_says_why(cluster: None, tmp_path: Path) -> None:
    from reward_server.judge import deployment

    (tmp_path / "config.json").write_text("{}")
    settings = JudgeSettings(engine="transformers", model=str(tmp_path))
    deployment.start(settings, app_name="broken", num_cpus=0)
    client = deployment.ServeJudge(settings, "broken")

    def failed() -> bool:
        return deployment.status("broken").state is deployment.DeploymentState.FAILED

    _until(failed)
    with pytest.raises(JudgeError, match=f"judge.model={tmp_path} cannot be loaded") as caught:
        _once_a_second(client)
    assert not isinstance(caught.value, JudgeUnavailableError)
    deployment.stop("broken")


def test_another_replica_comes_where_requests_wait(
    cluster: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many requests as the annotator keeps under way for two replicas: `annotator.in_flight` for each."""
    from reward_server.judge import deployment

    monkeypatch.setattr(deployment, "_UPSCALE_S", 1.0)
    settings = replace(_small(folder), replicas=2)
    deployment.start(settings, app_name="grows", num_cpus=0, in_flight=4)
    client = deployment.ServeJudge(settings, "grows")
    _eventually(client)
    assert deployment.status("grows").replicas == 1

    async def until_two() -> None:
        end = time.monotonic() + START_S
        asked = {asyncio.ensure_future(client.ask(real_messages()[:32])) for _ in range(8)}
        while deployment.status("grows").replicas < 2:
            assert time.monotonic() < end, deployment.status("grows")
            done, asked = await asyncio.wait(asked, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            assert all(len(one.result()) == 32 for one in done)
            asked |= {asyncio.ensure_future(client.ask(real_messages()[:32])) for _ in done}
        assert all(len(answers) == 32 for answers in await asyncio.gather(*asked))

    asyncio.run(until_two())
    deployment.stop("grows")


def test_a_judge_whose_owner_was_killed_ends_itself(cluster: None, folder: Path) -> None:
    """Its owner's death is a driver's: Ray ends the actors of a driver that was killed, and leaves applications of Serve."""
    from reward_server.judge import deployment

    class Owner:
        pass

    owner = ray.remote(Owner).options(num_cpus=0, name="a-run", namespace="runs").remote()
    ray.get(owner.__ray_ready__.remote())
    settings = _small(folder)  # what ends an application knows nothing of its engine
    watched = deployment.Owner("a-run", "runs", gone_s=1.0)
    deployment.start(settings, app_name="owned", num_cpus=0, owner=watched)
    deployment.start(settings, app_name="owned-by-nobody", num_cpus=0)
    for name in ("owned", "owned-by-nobody"):
        _eventually(deployment.ServeJudge(settings, name))
    time.sleep(2 * watched.gone_s)
    assert watched.lives()
    assert deployment.status("owned").replicas == 1

    ray.kill(owner)
    _until(lambda: deployment.status("owned").state is deployment.DeploymentState.ABSENT)
    assert not watched.lives()
    assert deployment.status("owned-by-nobody").replicas == 1
    deployment.stop("owned-by-nobody")


def _small(folder: Path) -> JudgeSettings:
    """With the engine that starts soonest."""
    return JudgeSettings(engine="transformers", model=str(folder), dtype="float32", max_model_len=1024)


async def _in_parallel(client, captions: list[str]) -> list[Answer]:
    parts = await asyncio.gather(*(client.ask(captions[i : i + 16]) for i in range(0, len(captions), 16)))
    return [answer for part in parts for answer in part]


def _eventually(client) -> list[float]:
    """P(1) of a known question, asked until the judge answers."""
    end = time.monotonic() + START_S
    while True:
        try:
            answers = asyncio.run(client.ask(["The door opens.", "It's a wall."]))
        except JudgeUnavailableError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)
        else:
            return [answer.probability or -1.0 for answer in answers]


def _once_a_second(client) -> None:
    time.sleep(1.1)  # a client looks at the application at most once a second
    asyncio.run(client.ask(["The door opens."]))


def _named(name: str) -> list[psutil.Process]:
    return titled(psutil.Process().children(recursive=True), name)


def _engines() -> list[psutil.Process]:
    return engines(psutil.Process().children(recursive=True))


def _kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def _gone(process: psutil.Process) -> None:
    _until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def _settled() -> None:
    """One replica with one engine, as it is once Serve has replaced what was killed."""
    _until(lambda: len(_engines()) == 1 and len(_named("ServeReplica")) == 1)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + START_S
    while not condition():
        running = [p for p in psutil.process_iter(["pid", "ppid", "name", "status"]) if p.info["status"] != "zombie"]
        assert time.monotonic() < end, f"it did not happen in time, with {[p.info for p in running]}"
        time.sleep(0.3)
