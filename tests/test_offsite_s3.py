"""The same on S3, against moto's server: `pip install s3fs moto[server]`; without these the tests are left out."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from learner.checkpoint import checkpoints
from orchestration.offsite.location import OffsiteError, check_writable
from orchestration.offsite.resuming import catch_up, check_vacant, fetch_config, make_vacant
from orchestration.offsite.uploads import Uploads
from orchestration.rundir import RunDir
from tests.offsite_support import checkpoint, labels_in, offsite, run_dir

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket; s3fs finds server and credentials in the environment, as it does elsewhere."""
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for name, value in (("AWS_ENDPOINT_URL", url), ("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"),
                        ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("yendor-test")
        yield server
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.kill()
        server.wait()


def test_checkpoints_go_to_s3_and_come_back(tmp_path, bucket):
    run = offsite("s3://yendor-test/some/path")
    check_writable(run.location)
    check_vacant(run)
    here = run_dir(tmp_path / "here")
    uploads = Uploads(run, here, 2)
    for steps in (100, 200, 300):
        uploads.offer(checkpoint(here, steps))
        assert uploads.finish(60), uploads.news()
    assert (uploads.done, uploads.errors) == (3, 0) and list(uploads.news()) == []
    # As another machine sees it.
    type(run.location.fs).clear_instance_cache()
    run = offsite("s3://yendor-test/some/path")
    assert [entry.env_steps for entry in run.complete()] == [200, 300]
    run.location.fs.pipe_file("yendor-test/some/path/run/checkpoints/000000000300/state.pt", b"damaged")
    there, told = RunDir(tmp_path / "there" / "run"), []
    fetch_config(run, there.path, lambda message, warning=False: told.append(message))
    catch_up(run, there, lambda message, warning=False: told.append(message))
    assert [path.name for path in checkpoints(there.checkpoints)] == ["000000000200"]
    assert "state.pt differs" in told[0] and labels_in(there.annotations) == [0, 1, 2]
    make_vacant(run)
    assert run.complete() == [] and len(offsite("s3://yendor-test/some/path/.replaced").complete()) == 1


def test_a_bucket_that_is_not_there_is_said_and_not_made(bucket):
    run = offsite("s3://yendor-missing/path")
    with pytest.raises(OffsiteError, match=r"cannot be written: .*(bucket does not exist|NoSuchBucket)"):
        check_writable(run.location)
    assert not run.location.fs.exists("yendor-missing")


def test_a_server_that_is_gone_holds_up_nothing_and_is_told(tmp_path, bucket):
    run = offsite("s3://yendor-test/path")
    here = run_dir(tmp_path / "here")
    bucket.kill()
    uploads = Uploads(run, here, 2, retry_s=(0.1, 0.1))
    began = time.monotonic()
    uploads.offer(checkpoint(here, 100))
    assert time.monotonic() - began < 5
    assert not uploads.finish(1.0) and time.monotonic() - began < 10
    deadline = time.monotonic() + 120
    while not uploads.errors:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "not uploaded to s3://yendor-test/path/run/checkpoints" in " ".join(news.text for news in uploads.news())
