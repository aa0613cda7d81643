"""The captions that actors told of last, for parts that take another's place."""

from collections import OrderedDict
from collections.abc import Iterable

KEPT = 1 << 15


class RecentCaptions:
    """The last `kept` different captions. What came before is in the checkpoint that a new learner begins with and in the
    store of a new reward server, or actors tell of it again (`agents.telling`)."""

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
