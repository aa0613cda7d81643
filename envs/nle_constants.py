"""What NLE's C extension names, with types: where things stand in the status line, glyphs, condition bits."""

from typing import Any, cast

from nle import nethack

_c = cast(Any, nethack)  # the names come from a compiled module, which says nothing of types

MAP_HEIGHT, MAP_WIDTH = cast(tuple[int, int], _c.DUNGEON_SHAPE)
BLSTATS_SIZE: int = _c.BLSTATS_SHAPE[0]
MESSAGE_SIZE: int = _c.MESSAGE_SHAPE[0]

X: int = _c.NLE_BL_X
Y: int = _c.NLE_BL_Y
SCORE: int = _c.NLE_BL_SCORE
GOLD: int = _c.NLE_BL_GOLD
TIME: int = _c.NLE_BL_TIME
DEPTH: int = _c.NLE_BL_DEPTH
EXPERIENCE_LEVEL: int = _c.NLE_BL_XP
CONDITION: int = _c.NLE_BL_CONDITION
DUNGEON: int = _c.NLE_BL_DNUM
LEVEL: int = _c.NLE_BL_DLEVEL
"""Indices into `blstats`. `DEPTH` counts from the surface, `LEVEL` within one branch (`DUNGEON`)."""

HALLUCINATING: int = _c.BL_MASK_HALLU
"""A bit of `blstats[CONDITION]`."""

ASCENDED: int = _c.ASCENDED
"""How a game was done that was won."""

CLOSED_DOORS: frozenset[int] = frozenset(_c.GLYPH_CMAP_OFF + symbol for symbol in (15, 16))
"""The glyphs of S_vcdoor and S_hcdoor (NetHack 3.6, rm.h)."""


def monster_glyph(name: str) -> int:
    """The glyph of the monster called `name`; raises LookupError where there is none."""
    for glyph in range(_c.GLYPH_MON_OFF, _c.GLYPH_PET_OFF):
        if _c.permonst(_c.glyph_to_mon(glyph)).mname == name:
            return glyph
    raise LookupError(f"NLE knows no monster named {name!r}")
