"""What a run comes to, in a sentence: did it work, who fell behind, what did it cost, what next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from flower_dhb.metrics import is_better_when_lower
from flower_dhb.pages.model import UNKNOWN, Run
from flower_dhb.pages.words import amount, count, duration, names_text, score
from flower_dhb.runs.table import main_metric

__all__ = ["QUESTIONS", "Verdict", "verdict"]

QUESTIONS = (
    "Did it work?",
    "Who fell behind?",
    "What did it cost?",
    "What should I change?",
)
_OFTEN = 0.1  # share of the rounds that an agent missed
_BELOW, _DEVIATIONS, _FEWEST = 0.1, 5.0, 4  # what makes one agent's score stand out
_STILL = 0.01  # gain over the last fifth of the rounds, relative, of a run that still improves


@dataclass(frozen=True)
class Verdict:
    """mood: how it went as a whole. sentence: all of it. answers: to `QUESTIONS`, in order."""

    mood: Literal["good", "mixed", "bad"]
    sentence: str
    answers: tuple[str, str, str, str]


def verdict(run: Run) -> Verdict:
    """Judge a run by what it has recorded."""
    if not len(run.rounds):
        nothing = "No round was finished."
        change = "See the run's log for the reason; it wrote its folder and no round."
        return Verdict("bad", nothing, (nothing, "Nobody: no round.", "Nothing.", change))
    finished = not run.planned or run.last_round >= run.planned
    name = main_metric(run.bands)
    behind = _behind(run, name)
    worked = _worked(run, name, finished)
    cost = _cost(run)
    change = _change(run, name, behind, finished)
    good = finished and not behind and not run.warnings and name is not None
    mood: Literal["good", "mixed", "bad"] = "good" if good else "mixed"
    if not finished or (name is not None and np.isnan(_final(run, name)[0])):
        mood = "bad"
    slow = f"; {behind[0]}" if behind else "; nobody fell behind"
    warned = f"; {count(len(run.warnings), 'warning')}" if run.warnings else ""
    sentence = f"{worked[0]}{slow}; it cost {cost}{warned}."
    others = " ".join(f"{text[0].upper()}{text[1:]}." for text in behind)
    return Verdict(
        mood,
        sentence,
        (
            ". ".join(worked) + ".",
            others or "Nobody: all agents took part, and none is far below the others.",
            f"{cost[0].upper()}{cost[1:]}.",
            change,
        ),
    )


def _final(run: Run, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Mean, worst and best agent in the last round that was evaluated."""
    known = np.flatnonzero(np.isfinite(run.bands[name][:, 0]))
    return np.asarray(run.bands[name][known[-1] if len(known) else -1], np.float64)


def _worked(run: Run, name: str | None, finished: bool) -> list[str]:
    of = f" of {run.planned:,}" if run.planned else ""
    who = count(run.n_agents, "agent") if run.n_agents else "The agents"
    done = "finished" if finished else "stopped after"
    said = [f"{who} {done} {run.last_round:,}{of} {'round' if run.planned == 1 else 'rounds'}"]
    if name is None:
        return [*said, "No metric of the agents' models was recorded"]
    mean, worst, _ = _final(run, name)
    said[0] += f" with {name} {score(name, mean)} on average"
    if np.isfinite(worst) and score(name, worst) != score(name, mean):
        said[0] += f" and {score(name, worst)} at the worst agent"
    average = run.average_model.get(name)
    if average is not None:
        last = average[np.isfinite(average)][-1]
        said.append(f"The average of all models has {score(name, last)}")
    distance = run.consensus[np.isfinite(run.consensus)]
    if len(distance) > 1 and distance.max() > 0:
        said.append(
            f"The consensus distance ended at {distance[-1]:.3g}; its highest was "
            f"{distance.max():.3g}"
        )
    return said


def _behind(run: Run, name: str | None) -> list[str]:
    """Who missed many rounds, and whose model is far below the others'."""
    found = []
    missed = run.missed
    told = (run.part != UNKNOWN).sum(axis=0)
    late = [i for i in np.argsort(-missed, kind="stable") if missed[i] > _OFTEN * told[i]]
    if late:
        who = names_text([run.agents[i] for i in late])
        most = f"{missed[late[0]]:,} of {told[late[0]]:,} rounds"
        found.append(f"{who} missed {most}" if len(late) == 1 else f"{who} missed up to {most}")
    silent = [i for i in range(run.n_agents) if len(told) and told[i] == 0]
    if silent:
        found.append(f"nothing is known of {names_text([run.agents[i] for i in silent])}")
    values = run.last.get(name or "")
    if values is not None and np.isfinite(values).sum() >= _FEWEST:
        sign = -1.0 if is_better_when_lower(name or "") else 1.0
        below = sign * (np.nanmedian(values) - values)
        scale = np.nanmedian(np.abs(below)) * _DEVIATIONS
        least = _BELOW * abs(float(np.nanmedian(values)))
        low = [i for i in np.argsort(-below) if below[i] > max(scale, least)]
        if low:
            who = names_text([run.agents[i] for i in low])
            found.append(
                f"{who} ended far below the others, at {score(name or '', values[low[0]])}"
            )
    return found


def _cost(run: Run) -> str:
    parts = []
    seconds, carried = run.seconds[-1], run.bytes[-1]
    if np.isfinite(seconds):
        each = duration(seconds / len(run.rounds))
        parts.append(f"{duration(seconds)} ({each} a round)")
    if np.isfinite(carried):
        n = max(run.n_agents, 1)
        parts.append(f"{amount(carried)} between agents ({amount(carried / n)} an agent)")
    return " and ".join(parts) or "a time and traffic that were not recorded"


def _change(run: Run, name: str | None, behind: list[str], finished: bool) -> str:
    said = [text if text.endswith(".") else f"{text}." for _, text in run.warnings]
    if not finished:
        said.append(
            "The run is not over, or was cut off: its log says why, and a run goes on with "
            "`resume` in its run config."
        )
    if name is None:
        said.append(
            "Let the app's evaluate function return a metric, and evaluate-every be above 0."
        )
    elif (gain := _still_improving(run, name)) and finished and not run.warnings:
        said.append(
            f"The agents' {name} still improved by {gain:.1%} in the last fifth of the rounds: "
            "more rounds would help."
        )
    if behind and not said:
        said.append("Look at the log of the agents named, or give the rounds a longer deadline.")
    return " ".join(said) or "Nothing that this page could see."


def _still_improving(run: Run, name: str) -> float:
    mean = run.bands[name][:, 0]
    mean = mean[np.isfinite(mean)]
    if len(mean) < 5:
        return 0.0
    before, now = float(mean[-1 - len(mean) // 5]), float(mean[-1])
    gain = before - now if is_better_when_lower(name) else now - before
    return gain / abs(before) if before and gain / abs(before) > _STILL else 0.0
