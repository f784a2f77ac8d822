"""What neighbors say, and what it changes.

Each connection begins with a Hello at either end, in which both settle what was open between
them. Events come in here checked for one thing only: that they are of the present connection.
"""

from __future__ import annotations

from flower_dhb.peer.protocol.edge import REMEMBERED, Connection, Edge, Stage, Step
from flower_dhb.peer.protocol.effects import Close, Count, Note, Reserve, Send, SendPayload
from flower_dhb.peer.protocol.events import (
    Acknowledged,
    Arriving,
    Broken,
    Completed,
    Connected,
    Disconnected,
    Greeted,
    Left,
    Offered,
    Released,
    Sought,
)
from flower_dhb.peer.protocol.messages import (
    Ack,
    Counted,
    Goodbye,
    Hello,
    Offer,
    Reason,
    Release,
    Seek,
)
from flower_dhb.peer.protocol.rounds import Rounds, part_of, round_of

__all__ = ["Neighborhood"]

_SPOKEN_OF_S = 10.0  # an absence that is worth a word


class Neighborhood(Rounds):
    """The edges of an agent, as its neighbors' messages change them."""

    # --- connections ------------------------------------------------------------------

    def connected(self, edge: Edge, event: Connected, now: float) -> None:
        """A new connection takes the place of the one before; each begins with a Hello."""
        if edge.link is not None and edge.link != event.link:
            self.out.append(Close(edge.link, "replaced by a newer connection"))
            edge.down_since = now
        edge.link, edge.connection = event.link, Connection.GREETING
        edge.opened_at = edge.heard_at = now
        edge.receiving_since, edge.sent = None, 0
        edge.lacking = edge.helping = False
        edge.sought, edge.seeking, edge.broken = False, False, 0
        edge.parted = False
        hello = self._hello(edge)
        edge.said = hello.round, hello.digest
        self.out.append(Send(event.link, hello))

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
        if edge.receiving_since is not None:
            paced = edge.receiving_since + edge.arrived / timing.least_bytes_s
            late = min(edge.moved_at, paced) + timing.transfer_s
            if late < at:
                at, why = late, "slow-sender"
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
            pace_s=self.own_pace.usual_s,
            edition=told.edition,
        )

    def greeted(self, edge: Edge, event: Greeted, now: float) -> None:
        """The neighbor says where it stands; both ends now settle what was open between them."""
        hello = event.hello
        if edge.connection is not Connection.GREETING:
            self._refuse(edge, Reason.MALFORMED, 0, "a second Hello")
            return
        edge.connection = Connection.UP
        edge.wants = max(hello.round, hello.closed)
        if not self._knows_more(hello):
            edge.wants = min(edge.wants, self.last)
        self._forget(edge, hello)
        closed = self.last if hello.done else hello.closed  # it takes part in no later round
        edge.closed, edge.shares, edge.digest = closed, hello.round, hello.digest
        edge.done = hello.done
        edge.patience.told_s = hello.pace_s
        self._see_epoch(hello.epoch)
        if edge.anchor is None:  # first contact: whoever begins late finds a run under way
            edge.anchor = (edge.wants, now)
        edge.patience.returned()
        for r in hello.one_sided[-REMEMBERED:]:
            if r == self.round and edge.stage.open:
                self._told_lost(edge)
            if 0 < r <= self.last:
                self._disagree(edge, r)
        self._learn(edge, closed, hello.round, hello.digest, hello.counted, afresh=True)
        for r in hello.doubts[-REMEMBERED:]:
            if r == self.round and edge.stage.open and r > self.closed:
                self._told_lost(edge)
            elif r == edge.counted.round:
                self._disagree(edge, r)
        if self.round > self.closed and hello.round == self.round and edge.stage.open:
            if self._differs(edge, hello):
                pass
            elif self._stands(edge, hello.holds):
                edge.acked = True
            elif edge.acked:  # restarted: its vote stands, but the bytes are gone
                edge.lacking = True
                self._send_payload(edge, self.round)
            if edge.stage is Stage.VOTED:
                self._send(edge, Ack(self.round, edge.held[self.round][1].digest))
        self._answer_open(edge, hello)
        if self.final is not None:
            self._send(edge, Goodbye(True, "finished", self.told_counted(edge)))
        self._serve(edge)
        fields: dict[str, object] = {"neighbor": edge.neighbor, "round": edge.wants}
        if now - edge.down_since >= _SPOKEN_OF_S:
            fields["after_s"] = round(now - edge.down_since)
        self.out.append(Note("connected", fields, warning=False))

    def _stands(self, edge: Edge, holds: int) -> bool:
        """Whether the neighbor still holds the open round's payload, as its Hello says.

        It lets go of what our own Hello did not name, and so of a payload that was made, or made
        again, since then.
        """
        return holds == self.kept[self.round].digest and edge.said == (self.round, holds)

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
        elif self._is_over(edge, r) and not self._takes_turns(edge, r):
            self._send(edge, Release(r))

    def _takes_turns(self, edge: Edge, round: int) -> bool:
        """Whether an edge that the mesh has is not due in a round."""
        edition = self.editions.then(round)
        return edge.neighbor in edition.neighbors and edge.neighbor not in edition.due(round)

    def _forget(self, edge: Edge, hello: Hello) -> None:
        """Drop what was of a life that the neighbor lost: payloads, and acknowledgments."""
        same = (hello.round, hello.digest) == (edge.shares, edge.digest)
        if hello.closed < self.round and not (hello.round == self.round and same):
            edge.acked = False
        for r in list(edge.held):
            known = r == hello.round and edge.held[r][1].digest == hello.digest
            if known or (r <= hello.closed and r == self.round):
                continue
            del edge.held[r]
            if r == self.round:
                edge.take(Step.FORGOTTEN)

    # --- what both ends know ----------------------------------------------------------

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
        if afresh and theirs.round < ours.round and ours.round not in edge.one_sided:
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
            if over >= r or (afresh and round != r):
                # Had it counted r, the Offer of whatever it counted since would have said so.
                edge.doubts.remove(r)
        if undecided and edge.stage.open and over >= self.round != theirs.round:
            self._told_lost(edge)

    def _knows_more(self, said: Hello | Offer) -> bool:
        """Whether the neighbor is in an edition of the mesh that this agent has yet to hear of."""
        return said.edition > self.editions.newest.number

    def _see_epoch(self, epoch: int) -> None:
        part = part_of(epoch)
        if round_of(epoch) <= self.rounds + 1 and part < self.editions.newest.members_since:
            self.epochs_seen[part] = max(self.epochs_seen.get(part, 0), epoch)

    # --- payloads ---------------------------------------------------------------------

    def offered(self, edge: Edge, event: Offered, now: float) -> None:
        """Decide on a payload before its bytes are taken."""
        offer = event.offer
        r, rounds = offer.round, self.last
        who = f"round {r}, neighbor {edge.neighbor}"
        edge.receiving_since = None
        if offer.final:
            if not self.seeking or not self.closed < r <= rounds + 1:
                self._refuse(edge, Reason.STALE, r, f"{who}: nobody asked for a final model")
                return
        elif r < 1 or (r > rounds and not self._knows_more(offer)):
            edge.shares, edge.digest = max(r, 0), offer.digest
            self._refuse(edge, Reason.AHEAD, r, f"{who}: the run has {rounds} rounds")
            return
        else:
            self._see_epoch(offer.epoch)
            self._learn(edge, offer.closed, r, offer.digest, offer.counted)
            edge.closed = max(edge.closed, offer.closed)
            edge.shares, edge.digest = r, offer.digest
            edge.wants = max(edge.wants, r)
            edge.seeking = edge.seeking and r <= self.closed
            open_here = r == self.round > self.closed and edge.stage.open
            differs = open_here and self._differs(edge, offer)
            if offer.ack:
                self._take_ack(edge, r, offer.ack)
            self._serve(edge)
            if self._is_over(edge, r):
                if r != edge.counted.round or r in edge.one_sided:  # it may not have heard so
                    self._send(edge, Release(r))
                reason = Reason.EDITION if differs else Reason.STALE
                text = f"{who}: agent {self.config.vertex} has closed round {self.closed}"
                if differs:
                    mine = self.numbers[r]
                    text = f"{who}: of edition {offer.edition} of the mesh, expected {mine}"
                self._refuse(edge, reason, r, text)
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
        edge.receiving_since = edge.moved_at = now
        edge.arrived = edge.total = 0
        self.out.append(Reserve(edge.link, offer))

    def arriving(self, edge: Edge, event: Arriving, now: float) -> None:
        """More of a payload is here. Say once if the link is too slow for the ceiling."""
        if edge.receiving_since is None or event.n_bytes <= edge.arrived:
            return
        edge.moved_at, edge.arrived, edge.total = now, event.n_bytes, event.total
        timing = self.config.timing
        elapsed = now - edge.receiving_since
        needs_s = elapsed * edge.total / edge.arrived
        if edge.told_slow or elapsed < timing.dead_after_s or needs_s <= timing.ceiling_s:
            return
        edge.told_slow = True
        self.out.append(Count("slow-link", edge.neighbor))
        self.out.append(
            Note(
                "slow-link",
                {
                    "neighbor": edge.neighbor,
                    "bytes": edge.total,
                    "bytes_per_second": round(edge.arrived / elapsed),
                    "needs_s": round(needs_s),
                    "ceiling_s": timing.ceiling_s,
                    "remedy": "no round can count this edge: set a larger timing.ceiling-s, train "
                    "more local steps in fewer rounds, compress payloads, or use a smaller model",
                },
            )
        )

    def completed(self, edge: Edge, event: Completed, now: float) -> None:
        """A payload is complete: hold it, and vote for it if it is of the open round."""
        offer = event.offer
        r = offer.round
        edge.receiving_since = None
        if self._is_over(edge, r):
            self.out.append(Count("late", edge.neighbor))
            return
        if offer.final and not self.seeking:
            return
        edge.held[r] = (offer, event.payload)
        edge.in_vain = 0
        if not offer.final:
            edge.patience.arrived(r, now, self.editions.then(r).last_due(edge.neighbor, r))
        if r == self.round and not self._joins(edge):
            self._vote(edge)

    def broken_off(self, edge: Edge, event: Broken, now: float) -> None:
        """A payload will not be complete. It is as bad if it is sent again: give the edge up."""
        edge.receiving_since = None
        r = edge.broken = edge.shares
        if r == self.round > self.closed and edge.stage.open and r not in edge.held:
            self._give_up(edge)

    def screened(self, edge: Edge, round: int) -> None:
        """A payload that waits for this agent's own is not to be used: no vote for it."""
        if edge.held.pop(round, None) is not None:
            edge.broken = round

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
        if edge.helping and (round, digest) == (edge.counted.round, edge.counted.mine):
            edge.helping = False
            self._serve(edge)
        if round != self.round or self.round <= self.closed or not edge.stage.open:
            return
        if self.kept[round].digest == digest:
            edge.acked, edge.lacking = True, False
        else:
            self.out.append(Count("stale-ack", edge.neighbor))

    def released(self, edge: Edge, event: Released, now: float) -> None:
        """The neighbor ends a round without our payload."""
        r = event.round
        if r > self.last:
            why = f"neighbor {edge.neighbor} releases round {r} of {self.last}"
            self._refuse(edge, Reason.AHEAD, r, why)
            return
        # Whoever has left a round without a payload has failed in it: no reason to follow.
        if edge.wants == r:
            edge.wants = min(r + 1, self.last)
        edge.closed = max(edge.closed, r)
        if (
            r >= self.round > self.closed
            and edge.stage.open
            and (r == self.round or not edge.acked)
        ):
            self._told_lost(edge)
        elif r == edge.counted.round and not edge.settled:
            self._disagree(edge, r)
        self._serve(edge)

    def sought(self, edge: Edge, event: Sought, now: float) -> None:
        """The neighbor begins again: give it the model, or else the newest payload.

        Who begins again, too, says so in turn: neither is to wait for the other.
        """
        edge.seeking = True
        if self.seeking and not edge.sought:
            edge.sought = True
            self._send(edge, Seek())
        if self.final is not None:
            r = self.closed + 1
            offer = Offer(r, self.final.digest, self._told.closed, final=True)
            self.out.append(SendPayload(edge.link, offer, self.final))
            edge.sent = r
        elif self.kept:
            self._send_payload(edge, max(self.kept))

    def left(self, edge: Edge, event: Left, now: float) -> None:
        """The neighbor said goodbye: it takes part in no later round, or is no neighbor then."""
        if event.done and (event.closed or not edge.done):
            edge.done, edge.seeking = True, False
            last = self.last
            self._learn(edge, last, edge.shares, 0, event.counted)
            edge.closed = last
            edge.wants = min(event.closed or last, last)
        elif event.closed:
            self._learn(edge, event.closed, edge.shares, 0, event.counted)
            edge.closed = max(edge.closed, event.closed)
