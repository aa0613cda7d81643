"""What the live view shows of the reward model: the captions that it likes most and least."""

import time

from orchestration.summary import CaptionScore
from reward_server.scorer import CaptionScorer

_SHOWN = 5
_REFRESH_S = 5.0

Scores = tuple[CaptionScore, ...]


class CaptionViews:
    """Asks the scorer every few seconds: it takes a while of the learner's time."""

    def __init__(self, scorer: CaptionScorer | None) -> None:
        self._scorer = scorer
        self.liked: Scores = ()
        self.disliked: Scores = ()
        self._refreshed = -_REFRESH_S

    def refresh(self) -> None:
        """Looks again, if it is due."""
        if self._scorer is None or time.perf_counter() - self._refreshed < _REFRESH_S:
            return
        self._refreshed = time.perf_counter()
        self.liked, self.disliked = favourites(self._scorer)


def favourites(scorer: CaptionScorer) -> tuple[Scores, Scores]:
    """The captions that the reward model likes most and least, the frequent ones first among equals."""
    top = scorer.top(_SHOWN)
    liked, disliked = (
        tuple(CaptionScore(caption.text, caption.probability, caption.count) for caption in captions)
        for captions in (top.liked, top.disliked)
    )
    return liked, disliked
