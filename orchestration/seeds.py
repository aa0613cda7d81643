"""Everything random is seeded from the run's seed, through names: adding one consumer changes no other's numbers."""

import hashlib


def derive_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the consumer called `name`, e.g. ("env", actor, environment, episode)."""
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
