"""Checkpoints: whole or not there, verified, rotated, and never executed."""

import os

import pytest
import torch

from learner.checkpoint import (
    CheckpointError,
    checkpoints,
    latest_checkpoint,
    load_policy,
    load_state,
    save_checkpoint,
    verify_checkpoint,
)


def save(root, steps, keep=3):
    state = {"n": steps, "list": [1, 2.5, None, "x"], "t": torch.arange(3), "nested": {1: (2, 3)}}
    return save_checkpoint(
        root, steps, policy={"w": torch.full((2, 2), float(steps))}, state=state, config="a: 1\n", keep=keep
    )


def test_round_trip_and_latest(tmp_path):
    save(tmp_path, 100)
    path = save(tmp_path, 200)
    assert latest_checkpoint(tmp_path) == path
    assert (tmp_path / "latest").resolve() == path
    state = load_state(path)
    assert state["n"] == 200 and state["list"] == [1, 2.5, None, "x"] and state["nested"] == {1: (2, 3)}
    assert torch.equal(load_policy(path)["w"], torch.full((2, 2), 200.0))
    assert (path / "config.yaml").read_text() == "a: 1\n"


def test_rotation_keeps_the_newest(tmp_path):
    for steps in (1, 20, 3, 400, 50):
        save(tmp_path, steps, keep=2)
    assert [int(p.name) for p in checkpoints(tmp_path)] == [50, 400]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "no manifest"])
def test_damage_is_found_and_the_one_before_is_offered(tmp_path, damage):
    first, second = save(tmp_path, 100), save(tmp_path, 200)
    file = second / "state.pt"
    match damage:
        case "truncate":
            os.truncate(file, file.stat().st_size // 2)
        case "flip":
            raw = bytearray(file.read_bytes())
            raw[len(raw) // 2] ^= 1
            file.write_bytes(raw)
        case "remove":
            file.unlink()
        case "manifest":
            (second / "manifest.json").write_text("{")
        case _:
            (second / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{second} is damaged .*resume to go on from {first}"):
        latest_checkpoint(tmp_path)
    verify_checkpoint(first)


def test_damage_of_the_only_one_says_so(tmp_path):
    path = save(tmp_path, 100)
    (path / "policy.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="there is no sound one before it"):
        load_policy(path)


def test_a_crash_while_writing_leaves_the_older_ones(tmp_path, monkeypatch):
    first = save(tmp_path, 100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 200)
    assert latest_checkpoint(tmp_path) == first and checkpoints(tmp_path) == [first]
    assert not list(tmp_path.glob(".*")), "a full disk is not kept full by half a checkpoint"


def test_whatever_a_kill_left_behind_the_next_one_is_written(tmp_path):
    """A folder that was being written, a link that `latest` was to become, and one that points nowhere."""
    first = save(tmp_path, 100)
    (tmp_path / ".000000000150.part").mkdir()
    (tmp_path / ".000000000150.part" / "state.pt").write_bytes(b"half")
    (tmp_path / ".latest.part").symlink_to(first.name)
    (tmp_path / ".gone.part").symlink_to("000000000050")
    second = save(tmp_path, 200)
    assert latest_checkpoint(tmp_path) == second and checkpoints(tmp_path) == [first, second]
    assert not list(tmp_path.glob(".*"))
