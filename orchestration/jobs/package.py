"""What a job needs of this project, as one archive that is the same whenever its files are."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestration.errors import YendorError

PACKAGES = ("agents", "configs", "envs", "inference", "learner", "orchestration", "reward_server")
FILES = ("pyproject.toml", "requirements", "README.md", "LICENSE")
_SKIPPED = frozenset({"__pycache__", "node_modules"})
_TIME = (1980, 1, 1, 0, 0, 0)
LIMIT_BYTES = 200 * 2**20
"""Ray keeps packages in the memory of the head; beyond 512 MiB it refuses them."""


class PackageError(YendorError):
    """The project cannot be packed."""


@dataclass(frozen=True, slots=True)
class Package:
    """A packed project."""

    path: Path
    files: int
    bytes: int
    """Of the archive."""

    def __str__(self) -> str:
        return f"{self.files:,} files, {self.bytes / 2**20:.1f} MiB"


def project_root() -> Path:
    """The folder that holds this code."""
    return Path(__file__).resolve().parents[2]


def pack(out: Path, *, root: Path | None = None, more: Mapping[str, Path] | None = None) -> Package:
    """Packs the code below `root` (default: that which runs) into the archive `out`.

    Only what a job needs goes along: the packages, their data and the lists of requirements, so neither runs nor `.git` nor
    environments. `more` adds files and folders, by their place in the archive. Raises `PackageError` where something is
    missing, a link (it may lead to anything on this machine) or outside of the archive, and where that becomes larger than
    `LIMIT_BYTES`.
    """
    root = root or project_root()
    found = [root / name for name in (*PACKAGES, *FILES) if (root / name).exists()]
    for start in found:
        _refuse_link(start)
    places = {path.relative_to(root).as_posix(): path for start in found for path in _walk(start)}
    for place, start in (more or {}).items():
        if not start.exists():
            raise PackageError(f"{start}: not there, and the job needs it")
        below = {path.relative_to(start).as_posix(): path for path in _walk(start)}
        places |= {place if name == "." else f"{place}/{name}": path for name, path in below.items()}
    for place in places:
        if place.startswith("/") or ".." in PurePosixPath(place).parts:
            raise PackageError(f"{place}: lies outside of the job's folder")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for place in sorted(places):
            # Neither times nor owners: the same files give the same archive, which the cluster then has already.
            archive.writestr(zipfile.ZipInfo(place, _TIME), places[place].read_bytes(), zipfile.ZIP_DEFLATED)
    package = Package(out, len(places), out.stat().st_size)
    if package.bytes > LIMIT_BYTES:
        largest = sorted(places.items(), key=lambda item: -item[1].stat().st_size)[:3]
        named = ", ".join(f"{place} ({path.stat().st_size / 2**20:.0f} MiB)" for place, path in largest)
        raise PackageError(
            f"the project packs to {package.bytes / 2**20:.0f} MiB, too much for a job; largest: {named}"
        )
    return package


def _walk(start: Path) -> Iterator[Path]:
    """The file `start`, or the files below it but for hidden ones. Raises `PackageError` for a link among them."""
    if start.is_file():
        yield start
        return
    for folder, names, files in os.walk(start):
        names[:] = [name for name in names if name not in _SKIPPED and not name.startswith(".")]
        for name in (*names, *files):
            if not name.startswith("."):
                _refuse_link(Path(folder) / name)
        wanted = (name for name in files if not name.startswith(".") and not name.endswith((".pyc", ".pyo")))
        yield from (Path(folder) / name for name in wanted)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise PackageError(f"{path}: is a link, and a job takes along none; put the file itself there, or remove it")
