"""What a replay depends on besides the seeds: versions of packages, native libraries, the clock."""

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from envs.clock import PINNED

_PACKAGES = (
    "yendor", "nle", "minihack", "gymnasium", "numpy", "torch", "textworld", "jericho", "alfworld", "tokenizers",
    "transformers", "zstandard",
)  # fmt: skip
_NATIVES: Mapping[str, tuple[str, str]] = {
    "libnethack": ("nle", "libnethack.so"),
    "_pynethack": ("nle", "_pynethack"),
    "libjericho": ("jericho", "libjericho.so"),
}
"""Name: the package that brings the library, and what the file's name begins with."""

WORLD_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "nethack": ("nle",),
    "minihack": ("minihack", "nle"),
    "textworld": ("textworld", "jericho"),
    "alfworld": ("alfworld", "textworld"),
}
"""What decides how the worlds of a family go on, by its prefix."""

WORLD_NATIVES: Mapping[str, tuple[str, ...]] = {
    "nethack": ("libnethack",),
    "minihack": ("libnethack",),
    "textworld": ("libjericho",),
}
"""The same, of native libraries."""


def clock_text(seeds: Mapping[str, str]) -> str:
    """`Header.clock` of an episode with these seeds."""
    return f"pinned:{seeds[PINNED]}" if PINNED in seeds else "unpinned"


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that a replay depends on, without importing them; None where one is not installed."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@functools.cache
def native_versions() -> Mapping[str, str | None]:
    """Interpreter, C library, and blake2b (64 bits) of the games' shared libraries; None where one is not installed."""
    libc, version = platform.libc_ver()
    found: dict[str, str | None] = {"python": platform.python_version(), "libc": f"{libc} {version}".strip() or None}
    found["machine"] = platform.machine()
    for name, (package, opening) in _NATIVES.items():
        path = _library(package, opening)
        found[name] = None if path is None else hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return found


def _library(package: str, opening: str) -> Path | None:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith(opening):
            path = Path(str(file.locate()))
            return path if path.is_file() else None
    return None
