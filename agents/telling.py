"""Captions travel as ids; what each id stands for is told once, and told again long after."""

from collections import OrderedDict
from collections.abc import Iterable

from envs.captions import EMPTY_CAPTION_ID, caption_id

REMEMBERED = 1 << 13
"""Captions that an actor remembers to have told of."""


class CaptionTeller:
    """Numbers captions, and gathers the texts of those that are to be told of.

    It remembers the last `remembered` different ones that it told of, and tells again of any other that comes. So memory has a
    bound in worlds that never cease to say new things, and who forgot a caption or never heard of it will know it: a backlog
    that was full, a learner that takes another's place. A learner that meets one that it does not know asks for it
    (`tell_again`).
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._ids: OrderedDict[str, int] = OrderedDict()
        """In the order in which they were told of."""
        self._new: list[tuple[int, str]] = []

    def number(self, text: str) -> int:
        """The id of a caption."""
        if not text:
            return EMPTY_CAPTION_ID
        known = self._ids.get(text)
        if known is None:
            known = self._ids[text] = caption_id(text)
            self._new.append((known, text))
            if len(self._ids) > self._remembered:
                self._ids.popitem(last=False)
        return known

    def take_new(self) -> tuple[tuple[int, str], ...]:
        """(id, text) of the captions to be told of since the last call."""
        new, self._new = tuple(self._new), []
        return new

    def tell_again(self, ids: Iterable[int]) -> None:
        """As if it had not told of these."""
        wanted = set(ids)
        for text in [text for text, known in self._ids.items() if known in wanted]:
            del self._ids[text]

    @property
    def told(self) -> list[str]:
        """The captions remembered, for a checkpoint."""
        return list(self._ids)

    def remember(self, told: Iterable[str]) -> None:
        """In place of all else: those of a checkpoint, the last of them where they are too many."""
        last = [text for text in told if text][-self._remembered :]
        self._ids = OrderedDict((text, caption_id(text)) for text in last)
        self._new = []
