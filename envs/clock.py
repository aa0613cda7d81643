"""Pins the one moment of a NetHack game that its seeds leave open: when the hero was born.

NLE takes moon phase, Friday 13th, night and midnight from the seed (`fix_moon_phase`), but `ubirthday` from the wall
clock (u_init.c). It decides what lives in an anthole (mkroom.c), how shopkeepers are called (shknam.c) and which letters
of a worn T-shirt are lost (read.c). NetHack sets it before it makes the first level, on which there is neither anthole
nor shop, so it is early enough to set it when the game has begun. (A level file of one's own that puts ants or a shop on a
MiniHack's first level would be made before that; none of MiniHack's own does.)
"""

import ctypes
import functools
import os
from typing import Any

PINNED = "birth"
"""The name under which an environment's `seeds` tell the second that is pinned; it is missing where none is."""

_FIRST = 1_700_000_000
_SPAN = 366 * 24 * 3600
"""Births are spread over a year: shopkeepers' names change with it by the 257 seconds, antholes by the second."""

_SYMBOL = b"ubirthday"


def birth_of(core: int) -> int:
    """When the hero of the game with seed `core` was born, in seconds since the epoch."""
    return _FIRST + core % _SPAN


def pin_birth(library: str, seconds: int) -> bool:
    """Sets the hero's birth in the game whose copy of NetHack was loaded from `library`; False where it cannot be found.

    To be called after each start of the game, which loads the library anew.
    """
    linker = _linker()
    if linker is None:
        return False
    # Without RTLD_NOLOAD this would load a second game; what is opened here is closed at once, as NLE's own
    # unloading must find no other user.
    handle = linker.dlopen(os.fsencode(library), os.RTLD_LAZY | os.RTLD_NOLOAD)
    if not handle:
        return False
    try:
        address = linker.dlsym(handle, _SYMBOL)
        if not address:
            return False
        ctypes.c_long.from_address(address).value = seconds  # NetHack's time_t
        return True
    finally:
        linker.dlclose(handle)


@functools.cache
def _linker() -> Any:
    """The dynamic linker's own functions: what ctypes opens, it never closes. None where the system has none such."""
    if os.name != "posix":
        return None
    linker = ctypes.CDLL(None)
    linker.dlopen.restype, linker.dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    linker.dlsym.restype, linker.dlsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
    linker.dlclose.restype, linker.dlclose.argtypes = ctypes.c_int, (ctypes.c_void_p,)
    return linker
