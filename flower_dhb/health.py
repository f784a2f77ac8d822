"""Whether a run is well: its records are watched, and each cause of trouble is told once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from flower_dhb.metrics import RoundRecord, agents_text, is_better_when_lower

__all__ = ["Health"]

# Thresholds. Healthy runs of the tests (one and many local steps, equal and different data,
# rings, tori and complete graphs) stay away from all of them; `tests/unit/test_health.py`.
_IN_A_ROW = 3  # measurements in a row before anything but NaN is told
_APART = 1.0  # consensus distance over the way of the average: apart as far as they came
_GROWTH = 1.5  # of the consensus distance, from the start of the window to its end
_WINDOW = 6  # measurements over which growth is judged
_GROWN = 0.25  # growth below this share of the average's way is no trouble yet
_LOST = 0.5  # of what the loss had gained, given back
_OUTLIER = 5.0  # deviations of the others from their median
_GAP = 0.2  # and at least this much below the others' median, relative to it
_FEWEST = 4  # agents among which one can stand out


@dataclass
class Health:
    """Watches a run's records. Pure: a function of the records that it has seen.

    neighbors: by vertex.
    """

    neighbors: Mapping[int, Sequence[int]]
    _told: set[str] = field(default_factory=set)
    _ratios: list[tuple[float, float]] = field(default_factory=list)  # consensus, average's way
    _losses: dict[str, list[float]] = field(default_factory=dict)
    _streaks: dict[str, int] = field(default_factory=dict)

    def observe(self, record: RoundRecord) -> list[str]:
        """What is to be told after a round: the likely cause, and the setting to change.

        Each cause is told once in a run (that of one agent, once for that agent).
        """
        checks: tuple[Callable[[RoundRecord], Iterator[tuple[str, str]]], ...] = (
            self._not_finite,
            self._drifting_apart,
            self._rising_loss,
            self._one_far_below,
            self._alone,
            self._never_evaluated,
        )
        found = []
        for check in checks:
            for cause, text in check(record):
                if cause not in self._told:
                    self._told.add(cause)
                    found.append(text)
        return found

    # --- the causes -----------------------------------------------------------------

    def _not_finite(self, record: RoundRecord) -> Iterator[tuple[str, str]]:
        for part, per_agent in (("training", record.train), ("evaluation", record.evaluate)):
            vertices, names = [], []
            for vertex, metrics in per_agent.items():
                bad = [name for name, value in metrics.items() if not _is_finite(value)]
                if bad:
                    vertices.append(vertex)
                    names += bad
            if vertices:
                quoted = ", ".join(f"'{name}'" for name in sorted(set(names)))
                yield (
                    "not finite",
                    f"{agents_text(vertices)}: {quoted} of the {part} is NaN or infinite, so "
                    "training has probably diverged; take a smaller learning rate, or less "
                    "momentum (HeavyBall(momentum=0.5))",
                )

    def _drifting_apart(self, record: RoundRecord) -> Iterator[tuple[str, str]]:
        distance, way = record.consensus_distance, record.distance_from_start
        if distance is None or way is None or not math.isfinite(distance + way):
            return
        together = math.sqrt(max(way**2 - distance**2, 0.0))
        self._ratios.append((distance, together))
        remedy = (
            "the rule pushes them apart faster than mixing brings them together: take less "
            "momentum (HeavyBall(momentum=0.5)), fewer local steps or a smaller learning rate, or "
            "a topology with a larger spectral gap"
        )
        recent = self._ratios[-_WINDOW:]
        apart = all(d > _APART * t > 0.0 for d, t in recent)
        if len(recent) == _WINDOW and apart:
            yield (
                "apart",
                f"the consensus distance ({distance:.3g}) is larger than the way that the "
                f"average model has come ({together:.3g}); {remedy}",
            )
        rises = len(recent) == _WINDOW and all(b[0] > a[0] for a, b in pairwise(recent))
        if rises and distance > _GROWTH * recent[0][0] and distance > _GROWN * together:
            yield (
                "apart",
                f"the consensus distance has grown from {recent[0][0]:.3g} to {distance:.3g} in "
                f"{_WINDOW} measurements in a row, while the average model has come "
                f"{together:.3g} from its start; {remedy}",
            )

    def _rising_loss(self, record: RoundRecord) -> Iterator[tuple[str, str]]:
        # The loss of held-out data rises in a healthy run, too, when a model overfits.
        summary = record.train_summary
        for name, found in summary.items():
            if "loss" not in name.lower() or not isinstance(found.mean, float):
                continue
            if not math.isfinite(found.mean):
                continue
            losses = self._losses.setdefault(name, [])
            losses.append(found.mean)
            first, best = losses[0], min(losses)
            gained = max(first - best, 0.1 * abs(first))
            risen = found.mean > best + max(_LOST * gained, 0.5 * abs(best))
            if self._in_a_row(f"loss {name}", risen):
                yield (
                    "loss",
                    f"the mean of '{name}' has risen from {best:.4g} to {found.mean:.4g}; take a "
                    "smaller learning rate, less momentum, or fewer local steps",
                )

    def _one_far_below(self, record: RoundRecord) -> Iterator[tuple[str, str]]:
        for name in record.evaluate_summary:
            values = {
                v: float(x)
                for v, m in record.evaluate.items()
                if isinstance(x := m.get(name), int | float) and math.isfinite(x)
            }
            if len(values) < _FEWEST:
                continue
            sign = -1.0 if is_better_when_lower(name, record.lower_is_better) else 1.0
            for vertex, value in values.items():
                others = [x for v, x in values.items() if v != vertex]
                middle = median(others)
                spread = 1.4826 * median(abs(x - middle) for x in others)
                behind = sign * (middle - value)
                far = behind > max(_OUTLIER * spread, _GAP * abs(middle)) > 0.0
                far = far and all(sign * x > sign * value + behind / 2 for x in others)
                if self._in_a_row(f"below {name} {vertex}", far):
                    yield (
                        f"below {vertex}",
                        f"agent {vertex} is far below the others: '{name}' {value:.4g}, median of "
                        f"the others {middle:.4g}; look at its data and at its events, and give "
                        "it more neighbors if it has few",
                    )

    def _alone(self, record: RoundRecord) -> Iterator[tuple[str, str]]:
        missing = set(record.missing)
        for vertex, neighbors in self.neighbors.items():
            alone = bool(neighbors) and (vertex in missing or missing >= set(neighbors))
            if not self._in_a_row(f"alone {vertex}", alone):
                continue
            why = (
                "it delivered nothing itself"
                if vertex in missing
                else "its neighbors delivered nothing"
            )
            yield (
                f"alone {vertex}",
                f"agent {vertex} has exchanged nothing for {_IN_A_ROW} rounds: {why} (see the "
                "events); if agents are only slow, set a longer round_timeout_s",
            )

    def _never_evaluated(self, record: RoundRecord) -> Iterator[tuple[str, str]]:
        # An event of every agent, and no metric of any: the app cannot evaluate.
        if record.evaluate or record.missing or record.consensus_distance is None:
            return
        for vertices, text in record.grouped_events:
            if 2 * len(vertices) > len(self.neighbors):
                yield (
                    "evaluate",
                    f"no agent could evaluate its model ({text}); give the app an evaluate "
                    "function, or set evaluate_every=0",
                )

    def _in_a_row(self, what: str, holds: bool) -> bool:
        """Whether this has held for so many measurements in a row."""
        self._streaks[what] = self._streaks.get(what, 0) + 1 if holds else 0
        return self._streaks[what] >= _IN_A_ROW


def _is_finite(value: object) -> bool:
    numbers = value if isinstance(value, Sequence) else [value]
    return all(math.isfinite(x) for x in numbers if isinstance(x, int | float))
