"""What a run tells the command that started it: one JSON line for each thing that happened.

`flower-dhb run` names a file in the environment of the run that it starts. A strategy and a
run folder append to it; without the variable they do nothing. So the command need not know
the app, and the app need not know the command.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flower_dhb.metrics import RoundRecord, Summary

__all__ = ["VARIABLE", "Progress", "round_facts", "round_line", "tell", "tell_round", "watched"]

VARIABLE = "FLOWER_DHB_PROGRESS"


def watched() -> bool:
    """Whether somebody reads what this run tells."""
    return bool(os.environ.get(VARIABLE))


def tell(what: str, **values: Any) -> None:
    """Append one thing that happened, if somebody wants to know.

    what: `start` (a strategy begins), `round` (one is finished), `end` (a strategy has its
    result, and which agents that lacks) or `folder` (results are written there).
    """
    if not watched():
        return
    line = json.dumps({"what": what, **values}) + "\n"
    # Nobody's results depend on this file, so a run goes on without it.
    with suppress(OSError), Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(line)


def tell_round(record: RoundRecord) -> None:
    """Tell a finished round."""
    tell("round", **round_facts(record))


def round_facts(record: RoundRecord) -> dict[str, Any]:
    """A finished round for those who watch, as plain values for JSON.

    Means over agents, worst and best one, the average model, and what went wrong.
    """
    return {
        "round": record.round,
        "metrics": _numbers(record.evaluate_summary),
        "average_model": record.average_model,
        "lower_is_better": list(record.lower_is_better),
        "consensus_distance": record.consensus_distance,
        "missing": record.missing,
        "events": [[vertices, text] for vertices, text in record.grouped_events],
        "warnings": record.warnings,
        "seconds": record.seconds,
        "profile": record.profile,
    }


def round_line(record: RoundRecord, rounds: int) -> str:
    """One plain line that says how a round went."""
    parts = [f"round {record.round}/{rounds}"]
    for name, found in record.evaluate_summary.items():
        if isinstance(found.mean, float) and found.worst is not None:
            parts.append(f"{name} {found.mean:.4g} (worst {found.worst:.4g})")
    if record.consensus_distance is not None:
        parts.append(f"consensus distance {record.consensus_distance:.3g}")
    if record.missing:
        parts.append(f"missing {record.missing}")
    parts.append(f"{record.seconds:.2f} s")
    return " | ".join(parts)


class Progress:
    """Reads what a run tells, as it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # What an earlier run told is not news.
        self._offset = path.stat().st_size if path.exists() else 0

    def news(self) -> list[dict[str, Any]]:
        """What was told since the last call; a line that is being written comes next time."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _numbers(summary: Mapping[str, Summary]) -> dict[str, float]:
    """`NAME`, `NAME-worst` and `NAME-best` of each metric that is a number."""
    found: dict[str, float] = {}
    for name, one in summary.items():
        if isinstance(one.mean, float) and one.worst is not None and one.best is not None:
            found |= {name: one.mean, f"{name}-worst": one.worst, f"{name}-best": one.best}
    return found
