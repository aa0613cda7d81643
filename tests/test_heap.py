"""Freed memory goes back to the system, measured in a process of its own."""

import ctypes
import subprocess
import sys

import pytest

from orchestration import heap

# Blocks below the size from which the C library maps each of its own, every second one freed: gaps that only a trim empties.
GAPS = """
import ctypes, psutil, sys
from orchestration.heap import HeapTrimmer
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
now = [0.0]
trimmer = HeapTrimmer(5.0, lambda: now[0])
blocks = [libc.malloc(100_000) for _ in range(2000)]
for block in blocks:
    libc.memset(block, 1, 100_000)
for block in blocks[::2]:
    libc.free(block)
sizes = []
for at in (4.9, 5.0):
    now[0] = at
    trimmer.trim()
    sizes.append(psutil.Process().memory_info().rss)
print(sizes[0] - sizes[1])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not GNU's C library")
def test_gaps_between_blocks_in_use_are_given_back_when_it_is_time():
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 80_000_000


def test_another_c_library_has_no_such_function_and_is_left_alone(monkeypatch):
    asked = []

    class OtherLibrary:
        def __init__(self, name):
            pass

        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(heap.ctypes, "CDLL", OtherLibrary)
    heap._malloc_trim.cache_clear()
    try:
        heap.HeapTrimmer(0.0).trim()
        assert asked == ["malloc_trim"] and heap._malloc_trim() is None
    finally:
        heap._malloc_trim.cache_clear()
