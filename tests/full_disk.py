"""A disk that gets full, as a process sees it."""

import contextlib
import resource
from collections.abc import Generator


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Generator[None]:
    """A write beyond so many bytes fails half way: first a part is written, then nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
