"""The captions that actors told of last, for parts that take another's place."""

from collections import OrderedDict
from collections.abc import Iterable

KEPT = 1 << 15
"""Less than a scorer knows (`reward_server.scorer.CAPACITY`): a new learner is to know them all."""


class RecentCaptions:
    """The last `kept` different captions. What came before them, a new learner has from its checkpoint, and a new reward server
    from its store where it is labelled; all else is told of again where it comes again (`agents.telling`)."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._texts: OrderedDict[int, str] = OrderedDict()

    def add(self, captions: Iterable[tuple[int, str]]) -> None:
        """Takes (id, text); one that is told of again is the newest."""
        for number, text in captions:
            self._texts[number] = text
            self._texts.move_to_end(number)
            if len(self._texts) > self._kept:
                self._texts.popitem(last=False)

    def oldest_first(self) -> list[tuple[int, str]]:
        return list(self._texts.items())
