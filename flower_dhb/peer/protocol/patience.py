"""How long to wait for one neighbor: as long as it usually takes, and no longer."""

from __future__ import annotations

from collections import deque
from statistics import median

__all__ = ["Patience"]

_WINDOW = 16  # rounds that "usually" looks back
_MISSES_TO_NOTHING = 5  # 3 % of the deadline: a peer that is gone no longer costs time


class Patience:
    """The deadline for one neighbor's payload, in seconds after one's own was sent.

    It is `factor` times the median time of the neighbor's recent rounds, for each round since the
    edge was due last, at least `least_s` and at most `ceiling_s`. Before two such rounds in a row
    were seen, what the neighbor
    says of its pace stands for it, or else one's own; only without any of these it is the
    ceiling. A neighbor
    that misses it gets half the time in the next round. Being in time halves the count of
    misses, so one slip is forgiven at once, and a neighbor that is in time now and then
    only does not make each of its appearances expensive.

    usual_s: median seconds of the neighbor's recent rounds, 0 if nothing is known. told_s: what
    it said of that itself, 0 for nothing. own_s: seconds of one's own rounds, 0 if unknown.
    """

    def __init__(self, *, factor: float, least_s: float, ceiling_s: float) -> None:
        self.limit(factor, least_s, ceiling_s)
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._last: tuple[int, float] | None = None
        self.usual_s = self.told_s = self.own_s = 0.0
        self.misses = 0

    def limit(self, factor: float, least_s: float, ceiling_s: float) -> None:
        """Keep other limits from now on; what is known of the neighbor stays."""
        self._factor = factor
        self._least_s = min(least_s, ceiling_s)
        self._ceiling_s = ceiling_s

    @property
    def known(self) -> bool:
        """Whether the neighbor's pace was seen."""
        return bool(self._times)

    @property
    def deadline_s(self) -> float:
        """Seconds to wait in the next round, where the edge was due in the one before."""
        return self.deadline_after(1)

    def deadline_after(self, rounds: int) -> float:
        """Seconds to wait for what comes of so many rounds, which both ends did by themselves."""
        if self.misses > _MISSES_TO_NOTHING:
            return 0.0
        pace = self.usual_s if self.known else self.told_s or self.own_s
        usual = self._ceiling_s
        if self.known or pace > 0.0:
            usual = min(max(self._factor * pace * rounds, self._least_s), self._ceiling_s)
        return float(usual * 0.5**self.misses)

    def arrived(self, round: int, now: float, since: int | None = None) -> None:
        """The neighbor's payload of a round arrived in time. now: monotonic seconds.

        since: the round in which the edge was due before, if not the one before.
        """
        before = round - 1 if since is None else since
        if self._last is not None and self._last[0] == before:
            self._times.append((now - self._last[1]) / (round - before))
            self.usual_s = float(median(self._times))
        self._last = (round, now)
        self.misses //= 2

    def returned(self) -> None:
        """The neighbor was away and is connected again: it gets half of the full time."""
        self.misses = min(self.misses, 1)

    def missed(self) -> None:
        """The round was closed without the neighbor."""
        self.misses += 1
