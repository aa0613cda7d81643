"""A MiniHack task that leads, by two keys, to a level of NetHack so deep that ants may have their hole there."""

from typing import Any

from minihack import MiniHackSkill
from nle.nethack import Command, CompassDirection, MiscAction, TextCharacters

_LEVEL = """
MAZE: "mylevel",' '
FLAGS: hardfloor
GEOMETRY:center,center
MAP
.....
ENDMAP
BRANCH:(0,0,0,0),(1,0,4,0)
OBJECT:('=',"teleport control"),(1,0),blessed
OBJECT:('?',"teleportation"),(2,0),cursed
OBJECT:('!',"monster detection"),(3,0),blessed
STAIR:(4,0),down
REGION:(0,0,4,0),lit,"ordinary"
"""

WALK = "l,l,l,Pflrg20\rqh"
"""Takes ring, scroll and potion, wears the first, reads the second (to level 20), and drinks the third, which shows where
monsters are. What else the game asks is answered with a line feed."""

FIRE, GIANT, SOLDIER = "1", "3", "4"
"""Colours of the ants, of which a hole has one kind: red, brown, blue."""


class Anthole(MiniHackSkill):
    def __init__(self, **more: Any) -> None:
        actions = (
            CompassDirection.E, CompassDirection.W, Command.PICKUP, Command.PUTON, Command.READ, Command.QUAFF,
            Command.FIRE, Command.RUSH, MiscAction.MORE, TextCharacters.NUM_2, TextCharacters.NUM_0,
        )  # fmt: skip
        super().__init__(des_file=_LEVEL, actions=actions, allow_all_modes=True, **more)
