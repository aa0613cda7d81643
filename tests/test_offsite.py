"""Checkpoints at a URL: whole or not taken, whatever dies when; verified, rotated; never in the way of the training."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from learner.checkpoint import checkpoints, load_state, verify_checkpoint
from orchestration.config import Config
from orchestration.configuration import load_config
from orchestration.errors import ConfigError, ResourceError, RunDirError, RunExistsError
from orchestration.offsite import resuming
from orchestration.offsite.location import OffsiteError, check_writable, open_location
from orchestration.offsite.resuming import catch_up, check_vacant, fetch_config, make_vacant
from orchestration.offsite.runs import COMPLETE, DAMAGED, LABELS, DamagedError, Entry, FileSum, OffsiteRun, files_below
from orchestration.offsite.uploads import Uploads
from orchestration.rundir import RunDir
from reward_server.snapshot import snapshot_store
from reward_server.store import AnnotationStore, AnnotationStoreError
from tests.offsite_support import FaultyFileSystem, Killed, checkpoint, label, labels_in, offsite, run_dir

FAST = (0.01, 0.05)


class Told(list):
    """What a person was told."""

    def __call__(self, message: str, *, warning: bool = False) -> None:
        self.append(message)
        assert warning == (" is damaged " in message)


quiet = Told()


@pytest.fixture(autouse=True)
def sound(monkeypatch):
    FaultyFileSystem.mend()
    monkeypatch.setattr(resuming, "_PAUSE_S", 0.001)
    yield
    FaultyFileSystem.mend()


def upload(run: OffsiteRun, rundir: RunDir, *steps: int, keep: int = 5) -> Uploads:
    """Writes checkpoints and uploads them, one after the other."""
    uploads = Uploads(run, rundir, keep, retry_s=FAST)
    for each in steps:
        uploads.offer(checkpoint(rundir, each))
        assert uploads.finish(10)
    return uploads


def names(run: OffsiteRun) -> list[str]:
    return [entry.name for entry in run.complete()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["faulty://bucket/runs", "memory://yendor-test", "folder", "file"])
def test_what_was_uploaded_comes_back_with_every_byte_and_label(tmp_path, where):
    url = {"folder": str(tmp_path / "far away"), "file": f"file://{tmp_path}/far"}.get(where, where)
    here = run_dir(tmp_path / "here")
    run = offsite(url, f"run{os.getpid()}")
    uploads = upload(run, here, 100, 200)
    assert (uploads.done, uploads.errors, uploads.newest) == (2, 0, f"{run.shown}/000000000200")
    assert list(uploads.news()) == [] and not here.uploading.exists()

    there, told = RunDir(tmp_path / "there" / "run"), Told()
    fetch_config(run, there.path, told)
    assert there.config.read_text() == "run:\n  name: run\n  seed: 200\n" and told == []
    catch_up(run, there, told)
    (path,) = checkpoints(there.checkpoints)
    assert content(path) == content(here.checkpoints / path.name) and load_state(path)["n"] == 200
    assert (there.checkpoints / "latest").resolve() == path
    assert labels_in(there.annotations) == labels_in(here.annotations) == [0, 1, 2]
    assert told == [f"checkpoint 200 was fetched from {run.shown}"]
    # Nothing is newer there now.
    nothing = Told()
    catch_up(run, there, nothing)
    assert nothing == []
    make_vacant(run)


def test_an_upload_that_is_cut_off_at_any_moment_is_never_taken(tmp_path):
    """The process dies over each of its operations in turn; what that was to write is half there."""
    here = run_dir(tmp_path / "here")
    first, second = checkpoint(here, 100), checkpoint(here, 200)
    for operations in range(200):
        FaultyFileSystem.mend()
        run = offsite()
        entry = run.place_for(100)
        run.write(entry, files_below(first), {})
        before = FaultyFileSystem.operations
        FaultyFileSystem.left = operations
        try:
            after = run.place_for(200)
            run.write(after, files_below(second), {})
            run.rotate(1, after)
            killed = False
        except Killed:
            killed = True
        FaultyFileSystem.left = None
        for number, entry in enumerate(run.complete()):
            whole = tmp_path / f"whole{operations}-{number}"
            try:
                run.read(entry, whole)
                verify_checkpoint(whole)
            except DamagedError as error:
                assert "complete.json cannot be read" in str(error) and killed  # half of it is there
        there = RunDir(tmp_path / f"there{operations}" / "run")
        told = Told()
        catch_up(run, there, told)
        (found,) = checkpoints(there.checkpoints)
        verify_checkpoint(found)
        # A complete.json of which half is there is passed over and told of; what has none is not looked at.
        assert len([each for each in told if "cannot be read" in each]) <= 1 and len(told) <= 2
        assert found.name == "000000000200" or killed
        # And the next upload goes well, whatever is left.
        again = run.place_for(200)
        run.write(again, files_below(second), {})
        run.rotate(1, again)
        assert names(run) == [again.name]
        if not killed:
            assert FaultyFileSystem.operations > before
            break
    assert not killed and operations > 8


def test_overwriting_that_is_cut_off_at_any_moment_loses_nothing(tmp_path):
    here = run_dir(tmp_path / "here")
    first = checkpoint(here, 100)
    for operations in range(200):
        FaultyFileSystem.mend()
        run = offsite()
        run.write(run.place_for(100), files_below(first), {})
        FaultyFileSystem.left = operations
        try:
            run.move_aside()
            killed = False
        except Killed:
            killed = True
        FaultyFileSystem.left = None
        if killed:
            run.move_aside()
        assert names(run) == []
        assert names(offsite("faulty://bucket/runs/.replaced")) == ["000000000100"]
        if not killed:
            break
    assert not killed and operations > 8


def flip(path: str) -> None:
    raw = bytearray(FaultyFileSystem().cat_file(path))
    raw[len(raw) // 2] ^= 1
    FaultyFileSystem().pipe_file(path, bytes(raw))


def rewrite(path: str, change) -> None:
    marker = json.loads(FaultyFileSystem().cat_file(path))
    change(marker)
    FaultyFileSystem().pipe_file(path, json.dumps(marker).encode())


def named(name: str):
    def change(marker: dict) -> None:
        marker["files"][name] = {"bytes": 2, "digest": "00"}

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("flip", "state.pt differs from what was written"),
        ("truncate", "model/weights.bin differs from what was written"),
        ("longer", "config.yaml differs from what was written"),
        ("missing", "policy.bin is missing"),
        ("labels", "annotations.sqlite differs"),
        ("no json", "complete.json cannot be read"),
        ("other step", "of another checkpoint"),
        ("../../../escaped", "lies outside"),
        ("/tmp/escaped", "lies outside"),
        ("model/../../escaped", "lies outside"),
        ("..\\escaped", "lies outside"),
        ("manifest", "lies outside"),
    ],
)
def test_a_damaged_one_is_passed_over_and_told_and_the_one_before_it_is_taken(tmp_path, damage, said):
    here = run_dir(tmp_path / "here")
    run = offsite()
    upload(run, here, 100, 200)
    folder = "/bucket/runs/run/checkpoints/000000000200"
    marker, fs = f"{folder}/{COMPLETE}", FaultyFileSystem()
    match damage:
        case "flip":
            flip(f"{folder}/state.pt")
        case "truncate":
            fs.pipe_file(f"{folder}/model/weights.bin", fs.cat_file(f"{folder}/model/weights.bin")[:-7])
        case "longer":
            fs.pipe_file(f"{folder}/config.yaml", fs.cat_file(f"{folder}/config.yaml") + b"\n")
        case "missing":
            rewrite(marker, named("policy.bin"))
        case "labels":
            flip(f"{folder}/{LABELS}")
        case "no json":
            fs.pipe_file(marker, b'{"format": 1, "fil')
        case "other step":
            rewrite(marker, lambda m: m.update(env_steps=999))
        case "manifest":  # of the checkpoint itself, with all sums in order
            rewritten = json.loads(fs.cat_file(f"{folder}/manifest.json"))
            rewritten["files"]["../../../../escaped"] = "00"
            fs.pipe_file(f"{folder}/manifest.json", json.dumps(rewritten).encode())
            (tmp_path / "m").write_bytes(fs.cat_file(f"{folder}/manifest.json"))
            from learner.checkpoint import file_digest

            whole = {"bytes": (tmp_path / "m").stat().st_size, "digest": file_digest(tmp_path / "m")}
            rewrite(marker, lambda m: m["files"].update({"manifest.json": whole}))
        case _:
            rewrite(marker, named(damage))
    before = {path for path in tmp_path.rglob("*") if "there" not in path.parts}
    there, told = RunDir(tmp_path / "there" / "run"), Told()
    catch_up(run, there, told)
    assert [int(path.name) for path in checkpoints(there.checkpoints)] == [100]
    assert len(told) == 2 and f"{run.shown}/000000000200 is damaged" in told[0] and said in told[0]
    assert labels_in(there.annotations) == [0, 1, 2]
    assert {path for path in tmp_path.rglob("*") if "there" not in path.parts} == before
    assert not Path("/tmp/escaped").exists() and not any("escaped" in path.name for path in tmp_path.rglob("*"))
    # It is no longer taken for the newest, also not by rotation: what comes now is.
    assert names(run) == ["000000000100"] and DAMAGED in [path.rpartition("/")[2] for path in fs.find(folder)]
    upload(run, there, 150, keep=1)
    assert names(run) == ["000000000150"]


def test_where_all_are_damaged_the_run_directory_stays_as_it_is(tmp_path):
    here = run_dir(tmp_path / "here")
    run = offsite()
    upload(run, here, 100)
    flip("/bucket/runs/run/checkpoints/000000000100/config.yaml")
    told = Told()
    with pytest.raises(Exception, match=r"no run to resume: neither .* nor a whole checkpoint in faulty://bucket/runs"):
        fetch_config(run, tmp_path / "there" / "run", told)
    assert len(told) == 1 and not (tmp_path / "there").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(RunDirError, match="exists and is no run"):
        fetch_config(run, tmp_path / "mine", told)


def test_a_connection_that_is_cut_is_no_damage(tmp_path, monkeypatch):
    here = run_dir(tmp_path / "here")
    run = offsite()
    upload(run, here, 100)
    failures = iter([OSError("reset"), OSError("reset")])
    real = FaultyFileSystem.cat_file

    def cut(self, path, **options):
        for error in failures:
            raise error
        return real(self, path, **options)

    monkeypatch.setattr(FaultyFileSystem, "cat_file", cut)
    there = RunDir(tmp_path / "there" / "run")
    catch_up(run, there, quiet)
    assert len(checkpoints(there.checkpoints)) == 1
    failures = iter([OSError("reset")] * 9)
    with pytest.raises(OffsiteError, match=r"cannot be read: OSError: reset; checkpoint.url=null goes on"):
        catch_up(run, RunDir(tmp_path / "other" / "run"), quiet)
    assert names(run) == ["000000000100"]


def test_rotation_is_as_local_and_never_takes_what_was_written_last(tmp_path):
    here = run_dir(tmp_path / "here")
    run = offsite()
    upload(run, here, 1, 20, 300, 4000, keep=2)
    assert names(run) == ["000000000300", "000000004000"]
    # The same step again, after a resume that took none: what is there is not written into.
    upload(run, here, 4000, keep=2)
    assert names(run) == ["000000004000", "000000004000.1"]
    assert run.place_for(4000) == Entry(4000, 2)
    upload(run, here, 50, keep=1)
    assert names(run) == ["000000000050"]


def test_failures_are_tried_again_counted_told_once_and_never_raised(tmp_path):
    here = run_dir(tmp_path / "here")
    uploads = Uploads(offsite(), here, 3, retry_s=FAST)
    FaultyFileSystem.failing = 4
    uploads.offer(checkpoint(here, 100))
    assert uploads.finish(10)
    assert (uploads.done, uploads.errors) == (1, 4)
    told = list(uploads.news())
    assert [news.warning for news in told] == [True, False]
    assert told[0].text.startswith("checkpoint 000000000100 not uploaded to faulty://bucket/runs/run/checkpoints: ")
    assert "503 Slow Down" in told[0].text and told[1].text == "checkpoints are uploaded again"


def test_what_was_sent_before_a_failure_is_not_sent_again(tmp_path):
    here = run_dir(tmp_path / "here")
    path = checkpoint(here, 100)
    run, done = offsite(), {}
    FaultyFileSystem.left = 3
    with pytest.raises(Killed):
        run.write(Entry(100, 0), files_below(path), done)
    FaultyFileSystem.left = None
    assert len(done) == 3 and all(isinstance(each, FileSum) for each in done.values())
    before = FaultyFileSystem.operations
    run.write(Entry(100, 0), files_below(path), done)
    assert FaultyFileSystem.operations - before == len(files_below(path)) - 3 + 1
    there = RunDir(tmp_path / "there" / "run")
    catch_up(run, there, quiet)
    assert load_state(checkpoints(there.checkpoints)[0])["n"] == 100


def test_a_place_that_hangs_holds_up_nothing_and_the_newest_goes_up_when_it_wakes(tmp_path):
    here = run_dir(tmp_path / "here")
    uploads = Uploads(offsite(), here, 3, retry_s=FAST)
    FaultyFileSystem.open_gate.clear()
    began = time.monotonic()
    for steps in (100, 200, 300, 400):
        uploads.offer(checkpoint(here, steps, keep=1))
        time.sleep(0.05)
    assert not uploads.finish(0.3) and time.monotonic() - began < 5.0
    told = [news.text for news in uploads.news()]
    assert len(told) == 2 and "uploads take longer than checkpoint.interval_s" in told[0] and uploads.skipped == 2
    assert "was not uploaded within checkpoint.upload_wait_s=0.3; none of this process is there" in told[1]
    FaultyFileSystem.open_gate.set()
    assert uploads.finish(10)
    # The first was rotated away here before it could be sent; it was kept for that.
    assert names(offsite()) == ["000000000100", "000000000400"]
    there = RunDir(tmp_path / "there" / "run")
    catch_up(offsite(), there, quiet)
    assert load_state(checkpoints(there.checkpoints)[0])["n"] == 400


def test_one_that_is_damaged_here_is_not_uploaded(tmp_path):
    here = run_dir(tmp_path / "here")
    path = checkpoint(here, 100)
    raw = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(raw[:-1] + b"?")
    uploads = Uploads(offsite(), here, 3, retry_s=FAST)
    uploads.offer(path)
    assert uploads.finish(10) and (uploads.done, uploads.errors) == (0, 1)
    assert "differs from what was written, so it was not uploaded" in uploads.news()[0].text
    assert names(offsite()) == []


def test_labels_are_copied_whole_while_they_are_written(tmp_path):
    """What was committed before the copy began is in it, and it is a store without damage."""
    path, stop, committed = tmp_path / "annotations.sqlite", threading.Event(), [0]

    def write() -> None:
        with AnnotationStore(path) as store:
            while not stop.is_set():
                label(store, range(committed[0], committed[0] + 1))
                committed[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while committed[0] < 20:
            time.sleep(0.01)
        for number in range(10):
            before = committed[0]
            snapshot_store(path, tmp_path / f"{number}.sqlite")
            found = labels_in(tmp_path / f"{number}.sqlite")
            assert found == list(range(len(found))) and len(found) >= before
            assert not list(tmp_path.glob(f"{number}.sqlite-*"))
    finally:
        stop.set()
        writer.join()
    with pytest.raises(AnnotationStoreError, match="cannot be copied"):
        snapshot_store(tmp_path / "none.sqlite", tmp_path / "copy.sqlite")


def test_a_run_directory_that_is_behind_takes_what_is_newer_and_keeps_its_own_labels(tmp_path):
    here, run = run_dir(tmp_path / "here"), offsite()
    upload(run, here, 100)
    other = RunDir(tmp_path / "other" / "run")
    catch_up(run, other, quiet)
    with AnnotationStore(other.annotations) as store:
        label(store, range(3, 6))
    upload(run, other, 200)
    with AnnotationStore(here.annotations) as store:
        label(store, range(10, 12))
    told = Told()
    catch_up(run, here, told)
    assert [int(path.name) for path in checkpoints(here.checkpoints)] == [100, 200]
    assert labels_in(here.annotations) == [0, 1, 2, 3, 4, 5]
    assert labels_in(here.path / "annotations.before-000000000200.sqlite") == [0, 1, 2, 10, 11]
    assert "annotator.reuse=" in told[0]


def test_a_name_that_is_taken_there_is_refused_and_overwriting_keeps_the_old_one(tmp_path):
    here, run = run_dir(tmp_path / "here"), offsite()
    check_vacant(run)
    upload(run, here, 100)
    with pytest.raises(RunExistsError, match=r"the newest 000000000100; --resume goes on with it, --overwrite"):
        check_vacant(run)
    make_vacant(run)
    check_vacant(run)
    assert names(offsite("faulty://bucket/runs/.replaced")) == ["000000000100"]
    upload(run, here, 200)
    make_vacant(run)
    assert names(offsite("faulty://bucket/runs/.replaced")) == ["000000000200"]


@pytest.mark.parametrize(("url", "package"), [("s3://b/p", "s3fs"), ("gs://b/p", "gcsfs"), ("az://b/p", "adlfs")])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=rf"checkpoint.url={url}: .* not installed: pip install {package}$"):
        open_location(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://AKIA:secret@bucket/path", "without a password"),
        ("sftp://me:secret@host/path", "without a password"),
        ("simplecache::s3://bucket/path", "without ::"),
        (" ", "must be one address"),
    ],
)
def test_addresses_with_a_password_or_a_chain_are_refused(url, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_config("demo", [f"checkpoint.url={url}"])
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"has no effect, as checkpoint.url=null"):
        load_config("demo", ["checkpoint.upload_wait_s=5"])
    assert load_config("demo", ["checkpoint.url=sftp://me@host/path"]) != Config()


def test_a_place_is_tried_before_anything_starts(monkeypatch):
    location = open_location("faulty://bucket/runs")
    check_writable(location)
    assert FaultyFileSystem().find("/") == []
    FaultyFileSystem.failing = 1
    with pytest.raises(OffsiteError, match=r"cannot be written: OSError: 503 Slow Down.*; credentials come from"):
        check_writable(location)
    FaultyFileSystem.open_gate.clear()
    monkeypatch.setattr("orchestration.offsite.location._PROBE_S", 0.1)
    with pytest.raises(OffsiteError, match=r"no answer within 0.1 s"):
        check_writable(location)
    with pytest.raises(ConfigError, match=r"checkpoint.url=nowhere://x: .*not known: nowhere; such are file, s3, gs"):
        open_location("nowhere://x")


def test_fine_tuning_has_no_copies_and_says_so(capsys):
    from orchestration.cli.main import run as yendor

    assert yendor(["sft", "textworld_ppo", "checkpoint.url=memory://x"]) == 2
    assert "checkpoint.url: `yendor sft` keeps its checkpoint" in capsys.readouterr().err
