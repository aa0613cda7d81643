"""Messages to learn from and messages kept from learning. The same seed gives the same ones, on every machine.

What is kept apart is decided by hashes, so that nothing of it can slip into training: real messages, and values of
slots (an object, a monster, a name that training never shows); filled templates are kept apart by their whole text.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from reward_server.embedded.rules import Family, RuleBook

_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa])\(n\) (?=(\S))")

HELD_SHARE = 0.15
"""Share of slot values that training never shows."""
_MIN_VALUES = 24
"""Slots with fewer plain values keep all of them in training: directions, numbers, kinds of traps."""
_INVENT_FROM = 16
"""Slots with so many plain values get invented ones as well."""
_POOL = 700
_ONSETS = ["", *"bcdfghjklmnprstvwz", "br", "ch", "dr", "gl", "kr", "qu", "sh", "st", "th", "tr"]
_ENDS = ["", "", "n", "r", "s", "x", "nd", "rk", "th", "lm"]
_JOIN_SHARE = 0.4
_REAL_SHARE = 0.15

Slots = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Example:
    """A text and the label that the rules give it."""

    text: str
    label: int
    family: str


@dataclass(frozen=True)
class Corpus:
    """Examples for training and the held-out sets by name."""

    train: tuple[Example, ...]
    held_out: Mapping[str, tuple[Example, ...]]


def fill(template: str, slots: Slots, rng: random.Random) -> str:
    """A message: every slot replaced by one of its values, drawn uniformly, and those of the values in turn.

    Raises `KeyError` with the name of a slot that has no values.
    """
    text = template
    while _SLOT.search(text):
        text = _SLOT.sub(lambda m: rng.choice(slots[m.group(1)]), text)
    return _ARTICLE.sub(lambda m: m.group(1) + ("n " if m.group(2).lower() in "aeiou" else " "), text)


def split_slots(slots: Slots) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Values for training, and values kept from it. Slots with few values have all of them in both."""
    train: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    for name, values in slots.items():
        plain = [v for v in values if not _SLOT.search(v)]
        kept = (
            {v for v in plain if _fraction(f"{name}\0{v}") < HELD_SHARE}
            if len(set(plain)) >= _MIN_VALUES
            else set[str]()
        )
        train[name] = [v for v in values if v not in kept]
        held[name] = [v for v in values if v in kept or _SLOT.search(v)] if kept else list(values)
    return train, held


def real_messages() -> list[str]:
    """Messages of real games (`gather.py`)."""
    return resources.files("reward_server.embedded").joinpath("messages.txt").read_text("utf-8").splitlines()


def is_held(text: str) -> bool:
    """Whether a real message is kept from training: every second one, by hash."""
    return _fraction("real\0" + text) < 0.5


def make(book: RuleBook, *, seed: int, train_size: int, held_size: int) -> Corpus:
    """A corpus with `train_size` examples to learn from and about `held_size` distinct ones in each made held-out set.

    Families are drawn by their weights, not by how often the game prints them, so the rare kinds are learnt as well.
    """
    train_slots, held_slots = split_slots(book.slots)
    real = real_messages()
    rng = random.Random(f"train {seed}")
    shown = _with_invented(train_slots, rng)
    known_real = [t for t in real if not is_held(t)]
    train = [_draw(book, shown, known_real, rng) for _ in range(train_size)]
    seen = {e.text for e in train}
    rng = random.Random(f"held {seed}")
    fills = _distinct((_message(book.families, train_slots, rng) for _ in range(held_size * 3)), seen, held_size)
    values = _distinct((_message(book.families, held_slots, rng) for _ in range(held_size * 3)), seen, held_size)
    kept_real = _distinct(filter(is_held, real), seen, held_size)
    return Corpus(
        tuple(train),
        {
            "unseen_fills": tuple(_label(book, t) for t in fills),
            "unseen_values": tuple(_label(book, t) for t in values),
            "real_messages": tuple(_label(book, t) for t in kept_real),
        },
    )


def _with_invented(slots: Slots, rng: random.Random) -> dict[str, list[str]]:
    """Slots with many values, three in ten of them invented.

    Names that mean nothing teach that a verdict hangs on the sentence around them, so that names never seen are
    read right.
    """
    found: dict[str, list[str]] = {}
    for name, values in slots.items():
        plain = [v for v in values if not _SLOT.search(v)]
        found[name] = list(values)
        if len(plain) >= _INVENT_FROM and min(map(len, plain)) > 2:
            times = -(-_POOL // len(values))
            found[name] = [*list(values) * times, *(_invented(plain, rng) for _ in range(times * len(values) * 3 // 7))]
    return found


def _invented(values: Sequence[str], rng: random.Random) -> str:
    """The head of one value and the tail of another, or one to three words of random syllables."""
    if rng.random() < 0.5:
        head, tail = rng.sample(values, 2)
        return head[: (len(head) + 1) // 2] + tail[len(tail) // 2 :]
    words = ["".join(rng.choice(_ONSETS) + rng.choice("aeiouy") for _ in range(rng.randint(1, 3))) for _ in range(3)]
    word = rng.choice((" ", " ", "-")).join(words[: rng.choice((1, 1, 2, 3))]) + rng.choice(_ENDS)
    return word.title() if rng.random() < 0.3 else word


def _draw(book: RuleBook, slots: Slots, real: Sequence[str], rng: random.Random) -> Example:
    if rng.random() < _REAL_SHARE:
        return _label(book, rng.choice(real))
    text = _message(book.families, slots, rng)
    if rng.random() < _JOIN_SHARE:
        others = [_message(book.families, slots, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        text = " ".join(filter(None, [text, *others]))
    return _label(book, text)


def _message(families: Sequence[Family], slots: Slots, rng: random.Random) -> str:
    family = rng.choices(families, [f.weight for f in families])[0]
    return fill(rng.choice(family.templates), slots, rng)


def _label(book: RuleBook, text: str) -> Example:
    verdict = book.label(text)
    return Example(text, verdict.label, verdict.family)


def _distinct(texts: Iterable[str], seen: set[str], count: int) -> list[str]:
    return list(dict.fromkeys(t for t in texts if t not in seen))[:count]


def _fraction(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") / 2**32
