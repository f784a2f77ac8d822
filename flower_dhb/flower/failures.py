"""When all agents fail: a run in which nobody trains has not succeeded, and must say why."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flower_dhb.errors import RoundError
from flower_dhb.metrics import agents_text

__all__ = ["Failure", "Failures"]

_PATIENCE = 3  # rounds in a row in which all agents that answer fail
# Rounds, and seconds, from the start in which nothing came of anybody.
_FIRST_ROUNDS, _FIRST_S = 5, 120.0
_DIFFERS = re.compile(r"0x[0-9a-fA-F]+|\d+")  # addresses, vertices, counts, times
_HINTS = (
    (
        ("ModuleNotFoundError", "ImportError"),
        "install what is missing where the agents run, or correct the app's imports",
    ),
    (("in its node config, which has",), "name what the app reads in each node's node config"),
    (("not finite",), "take a smaller learning rate in the app"),
    (("exactly one ArrayRecord",), "let the app's train return one ArrayRecord, and one only"),
    (("MemoryError", "OutOfMemoryError"), "give the agents more memory, or a smaller model"),
)
_HINT = (
    "correct the app's train function; it is called here as under FedAvg, so a round of FedAvg "
    "with the same app shows the same error"
)


@dataclass(frozen=True)
class Failure:
    """Why one agent did not train: one line, and its traceback where there is one."""

    text: str
    detail: str = ""

    @property
    def way(self) -> str:
        """The text without what differs between agents that fail in the same way."""
        return _DIFFERS.sub("#", self.text)


class Failures:
    """Ends a run that cannot come to anything, and no other.

    In round 1: if no agent trained, and most agents failed, all in the same way. Later: if
    in three rounds in a row no agent trained and every one that answered failed. An agent
    that is late or gone has not failed: those may come back, but not if nothing has come of
    anybody in the first five rounds and two minutes. At the end: if no agent ever trained.

    trained: whether an agent has trained before, in a run that goes on.
    """

    def __init__(self, n_agents: int, *, trained: bool = False) -> None:
        self._n_agents = n_agents
        self._barren = 0
        self._trained = trained
        self._rounds = 0
        self._seconds = 0.0
        self._last: Mapping[int, Failure] = {}

    def look(
        self,
        round: int,
        delivered: Collection[int],
        failures: Mapping[int, Failure],
        seconds: float = 0.0,
    ) -> None:
        """Judge one round. Raises RoundError if it is to be the last.

        delivered: vertices that trained. failures: of those that answered, by vertex. seconds:
        that the round took.
        """
        self._rounds += 1
        self._seconds += seconds
        if delivered:
            self._trained, self._barren = True, 0
            return
        if failures:
            self._last = dict(failures)
        self._barren = self._barren + 1 if failures else 0
        most = 2 * len(failures) > self._n_agents
        same = len({failure.way for failure in failures.values()}) == 1
        if round == 1 and most and same:
            raise RoundError(self._text("in round 1 every agent that answered failed", failures))
        if self._barren >= _PATIENCE:
            what = f"in rounds {round - _PATIENCE + 1} to {round} every agent that answered failed"
            raise RoundError(self._text(what, failures))
        long = self._rounds >= _FIRST_ROUNDS and self._seconds >= _FIRST_S
        if not self._trained and long:
            raise self._nothing(
                f"no agent delivered anything in the first {self._rounds} rounds "
                f"({self._seconds:.0f} s), so the run ends here"
            )

    def end(self) -> None:
        """Raise RoundError if there were rounds and no agent trained in any of them."""
        if self._trained or not self._rounds:
            return
        raise self._nothing("no agent trained in any round")

    def _nothing(self, what: str) -> RoundError:
        if self._last:
            return RoundError(self._text(what, self._last))
        return RoundError(
            f"{what}, and none reported why: all were late or not connected. Set a longer "
            "round_timeout_s (or timeout of start), and see the events in strategy.result.history"
        )

    def _text(self, what: str, failures: Mapping[int, Failure]) -> str:
        """Remedy first, then each way to fail once, in full."""
        ways: dict[str, list[int]] = {}
        for vertex, failure in sorted(failures.items()):
            ways.setdefault(failure.way, []).append(vertex)
        first = next(iter(failures[vertices[0]].text for vertices in ways.values()))
        lines = [f"{_hint(first)}: {what}, so the run ends here."]
        for vertices in ways.values():
            shown = failures[vertices[0]]
            alike = "" if len(vertices) == 1 else ", in the same way"
            lines.append(f"{agents_text(vertices)}{alike}: {shown.text}")
            if shown.detail:
                lines.append(shown.detail.rstrip())
        return "\n".join(lines)


def _hint(text: str) -> str:
    for names, hint in _HINTS:
        if any(name in text for name in names):
            return hint
    return _HINT
