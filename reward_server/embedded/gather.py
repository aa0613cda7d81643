"""Gathers real messages: `python -m reward_server.embedded.gather > reward_server/embedded/messages.txt`.

Random play of NetHack itself (no MiniHack task, so none that is trained in), several roles, seeded. The result is kept
in the package, so that building the judge needs no game and gives the same model wherever it is built.
"""

import random
import sys
from typing import Any

from nle import nethack
from nle.env.tasks import NetHackChallenge

from envs.captions import normalise

ROLES = (
    "mon-hum-neu-mal",
    "val-dwa-law-fem",
    "wiz-elf-cha-mal",
    "arc-hum-neu-fem",
    "sam-hum-law-mal",
    "tou-hum-neu-fem",
    "cav-gno-neu-mal",
)
STEPS_PER_ROLE = 60_000
COMMANDS = (
    *("PICKUP", "PICKUP", "SEARCH", "SEARCH", "KICK", "EAT", "OPEN", "CLOSE", "LOOK", "LOOT", "QUAFF", "READ", "ZAP"),
    *("WEAR", "WIELD", "TAKEOFF", "PUTON", "THROW", "DROP", "APPLY", "CAST", "FORCE", "PRAY", "SIT", "UNTRAP", "ESC"),
)
MOVES = "hjklyubnHJKLYUBN<>"
ANSWERS = "abcdefgy"
TYPED = (
    "Search for:",
    "Call ",
    "For what",
    "What tune",
    "What do you want to call",
    "What do you want to add",
    "What do you want to write",
    "What do you want to engrave",
)
"""Prompts that repeat what was typed: random keys, no message."""


def play(role: str, steps: int, seed: int) -> dict[str, None]:
    """Distinct messages of `steps` random keystrokes, in the order in which they were first seen."""
    env = NetHackChallenge(character=role, observation_keys=("message", "blstats"))
    game: Any = env.nethack
    rng = random.Random(seed)
    codes = [int(getattr(nethack.Command, name)) for name in COMMANDS] + [ord(c) for c in MOVES * 2 + ANSWERS]
    keys = [env.actions.index(code) for code in [*codes, int(nethack.MiscAction.MORE)]]
    seen: dict[str, None] = {}
    episode, done = 0, True
    for _ in range(steps):
        if done:
            type(game).set_initial_seeds(game, seed, episode, False, None)
            env.reset()
            episode += 1
        observation, _, terminated, truncated, _ = env.step(rng.choice(keys))
        done = terminated or truncated
        text = normalise(bytes(observation["message"]).split(b"\0")[0].decode("latin-1"))
        if text and text.isascii() and not text.startswith(TYPED):
            seen[text] = None
    env.close()
    return seen


def main() -> None:
    """Prints the messages of all roles, sorted, one a line."""
    messages = {m for seed, role in enumerate(ROLES) for m in play(role, STEPS_PER_ROLE, seed)}
    sys.stdout.write("\n".join(sorted(messages)) + "\n")


if __name__ == "__main__":
    main()
