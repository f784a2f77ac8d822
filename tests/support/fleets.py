"""Fleets of any size for tests of what an operator sees, made of answers and no processes."""

from __future__ import annotations

from typing import Any

from flower_dhb.peer.mesh.status import FleetStatus
from flower_dhb.peer.wire import relay_pb2 as pb

NOW = 1_900_000_000.0
YEAR = int(NOW) + 364 * 86400


def ring(n: int) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((min(v, (v + 1) % n), max(v, (v + 1) % n)) for v in range(n)))


def path(n: int) -> tuple[tuple[int, int], ...]:
    return tuple((v, v + 1) for v in range(n - 1))


def neighbor(vertex: int, **fields: Any) -> pb.Neighbor:
    """One that is connected, and has been in every round."""
    told = {"up": True, "round": 119, "closed": 118, "pace_s": 0.4, "heard_s": 0.1}
    told |= {"took_part": 20, "agreed_s": 0.01, "dials": False}
    return pb.Neighbor(vertex=vertex, **{**told, **fields})


def answer(vertex: int, edges: tuple[tuple[int, int], ...], **fields: Any) -> pb.StatusReply:
    """What a device says that is well, in round 118 of 500."""
    near = sorted({w for edge in edges for w in edge if vertex in edge} - {vertex})
    told = {
        "run": "r",
        "round": 118,
        "rounds": 500,
        "phase": "training",
        "seconds_per_round": 0.42,
        "train_s": 0.4,
        "left_s": 160.0,
        "lately": 20,
        "took_part": 20,
        "clock_s": NOW,
        "certificate_ends": YEAR,
        "authority_ends": YEAR + 19 * 365 * 86400,
        "software": "0.1.0",
        "uptime_s": 3600.0,
        "evaluated": ["loss"],
        "metrics": {"loss": 0.123, "train_loss": 0.2},
        "neighbors": [neighbor(w, dials=w > vertex) for w in near],
    }
    return pb.StatusReply(vertex=vertex, **{**told, **fields})


class Troubled:
    """A fleet that is well, and then what happens to it."""

    def __init__(self, n: int, edges: tuple[tuple[int, int], ...] | None = None) -> None:
        self.edges = ring(n) if edges is None else edges
        self.replies = {v: answer(v, self.edges) for v in range(n)}
        self.failures: dict[int, str] = {}
        self.more: dict[str, Any] = {
            "addresses": {v: f"10.0.0.{v}:9440" for v in range(n)},
            "now_s": NOW,
        }

    def __getitem__(self, vertex: int) -> pb.StatusReply:
        return self.replies[vertex]

    def end(self, vertex: int, other: int) -> pb.Neighbor:
        """What one device says of another."""
        return next(n for n in self.replies[vertex].neighbors if n.vertex == other)

    def down(self, a: int, b: int, down_s: float = 180.0, why: str = "") -> None:
        """An edge breaks, as both ends see it."""
        for v, w in ((a, b), (b, a)):
            if v in self.replies:
                end = self.end(v, w)
                end.up, end.down_s, end.why_down, end.heard_s = False, down_s, why, down_s

    def silence(self, vertex: int, why: str = "nothing listens at 10.0.0.1:9440") -> None:
        """A device answers no more, and is not heard either."""
        for other in self.near(vertex):
            self.down(vertex, other)
        del self.replies[vertex]
        self.failures[vertex] = why

    def hide(self, vertex: int) -> None:
        """A device cannot be asked, and trains."""
        del self.replies[vertex]
        self.failures[vertex] = "it has no address that could be asked"
        self.more["addresses"][vertex] = None

    def near(self, vertex: int) -> list[int]:
        return [w for edge in self.edges if vertex in edge for w in edge if w != vertex]

    def status(self, **more: Any) -> FleetStatus:
        told = {"replies": self.replies, "failures": self.failures, "edges": self.edges}
        return FleetStatus(**{**told, **self.more, **more})
