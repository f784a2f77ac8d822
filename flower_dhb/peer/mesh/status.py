"""A fleet as it is at one moment: what its devices answered, and what follows from that.

Pure functions of the answers; nothing is asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from flower_dhb.metrics import consensus_distance
from flower_dhb.peer.mesh.sights import Sight
from flower_dhb.peer.watch.status import FINISHED, REMOVED
from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["OVER", "FleetStatus", "Link", "Pace"]

OVER = (FINISHED, REMOVED, "stopped")  # phases of who takes part in no later round


@dataclass(frozen=True)
class Link:
    """An edge between two connected devices. way_s: what it takes out of each round."""

    edge: tuple[int, int]
    way_s: float
    round_s: float


@dataclass(frozen=True)
class Pace:
    """What a round takes, and what sets it: the link of an edge, or the training of a device.

    edge, vertex: one of them, or none if too little is known. part_s: seconds of each round
    that it takes.
    """

    round_s: float
    edge: tuple[int, int] | None = None
    vertex: int | None = None
    part_s: float = 0.0


@dataclass(frozen=True)
class FleetStatus:
    """What the devices answered.

    failures: why a device did not, by vertex. addresses, names: of the devices, as far as they
    have any. sights: when each was seen last. gone: how processes ended that were seen to end.
    starting: vertices whose process is there and has not answered yet. now_s: by the operator's
    clock, in seconds since 1970; 0 if that does not matter.
    """

    replies: Mapping[int, pb.StatusReply]
    failures: Mapping[int, str]
    edges: tuple[tuple[int, int], ...]
    addresses: Mapping[int, str | None] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    sights: Mapping[int, Sight] = field(default_factory=dict)
    gone: Mapping[int, str] = field(default_factory=dict)
    starting: frozenset[int] = frozenset()
    now_s: float = 0.0

    @property
    def vertices(self) -> list[int]:
        """All devices of the mesh."""
        ends = (v for edge in self.edges for v in edge)
        return sorted({*self.replies, *self.failures, *self.addresses, *self.starting, *ends})

    def called(self, vertex: int) -> str:
        """A device in a sentence: its number, and its name if it has one."""
        name = self.names.get(vertex, "")
        if name and not name.startswith("("):
            name = f"({name})"
        return f"vertex {vertex} {name}".rstrip()

    @property
    def consensus_distance(self) -> float | None:
        """Estimated from random projections, within a few percent; None below two peers."""
        sketches = [np.array(r.sketch) for r in self.replies.values() if len(r.sketch)]
        return consensus_distance(sketches) if len(sketches) > 1 else None

    @property
    def parts(self) -> list[list[int]]:
        """Vertices that are connected with one another, the largest part first.

        An edge holds if either end says so; a peer that did not answer holds none of its own,
        and one that has finished needs none.
        """
        training = {v: r for v, r in self.replies.items() if r.phase not in OVER}
        part_of = {v: {v} for v in training}
        for vertex, reply in training.items():
            for neighbor in reply.neighbors:
                if neighbor.up:
                    whole = part_of[vertex] | part_of.get(neighbor.vertex, {neighbor.vertex})
                    part_of |= dict.fromkeys(whole, whole)
        parts = {tuple(sorted(part)) for part in part_of.values()}
        return [list(part) for part in sorted(parts, key=lambda part: (-len(part), part))]

    # --- devices ------------------------------------------------------------------------

    def told_of(self, vertex: int) -> dict[int, pb.Neighbor]:
        """What its neighbors say of a device, by neighbor."""
        return {
            v: n for v, reply in self.replies.items() for n in reply.neighbors if n.vertex == vertex
        }

    def state(self, vertex: int) -> str:
        """What a device does, in one word: the phase that it tells, or what is worse.

        `failing`, `no disk`, `stalled`, `alone`; of one that does not answer: `starting`,
        `finished`, `heard` (by its neighbors), `silent`, or `unknown` if nobody could hear it.
        """
        reply = self.replies.get(vertex)
        if vertex in self.gone:
            return "ended"
        if reply is not None:
            if reply.phase in OVER:
                return reply.phase
            if reply.failures:
                return "failing"
            if reply.disk:
                return "no disk"
            if reply.stalled_s:
                return "stalled"
            return "alone" if reply.HasField("alone_since") else reply.phase
        if vertex in self.starting:
            return "starting"
        told = self.told_of(vertex)
        if any(n.up for n in told.values()):
            return "heard"
        sight = self.sights.get(vertex)
        if any(n.done for n in told.values()) or (sight is not None and sight.phase in OVER):
            return FINISHED
        return "silent" if told or self.addresses.get(vertex) else "unknown"

    def seen_s(self, vertex: int) -> float | None:
        """Seconds since a device answered, or a neighbor heard it; None if nobody ever did."""
        if vertex in self.replies:
            return 0.0
        heard = [n.heard_s for n in self.told_of(vertex).values() if n.HasField("heard_s")]
        sight = self.sights.get(vertex)
        if sight is not None and self.now_s:
            heard.append(max(0.0, self.now_s - sight.at))
        return min(heard, default=None)

    def round(self, vertex: int) -> int | None:
        """The last round that a device has ended, as it says or others know."""
        if vertex in self.replies:
            return self.replies[vertex].round
        known = [n.closed for n in self.told_of(vertex).values()]
        if vertex in self.sights:
            known.append(self.sights[vertex].round)
        return max(known, default=None)

    @property
    def rounds(self) -> int:
        """Rounds of the run."""
        return max((r.rounds for r in self.replies.values()), default=0)

    # --- pace ---------------------------------------------------------------------------

    @property
    def left_s(self) -> float | None:
        """Seconds until the last device has finished, at its pace; None if nobody knows."""
        left = [
            reply.left_s
            for reply in self.replies.values()
            if reply.HasField("left_s") and reply.phase not in OVER
        ]
        return max(left, default=None)

    @property
    def links(self) -> list[Link]:
        """Edges by what they take out of each round, the slowest first.

        An end waits for its link and for its neighbor's training. The one that shares later
        waits for the link alone: there and back. So the lesser of the two is the link's.
        """
        found = []
        for a, b in self.edges:
            ends = [self._agreed(a, b), self._agreed(b, a)]
            times = [s for s in ends if s is not None]
            if len(times) == 2:
                paces = [self.replies[v].seconds_per_round for v in (a, b)]
                found.append(Link((a, b), min(times), max(paces)))
        return sorted(found, key=lambda link: (-link.way_s, link.edge))

    def _agreed(self, vertex: int, neighbor: int) -> float | None:
        reply = self.replies.get(vertex)
        if reply is None or reply.phase in OVER:
            return None
        for n in reply.neighbors:
            if n.vertex == neighbor and n.up and n.HasField("agreed_s"):
                return n.agreed_s
        return None

    @property
    def pace(self) -> Pace | None:
        """What a round takes and what sets it; None before the first rounds.

        A device that takes part in few rounds sets nobody's pace: nobody waits for it.
        """
        training = {
            v: r
            for v, r in self.replies.items()
            if r.phase not in OVER and r.seconds_per_round > 0.0 and 2 * r.took_part >= r.lately
        }
        if not training:
            return None
        round_s = float(median(r.seconds_per_round for r in training.values()))
        slowest = max(training, key=lambda v: training[v].train_s)
        train_s = training[slowest].train_s
        links = self.links
        if links and links[0].way_s > train_s:
            return Pace(round_s, edge=links[0].edge, part_s=links[0].way_s)
        return Pace(round_s, vertex=slowest, part_s=train_s)
