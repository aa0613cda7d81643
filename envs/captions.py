"""Captions: the text of a step that a judge can read, and the 64-bit id that stands for it everywhere else."""

import hashlib
import re
import unicodedata

EMPTY_CAPTION_ID = 0
"""The id of the empty caption. It is never annotated and its intrinsic reward is 0."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SPACE = re.compile(r"\s+")


def normalise(text: str) -> str:
    """The canonical form of a caption: Unicode NFC, control characters and runs of white space made one space."""
    return _SPACE.sub(" ", _CONTROL.sub(" ", unicodedata.normalize("NFC", text))).strip()


def caption_id(text: str) -> int:
    """The id of a *normalised* caption: blake2b with a 64-bit digest, as an integer that numpy and SQLite can hold.

    The empty text has id `EMPTY_CAPTION_ID`.
    """
    if not text:
        return EMPTY_CAPTION_ID
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
