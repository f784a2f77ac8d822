"""What went wrong in a run, the same text once."""

from __future__ import annotations

import re
from collections.abc import Iterable

from flower_dhb.pages.model import Event

__all__ = ["Events"]

_MOST = 2_000  # kinds of events that are kept apart


class Events:
    """Events of a run, gathered by text. Numbers in a text do not make another kind of it."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, set[int], list[int]]] = {}

    def add(self, round: int, agents: Iterable[int], what: str) -> None:
        """Take note of one."""
        key = re.sub(r"\d+", "#", what)
        if key not in self._kinds and len(self._kinds) >= _MOST:
            key, what = "", "events of more kinds than are kept apart"
        _, befell, rounds = self._kinds.setdefault(key, (what, set(), []))
        befell.update(agents)
        rounds.append(round)

    def listed(self) -> list[Event]:
        """The most frequent first."""
        found = [
            Event(
                agents=sorted(agents),
                what=what,
                times=len(rounds),
                first=min(rounds),
                last=max(rounds),
            )
            for what, agents, rounds in self._kinds.values()
        ]
        return sorted(found, key=lambda event: -event.times)
