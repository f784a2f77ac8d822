"""What a run comes to, in a sentence: did it work, who fell behind, what did it cost, what next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from flower_dhb.metrics import size_text
from flower_dhb.pages.concerns import Concern, concerns, final
from flower_dhb.pages.model import MISSING, UNKNOWN, Run
from flower_dhb.pages.words import count, duration, names_text, score
from flower_dhb.runs.table import main_metric

__all__ = ["QUESTIONS", "Mood", "Verdict", "verdict"]

QUESTIONS = (
    "Did it work?",
    "Who fell behind?",
    "What did it cost?",
    "What should I change?",
)
Mood: TypeAlias = Literal["good", "mixed", "bad"]

_OFTEN = 0.1  # share of the rounds that an agent missed
_SHARE_MISSED, _MOST_MISSED = 0.2, 0.5  # of all contributions


@dataclass(frozen=True)
class Verdict:
    """mood: how it went as a whole. sentence: all of it. answers: to `QUESTIONS`, in order."""

    mood: Mood
    sentence: str
    answers: tuple[str, str, str, str]


def verdict(run: Run) -> Verdict:
    """Judge a run by what it has recorded: rounds, scores, distances, and who took part."""
    if not len(run.rounds):
        nothing = "No round was finished."
        change = "See the run's log for the reason; it wrote its folder and no round."
        return Verdict("bad", nothing, (nothing, "Nobody: no round.", "Nothing.", change))
    name = main_metric(run.bands)
    absent = _absent(run)
    # What the run itself has said comes first: it saw more than it has written down.
    found = [*_ending(run, name), *(Concern("mixed", "", t, "warning") for _, t in run.warnings)]
    found += [*concerns(run, name), *_missed(run, absent)]
    # The gravest first; of equally grave ones the order in which they were found.
    found.sort(key=lambda each: ("bad", "mixed", "good").index(each.mood))
    behind = [*absent, *(each.text for each in found if each.about == "agents")]
    cost = _cost(run)
    worked = _worked(run, name)
    said = [*absent, *(each.text for each in found if each.text and each.about != "rounds")]
    warned = [count(len(run.warnings), "warning")] if run.warnings else []
    parts = [worked[0], *said, *([] if behind else ["nobody fell behind"])]
    sentence = "; ".join([*parts, f"it cost {cost}", *warned]) + "."
    scores = [each.text for each in found if each.text and each.about == "run"]
    return Verdict(
        found[0].mood if found else "good",
        sentence,
        (
            " ".join(f"{text[0].upper()}{text[1:]}." for text in [*worked, *scores]),
            " ".join(f"{text[0].upper()}{text[1:]}." for text in behind)
            or "Nobody: all agents took part, and none is far below the others.",
            f"{cost[0].upper()}{cost[1:]}.",
            _advice(found),
        ),
    )


def _advice(found: Sequence[Concern]) -> str:
    """What to change, in one sentence: that of the gravest concern."""
    advice = next((each.advice for each in found if each.advice), "Nothing that this page can see")
    return advice if advice.endswith(".") else f"{advice}."


def _ending(run: Run, name: str | None) -> list[Concern]:
    """Whether the run came to its end, and has told anything."""
    found = []
    if run.planned and run.last_round < run.planned:
        found.append(
            Concern(
                "bad",
                "",
                "The run is not over, or was cut off: its log says why, and a run goes on with "
                "`resume` in its run config",
                "rounds",
            )
        )
    if name is None:
        found.append(
            Concern(
                "mixed",
                "",
                "Let the app's evaluate function return a metric, and evaluate-every be above 0",
                "rounds",
            )
        )
    return found


def _worked(run: Run, name: str | None) -> list[str]:
    finished = not run.planned or run.last_round >= run.planned
    of = f" of {run.planned:,}" if run.planned else ""
    who = count(run.n_agents, "agent") if run.n_agents else "The agents"
    done = "finished" if finished else "stopped after"
    one = run.planned == 1 or (not run.planned and run.last_round == 1)
    said = [f"{who} {done} {run.last_round:,}{of} {'round' if one else 'rounds'}"]
    if name is None:
        return [*said, "no metric of the agents' models was recorded"]
    mean, worst, _ = final(run, name)
    said[0] += f" with {name} {score(name, mean)} on average"
    if np.isfinite(worst) and score(name, worst) != score(name, mean):
        said[0] += f" and {score(name, worst)} at the worst agent"
    average = run.average_model.get(name)
    if average is not None:
        last = average[np.isfinite(average)][-1]
        said.append(f"the average of all models has {score(name, last)}")
    distance = run.consensus[np.isfinite(run.consensus)]
    if len(distance) > 1 and distance.max() > 0:
        said.append(
            f"the consensus distance ended at {distance[-1]:.3g}; its highest was "
            f"{distance.max():.3g}"
        )
    return said


def _absent(run: Run) -> list[str]:
    """Who missed many rounds."""
    found = []
    missed = run.missed
    told = (run.part != UNKNOWN).sum(axis=0)
    late = [i for i in np.argsort(-missed, kind="stable") if missed[i] > _OFTEN * told[i]]
    if late:
        who = names_text([run.agents[i] for i in late])
        most = f"{missed[late[0]]:,} of {told[late[0]]:,} rounds"
        found.append(f"{who} missed {most}" if len(late) == 1 else f"{who} missed up to {most}")
    silent = [i for i in range(run.n_agents) if told.any() and told[i] == 0]
    if silent:
        found.append(f"nothing is known of {names_text([run.agents[i] for i in silent])}")
    return found


def _missed(run: Run, absent: Sequence[str]) -> list[Concern]:
    known = int((run.part != UNKNOWN).sum())
    share = int((run.part == MISSING).sum()) / known if known else 0.0
    if not absent:
        return []
    mood: Mood = "bad" if share > _MOST_MISSED else "mixed"
    advice = (
        "Give the rounds a longer deadline, or the slow agents fewer local steps: too many "
        "contributions came too late or not at all"
        if share > _SHARE_MISSED
        else "Look at the logs of the agents named, or give the rounds a longer deadline"
    )
    return [Concern(mood, "", advice, "rounds")]


def _cost(run: Run) -> str:
    parts = []
    seconds, carried = run.seconds[-1], run.bytes[-1]
    if np.isfinite(seconds):
        each = duration(seconds / len(run.rounds))
        parts.append(f"{duration(seconds)} ({each} a round)")
    if np.isfinite(carried):
        n = max(run.n_agents, 1)
        parts.append(f"{size_text(carried)} between agents ({size_text(carried / n)} an agent)")
    return " and ".join(parts) or "a time and traffic that were not recorded"
