"""The rounds of one agent among its neighbors: sharing, waiting, counting, giving up.

An agent labels its payload with a round. One that lags takes the round that its neighbors are
in (Lamport's logical clock), so whoever was away or is slow joins in again. A neighbor that
says it is further ahead than its pace allows is not followed, unless another says so too or no
other is connected: one that lies about its round cannot end a run with one message.

Which edges a round has is what the edition of its payload says (`edition.py`). An edge that is not
due in a round is neither waited for nor missed, and nothing is sent on it. A neighbor that is ahead
is followed once it has passed a round in which the edge was due. An edge that no present or later
edition has is closed once both ends know how its last round ended.

What an agent says of itself in a Hello or beside a payload is what its disk says, never what
it has decided since: a claim that a crash takes back would leave the two ends of an edge with
different stories.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flower_dhb.peer.protocol.edge import Connection, Edge, Stage, Step
from flower_dhb.peer.protocol.edition import Edition, Editions
from flower_dhb.peer.protocol.effects import (
    Close,
    Count,
    Effect,
    Free,
    Neighbors,
    Note,
    Refuse,
    Send,
    SendPayload,
)
from flower_dhb.peer.protocol.events import Payload
from flower_dhb.peer.protocol.messages import (
    NEVER,
    Ack,
    Counted,
    Goodbye,
    Hello,
    Offer,
    Reason,
    Release,
    Seek,
)
from flower_dhb.peer.protocol.patience import Patience
from flower_dhb.peer.protocol.settings import Config

__all__ = ["EPOCH_BITS", "Rounds", "Told", "epoch_of", "part_of", "round_of", "where_to_join"]

# A neighbor is followed if it is ahead by no more rounds than this, and this many more in
# each usual time of one of its rounds since the last that it and we used together.
_LEAD = 10
# An epoch is the round in which it began, and in the bits below twice the vertex that began it:
# the number after it is left to the agent's own memory, between a loss and the next training.
# In the bits above the round is its part: how many editions the set of members is older than.
EPOCH_BITS = 20
_PART_BITS = 44


def part_of(epoch: int) -> int:
    """The part of an epoch: one less than the edition since which the members are the same."""
    return epoch >> _PART_BITS


def round_of(epoch: int) -> int:
    """The round in which an epoch began, as it is numbered; 0 for the first of its part."""
    return (epoch & ((1 << _PART_BITS) - 1)) >> EPOCH_BITS


def epoch_of(edition: Edition) -> int:
    """The epoch that all members enter with an edition, unless one of them opens another."""
    return (edition.members_since - 1) << _PART_BITS


def where_to_join(rounds: Collection[int]) -> int:
    """The newest of the rounds that neighbors are in, or the one before it if some are in that.

    From the newest an agent would lead away those that are about to begin the one before, and all
    that wait for them there would lose them.
    """
    newest = max(rounds)
    return newest - (newest - 1 in rounds)


@dataclass(frozen=True, slots=True)
class Told:
    """What the disk says of this agent, and so may its messages."""

    closed: int = 0
    round: int = 0
    digest: int = 0
    epoch: int = 0
    edition: int = 1


class Rounds:
    """The edges of an agent, its open round, and its own payloads that may be asked for.

    round: the label of the payload that is shared now, or was last. closed: the last round
    that has ended. begun: when the present round began. out: where effects go.
    epochs_seen: the newest epoch that anybody has named, by its part. current: the edition of the
    payload that is journaled or shared, None between two rounds. past: records of edges that are
    no more, by neighbor.
    """

    def __init__(self, config: Config, out: list[Effect], now: float) -> None:
        self.config = config
        self.out = out
        timing = config.timing
        self.editions = Editions(config.editions)
        self.current: Edition | None = None
        self.edges: dict[int, Edge] = {}
        self.past: dict[int, Mapping[str, Any]] = {}
        self._met: Edition | None = None
        self._parts = False
        self.own_pace = Patience(factor=1.0, least_s=0.0, ceiling_s=timing.ceiling_s)
        self.round = self.closed = 0
        self.epoch = 0
        self.epochs_seen: dict[int, int] = {}
        self.begun = now
        self.seeking = False
        self.final: Payload | None = None
        self.kept: dict[int, Payload] = {}
        self.epochs: dict[int, int] = {}  # of the kept payloads
        self.numbers: dict[int, int] = {}  # of the editions that they are of
        self.unwritten = 0  # the newest of them that is not on the disk
        self.broken = False  # a conserved mean was broken, since the epoch began
        self._news: dict[int, list[int]] = {}  # one-sided rounds that nobody was told of
        self._told = Told()
        self._told_edges: Mapping[int, Mapping[str, Any]] = {}
        self._shared_at = now
        self._resumes_until = now
        self._starts_until = now + timing.start_s
        self._together = False  # it was there when the run began, and has not begun again
        self._last_s = 0.0  # of the round before

    # --- the graph ----------------------------------------------------------------------

    @property
    def rounds(self) -> int:
        """The last round of the run, as far as this agent knows."""
        return self.editions.rounds

    @property
    def last(self) -> int:
        """The last round to speak of: others may not know yet that the run ends before."""
        return self.editions.longest

    @property
    def present(self) -> Edition:
        """The edition of the open round, or of the one that comes next."""
        return self.current or self.editions.then(self.closed + 1)

    def due(self) -> list[Edge]:
        """Edges of the present edition."""
        return [self.edges[j] for j in self.present.neighbors if j in self.edges]

    def meet(self, now: float, *, announced: bool = True) -> None:
        """Have the edges of the present and all later editions; the others part."""
        self._met = self.present
        partners = self.editions.partners(self._met)
        new = partners - self.edges.keys()
        for j in new:
            self._add(j, now)
        for j, edge in self.edges.items():
            if j in partners:
                if edge.parted and edge.link is not None:
                    self.greet_anew(edge, "neighbors again", now)
                edge.parted_at, edge.parted = None, False
            elif edge.parted_at is None:
                edge.parted_at = now
        self._parts = self.edges.keys() != partners
        if new and announced:
            self.out.append(Neighbors(tuple(self.edges)))

    def greet_anew(self, edge: Edge, why: str, now: float) -> None:
        """End a connection on which goodbye was said: Hellos on the next say what holds now."""
        self.out.append(Close(edge.link, why))
        edge.link, edge.connection = None, Connection.DOWN
        edge.receiving_since, edge.down_since = None, now

    def retime(self, config: Config) -> None:
        """Keep other time limits from now on."""
        self.config = config
        timing = config.timing
        for edge in self.edges.values():
            edge.patience.limit(timing.factor, timing.least_s, timing.ceiling_s)
        self.own_pace.limit(1.0, 0.0, timing.ceiling_s)

    def _add(self, j: int, now: float) -> None:
        timing = self.config.timing
        edge = Edge(
            j,
            Patience(factor=timing.factor, least_s=timing.least_s, ceiling_s=timing.ceiling_s),
            down_since=now,
        )
        if j in self.past:
            edge.restore(self.past.pop(j))
        if self.current is not None and j not in self.current.due(self.open_round):
            edge.stage = Stage.APART  # it has no part in the round that is open
        self.edges = dict(sorted([*self.edges.items(), (j, edge)]))

    def remember(self, records: Mapping[int, Mapping[str, Any]], now: float) -> None:
        """Take the edges' records from the disk; what is not settled has an edge still."""
        self.past = dict(records)
        self.meet(now, announced=False)
        for j, record in list(self.past.items()):
            if not record["settled"] or record["doubts"]:
                self._add(j, now)

    def _part(self, now: float) -> None:
        """Close edges that no present or later edition has, once nothing is open between the ends.

        Each end tells the other how its last round ended, as its disk knows it.
        """
        for edge in self.parting():
            counted = edge.counted.round
            if edge.up and not edge.parted and self._told.closed >= counted:
                leaves = self.closed > 0 and self.editions.next(self.closed) is None
                words = self.told_counted(edge), self._told.closed
                self._send(edge, Goodbye(leaves, "no neighbor any more", *words))
                edge.parted = True
            knows = (edge.parted or not counted) and edge.settled and not edge.doubts
            if knows or now >= self.parts_at(edge):
                if edge.link is not None:
                    self.out.append(Close(edge.link, "no neighbor any more"))
                del self.edges[edge.neighbor]
                self.past[edge.neighbor] = edge.record()
                fields = {"neighbor": edge.neighbor, "unsettled": edge.unknown}
                self.out.append(Note("edge-gone", fields, warning=edge.unknown > 0))
                self.out.append(Neighbors(tuple(self.edges)))

    def parting(self) -> list[Edge]:
        """Edges that no present or later edition has."""
        return [e for e in self.edges.values() if e.parted_at is not None] if self._parts else []

    def parts_at(self, edge: Edge) -> float:
        """When an edge that no edition has any more is closed, whatever is open."""
        return (edge.parted_at or 0.0) + self.config.timing.linger_s

    # --- what the disk holds ----------------------------------------------------------

    def record(self) -> dict[int, Mapping[str, Any]]:
        """All edges that are or were, for the disk."""
        return {**self.past, **{j: edge.record() for j, edge in self.edges.items()}}

    def begin(self, epoch: int) -> None:
        """Nothing of this run is on the disk yet; what there is elsewhere is of an epoch."""
        self.epoch = epoch
        self.epochs_seen[part_of(epoch)] = epoch
        self._told = Told(closed=self.closed, epoch=epoch)

    def durable(self, closed: int, epoch: int, edges: Mapping[int, Mapping[str, Any]]) -> None:
        """A state of this agent between two rounds is on the disk."""
        self._told, self._told_edges = Told(closed=closed, epoch=epoch), edges

    def journaled(
        self,
        label: int,
        payload: Payload,
        closed: int,
        epoch: int,
        edition: int,
        edges: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """A payload of this agent is on the disk, and all that it may promise with it."""
        self._told = Told(closed, label, payload.digest, epoch, edition)
        self._told_edges = edges
        self.keep(label, payload, epoch, edition)

    def keep(
        self, label: int, payload: Payload, epoch: int, edition: int, *, lasting: bool = True
    ) -> None:
        """An own payload may be asked for. lasting: it is on the disk."""
        self.kept[label], self.epochs[label], self.numbers[label] = payload, epoch, edition
        if not lasting:
            self.unwritten = label

    @property
    def told_closed(self) -> int:
        """The last round that has ended, as the disk has it."""
        return self._told.closed

    @property
    def is_durable(self) -> bool:
        """Whether the end of the last round is on the disk."""
        return self._told.closed == self.closed and self._told.round <= self.closed

    def told_counted(self, edge: Edge) -> Counted:
        """The last round in which an edge counted, as the disk has it."""
        found = self._told_edges.get(edge.neighbor)
        return Counted(*found["counted"]) if found is not None else NEVER

    # --- a round ----------------------------------------------------------------------

    @property
    def open_round(self) -> int:
        """The round that is shared, or is shared next."""
        return self.round if self.round > self.closed else self.closed + 1

    def _is_over(self, edge: Edge, round: int) -> bool:
        """Whether an edge is decided in a round."""
        return round <= self.closed or (round == self.round and not edge.stage.open)

    def share(self, round: int, now: float, *, resumed: bool = False) -> None:
        """Send a payload that is on the disk. resumed: it may have been sent before a restart."""
        self.round, self._shared_at = round, now
        if resumed:
            self._resumes_until = now + self.config.timing.resume_s
        first = self.config.origin + 1
        self._together = self._together or (round == first and not resumed)
        own_s = self.own_pace.usual_s or max(self._last_s, now - self.begun)
        edition = self.present
        due = edition.due(round)
        for edge in self.edges.values():
            edge.patience.own_s = own_s
            for old in [r for r in edge.held if r < round]:
                del edge.held[old]
            edge.stage = Stage.BOUND if resumed else Stage.IDLE
            edge.acked = edge.lacking = False
            if edge.neighbor not in due:
                edge.stage = Stage.APART
                if edge.neighbor not in edition.neighbors or edge.shares == round:
                    self._send(edge, Release(round))  # it may wait for this round to join
                elif (missed := self.editions.last_due(edge.neighbor, round)) > self.closed:
                    self._send(edge, Release(missed))  # it may wait in that one
            elif edge.closed >= round or edge.done:
                self._told_lost(edge)
            elif round in edge.held and not self._joins(edge):
                edge.take(Step.VOTE)
            elif edge.broken == round:
                self._give_up(edge)
            self._serve(edge)

    def _joins(self, edge: Edge) -> bool:
        """Give an edge up whose ends are in different editions or epochs. Returns whether it was.

        Where the epochs differ, the own payload goes out all the same: its header names the epoch
        to come to.
        """
        offer, _ = edge.held[self.round]
        if self._differs(edge, offer):
            self._send(edge, Release(self.round))
            return True
        if not self.config.conserves or offer.epoch == self.epochs[self.round]:
            return False
        self._serve(edge)
        self._give_up(edge)
        return True

    def _differs(self, edge: Edge, said: Offer | Hello) -> bool:
        """Lose an edge whose other end shares this round in another edition of the mesh."""
        if said.edition == self.numbers[self.round]:
            return False
        self._told_lost(edge)
        self.out.append(Count("other-edition", edge.neighbor))
        return True

    def wait_s(self, edge: Edge, now: float) -> float:
        """Seconds that an edge may still keep the round open; 0 if it is decided."""
        return max(self._waited_until(edge) - now, 0.0)

    def _waited_until(self, edge: Edge) -> float:
        """Until when an edge may keep the round open."""
        if not edge.stage.open or edge.agreed:
            return self._shared_at
        timing = self.config.timing
        bound = edge.stage in (Stage.BOUND, Stage.VOTED)  # not ours alone to give up
        limit_s = timing.ceiling_s if bound else self._patience_s(edge)
        until = self._shared_at + limit_s
        if self._together and not edge.patience.known:
            late = self._starts_until + limit_s
            until = max(until, min(late, self._shared_at + timing.ceiling_s))
        if self._is_arriving(edge):
            until = max(until, self._arrives_until(edge))
        if not edge.up:
            back = max(edge.down_since, self._shared_at) if bound else edge.down_since
            again = back + timing.reconnect_s
            if edge.stage is Stage.BOUND:
                again = max(again, self._resumes_until)
            if edge.connection is Connection.GREETING:
                again = max(again, edge.opened_at + timing.hello_s)
            until = min(until, again)
        return until

    def _is_arriving(self, edge: Edge) -> bool:
        return edge.receiving_since is not None and edge.shares == self.round

    def _patience_s(self, edge: Edge) -> float:
        """How long a neighbor is waited for after the rounds since the edge was due last."""
        apart = self.round - self.present.last_due(edge.neighbor, self.round)
        return edge.patience.deadline_after(apart)

    def _arrives_until(self, edge: Edge) -> float:
        """How long a payload that is coming is waited for, past its deadline.

        While it comes without a pause, and at its rate comes whole before the ceiling. One that
        breaks off again and again gets half as long a pause each time.
        """
        since = edge.receiving_since or 0.0
        pause_s = self.config.timing.dead_after_s * 0.5**edge.in_vain
        end = self._shared_at + self.config.timing.ceiling_s
        elapsed = edge.moved_at - since
        if elapsed >= pause_s:  # before that a rate says little
            whole = since + elapsed * edge.total / edge.arrived
            if whole > end:
                return 0.0
        return min(edge.moved_at + pause_s, end)

    def decided_at(self) -> float | None:
        """When the open round ends if nobody says anything more. None: it is decided."""
        # No sum of differences: rounded, it could be a time at which an edge still waits.
        at = max((self._waited_until(edge) for edge in self.edges.values()), default=0.0)
        return at if at > self._shared_at else None

    def close(self, round: int, now: float) -> dict[int, Payload]:
        """End the round. Returns the payloads that count, by neighbor."""
        used = {}
        payload = self.kept[round]
        for j, edge in self.edges.items():
            if edge.agreed and edge.take(Step.COUNT):
                found = edge.held[round][1]
                if not edge.settled:  # it went on without saying how the last one ended
                    self._disagree(edge, edge.counted.round)
                used[j] = found
                edge.counted = Counted(round, payload.digest, found.digest)
                edge.settled = edge.theirs == edge.counted
                edge.helping = edge.lacking and not edge.settled
                edge.anchor = (round, now)
                edge.wants = max(edge.wants, min(round + 1, self.rounds))
            elif edge.stage.open:
                self._give_up(edge)
            edge.held.pop(round, None)
        self.closed, self.current = round, None
        self.own_pace.arrived(round, now)
        self._last_s = now - self.begun
        return used

    def skip(self, round: int) -> None:
        """End a round in which this agent has nothing to share, or begins again after it."""
        for edge in self.edges.values():
            for old in [r for r in edge.held if r <= round]:
                del edge.held[old]
            open_here = self.round > self.closed and edge.stage.open
            if open_here:
                self._give_up(edge)
            if not open_here or self.round != round:
                self._send(edge, Release(round))
        self.closed, self.current = max(self.closed, round), None

    def _give_up(self, edge: Edge) -> None:
        if not edge.take(Step.GIVE_UP):
            return
        if edge.stage is Stage.DOUBT and edge.theirs.round == self.round:
            self._disagree(edge, self.round)
        elif edge.stage is Stage.DOUBT:
            edge.doubt(self.round)
            self.out.append(Count("in-doubt", edge.neighbor))
        if self._is_arriving(edge):
            edge.in_vain += 1
            edge.receiving_since = None  # told so, the neighbor keeps the rest of it
        edge.patience.missed()
        edge.rounds_missed += 1
        self._send(edge, Release(self.round))

    def half_agreed(self) -> list[Edge]:
        """Edges of which one end has voted in the open round, as is known, and one has not."""
        if self.round <= self.closed:
            return []
        return [e for e in self.up() if e.stage.open and e.acked != (e.stage is Stage.VOTED)]

    def withdraw(self) -> None:
        """Give up the edges for which this end has not voted in the open round, and say so.

        The other end may have voted, or may do so yet: the round would be in doubt there. Where
        this end may have voted before a restart, only the other end can decide.
        """
        for edge in self.up() if self.round > self.closed else []:
            if edge.stage is Stage.IDLE:
                self._give_up(edge)

    def _told_lost(self, edge: Edge) -> None:
        edge.take(Step.TOLD)
        if edge.theirs.round == self.round:
            self._disagree(edge, self.round)

    def _disagree(self, edge: Edge, round: int) -> None:
        if edge.disagree(round):
            self.broken = True
            self._news.setdefault(edge.neighbor, []).append(round)
            self.out.append(Count("one-sided", edge.neighbor))

    def tidy(self, now: float, *, parts: bool = True) -> None:
        """Say what is new, and let go of own payloads and edges that are of no use any more."""
        if len(self.editions.known) > 1 and self._met is not self.present:
            self.meet(now)
        if self._parts and parts:
            self._part(now)
        if self._news:
            for j, rounds in self._news.items():
                self.out.append(Note("one-sided", {"neighbor": j, "rounds": rounds}))
            self._news.clear()
        if len(self.kept) < 2:
            return
        needed = {e.counted.round for e in self.edges.values() if not e.settled}
        needed.add(max(self.kept))
        needed.add(max((k for k in self.kept if k != self.unwritten), default=0))
        for r in [r for r in self.kept if r not in needed]:
            del self.kept[r], self.epochs[r], self.numbers[r]
            self.out.append(Free(r))

    # --- sending ----------------------------------------------------------------------

    def _send(self, edge: Edge, message: Ack | Release | Seek | Goodbye) -> None:
        if edge.up:
            self.out.append(Send(edge.link, message))

    def _send_payload(self, edge: Edge, round: int) -> None:
        """Put a payload in line. It acknowledges along; what it replaces may not have left."""
        payload = self.kept[round]
        ack = edge.held[self.round][1].digest if edge.stage is Stage.VOTED else 0
        offer = Offer(
            round,
            payload.digest,
            self._told.closed,
            self.told_counted(edge),
            ack,
            self.epochs[round],
            edition=self.numbers[round],
        )
        edge.sent = round
        self.out.append(SendPayload(edge.link, offer, payload))

    def _serve(self, edge: Edge) -> None:
        """Send the payload that the neighbor needs now, unless it was put in line before."""
        if not edge.up:
            return
        r = edge.counted.round
        if edge.helping and r in self.kept:
            if edge.sent != r:
                self._send_payload(edge, r)
            return
        wants = edge.stage.open and not edge.acked and not edge.done and edge.closed < self.round
        if self.round > self.closed and wants and edge.sent != self.round:
            self._send_payload(edge, self.round)

    def _refuse(self, edge: Edge, reason: Reason, round: int, text: str) -> None:
        self.out.append(Refuse(edge.link, reason, round, text))

    # --- where the others are ---------------------------------------------------------

    def up(self) -> list[Edge]:
        """Edges whose neighbor is connected."""
        return [edge for edge in self.edges.values() if edge.up]

    def target(self, now: float) -> int:
        """The round to take part in next: one more, or the one that neighbors are in.

        Who becomes a neighbor later may be some rounds ahead by then, as it is further away in
        the graph of today: it is followed only where no neighbor of today is there.

        Who is not a single round behind takes the earlier of two rounds that neighbors are in.
        """
        due = [e for e in self.due() if e.up]
        ahead = [
            e.wants
            for e in due or self.up()
            if self._has_passed(e) and not e.seeking and self._follows(e, now)
        ]
        return min(where_to_join(ahead) if ahead else self.closed + 1, self.rounds)

    def _has_passed(self, edge: Edge) -> bool:
        """Whether a neighbor is past the next round that both share, as it waits in that one."""
        return edge.wants > self.present.next_due(edge.neighbor, self.closed)

    def _follows(self, edge: Edge, now: float) -> bool:
        """Whether a neighbor can be where it says it is, as far as this agent can know."""
        others = [e for e in self.edges.values() if e is not edge and e.up]
        if not others or edge.anchor is None:
            return True  # nobody says otherwise, and nobody would be led astray with this agent
        known, since = edge.anchor
        own = self.own_pace.usual_s
        pace = edge.patience.usual_s or own or self.config.timing.least_s
        pace = max(pace, own / _LEAD)  # however fast its payloads come
        if edge.wants <= max(known, self.closed) + _LEAD * (1 + (now - since) / pace):
            return True
        if any(other.wants >= edge.wants - _LEAD for other in others):
            return True
        self.out.append(Count("not-followed", edge.neighbor))
        return False
