"""The agreement of neighbors, round by round: which edges count, and how long to wait.

No clock is shared. An agent labels its payload with a round, holds its neighbors'
payloads, and acknowledges each one that is complete and checked. **An edge counts in a
round if its two ends hold each other's payload and acknowledgment**; so what one end
uses, the other uses too, and the network average is kept.

- Before its acknowledgment an agent may give an edge up by itself: it *releases* the
  round, and the other end, which cannot count the edge without that acknowledgment,
  does not count it either.
- After it, only the other end's acknowledgment, release or next round decides. If the
  connection breaks just there, the answer is in the Hello of the next connection. If
  none comes in time, the edge is given up *in doubt*: the other end may have counted
  it. That costs the network average `W[i, j] (payload_j - payload_i) / n` once, is
  counted as `one-sided` where it becomes known, and needs a connection that breaks
  within one transit time and stays broken.

An agent that lags labels its payload with the round that its neighbors are in
(Lamport's logical clock), so whoever was away or is slow joins in again. A neighbor that
says it is further ahead than its pace allows is not followed, unless another says so too or
no other is connected: one that lies about its round cannot end a run with one message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from flower_dhb.agent.codec import Header
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.patience import Patience
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import Bytes, Outgoing, Reason, RefusedError, relabel

# A neighbor is followed if it is ahead by no more rounds than this, and this many more in
# each usual time of one of its rounds since the last that it and we used together.
_LEAD = 10

__all__ = ["Edge", "Exchange", "Link", "Timing"]


class Link(Protocol):
    """One live connection to a neighbor. Its methods only put frames in line."""

    def send(self, frame: pb.Frame) -> None:
        """Send a short frame, ahead of what is left of a payload."""

    def send_payload(self, payload: Outgoing, ack: int = 0) -> None:
        """Send a payload; one that is still under way is abandoned.

        ack: a round of the neighbor's that this acknowledges, 0 for none.
        """

    def close(self, text: str) -> None:
        """Say goodbye and end the connection."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time limits, in seconds.

    ceiling_s: longest wait for a neighbor. least_s: shortest deadline of a neighbor that
    is in good standing. factor: deadline in units of the neighbor's usual round time.
    reconnect_s: how long a broken connection may take to come back before the round
    goes on without it.
    """

    ceiling_s: float = 60.0
    least_s: float = 1.0
    factor: float = 3.0
    reconnect_s: float = 2.0


@dataclass
class Edge:
    """What is known of one neighbor.

    wants: the latest round that it says it is in. gone: the latest that it has closed.
    acked: the latest round in which it acknowledged our payload. voted: the latest payload
    of it that we acknowledged and did not give up. used: the last round in which the edge
    counted. lost, released: the last round in which it did not, as told by the neighbor or
    by us. doubted: the last round that was given up after our acknowledgment. anchor: a
    round that it was in for certain, and when.
    """

    neighbor: int
    patience: Patience
    link: Link | None = None
    down_since: float = 0.0
    wants: int = 0
    gone: int = 0
    acked: int = 0
    voted: int = 0
    used: int = 0
    lost: int = 0
    released: int = 0
    doubted: int = 0
    anchor: tuple[int, float] | None = None
    done: bool = False
    rounds_missed: int = 0
    held: dict[int, Bytes] = field(default_factory=dict)


class Exchange:
    """All edges of one agent. Safe to use from any thread.

    Nothing here looks into payloads: they were checked on arrival. clock: monotonic seconds.
    """

    def __init__(
        self,
        vertex: int,
        neighbors: tuple[int, ...],
        *,
        rounds: int,
        timing: Timing,
        monitor: Monitor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.vertex = vertex
        self.rounds = rounds
        self.timing = timing
        self._monitor = monitor
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        now = clock()
        self._own_pace = Patience(factor=1.0, least_s=0.0, ceiling_s=timing.ceiling_s)
        self.edges: dict[int, Edge] = {
            j: Edge(
                j,
                Patience(factor=timing.factor, least_s=timing.least_s, ceiling_s=timing.ceiling_s),
                down_since=now,
            )
            for j in neighbors
        }
        self.round = 0  # shared now, or last
        self.closed = 0
        self.finished = False
        self._stopped = False
        self._payload: Outgoing | None = None
        self._shared_at = now

    # --- connections ------------------------------------------------------------------

    def hello(self, neighbor: int) -> pb.Hello:
        """The part of a Hello that says where this agent stands with a neighbor."""
        with self._changed:
            return pb.Hello(
                vertex=self.vertex,
                neighbor=neighbor,
                round=self.round,
                closed=self.closed,
                holds=self.edges[neighbor].voted,
                doubts=self.edges[neighbor].doubted,
                done=self.finished,
            )

    def joined(self, neighbor: int, link: Link, hello: pb.Hello) -> None:
        """A neighbor is connected. An older connection to it is closed."""
        with self._changed:
            edge = self.edges[neighbor]
            old, edge.link = edge.link, link
            # What was not acknowledged is sent again, and may be another by now: a neighbor that
            # was restarted has trained the round once more.
            for k in [k for k in edge.held if k > edge.voted]:
                del edge.held[k]
            edge.wants, edge.gone = min(max(hello.round, hello.closed), self.rounds), hello.closed
            if edge.anchor is None:  # first contact: whoever begins late finds a run under way
                edge.anchor = (edge.wants, self._clock())
            edge.done = hello.done
            edge.patience.returned()
            if self.round > self.closed:
                if hello.holds == self.round:
                    edge.acked = self.round
                elif self._payload is not None and edge.released != self.round:
                    link.send_payload(self._payload)
            if 0 < edge.used == hello.doubts:
                self._one_sided(edge, edge.used)
            if 0 < edge.voted <= hello.round:  # said again, in case it was lost
                link.send(pb.Frame(ack=pb.Ack(round=edge.voted)))
            self._changed.notify_all()
        if old is not None and old is not link:
            old.close("replaced by a newer connection")

    def parted(self, neighbor: int, link: Link) -> None:
        """A connection has ended."""
        with self._changed:
            edge = self.edges[neighbor]
            if edge.link is link:
                edge.link = None
                edge.down_since = self._clock()
                self._changed.notify_all()

    def up(self) -> tuple[int, ...]:
        """Neighbors that are connected."""
        with self._changed:
            return tuple(j for j, edge in self.edges.items() if edge.link is not None)

    def wait_for(self, least: int, timeout_s: float) -> tuple[int, ...]:
        """Wait until so many neighbors are connected. Returns those that are not."""
        end = self._clock() + timeout_s
        with self._changed:
            while not self._stopped:
                left = end - self._clock()
                missing = tuple(j for j, edge in self.edges.items() if edge.link is None)
                if len(self.edges) - len(missing) >= least or left <= 0.0:
                    return missing
                self._changed.wait(left)
            return ()

    # --- what neighbors say -----------------------------------------------------------

    def admit(self, neighbor: int, header: Header) -> None:
        """Decide on a payload before its bytes are taken. Raises RefusedError."""
        with self._changed:
            edge, k = self.edges[neighbor], header.round
            who = header.sender
            if k <= self.closed or k <= max(edge.lost, edge.released):
                raise RefusedError(
                    Reason.STALE, f"{who}: agent {self.vertex} has closed round {self.closed}", k
                )
            if k > self.rounds:
                raise RefusedError(Reason.AHEAD, f"{who}: the run has {self.rounds} rounds", k)
            if k in edge.held:
                # A neighbor that has restarted asks for it again.
                if edge.link is not None and edge.voted == k:
                    edge.link.send(pb.Frame(ack=pb.Ack(round=k)))
                raise RefusedError(
                    Reason.REPEATED, f"{who}: a payload of this round is here already", k
                )
            if edge.held and k < max(edge.held):
                raise RefusedError(
                    Reason.STALE, f"{who}: came after its payload of round {max(edge.held)}", k
                )
            # At most two in memory: the open round's, and the newest.
            for old in [r for r in edge.held if r != self._open_round()]:
                del edge.held[old]

    def accept(self, neighbor: int, round: int, frame: Bytes) -> None:
        """A payload is complete and checked: hold it and acknowledge it.

        Where our own payload of the round is still to come, it takes the acknowledgment
        along: the neighbor needs both.
        """
        with self._changed:
            edge = self.edges[neighbor]
            if round <= max(self.closed, edge.lost, edge.released):
                self._monitor.count("late", neighbor)
                return
            edge.held[round] = frame
            edge.wants = max(edge.wants, round)
            edge.patience.arrived(round, self._clock())
            if round <= self.round:
                edge.voted = round
                if edge.link is not None:
                    edge.link.send(pb.Frame(ack=pb.Ack(round=round)))
            self._changed.notify_all()

    def acknowledged(self, neighbor: int, round: int) -> None:
        """The neighbor holds our payload of a round."""
        with self._changed:
            edge = self.edges[neighbor]
            if round > self.round:
                raise RefusedError(
                    Reason.AHEAD,
                    f"neighbor {neighbor} acknowledges round {round}, never sent",
                    round,
                )
            if round == self.round and self.closed < round and edge.released != round:
                edge.acked = round
                self._changed.notify_all()

    def freed(self, neighbor: int, round: int) -> None:
        """The neighbor has closed a round without our payload."""
        with self._changed:
            edge = self.edges[neighbor]
            if round > self.rounds:
                raise RefusedError(
                    Reason.AHEAD,
                    f"neighbor {neighbor} releases round {round} of {self.rounds}",
                    round,
                )
            # Whoever has left a round without a payload has failed in it: no reason to follow.
            if edge.wants == round:
                edge.wants = min(round + 1, self.rounds)
            edge.gone = max(edge.gone, round)
            if edge.used == round:
                self._one_sided(edge, round)
            elif round == self.round and self.closed < round:
                edge.lost = round
            self._changed.notify_all()

    def left(self, neighbor: int, done: bool) -> None:
        """The neighbor said goodbye. done: it has finished its last round."""
        with self._changed:
            self.edges[neighbor].done = done
            self._changed.notify_all()

    # --- a round ----------------------------------------------------------------------

    def next_round(self) -> int:
        """The round to take part in next: one more, or the one that neighbors are in."""
        with self._changed:
            wanted = [
                e.wants for e in self.edges.values() if e.link is not None and self._follows(e)
            ]
            return max([self.round + 1, self.closed + 1, *wanted])

    def resume(self, round: int) -> None:
        """Begin after a round that a checkpoint holds."""
        with self._changed:
            self.round = self.closed = round

    def share(self, round: int, frame: Bytes) -> int:
        """Send a payload to all neighbors. Returns the round that it was labelled with.

        That is a later one than asked for if the neighbors have gone on meanwhile.
        """
        with self._changed:
            label = min(max(round, self.next_round()), self.rounds)
            if label != round:
                frame = relabel(frame, label)
                self._monitor.event("caught-up", round=label, trained_as=round)
            self._payload = payload = Outgoing.of(frame)
            self.round, self._shared_at = label, self._clock()
            for edge in self.edges.values():
                for old in [r for r in edge.held if r < label]:
                    del edge.held[old]
                if label in edge.held:
                    edge.voted = label
                if edge.link is not None and not edge.done:
                    edge.link.send_payload(payload, label if label in edge.held else 0)
            self._changed.notify_all()
            return label

    def close(self, round: int) -> dict[int, Bytes]:
        """Wait for the neighbors and end the round. Returns the payloads that count."""
        with self._changed:
            while not self._stopped:
                waits = [self._wait_s(edge, round) for edge in self.edges.values()]
                longest = max(waits, default=0.0)
                if longest <= 0.0:
                    break
                self._changed.wait(min(w for w in waits if w > 0.0))
            used = {}
            for j, edge in sorted(self.edges.items()):
                if self._agreed(edge, round):
                    used[j] = edge.held[round]
                    edge.used = round
                    edge.anchor = (round, self._clock())
                    edge.wants = max(edge.wants, min(round + 1, self.rounds))
                else:
                    self._give_up(edge, round)
                edge.held.pop(round, None)
            self.closed, self._payload = round, None
            self._own_pace.arrived(round, self._clock())
            return used

    def skip(self, round: int) -> None:
        """End a round in which this agent has nothing to share."""
        with self._changed:
            for edge in self.edges.values():
                self._give_up(edge, round)
                edge.held.pop(round, None)
            self.round = self.closed = round
            self._payload = None

    def newest(self, timeout_s: float) -> dict[int, tuple[int, Bytes]]:
        """The newest payload of each neighbor, for an agent that begins again from them.

        Waits until all that are connected have sent one, or the time is up.
        """
        end = self._clock() + timeout_s
        with self._changed:
            while not self._stopped:
                waiting = [e for e in self.edges.values() if e.link and not e.held and not e.done]
                left = end - self._clock()
                if (not waiting and self.up()) or left <= 0.0:
                    break
                self._changed.wait(left)
            return {
                j: (max(edge.held), edge.held[max(edge.held)])
                for j, edge in sorted(self.edges.items())
                if edge.held
            }

    def finish(self) -> None:
        """The last round is over: tell the neighbors."""
        with self._changed:
            self.finished = True
            for edge in self.edges.values():
                if edge.link is not None:
                    edge.link.send(pb.Frame(goodbye=pb.Goodbye(done=True, text="finished")))
            self._changed.notify_all()

    def wait_for_finish(self, timeout_s: float) -> None:
        """Wait until the neighbors that are connected have finished too."""
        end = self._clock() + timeout_s
        with self._changed:
            while not self._stopped:
                left = end - self._clock()
                if left <= 0.0 or all(e.done or e.link is None for e in self.edges.values()):
                    return
                self._changed.wait(left)

    def stop(self) -> None:
        """End all waiting, for the process is about to end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # --- verdicts ---------------------------------------------------------------------

    def _open_round(self) -> int:
        return self.round if self.round > self.closed else self.closed + 1

    def _agreed(self, edge: Edge, round: int) -> bool:
        return round in edge.held and edge.acked == round and edge.lost != round

    def _follows(self, edge: Edge) -> bool:
        """Whether a neighbor can be where it says it is, as far as this agent can know."""
        others = [e for e in self.edges.values() if e is not edge and e.link is not None]
        if not others or edge.anchor is None:
            return True  # nobody says otherwise, and nobody would be led astray with this agent
        known, since = edge.anchor
        own = self._own_pace.usual_s
        pace = edge.patience.usual_s or own or self.timing.least_s
        pace = max(pace, own / _LEAD)  # however fast its payloads come
        if edge.wants <= max(known, self.closed) + _LEAD * (1 + (self._clock() - since) / pace):
            return True
        if any(other.wants >= edge.wants - _LEAD for other in others):
            return True
        self._monitor.count("not-followed", edge.neighbor)
        return False

    def _wait_s(self, edge: Edge, round: int) -> float:
        """Seconds that this edge may still keep the round open; 0 if it is decided."""
        if edge.done or self._agreed(edge, round):
            return 0.0
        if edge.lost == round or edge.gone >= round or edge.wants > round:
            return 0.0  # it has closed this round without us
        now = self._clock()
        in_doubt = round in edge.held  # acknowledged: not ours alone to give up
        limit_s = self.timing.ceiling_s if in_doubt else edge.patience.deadline_s
        left = self._shared_at + limit_s - now
        if edge.link is None:
            back = max(edge.down_since, self._shared_at) if in_doubt else edge.down_since
            left = min(left, back + self.timing.reconnect_s - now)
        return max(left, 0.0)

    def _give_up(self, edge: Edge, round: int) -> None:
        edge.lost = edge.released = max(round, edge.lost)
        if edge.voted == round:
            # In doubt: take the vote back, in case the other end has not decided.
            edge.voted, edge.doubted = 0, round
            self._monitor.count("in-doubt", edge.neighbor)
        edge.patience.missed()
        edge.rounds_missed += 1
        if edge.link is not None:
            edge.link.send(pb.Frame(release=pb.Release(round=round)))

    def _one_sided(self, edge: Edge, round: int) -> None:
        self._monitor.count("one-sided", edge.neighbor)
        self._monitor.warning("one-sided", round=round, neighbor=edge.neighbor)
