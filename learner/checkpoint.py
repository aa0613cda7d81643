"""Checkpoints: folders `checkpoints/<env steps>/` that appear whole or not at all, and are verified before they load.

A checkpoint holds the policy alone, for evaluation (`policy.safetensors`; of a language model `model/`, a Hugging Face
folder), `state.pt` (everything else, read with torch's `weights_only`, which executes no code), the resolved
`config.yaml`, and `manifest.json` with the digest of each file. `latest` is a link to the newest.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, cast

# torch is loaded where it is used: the coordinator looks after checkpoints too, and does without.
if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
LATEST = "latest"
_PART = ".part"
DAMAGED = ".damaged"
_P = ParamSpec("_P")


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or of another format; the message names it and what can be used instead."""


def save_checkpoint(
    root: Path, env_steps: int, *, policy: Mapping[str, "Tensor"], state: Mapping[str, Any], config: str, keep: int
) -> Path:
    """Writes `root/<env_steps>` with the policy's weights in it; the rest as `write_checkpoint`."""
    from safetensors.torch import save_file

    def write_policy(part: Path) -> None:
        save_file({k: v.contiguous() for k, v in policy.items()}, part / "policy.safetensors")

    return write_checkpoint(root, env_steps, write_policy, state=state, config=config, keep=keep)


def _leaving_nothing_half(write: Callable[Concatenate[Path, _P], Path]) -> Callable[Concatenate[Path, _P], Path]:
    """A checkpoint that cannot be written (a full disk) gives back at once what room it took."""

    @functools.wraps(write)
    def wrapped(root: Path, *arguments: _P.args, **options: _P.kwargs) -> Path:
        try:
            return write(root, *arguments, **options)
        except BaseException:
            for part in root.glob(f".*{_PART}"):
                if ".old" not in part.name:  # one that was whole
                    with contextlib.suppress(OSError):
                        _remove(part)
            raise

    return wrapped


@_leaving_nothing_half
def write_checkpoint(
    root: Path, env_steps: int, write_policy: Callable[[Path], None], *, state: Mapping[str, Any], config: str, keep: int
) -> Path:  # fmt: skip
    """Writes `root/<env_steps>`, points `latest` at it, and removes all but the `keep` newest.

    `write_policy` puts files into the folder that it is given. `state` may hold nested dicts, lists, tuples, tensors,
    numbers, strings and None. A `kill -9` at any moment leaves the checkpoints before it whole. Raises OSError where the
    disk is full or not writable.
    """
    import torch

    root.mkdir(parents=True, exist_ok=True)
    final = root / f"{env_steps:012d}"
    for torn in root.glob(f".*{_PART}"):  # writes that were killed, and one of this step that failed
        _remove(torn)
    part = root / f".{final.name}{_PART}"
    part.mkdir()
    write_policy(part)
    torch.save(dict(state), part / "state.pt")
    (part / "config.yaml").write_text(config)
    files = sorted(p.relative_to(part).as_posix() for p in part.rglob("*") if p.is_file())
    manifest = {"format": FORMAT, "env_steps": env_steps, "files": {name: file_digest(part / name) for name in files}}
    (part / "manifest.json").write_text(json.dumps(manifest, indent=2))
    place_checkpoint(part, final)
    for old in (*checkpoints(root)[:-keep], *root.glob(f".*{_PART}")):
        _remove(old)
    return final


def _remove(path: Path) -> None:
    """A folder, or the link that `latest` was to become when the process was killed."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def place_checkpoint(part: Path, final: Path) -> None:
    """Makes the folder `part`, in which all is written, the checkpoint `final`, and points `latest` at that; both lie on one
    file system."""
    root = final.parent
    for path in (part, *part.rglob("*")):
        _fsync(path)
    if final.exists():  # the same step again, after a resume that took no step
        final.rename(root / f".{final.name}.old{_PART}")
    part.rename(final)
    _point_latest(root, final)
    _fsync(root)


def on_cpu(state: Any) -> Any:
    """`state`, nested dicts, lists and tuples, with a copy on the CPU of each tensor."""
    from torch import Tensor

    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: on_cpu(value) for key, value in cast(Mapping[Any, Any], state).items()}
    if isinstance(state, list | tuple):
        copies = [on_cpu(value) for value in cast(Sequence[Any], state)]
        return copies if isinstance(state, list) else tuple(copies)
    return state


def checkpoints(root: Path) -> list[Path]:
    """All checkpoints below `root`, the oldest first; damaged ones too."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink() and p.name.isdigit())


def verify_checkpoint(path: Path) -> None:
    """Raises CheckpointError where files are missing or differ from what was written; names the one before it."""
    reason = _damage(path)
    if reason is None:
        return
    sound = [p for p in checkpoints(path.parent) if p.name < path.name and _damage(p) is None]
    if sound:
        advice = f"the one before it is sound: remove {path} and resume to go on from {sound[-1]}"
    else:
        advice = "there is no sound one before it: start again with --overwrite"
    raise CheckpointError(f"checkpoint {path} is damaged ({reason}); {advice}")


def latest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint, verified. None where there is none. Raises CheckpointError where it is damaged."""
    found = checkpoints(root)
    if not found:
        return None
    verify_checkpoint(found[-1])
    return found[-1]


def newest_sound_checkpoint(root: Path, tell: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; None where there is none. `tell` hears of each that is newer and damaged.

    Those are put aside (`NAME.damaged`), so that nothing takes them for the newest; for whoever trains in the run alone.
    """
    for path in reversed(checkpoints(root)):
        reason = _damage(path)
        if reason is None:
            return path
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        tell(f"checkpoint {path} is damaged ({reason}): it is kept as {aside.name}, and the one before it is taken")
    return None


def load_state(path: Path) -> dict[str, Any]:
    """The state of a verified checkpoint, on the CPU. Raises CheckpointError, also for a state that is more than data, of
    which nothing is executed."""
    import pickle

    import torch

    verify_checkpoint(path)
    try:
        return torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"checkpoint {path}: state.pt is not plain data (tensors, numbers, text), so it is not loaded; nothing of it was "
            "executed"
        ) from error


def load_policy(path: Path) -> "dict[str, Tensor]":
    """The policy of a verified checkpoint, on the CPU. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    verify_checkpoint(path)
    try:
        return load_file(path / "policy.safetensors")
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path}: policy.safetensors is no file of weights: {error}") from error


def stays_inside(name: str) -> bool:
    """Whether `name`, out of a list of files that anybody may have written, is a path below the folder of the list."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and not set(name) & {"\\", "\0"}


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        return "it has no manifest.json"
    except ValueError:
        return "its manifest.json is not JSON"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return f"its format is not {FORMAT}"
    if not isinstance(manifest.get("files"), dict):
        return "its manifest.json lists no files"
    for name, digest in manifest["files"].items():
        if not stays_inside(name):
            return f"its manifest.json names {name!r}, which lies outside"
        if not (path / name).is_file():
            return f"{name} is missing"
        if file_digest(path / name) != digest:
            return f"{name} differs from what was written"
    return None


def new_digest() -> "hashlib.blake2b":
    """What the files of checkpoints are checked with."""
    return hashlib.blake2b(digest_size=16)


def file_digest(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, new_digest).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point_latest(root: Path, target: Path) -> None:
    link = root / f".{LATEST}.part"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.rename(root / LATEST)
