"""Everything random is seeded from the run's seed, through names: adding one consumer changes no other's numbers.

Invariant: no episode of training has a seed that an episode of an evaluation can have, whatever their runs' seeds. Bit 31
tells them apart, and not a higher one: worlds whose generators take 32 bits then differ too.
"""

import hashlib

_HELD_OUT = 1 << 31


def derive_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the consumer called `name`, e.g. ("actions", actor)."""
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def training_seed(seed: int, *name: str | int) -> int:
    """The seed of an episode that is learnt from; never held out."""
    return derive_seed(seed, *name) & ~_HELD_OUT


def held_out_seed(seed: int, *name: str | int) -> int:
    """The seed of an episode that is for measuring; no training ever plays it."""
    return derive_seed(seed, *name) | _HELD_OUT


def is_held_out(seed: int) -> bool:
    """Whether only evaluations play this seed."""
    return bool(seed & _HELD_OUT)
