"""A folder that a URL of fsspec names: on this machine, in a bucket, anywhere that a file system was written for."""

import threading
import uuid
from dataclasses import dataclass
from typing import Any

from orchestration.errors import ConfigError, ResourceError, YendorError, first_line

_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "oci": "ocifs", "hf": "huggingface_hub",
}  # fmt: skip
"""What `pip install` wants to be told for a protocol."""
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci"})
"""Protocols without folders, where making one could make a bucket."""
_PROBE_S = 30.0


class OffsiteError(YendorError):
    """A place for checkpoints that cannot be read or written; the message names it and the cause."""


@dataclass(frozen=True, slots=True)
class Location:
    """A folder on a file system."""

    url: str
    fs: Any
    """An `fsspec.AbstractFileSystem`."""
    root: str
    """Path on it, without a slash at the end."""
    has_folders: bool
    """Whether a folder has to be made before a file is written into it."""

    def path(self, *names: str) -> str:
        return "/".join((self.root, *names))

    def shown(self, *names: str) -> str:
        """The URL of what lies below."""
        return "/".join((self.url.rstrip("/"), *names))

    def make_folder(self, path: str) -> None:
        if self.has_folders:
            self.fs.makedirs(path, exist_ok=True)


def open_location(url: str) -> Location:
    """The folder that `url` names; nothing is asked of it yet.

    Raises `ConfigError` for a URL of an unknown kind, `ResourceError` for one whose package is not installed, which names
    the command that does, and `OffsiteError` where its file system cannot be made.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol, protocol)
        raise ResourceError(
            f"checkpoint.url={url}: {protocol}:// needs the package {package}, which is not installed: pip install {package}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"checkpoint.url={url}: {first_line(error)}; such are file, s3, gs") from error
    except Exception as error:  # whatever its client raises where it asks for credentials, or for the server
        raise OffsiteError(f"checkpoint.url={url}: {first_line(error)}") from error
    return Location(url, fs, str(root).rstrip("/"), protocol not in _BUCKETS)


def check_writable(location: Location) -> None:
    """Writes a few bytes, reads them and removes them. Raises `OffsiteError` where that fails or takes too long."""
    failures: list[Exception] = []

    def probe() -> None:
        path, content = location.path(f".probe-{uuid.uuid4().hex}"), b"yendor"
        try:
            location.make_folder(location.root)
            location.fs.pipe_file(path, content)
            if location.fs.cat_file(path) != content:
                raise OSError("what was written is not what is read")
            location.fs.rm_file(path)
        except Exception as error:  # raised below, in the thread of the caller
            failures.append(error)

    # Clients try again for minutes where a server does not answer, and cannot be told to stop.
    thread = threading.Thread(target=probe, name="probe", daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    if thread.is_alive():
        raise OffsiteError(f"checkpoint.url={location.url}: no answer within {_PROBE_S:g} s")
    if failures:
        raise OffsiteError(
            f"checkpoint.url={location.url}: cannot be written: {first_line(failures[0])}; credentials come from the "
            "environment, as its file system has them"
        ) from failures[0]
