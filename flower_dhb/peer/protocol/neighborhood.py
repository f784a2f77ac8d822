"""All edges of one agent: what neighbors say, and which edges count in the open round.

An agent labels its payload with a round. One that lags takes the round that its neighbors are
in (Lamport's logical clock), so whoever was away or is slow joins in again. A neighbor that
says it is further ahead than its pace allows is not followed, unless another says so too or no
other is connected: one that lies about its round cannot end a run with one message.

What an agent says of itself in a Hello or beside a payload is what its disk says, never what
it has decided since: a claim that a crash takes back would leave the two ends of an edge with
different stories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flower_dhb.peer.protocol.edge import REMEMBERED, Connection, Edge, Stage, Step
from flower_dhb.peer.protocol.effects import (
    Close,
    Count,
    Effect,
    Free,
    Note,
    Refuse,
    Reserve,
    Send,
    SendPayload,
)
from flower_dhb.peer.protocol.events import (
    Acknowledged,
    Broken,
    Completed,
    Connected,
    Disconnected,
    Greeted,
    Left,
    Offered,
    Payload,
    Released,
    Sought,
)
from flower_dhb.peer.protocol.messages import (
    NEVER,
    Ack,
    Counted,
    Goodbye,
    Hello,
    Offer,
    Reason,
    Release,
)
from flower_dhb.peer.protocol.patience import Patience
from flower_dhb.peer.protocol.settings import Config

__all__ = ["EPOCH_BITS", "Neighborhood"]

# A neighbor is followed if it is ahead by no more rounds than this, and this many more in
# each usual time of one of its rounds since the last that it and we used together.
_LEAD = 10
# An epoch is the round in which it began, and in the bits below the vertex that began it.
EPOCH_BITS = 20


@dataclass(frozen=True, slots=True)
class _Told:
    """What the disk says of this agent, and so may its messages."""

    closed: int = 0
    round: int = 0
    digest: int = 0
    epoch: int = 0


class Neighborhood:
    """The edges of an agent, its open round, and its own payloads that may be asked for.

    round: the label of the payload that is shared now, or was last. closed: the last round
    that has ended. out: where effects go. epoch_seen: the newest epoch that anybody has named.
    """

    def __init__(self, config: Config, out: list[Effect], now: float) -> None:
        self.config = config
        self.out = out
        timing = config.timing
        self.edges: dict[int, Edge] = {
            j: Edge(
                j,
                Patience(factor=timing.factor, least_s=timing.least_s, ceiling_s=timing.ceiling_s),
                down_since=now,
            )
            for j in config.neighbors
        }
        self.own_pace = Patience(factor=1.0, least_s=0.0, ceiling_s=timing.ceiling_s)
        self.round = self.closed = 0
        self.epoch = self.epoch_seen = 0
        self.seeking = False
        self.final: Payload | None = None
        self.kept: dict[int, Payload] = {}
        self.epochs: dict[int, int] = {}  # of the kept payloads
        self.broken = False  # a conserved mean was broken, since the epoch began
        self._news: dict[int, list[int]] = {}  # one-sided rounds that nobody was told of
        self._told = _Told()
        self._told_edges: Mapping[int, Mapping[str, Any]] = {}
        self._shared_at = now
        self._resumes_until = now

    # --- what the disk holds ------------------------------------------------------------

    def record(self) -> dict[int, dict[str, Any]]:
        """All edges, for the disk."""
        return {j: edge.record() for j, edge in self.edges.items()}

    def durable(self, closed: int, epoch: int, edges: Mapping[int, Mapping[str, Any]]) -> None:
        """A state of this agent between two rounds is on the disk."""
        self._told, self._told_edges = _Told(closed=closed, epoch=epoch), edges

    def journaled(
        self,
        label: int,
        payload: Payload,
        closed: int,
        epoch: int,
        edges: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """A payload of this agent is on the disk, and all that it may promise with it."""
        self._told = _Told(closed, label, payload.digest, epoch)
        self._told_edges = edges
        self.kept[label], self.epochs[label] = payload, epoch

    def told_counted(self, edge: Edge) -> Counted:
        """The last round in which an edge counted, as the disk has it."""
        found = self._told_edges.get(edge.neighbor)
        return Counted(*found["counted"]) if found is not None else NEVER

    # --- connections --------------------------------------------------------------------

    def connected(self, edge: Edge, event: Connected, now: float) -> None:
        """A new connection takes the place of the one before; each begins with a Hello."""
        if edge.link is not None and edge.link != event.link:
            self.out.append(Close(edge.link, "replaced by a newer connection"))
            edge.down_since = now
        edge.link, edge.connection = event.link, Connection.GREETING
        edge.opened_at = edge.heard_at = now
        edge.receiving_since, edge.sent, edge.helping = None, 0, False
        edge.sought = False
        self.out.append(Send(event.link, self._hello(edge)))

    def disconnected(self, edge: Edge, event: Disconnected, now: float) -> None:
        """The connection is gone; what came whole stays."""
        edge.link, edge.connection = None, Connection.DOWN
        edge.receiving_since, edge.down_since = None, now

    def cut(self, edge: Edge, why: str, now: float) -> None:
        """End a connection that serves nobody."""
        self.out.append(Close(edge.link, why, at_once=True))
        self.out.append(Count(f"cut-off.{why}", edge.neighbor))
        self.out.append(Note("cut-off", {"neighbor": edge.neighbor, "why": why}))
        self.disconnected(edge, Disconnected(edge.neighbor, edge.link), now)

    def limit(self, edge: Edge) -> tuple[float, str]:
        """When a connection ends if nothing comes, and as what."""
        timing = self.config.timing
        at, why = edge.heard_at + timing.dead_after_s, "silent"
        if edge.connection is Connection.GREETING and edge.opened_at + timing.hello_s < at:
            at, why = edge.opened_at + timing.hello_s, "half-open"
        if edge.receiving_since is not None and edge.receiving_since + timing.transfer_s < at:
            at, why = edge.receiving_since + timing.transfer_s, "slow-sender"
        return at, why

    def _hello(self, edge: Edge) -> Hello:
        told = self._told
        record = self._told_edges.get(edge.neighbor)
        holds = 0
        if told.round and told.round == self.round and edge.stage is Stage.VOTED:
            holds = edge.held[told.round][1].digest
        elif told.round and edge.counted.round == told.round:
            holds = edge.counted.yours
        return Hello(
            round=told.round,
            digest=told.digest,
            closed=told.closed,
            counted=self.told_counted(edge),
            holds=holds,
            doubts=tuple(record["doubts"]) if record is not None else (),
            one_sided=tuple(record["one_sided"]) if record is not None else (),
            done=self.final is not None,
            epoch=told.epoch,
        )

    def greeted(self, edge: Edge, event: Greeted, now: float) -> None:
        """The neighbor says where it stands; both ends now settle what was open between them."""
        hello = event.hello
        if edge.connection is not Connection.GREETING:
            self._refuse(edge, Reason.MALFORMED, 0, "a second Hello")
            return
        edge.connection = Connection.UP
        edge.wants = min(max(hello.round, hello.closed), self.config.rounds)
        self._forget(edge, hello)
        edge.closed, edge.shares, edge.digest = hello.closed, hello.round, hello.digest
        edge.done = hello.done
        self._see_epoch(hello.epoch)
        if edge.anchor is None:  # first contact: whoever begins late finds a run under way
            edge.anchor = (edge.wants, now)
        edge.patience.returned()
        for r in hello.one_sided[-REMEMBERED:]:
            if r == self.round and edge.stage.open:
                self._told_lost(edge)
            if 0 < r <= self.config.rounds:
                self._disagree(edge, r)
        self._learn(edge, hello.closed, hello.round, hello.digest, hello.counted, afresh=True)
        for r in hello.doubts[-REMEMBERED:]:
            if r == self.round and edge.stage.open and r > self.closed:
                self._told_lost(edge)
            elif r == edge.counted.round:
                self._disagree(edge, r)
        if self.round > self.closed and hello.round == self.round and edge.stage.open:
            edge.acked = edge.acked or hello.holds == self.kept[self.round].digest
            if edge.stage is Stage.VOTED:
                self._send(edge, Ack(self.round, edge.held[self.round][1].digest))
        self._answer_open(edge, hello)
        if self.final is not None:
            self._send(edge, Goodbye(True, "finished", self.told_counted(edge)))
        self._serve(edge)
        self.out.append(
            Note("connected", {"neighbor": edge.neighbor, "round": edge.wants}, warning=False)
        )

    def _answer_open(self, edge: Edge, hello: Hello) -> None:
        """The neighbor is in a round that is over here: say how it ended."""
        r, c = hello.round, edge.counted
        if r == 0:
            return
        if r == c.round and not edge.settled:
            edge.helping = hello.holds != c.mine
            if edge.helping and r not in self.kept:  # no longer to be had
                self._disagree(edge, r)
                self._send(edge, Release(r))
            else:
                self._send(edge, Ack(r, c.yours))
        elif r <= self.closed or (r == self.round and not edge.stage.open):
            self._send(edge, Release(r))

    def _forget(self, edge: Edge, hello: Hello) -> None:
        """Drop what was of a life that the neighbor lost: payloads, and acknowledgments."""
        same = (hello.round, hello.digest) == (edge.shares, edge.digest)
        if hello.closed < self.round and not (hello.round == self.round and same):
            edge.acked = False
        for r in list(edge.held):
            known = r == hello.round and edge.held[r][1].digest == hello.digest
            counted = r == hello.counted.round and edge.held[r][1].digest == hello.counted.mine
            if known or counted or (r <= hello.closed and r == self.round):
                continue
            del edge.held[r]
            if r == self.round:
                edge.take(Step.FORGOTTEN)

    # --- what both ends know --------------------------------------------------------------

    def _learn(
        self,
        edge: Edge,
        closed: int,
        round: int,
        digest: int,
        counted: Counted,
        *,
        afresh: bool = False,
    ) -> None:
        """What a neighbor's disk says. afresh: in a Hello, so it may say less than before."""
        theirs, ours = counted.reversed(), edge.counted
        over = max(closed, round - 1)  # whoever shares a round has ended or passed those before
        edge.theirs = theirs
        if afresh and closed < ours.round and theirs != ours and ours.round not in edge.one_sided:
            edge.settled = False  # whatever it said before, it knows no more of it
        if not edge.settled:
            # Who counted a later round had our Offer of it, which said that we counted this one.
            if theirs == ours or theirs.round > ours.round:
                edge.settled, edge.helping = True, False
            elif over >= ours.round:
                self._disagree(edge, ours.round)
            elif afresh and not (round == ours.round and digest == ours.yours):
                self._disagree(edge, ours.round)  # its state is lost
        r = theirs.round
        undecided = self.round > self.closed and edge.stage.open
        if r > 0 and r == self.round and undecided:
            held = edge.held.get(r)
            if theirs.mine != self.kept[r].digest:
                self._told_lost(edge)
            else:
                edge.acked = True
                if held is not None and held[1].digest != theirs.yours:
                    del edge.held[r]  # of a life that the neighbor lost
                    edge.take(Step.FORGOTTEN)
        elif r > ours.round or (r > 0 and r == ours.round and theirs != ours):
            self._disagree(edge, r)
        for r in list(edge.doubts):
            if r == theirs.round:
                self._disagree(edge, r)
            elif over >= r or (afresh and round != r):
                # Had it counted r, the Offer of whatever it counted since would have said so.
                edge.doubts.remove(r)
        if undecided and edge.stage.open and over >= self.round != theirs.round:
            self._told_lost(edge)

    def _told_lost(self, edge: Edge) -> None:
        edge.take(Step.TOLD)
        if edge.theirs.round == self.round:
            self._disagree(edge, self.round)

    def _disagree(self, edge: Edge, round: int) -> None:
        if edge.disagree(round):
            self.broken = True
            self._news.setdefault(edge.neighbor, []).append(round)
            self.out.append(Count("one-sided", edge.neighbor))

    def _see_epoch(self, epoch: int) -> None:
        if epoch >> EPOCH_BITS <= self.config.rounds + 1:
            self.epoch_seen = max(self.epoch_seen, epoch)

    # --- payloads -------------------------------------------------------------------------

    def offered(self, edge: Edge, event: Offered, now: float) -> None:
        """Decide on a payload before its bytes are taken."""
        offer = event.offer
        r, rounds = offer.round, self.config.rounds
        who = f"round {r}, neighbor {edge.neighbor}"
        edge.receiving_since = None
        if offer.final:
            if not self.seeking or r != rounds + 1:
                self._refuse(edge, Reason.STALE, r, f"{who}: nobody asked for a final model")
                return
        elif not 0 < r <= rounds:
            self._refuse(edge, Reason.AHEAD, r, f"{who}: the run has {rounds} rounds")
            return
        else:
            self._see_epoch(offer.epoch)
            self._learn(edge, offer.closed, r, offer.digest, offer.counted)
            edge.closed = max(edge.closed, offer.closed)
            edge.shares, edge.digest = r, offer.digest
            edge.wants = max(edge.wants, r)
            if offer.ack:
                self._take_ack(edge, r, offer.ack)
            self._serve(edge)
            if r <= self.closed or (r == self.round and not edge.stage.open):
                self._refuse(
                    edge,
                    Reason.STALE,
                    r,
                    f"{who}: agent {self.config.vertex} has closed round {self.closed}",
                )
                return
        held = edge.held.get(r)
        voted = r == self.round and edge.stage is Stage.VOTED
        if held is not None and (voted or held[1].digest == offer.digest):
            if voted:
                self._send(edge, Ack(r, held[1].digest))
            self._refuse(
                edge, Reason.REPEATED, r, f"{who}: a payload of this round is here already"
            )
            return
        if edge.held and r < max(edge.held) and r != self.round:
            self._refuse(
                edge, Reason.STALE, r, f"{who}: came after its payload of round {max(edge.held)}"
            )
            return
        # At most two in memory: the open round's, and the newest.
        for old in [k for k in edge.held if k != self.open_round or k == r]:
            del edge.held[old]
        edge.receiving_since = now
        self.out.append(Reserve(edge.link, offer))

    def completed(self, edge: Edge, event: Completed, now: float) -> None:
        """A payload is complete: hold it, and vote for it if it is of the open round."""
        offer = event.offer
        r = offer.round
        edge.receiving_since = None
        if r <= self.closed or (r == self.round and not edge.stage.open):
            self.out.append(Count("late", edge.neighbor))
            return
        edge.held[r] = (offer, event.payload)
        if not offer.final:
            edge.patience.arrived(r, now)
        if r == self.round and not self._joins(edge):
            self._vote(edge)

    def broken_off(self, edge: Edge, event: Broken, now: float) -> None:
        """A payload will not be complete."""
        edge.receiving_since = None

    def _joins(self, edge: Edge) -> bool:
        """Give an edge up whose ends are in different epochs. Returns whether it was."""
        offer, _ = edge.held[self.round]
        if not self.config.conserves or offer.epoch == self.epochs[self.round]:
            return False
        self._give_up(edge)
        return True

    def _vote(self, edge: Edge) -> None:
        if edge.take(Step.VOTE):
            self._send(edge, Ack(self.round, edge.held[self.round][1].digest))

    def acknowledged(self, edge: Edge, event: Acknowledged, now: float) -> None:
        """The neighbor holds our payload of a round."""
        if event.round > self.round:
            self._refuse(
                edge,
                Reason.AHEAD,
                event.round,
                f"neighbor {edge.neighbor} acknowledges round {event.round}, never sent",
            )
        else:
            self._take_ack(edge, event.round, event.digest)

    def _take_ack(self, edge: Edge, round: int, digest: int) -> None:
        if round != self.round or self.round <= self.closed or not edge.stage.open:
            return
        if self.kept[round].digest == digest:
            edge.acked = True
        else:
            self.out.append(Count("stale-ack", edge.neighbor))

    def released(self, edge: Edge, event: Released, now: float) -> None:
        """The neighbor ends a round without our payload."""
        r = event.round
        if r > self.config.rounds:
            why = f"neighbor {edge.neighbor} releases round {r} of {self.config.rounds}"
            self._refuse(edge, Reason.AHEAD, r, why)
            return
        # Whoever has left a round without a payload has failed in it: no reason to follow.
        if edge.wants == r:
            edge.wants = min(r + 1, self.config.rounds)
        edge.closed = max(edge.closed, r)
        if r == self.round > self.closed and edge.stage.open:
            self._told_lost(edge)
        elif r == edge.counted.round and not edge.settled:
            self._disagree(edge, r)
        self._serve(edge)

    def sought(self, edge: Edge, event: Sought, now: float) -> None:
        """The neighbor begins again: give it the model, or else the newest payload."""
        if self.final is not None:
            rounds = self.config.rounds
            offer = Offer(rounds + 1, self.final.digest, self._told.closed, final=True)
            self.out.append(SendPayload(edge.link, offer, self.final))
            edge.sent = rounds + 1
        elif self.kept:
            self._send_payload(edge, max(self.kept))

    def left(self, edge: Edge, event: Left, now: float) -> None:
        """The neighbor said goodbye."""
        if event.done:
            edge.done = True
            rounds = self.config.rounds
            self._learn(edge, rounds, edge.shares, 0, event.counted)
            edge.closed = edge.wants = rounds

    # --- sending --------------------------------------------------------------------------

    def _send(self, edge: Edge, message: Ack | Release | Goodbye) -> None:
        if edge.up:
            self.out.append(Send(edge.link, message))

    def _send_payload(self, edge: Edge, round: int) -> None:
        """Put a payload in line. It acknowledges along; what it replaces may not have left."""
        payload, ack = self.kept[round], 0
        if edge.stage is Stage.VOTED:
            ack = edge.held[self.round][1].digest
            if round != self.round:
                self._send(edge, Ack(self.round, ack))
                ack = 0
        offer = Offer(
            round,
            payload.digest,
            self._told.closed,
            self.told_counted(edge),
            ack,
            self.epochs[round],
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

    # --- a round --------------------------------------------------------------------------

    @property
    def open_round(self) -> int:
        """The round that is shared, or is shared next."""
        return self.round if self.round > self.closed else self.closed + 1

    def share(self, round: int, now: float, *, resumed: bool = False) -> None:
        """Send a payload that is on the disk. resumed: it may have been sent before a restart."""
        self.round, self._shared_at = round, now
        if resumed:
            self._resumes_until = now + self.config.timing.resume_s
        for edge in self.edges.values():
            for old in [r for r in edge.held if r < round]:
                del edge.held[old]
            edge.stage = Stage.BOUND if resumed else Stage.IDLE
            edge.acked = False
            if edge.closed >= round:
                self._told_lost(edge)
            elif round in edge.held and not self._joins(edge):
                edge.take(Step.VOTE)
            self._serve(edge)
            if edge.stage is Stage.VOTED and edge.sent != round:
                self._send(edge, Ack(round, edge.held[round][1].digest))

    def wait_s(self, edge: Edge, now: float) -> float:
        """Seconds that an edge may still keep the round open; 0 if it is decided."""
        if not edge.stage.open or edge.agreed:
            return 0.0
        timing = self.config.timing
        bound = edge.stage in (Stage.BOUND, Stage.VOTED)  # not ours alone to give up
        limit_s = timing.ceiling_s if bound else edge.patience.deadline_s
        left = self._shared_at + limit_s - now
        if not edge.up:
            back = max(edge.down_since, self._shared_at) if bound else edge.down_since
            until = back + timing.reconnect_s
            if edge.stage is Stage.BOUND:
                until = max(until, self._resumes_until)
            if edge.connection is Connection.GREETING:
                until = max(until, edge.opened_at + timing.hello_s)
            left = min(left, until - now)
        return max(left, 0.0)

    def decided_at(self) -> float | None:
        """When the open round ends if nobody says anything more. None: it is decided."""
        at = self._shared_at
        longest = max((self.wait_s(edge, at) for edge in self.edges.values()), default=0.0)
        return at + longest if longest > 0.0 else None

    def close(self, round: int, now: float) -> dict[int, Payload]:
        """End the round. Returns the payloads that count, by neighbor."""
        used = {}
        payload = self.kept[round]
        for j, edge in sorted(self.edges.items()):
            if edge.agreed and edge.take(Step.COUNT):
                found = edge.held[round][1]
                if not edge.settled:  # it went on without saying how the last one ended
                    self._disagree(edge, edge.counted.round)
                used[j] = found
                edge.counted = Counted(round, payload.digest, found.digest)
                edge.settled, edge.helping = edge.theirs == edge.counted, False
                edge.anchor = (round, now)
                edge.wants = max(edge.wants, min(round + 1, self.config.rounds))
            elif edge.stage.open:
                self._give_up(edge)
            edge.held.pop(round, None)
        self.closed = round
        self.own_pace.arrived(round, now)
        return used

    def skip(self, round: int) -> None:
        """End a round in which this agent has nothing to share, or begins again after it."""
        for edge in self.edges.values():
            for old in [r for r in edge.held if r <= round or r > self.config.rounds]:
                del edge.held[old]
            open_here = self.round > self.closed and edge.stage.open
            if open_here:
                self._give_up(edge)
            if not open_here or self.round != round:
                self._send(edge, Release(round))
        self.closed = max(self.closed, round)

    def _give_up(self, edge: Edge) -> None:
        if not edge.take(Step.GIVE_UP):
            return
        if edge.stage is Stage.DOUBT and edge.theirs.round == self.round:
            self._disagree(edge, self.round)
        elif edge.stage is Stage.DOUBT:
            edge.doubt(self.round)
            self.out.append(Count("in-doubt", edge.neighbor))
        edge.patience.missed()
        edge.rounds_missed += 1
        self._send(edge, Release(self.round))

    def tidy(self) -> None:
        """Say what is new, and let go of own payloads that nobody can ask for any more."""
        for j, rounds in self._news.items():
            self.out.append(Note("one-sided", {"neighbor": j, "rounds": rounds}))
        self._news.clear()
        if len(self.kept) < 2:
            return
        needed = {e.counted.round for e in self.edges.values() if not e.settled}
        needed.add(max(self.kept, default=0))
        for r in [r for r in self.kept if r not in needed]:
            del self.kept[r], self.epochs[r]
            self.out.append(Free(r))

    # --- where the others are ---------------------------------------------------------------

    def up(self) -> list[Edge]:
        """Edges whose neighbor is connected."""
        return [edge for edge in self.edges.values() if edge.up]

    def target(self, now: float) -> int:
        """The round to take part in next: one more, or the one that neighbors are in."""
        ahead = [e.wants for e in self.edges.values() if e.up and e.wants > self.closed + 1]
        if ahead:
            ahead = [
                e.wants
                for e in self.edges.values()
                if e.up and e.wants > self.closed + 1 and self._follows(e, now)
            ]
        return min(max([self.closed + 1, *ahead]), self.config.rounds)

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
