"""One round as the relay sees it: its record, who trained, who failed, what befell whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING
from typing import Literal

from flwr.common import log

from flower_dhb.flower.failures import Failure
from flower_dhb.flower.records import Answer
from flower_dhb.metrics import Events, Metrics, RoundRecord, agents_text, grouped

__all__ = ["Round"]


@dataclass
class Round:
    """The state of one round; nobody else writes into its record while it goes on.

    delivered: vertices whose payload came in time. failures: of those that answered, and did
    not train.
    """

    record: RoundRecord
    delivered: set[int] = field(default_factory=set)
    failures: dict[int, Failure] = field(default_factory=dict)
    _unlogged: Events = field(default_factory=list)

    @property
    def number(self) -> int:
        """Which round it is; 0 before the first."""
        return self.record.round

    def note(self, vertex: int, text: str) -> None:
        """Write down what befell an agent; `flush` tells the log."""
        self.record.events.append((vertex, text))
        self._unlogged.append((vertex, text))

    def failed(self, vertex: int, failure: Failure) -> None:
        """An agent answered, and did not train."""
        self.note(vertex, failure.text)
        self.failures[vertex] = failure

    def bound_by(self, vertex: int, policy: str) -> None:
        """What an agent sent is what its node's policy lets out; empty if that has none."""
        if policy:
            self.record.policies[vertex] = policy

    def rejoined(self, vertex: int, state_round: int) -> None:
        """An agent had lost its state and has begun again from its neighbors'."""
        self.record.rejoined.append(vertex)
        self.note(vertex, f"state was lost; rejoined at round {state_round}")

    def close(self, delivered: Collection[int], sent: Mapping[int, int], n_agents: int) -> None:
        """No payload counts any more. sent: bytes over each agent's edges."""
        self.delivered = set(delivered)
        self.record.bytes_by_agent = dict(sent)
        self.record.bytes_sent = sum(sent.values())
        self.record.missing = [v for v in range(n_agents) if v not in self.delivered]

    def said(self, part: Literal["train", "evaluate"], answers: Mapping[int, Answer]) -> None:
        """Keep the metrics of the apps."""
        found: dict[int, Metrics] = {v: a.app_metrics for v, a in answers.items() if len(a.metrics)}
        if part == "train":
            self.record.train = found
        else:
            self.record.evaluate = found

    def measured(self, apart: float, from_start: float) -> None:
        """Keep how far the agents are apart, and how far they have come."""
        self.record.consensus_distance = apart
        self.record.distance_from_start = from_start

    def observed(self, metrics: Metrics) -> None:
        """Keep what the observer says of the average model."""
        self.record.evaluate_average_model = metrics

    def end(self, warnings: Sequence[str]) -> None:
        """The round is over; warnings: what the run as a whole suffers from."""
        self.record.warnings.extend(warnings)

    def flush(self) -> None:
        """Log the events since the last time, what befell many agents in one line."""
        for vertices, text in grouped(self._unlogged):
            # What a node does that sits on no vertex is noted under -1.
            who = agents_text(vertices) if min(vertices) >= 0 else "relay"
            log(WARNING, "round %d, %s: %s", self.number, who, text)
        self._unlogged = []
