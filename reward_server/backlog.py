"""The captions that wait for the judge: last in, first out, and never more than a bound."""

from collections import OrderedDict
from typing import Generic, TypeVar

Caption = tuple[int, str]
"""(id, normalised text)."""

Q = TypeVar("Q")
"""What is asked about: a caption's text, or a `Pair` of captions."""


class Backlog(Generic[Q]):
    """A bounded LIFO queue of captions (or pairs of them), each held once by its id.

    Invariant: at most `bound` captions; whatever is pushed over that drops the oldest, which `push` returns.
    """

    def __init__(self, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"annotator.backlog must be at least 1, not {bound}")
        self._bound = bound
        self._texts: OrderedDict[int, Q] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, caption_id: int) -> bool:
        return caption_id in self._texts

    def push(self, caption_id: int, text: Q) -> tuple[int, Q] | None:
        """Adds the newest caption (one that waits already stays where it is). Returns the one dropped for it."""
        if caption_id in self._texts:
            return None
        self._texts[caption_id] = text
        return self._texts.popitem(last=False) if len(self._texts) > self._bound else None

    def push_oldest(self, caption_id: int, text: Q) -> tuple[int, Q] | None:
        """Adds a caption behind all others, to be asked about last. Returns it where the backlog is full."""
        if caption_id in self._texts:
            return None
        if len(self._texts) >= self._bound:
            return caption_id, text
        self._texts[caption_id] = text
        self._texts.move_to_end(caption_id, last=False)
        return None

    def newest(self) -> tuple[int, Q]:
        """The caption that `pop` would return; `IndexError` where none waits."""
        try:
            caption_id = next(reversed(self._texts))
        except StopIteration:
            raise IndexError("no caption waits") from None
        return caption_id, self._texts[caption_id]

    def pop(self) -> tuple[int, Q]:
        """Removes and returns the newest caption; `KeyError` where none waits."""
        return self._texts.popitem(last=True)

    def oldest_first(self) -> list[tuple[int, Q]]:
        return list(self._texts.items())
