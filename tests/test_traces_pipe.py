"""Messages full of arrays through a real pipe."""

import io
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.observer import CallArrays, EpisodeSteps
from orchestration.traces.pipe import receive, send


def through_pipe(*messages):
    """What comes out of a pipe, and how many bytes went through it."""
    source, sink = (os.fdopen(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    data = bytearray()

    def read() -> None:
        while part := source.read(65536):
            data.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    for message in messages:
        send(sink, message)
    sink.close()
    reader.join(20)
    source.close()
    stream = io.BytesIO(data)
    return [receive(stream) for _ in messages], len(data)


def test_the_arrays_of_a_call_go_once_however_many_episodes_lie_in_them():
    shape = (32, 64)
    room = np.arange(33 * 64 * 100, dtype=np.int32).reshape(33, 64, 100)
    number, real = np.arange(32 * 64).reshape(shape), np.arange(32.0 * 64, dtype=np.float32).reshape(shape)
    call = CallArrays(7, None, {"x": room}, number, real, real + 1, real + 2, number + 1, number % 2 == 0,
                      np.arange(32.0), np.zeros(32))  # fmt: skip
    told = [EpisodeSteps(call, index, 1, ["said"] * 20, 20, ()) for index in range(64)]
    (got, again), count = through_pipe(told, {"x": room[0], "y": room[0, :3].copy()})
    for index, steps in enumerate(got):
        assert (len(steps), steps.policy_version, steps.captions) == (20, 7, ["said"] * 20)
        np.testing.assert_array_equal(steps.observation["x"], room[2:22, index], strict=True)
        np.testing.assert_array_equal(steps.action, number[1:21, index], strict=True)
        np.testing.assert_array_equal(steps.value, real[1:21, index] + 1, strict=True)
    np.testing.assert_array_equal(again["x"], room[0], strict=True)
    np.testing.assert_array_equal(again["y"], room[0, :3], strict=True)
    rest = sum(array.nbytes for array in (number, number, real, real, real)) + 32 * 64
    assert count < room.nbytes + rest + room[0].nbytes + 64 * 300, "once for each message"


@given(st.data())
def test_any_view(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    whole = np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)
    part = [
        data.draw(st.one_of(st.integers(0, size - 1), st.slices(size)))
        for size in shape[: data.draw(st.integers(0, 3))]
    ]
    view = whole.T[::-1] if data.draw(st.booleans()) else whole[tuple(part)]
    for each in (view, np.asarray(view).view(np.int32), np.asarray(view)[None]):
        ((got,), _) = through_pipe(each)
        np.testing.assert_array_equal(got, each, strict=True)


def test_arrays_without_one_block_behind_them():
    fortran = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    bytes_of = np.frombuffer(b"abcdefgh", np.uint8)
    ((got,), _) = through_pipe({"columns": fortran[:, 1], "bytes": bytes_of[2:4], "text": np.array(["a", "bc"])[1:]})
    assert got["columns"].tolist() == [1.0, 5.0, 9.0] and got["bytes"].tolist() == [99, 100] and got["text"] == ["bc"]


def test_a_message_that_was_cut_is_no_message():
    sink = io.BytesIO()
    send(sink, [np.zeros(100_000), "text"])
    data = sink.getvalue()
    for end in (0, 5, 12, 100, len(data) - 1):
        with pytest.raises(EOFError):
            receive(io.BytesIO(data[:end]))
    assert receive(io.BytesIO(data))[1] == "text"
