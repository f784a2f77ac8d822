"""Whether a run is well: its records are watched, and each cause of trouble is told once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from flower_dhb.metrics import RoundRecord, agents_text, is_better_when_lower

__all__ = ["Health"]

# Thresholds. In healthy runs (digits; one and ten local steps, an epoch with momentum; equal
# data and two classes an agent; rings, tori, complete graphs; all momenta) the ratio of the
# consensus distance to the way of the average model begins at 0.2 to 1.5, then falls without
# turning, to less than 0.5 at the twelfth measurement, two classes a ring of 16 excepted.
_IN_A_ROW = 3  # measurements in a row before anything but NaN is told
_SETTLED = 3  # measurements after which the ratio falls in a healthy run
_TURNED = 1.5  # the ratio over its lowest
_TURNED_LEAST = 0.1  # below this the agents are together, whatever the ratio does
_APART, _APART_AFTER = 1.0, 8  # the ratio, and the measurements after which it is too high
_FAR, _FAR_AFTER = 0.5, 12  # the same, later
_GROWN, _LAG = 1.25, 8  # of the consensus distance, over so many measurements, while …
_NO_GAIN = 0.9  # … the training loss is still so much of what it was, and …
_GROWN_LEAST = 0.15  # … the ratio is above this
_LOST = 0.5  # of what the loss had gained, given back
_OUTLIER = 5.0  # deviations of the others from their median
_GAP = 0.2  # and at least this much below the others' median, relative to it
_FEWEST = 4  # agents among which one can stand out


@dataclass
class Health:
    """Watches a run's records. Pure: a function of the records that it has seen.

    neighbors: by vertex. due: those of a round and a vertex, where they are not always the same.
    """

    neighbors: Mapping[int, Sequence[int]]
    due: Callable[[int, int], Sequence[int]] | None = None
    _told: set[str] = field(default_factory=set)
    _apart: list[float] = field(default_factory=list)  # consensus distance / way of the average
    _distances: list[tuple[float, float | None]] = field(default_factory=list)  # and loss
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
        if not any(self._due(record.round, v) for v in self.neighbors):
            return  # between two exchanges agents do move apart
        if distance is None or way is None or not math.isfinite(distance + way):
            return
        together = math.sqrt(max(way**2 - distance**2, 0.0))
        if not together > 0.0:
            return  # nothing has moved yet
        ratio = distance / together
        self._apart.append(ratio)
        self._distances.append((distance, _training_loss(record)))
        count = len(self._apart)
        lowest = min(self._apart[_SETTLED:], default=math.inf)
        turned = ratio > max(_TURNED * lowest, _TURNED_LEAST)
        too_far = (ratio > _APART and count >= _APART_AFTER) or (
            ratio > _FAR and count >= _FAR_AFTER
        )
        remedy = (
            "training pushes the agents apart faster than mixing brings them together: take less "
            "momentum (HeavyBall(momentum=0.5)), fewer local steps or a smaller learning rate, or "
            "a topology with a larger spectral gap"
        )
        (before, loss_before), (_, loss) = (
            self._distances[max(-1 - _LAG, -count)],
            self._distances[-1],
        )
        in_vain = (
            count > _LAG + _SETTLED - 1
            and ratio > _GROWN_LEAST
            and distance > _GROWN * before
            and loss is not None
            and loss_before is not None
            and loss > _NO_GAIN * loss_before
        )
        if self._in_a_row("in vain", in_vain):
            yield (
                "apart",
                f"the agents drift apart: the consensus distance has grown from {before:.3g} to "
                f"{distance:.3g} in {_LAG} measurements, and the training loss has not fallen; "
                f"{remedy}",
            )
        if self._in_a_row("turned", turned):
            yield (
                "apart",
                f"the agents drift apart: the consensus distance has grown to {distance:.3g}, "
                f"{ratio:.2g} of the way that the average model has come ({together:.3g}), after "
                f"{lowest:.2g} before; {remedy}",
            )
        if self._in_a_row("far", too_far):
            yield (
                "apart",
                f"the agents do not come together: the consensus distance ({distance:.3g}) is "
                f"still {ratio:.2g} of the way that the average model has come ({together:.3g}); "
                f"{remedy}",
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
        silent: list[int] = []
        deserted: list[int] = []
        for vertex in self.neighbors:
            near = self._due(record.round, vertex)
            if not near and vertex not in missing:
                continue  # no edge of it was due
            alone = bool(self.neighbors[vertex]) and (vertex in missing or missing >= set(near))
            if self._in_a_row(f"alone {vertex}", alone) and f"alone {vertex}" not in self._told:
                self._told.add(f"alone {vertex}")
                (silent if vertex in missing else deserted).append(vertex)
        for vertices, why in (
            (silent, "delivered nothing (see the events)"),
            (deserted, "had no neighbor that delivered"),
        ):
            if vertices:
                yield (
                    f"alone {vertices}",
                    f"no edge of {agents_text(vertices)} has counted for {_IN_A_ROW} rounds, since "
                    f"{'it' if len(vertices) == 1 else 'they'} {why}; if agents are only slow, set "
                    "a longer round_timeout_s",
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

    def _due(self, round: int, vertex: int) -> Sequence[int]:
        return self.neighbors[vertex] if self.due is None else self.due(round, vertex)

    def _in_a_row(self, what: str, holds: bool) -> bool:
        """Whether this has held for so many measurements in a row."""
        self._streaks[what] = self._streaks.get(what, 0) + 1 if holds else 0
        return self._streaks[what] >= _IN_A_ROW


def _training_loss(record: RoundRecord) -> float | None:
    """Mean of the app's first training metric that is a loss by its name."""
    for name, found in record.train_summary.items():
        if "loss" in name.lower() and isinstance(found.mean, float):
            return found.mean
    return None


def _is_finite(value: object) -> bool:
    numbers = value if isinstance(value, Sequence) else [value]
    return all(math.isfinite(x) for x in numbers if isinstance(x, int | float))
