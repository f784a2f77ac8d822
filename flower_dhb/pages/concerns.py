"""What the scores of a run give reason to worry about, each with the setting to change.

A page knows neither the task nor what its user hoped for. It compares a run with itself: its end
with its best, its worst agent with the mean, the agents' distance with the way they have come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flower_dhb.metrics import is_better_when_lower
from flower_dhb.pages.model import Floats, Run
from flower_dhb.pages.words import is_share, names_text, score

__all__ = ["Concern", "concerns", "final"]

_FLAT = 0.02  # gain over the run of a score that has not moved: of a share, or relative
_KNOWING = 0.6  # how much better than guessing a share has to be, where 1 is perfect
_GUESSING = 0.1
_LITTLE_LOST, _MUCH_LOST = 0.2, 0.5  # of what the run had gained
_LEAST_LOST = 0.02  # of a share, or relative; less is noise
_GAP, _WIDE_GAP = 0.1, 0.5  # worst agent below the mean: of a share or relative, and relative
_GAP_OF_LOSS = 1.0  # worst agent above the mean, relative
_STILL, _MUCH_STILL = 0.01, 0.05  # gain in the last fifth of the rounds, relative
_GROWN, _GROWN_RAW = 1.25, 1.5  # consensus distance from the middle of the run to its end
_FEW, _SOME = 3, 5  # measurements from which a course can be told
_DEVIATIONS, _STANDING_OUT = 5.0, 4  # what makes one agent's score stand out, among how many

_CALMER = (
    "Take a smaller learning rate, less momentum or fewer local steps, since training left what "
    "it had reached"
)
_CLOSER = (
    "Take a graph with a larger spectral gap, fewer local steps or less momentum, since the "
    "agents move apart faster than mixing brings them together"
)


@dataclass(frozen=True)
class Concern:
    """text: what is the matter, in few words. advice: a sentence that says what to change.

    about: `run`, `agents`, `rounds` (told elsewhere) or `warning` (told by the run itself).
    """

    mood: Literal["good", "mixed", "bad"]
    text: str
    advice: str
    about: str = "run"


def final(run: Run, name: str) -> Floats:
    """Mean, worst and best agent in the last round that was evaluated, `(3,)`."""
    known = np.flatnonzero(np.isfinite(run.bands[name][:, 0]))
    return np.asarray(run.bands[name][known[-1] if len(known) else -1], np.float64)


def concerns(run: Run, name: str | None) -> list[Concern]:
    """All of a run, by the metric that tells most; none if nothing was measured."""
    if name is None or not np.isfinite(run.bands[name][:, 0]).any():
        return []
    found = [*_lost(run, name), *_course(run, name), *_knows(run, name)]
    spread, single = [*_spread(run, name)], [*_stands_out(run, name)]
    if spread and single:  # the same agents, by their names
        spread = [replace(single[0], mood=spread[0].mood)]
    return [*found, *(spread or single), *_apart(run)]


def _lost(run: Run, name: str) -> Iterator[Concern]:
    """Scores that are there no more: what is NaN or infinite is not recorded."""
    known = np.flatnonzero(np.isfinite(run.bands[name][:, 0]))
    steps = np.diff(run.rounds[known])
    usual = int(np.median(steps)) if len(steps) else 0
    last = int(run.rounds[known[-1]])
    if usual and run.last_round >= last + 2 * usual:
        yield Concern(
            "bad",
            f"after round {last:,} {name} was recorded no more, as when it is no number",
            "Take a smaller learning rate or less momentum if the events tell of NaN, since "
            "training has then diverged",
        )


def _course(run: Run, name: str) -> Iterator[Concern]:
    """A score that fell again, never rose, or still rises."""
    mean = run.bands[name][:, 0]
    known = np.flatnonzero(np.isfinite(mean))
    if len(known) < _FEW:
        return
    down = is_better_when_lower(name)
    better = -mean[known] if down else mean[known]
    first, now = float(better[0]), float(better[-1])
    at = int(np.argmax(better))
    most = float(better[at])
    size = 1.0 if is_share(name) else max(abs(most), abs(first), 1e-12)
    lost, gained = most - now, most - first
    when = f"{score(name, float(mean[known[at]]))} in round {run.rounds[known[at]]:,}"
    end = score(name, float(mean[known[-1]]))
    if lost > max(_LITTLE_LOST * gained, _LEAST_LOST * size):
        gone = lost > _MUCH_LOST * max(gained, _LEAST_LOST * size)
        rose = "rose" if down else "fell"
        yield Concern("bad" if gone else "mixed", f"{name} {rose} again, from {when}", _CALMER)
    elif now - first < _FLAT * size and not (is_share(name) and now > _KNOWING):
        moved = "did not fall" if down else "did not rise"
        yield Concern(
            "bad",
            f"{name} {moved}: {score(name, float(mean[known[0]]))} at first, {end} at the end",
            "Take another learning rate, ten times larger and ten times smaller first, since "
            "nothing was learned",
        )
    elif len(known) >= _SOME:
        before = float(better[-1 - len(known) // 5])
        gain = (now - before) / abs(before) if before else 0.0
        if gain > _STILL:
            yield Concern(
                "mixed" if gain > _MUCH_STILL else "good",
                f"{name} still improved by {gain:.1%} in the last fifth of the rounds",
                "Give it more rounds, since it was still improving at the end",
            )


def _knows(run: Run, name: str) -> Iterator[Concern]:
    """A share that is small, or hardly better than guessing among the classes of the split."""
    mean = float(final(run, name)[0])
    if not is_share(name) or not 0.0 <= mean <= 1.0:
        return
    classes = 0 if run.split is None else int((run.split.sum(axis=1) > 0).sum())
    chance = 1.0 / classes if classes > 1 else 0.0
    skill = (mean - chance) / (1.0 - chance)
    if classes > 1 and skill < _GUESSING:
        yield Concern(
            "bad",
            f"that is hardly better than guessing among {classes} classes ({chance:.1%})",
            "Check that the app learns at all with one agent, and take another learning rate",
        )
    elif skill < _KNOWING:
        yield Concern(
            "mixed",
            f"{score(name, mean)} is little, unless the task is hard",
            "Compare it with what the app reaches with one agent or under FedAvg; if that is "
            "more, take a graph with a larger spectral gap or more rounds",
        )


def _spread(run: Run, name: str) -> Iterator[Concern]:
    """The worst agent is far from the mean."""
    mean, worst, _ = (float(value) for value in final(run, name))
    if not np.isfinite(worst):
        return
    down = is_better_when_lower(name)
    gap = worst - mean if down else mean - worst
    # Losses differ with the data; how much of a loss is much, nobody knows.
    least = _GAP_OF_LOSS * abs(mean) if down else _GAP * (1.0 if is_share(name) else abs(mean))
    if gap <= least:
        return
    wide = not down and gap > _WIDE_GAP * abs(mean)
    values = run.last.get(name)
    who = ""
    if values is not None and np.isfinite(values).any():
        pick = np.nanargmax if down else np.nanargmin
        who = f" ({names_text([run.agents[int(pick(values))]])})"
    far = f"{100 * gap:.0f} points" if is_share(name) else f"{gap:.3g}"
    yield Concern(
        "bad" if wide else "mixed",
        f"the worst agent{who} is {far} {'above' if down else 'below'} the mean",
        "Give that agent more neighbors, or the graph a larger spectral gap, and look at its data "
        "and events",
        "agents",
    )


def _stands_out(run: Run, name: str) -> Iterator[Concern]:
    """Single agents whose model is far below the others'."""
    values = run.last.get(name)
    if values is None or np.isfinite(values).sum() < _STANDING_OUT:
        return
    sign = -1.0 if is_better_when_lower(name) else 1.0
    below = sign * (np.nanmedian(values) - values)
    scale = np.nanmedian(np.abs(below)) * _DEVIATIONS
    least = _GAP * abs(float(np.nanmedian(values)))
    low = [i for i in np.argsort(-below) if below[i] > max(scale, least)]
    if low:
        who = names_text([run.agents[i] for i in low])
        far = "above" if sign < 0 else "below"
        yield Concern(
            "mixed",
            f"{who} ended far {far} the others, at {score(name, values[low[0]])}",
            "Look at the data and the events of the agents named, and give them more neighbors",
            "agents",
        )


def _apart(run: Run) -> Iterator[Concern]:
    """A consensus distance that grew in the second half of the run."""
    known = np.flatnonzero(np.isfinite(run.consensus))
    distance = run.consensus[known]
    if len(distance) < 2 * _SOME:
        return
    way = run.way[known] if len(run.way) else np.full(len(known), np.nan)
    limit = _GROWN_RAW
    if np.isfinite(way).all():  # how far the average model has come
        together = np.sqrt(np.maximum(way**2 - distance**2, 0.0))
        if (together[len(known) // 2 :] > 0.0).all():
            with np.errstate(divide="ignore", invalid="ignore"):
                distance, limit = distance / together, _GROWN
    fifth = max(len(distance) // 5, 1)
    half = len(distance) // 2
    before = float(np.median(distance[half - fifth // 2 : half + fifth // 2 + 1]))
    now = float(np.median(distance[-fifth:]))
    if before > 0.0 and now > limit * before:
        yield Concern(
            "mixed", f"the agents still moved apart: their distance grew by {now / before - 1:.0%} "
            "in the second half", _CLOSER,
        )  # fmt: skip
