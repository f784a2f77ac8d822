"""What must hold after every event, whatever went wrong: one function for each promise.

The checks are incremental: each looks at what an event can have changed, and at the ends of one
edge. What no promise covers (edges of a liar, of an agent that runs twice, rounds whose story is
lost with a disk) is left out by `_exempt`, and differences there are counted by themselves.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

from flower_dhb.peer.protocol.agent import Phase
from flower_dhb.peer.protocol.edge import Stage
from flower_dhb.peer.protocol.edition import Editions
from flower_dhb.peer.protocol.effects import (
    Combine,
    Count,
    Effect,
    Finish,
    Note,
    Refuse,
    Rejoin,
    Reserve,
)
from flower_dhb.peer.protocol.events import (
    Announced,
    Completed,
    Event,
    Greeted,
    Journaled,
    Left,
    LinkEvent,
    Offered,
    Tick,
)
from flower_dhb.peer.protocol.messages import Hello, Offer
from flower_dhb.peer.protocol.rounds import round_of

from .app import State
from .field import PRIME
from .net import NEVER, End

if TYPE_CHECKING:
    from .process import Host, Process
    from .world import World

__all__ = ["TELLING", "ViolationError", "Watch"]

TELLING = frozenset({Greeted, Offered, Left})  # events by which a neighbor says where it stands
_FEW = 3
_LEFT_OUT = 5
_REMEMBERED = 64


class ViolationError(AssertionError):
    """A promise that was not kept. promise: its name."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise


class Watch:
    """Holds the story of all agents against each other.

    differences: by edge (smaller vertex first), the rounds that count at one end only, and which
    end it is. open: what a neighbor's payload moved at one end (there, from whom, round), as long
    as the other end has not moved back by as much; open_total: their sum, and what is open for
    ever because a story was lost. flux_total: what neighbors moved, over all agents. left: by agent
    and neighbor, the round in which the agent stopped, the connection, and the neighbor's life.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts = world.hosts
        self.differences: dict[tuple[int, int], dict[int, int]] = {}
        self.open: dict[tuple[int, int, int], int] = {}
        self.open_total = 0
        self.flux_total = 0
        self.left: dict[tuple[int, int], tuple[int, End, int]] = {}
        self.bound_s = _bound_s(world)

    def _exempt(self, i: int, j: int, r: int) -> bool:
        until = self.world.faults.exempt_until
        return r <= until[i] or r <= until[j]

    # --- (1) both ends of an edge tell the same story, or the difference is counted ----------

    def edges_agree(self, host: Host, r: int) -> None:
        """A round is over at an agent: wherever it is over at the other end too, both used each
        other's payload, or neither did, or the end that did not use it has the round in doubt.
        """
        for j in host.neighbors:
            other = self.hosts[j]
            if other.closed >= r and other is not host:
                self._compare(host, other, r)

    def _compare(self, a: Host, b: Host, r: int) -> None:
        va, vb = a.verdicts.get(r), b.verdicts.get(r)
        ua = va[1].get(b.vertex) if va is not None else None
        ub = vb[1].get(a.vertex) if vb is not None else None
        if ua is None and ub is None:
            return
        if self._exempt(a.vertex, b.vertex, r):
            if ua is None or ub is None or ua[0] != vb[0] or ub[0] != va[0]:
                self.world.count("differences that no promise covers")
            return
        if ua is not None and ub is not None:
            self.same_bytes(a, b, r)
            self.one_edition(a, b, r)
            return
        used, lost = (a, b) if ua is not None else (b, a)
        self.same_bytes(used, lost, r)
        pair = (min(a.vertex, b.vertex), max(a.vertex, b.vertex))
        self.differences.setdefault(pair, {})[r] = used.vertex
        self.world.count("differences")
        self._in_doubt(used, lost, r)

    def one_edition(self, a: Host, b: Host, r: int) -> None:
        """What counts at both ends counts with the weights of one edition of the mesh."""
        here, there = a.editions_used.get(r), b.editions_used.get(r)
        if here != there:
            raise ViolationError(
                "one edition",
                f"round {r}: agent {a.vertex} used edition {here} of the mesh, agent {b.vertex} "
                f"edition {there}",
            )

    def _in_doubt(self, used: Host, lost: Host, r: int) -> None:
        doubts, one_sided = self._knows(lost, used.vertex)
        if r not in doubts and r not in one_sided:
            raise ViolationError(
                "edges agree",
                f"round {r}: agent {used.vertex} used the payload of {lost.vertex}, which did "
                f"not use its, and knows of no doubt (doubts {doubts}, one-sided {one_sided})",
            )

    def _knows(self, host: Host, j: int) -> tuple[list[int], list[int]]:
        if host.process is not None:
            near = host.process.core.near
            if j not in near.edges:
                past = near.past.get(j, {"doubts": [], "one_sided": []})
                return past["doubts"], past["one_sided"]
            return near.edges[j].doubts, near.edges[j].one_sided
        if not host.disk.writes:
            return [], []
        edges = host.disk.writes[-1].record["edges"]
        found = edges.get(j) or edges.get(str(j)) or {"doubts": [], "one_sided": []}
        return found["doubts"], found["one_sided"]

    def differences_are_known(self, process: Process, j: int) -> None:
        """Each end has heard from the other that a round is over there: what differs in it is
        one-sided at both ends, nothing is in doubt, and nothing that agrees is one-sided.
        """
        other = self.hosts[j].process
        i = process.vertex
        if other is None:
            return
        if j not in process.core.edges or i not in other.core.edges:
            return
        both = min(process.told.get(j, 0), other.told.get(i, 0))
        pair = (min(i, j), max(i, j))
        here, there = process.core.edges[j], other.core.edges[i]
        for r in self.differences.get(pair, ()):
            if r <= both and not (r in here.one_sided and r in there.one_sided):
                raise ViolationError(
                    "differences are known",
                    f"round {r} counts at one end of {pair} only, both ends have heard that it "
                    f"is over at the other, and yet it is one-sided at {i}: {here.one_sided}, at "
                    f"{j}: {there.one_sided}",
                )
        for r in here.doubts:
            if r <= process.told.get(j, 0) and not self._exempt(i, j, r):
                raise ViolationError(
                    "differences are known",
                    f"agent {i} is still in doubt about round {r}, which neighbor {j} says is "
                    f"over ({process.told[j]})",
                )

    def nothing_is_one_sided_that_agrees(self, process: Process, j: int) -> None:
        """A round that is one-sided at both ends counts at one end only, in fact."""
        edge = process.core.edges.get(j)
        if edge is None or not edge.one_sided:
            return
        i, host, other = process.vertex, process.host, self.hosts[j]
        _, there = self._knows(other, i)
        pair = (min(i, j), max(i, j))
        known = self.differences.get(pair, {})
        for r in edge.one_sided:
            if (
                r not in known
                and r in there
                and r <= min(host.closed, other.closed)
                and not self._exempt(i, j, r)
            ):
                raise ViolationError(
                    "differences are known",
                    f"round {r} is one-sided at both ends of {pair}, and yet they agree",
                )

    # --- (2) what counted is what the sender's state grew from --------------------------------

    def same_bytes(self, used: Host, other: Host, r: int) -> None:
        """The payload that counted at one end is the one that the other's state grew from."""
        for here, there in ((used, other), (other, used)):
            mine, theirs = here.verdicts.get(r), there.verdicts.get(r)
            found = mine[1].get(there.vertex) if mine is not None else None
            if found is None:
                continue
            if theirs is None or theirs[0] != found[0]:
                own = "none" if theirs is None else f"#{theirs[0] & 0xFFFF:04x}"
                raise ViolationError(
                    "same bytes",
                    f"round {r}: agent {here.vertex} used #{found[0] & 0xFFFF:04x} of "
                    f"{there.vertex}, whose state grew from {own}",
                )

    def used_was_promised(self, host: Host, effect: Combine) -> None:
        """What counts was on its sender's disk before, as the payload of that round."""
        for j, payload in effect.payloads.items():
            if self._exempt(host.vertex, j, effect.round):
                continue
            if payload.digest not in self.hosts[j].disk.promised.get(effect.round, ()):
                raise ViolationError(
                    "same bytes",
                    f"agent {host.vertex} uses in round {effect.round} a payload of {j} that its "
                    "disk never held",
                )

    # --- (3) nothing leaves before its record is on the disk ----------------------------------

    def payload_leaves(self, process: Process, offer: Offer) -> None:
        """A payload is on its sender's disk, under this round, before it leaves.

        One of a round in which nobody is due counts nowhere. All shared rounds before are there.
        """
        written = offer.digest in process.disk.promised.get(offer.round, ())
        if offer.ack:
            self.ack_leaves(process, offer.round)
        if offer.final or written:
            return
        known = process.core.near.editions.known
        of_then = Editions(e for e in known if e.number <= offer.edition)  # as it was labeled
        if of_then.then(offer.round).due(offer.round):
            raise ViolationError(
                "disk first",
                f"agent {process.vertex} sends its payload of round {offer.round}, which is not on "
                "its disk",
            )
        writes = process.disk.writes
        closed = writes[-1].closed if writes else self.world.plan.origin
        if of_then.shared_rounds(closed, offer.round - 1) > 0:
            raise ViolationError(
                "disk first",
                f"agent {process.vertex} gives its payload of round {offer.round}; its disk "
                f"says that it has closed {closed}",
            )

    def ack_leaves(self, process: Process, r: int) -> None:
        """The own payload of a round is on the disk before an acknowledgment of it leaves."""
        if r not in process.disk.promised:
            raise ViolationError(
                "disk first",
                f"agent {process.vertex} acknowledges round {r}, and its own payload of that "
                "round is not on its disk",
            )

    def hello_leaves(self, process: Process, end: End, hello: Hello) -> None:
        """A Hello says nothing that the disk does not."""
        if hello.digest and hello.digest not in process.disk.promised.get(hello.round, ()):
            raise ViolationError(
                "disk first",
                f"agent {process.vertex} says that it shares round {hello.round}, which is not on "
                "its disk",
            )
        writes = process.disk.writes
        closed = writes[-1].closed if writes else self.world.plan.origin
        if hello.closed > closed:
            raise ViolationError(
                "disk first",
                f"agent {process.vertex} says that it has closed round {hello.closed}; its disk "
                f"says {closed}",
            )

    def rounds_go_up(self, host: Host, r: int) -> None:
        """An agent ends a round once, and after the one before."""
        if r <= host.closed:
            raise ViolationError("rounds go up", f"agent {host.vertex} ends round {r} twice")

    # --- (4) the network average -----------------------------------------------------------

    def combined(
        self,
        process: Process,
        effect: Combine,
        moved: dict[int, tuple[int, int]],
        state: State,
    ) -> None:
        """A round is over at an agent: its story goes on."""
        host, r = process.host, effect.round
        self.used_was_promised(host, effect)
        value = host.state.payload()
        used = {j: (p.digest, *moved[j]) for j, p in effect.payloads.items()}
        host.editions_used[r] = effect.edition
        self._entry(host, r, value.digest, used)
        if host.twin:
            state.count = len(host.order)
        if state.count != len(host.order):
            raise AssertionError("the simulator's own books are wrong")
        self._advance(host, r)

    def failed(self, host: Host, r: int) -> None:
        """Training failed in a round whose payload may have been shared before."""
        if host.state.value is not None:
            digest = host.state.payload().digest
            host.state = host.state.untrained()
            host.state.count += 1
            self.rounds_go_up(host, r)
            self._entry(host, r, digest, {})
        self.saved(host, r)

    def saved(self, host: Host, r: int) -> None:
        """All rounds up to this one are over."""
        if r > host.closed:
            self._advance(host, r)

    def _entry(
        self, host: Host, r: int, digest: int, used: dict[int, tuple[int, int, int]]
    ) -> None:
        host.verdicts[r] = (digest, used)
        host.order.append(r)
        if host.twin:
            return
        for j, (theirs, flux, _) in used.items():
            host.flux = (host.flux + flux) % PRIME
            self.flux_total = (self.flux_total + flux) % PRIME
            here, there = (host.vertex, j, r), (j, host.vertex, r)
            self.open.pop(here, None)  # of a story that was lost: it stays in the sum
            other = self.hosts[j].verdicts.get(r)
            back = other[1].get(host.vertex) if other is not None else None
            if (
                there in self.open
                and back is not None
                and other is not None
                and other[0] == theirs
                and back[0] == digest
            ):
                moved = self.open.pop(there)
                self.open_total = (self.open_total - moved) % PRIME
                if (moved + flux) % PRIME:
                    raise ViolationError(
                        "network average",
                        f"round {r}: agents {host.vertex} and {j} used each other's payload, "
                        "and yet do not move by the same",
                    )
            else:
                self.open[here] = flux
                self.open_total = (self.open_total + flux) % PRIME
        self.average_moves_by_steps(host)

    def average_moves_by_steps(self, host: Host) -> None:
        """All that neighbors moved adds up to what is counted as open or one-sided."""
        if self.flux_total != self.open_total:
            raise ViolationError(
                "network average",
                f"moved by more than local steps and open rounds when agent {host.vertex} ended "
                f"round {host.order[-1] if host.order else 0}",
            )

    def moved(self, host: Host) -> None:
        """An agent's parameter is its start, its steps, what neighbors moved, and jumps."""
        state = host.state
        if host.twin:
            return
        if (state.x - host.start_x - state.steps - state.flux - state.jumps) % PRIME:
            raise ViolationError(
                "network average", f"the books of agent {host.vertex} do not add up"
            )
        if state.flux != (host.flux - host.past_flux) % PRIME:
            raise ViolationError(
                "network average",
                f"the state of agent {host.vertex} is not the one that its verdicts led to",
            )

    def rolled_back(self, host: Host, state: State, closed: int) -> None:
        """An agent goes on from an earlier state: what came after it was never decided."""
        for r in host.order[state.count :]:
            _, used = host.verdicts.pop(r)
            for j, (_, flux, _) in () if host.twin else used.items():
                host.flux = (host.flux - flux) % PRIME
                self.flux_total = (self.flux_total - flux) % PRIME
                here, there = (host.vertex, j, r), (j, host.vertex, r)
                if here in self.open:
                    del self.open[here]
                else:  # the other end moved back by as much, which is open again
                    self.open[there] = (PRIME - flux) % PRIME
                self.open_total = (self.open_total - flux) % PRIME
        del host.order[state.count :]
        host.closed = closed
        host.state = state
        if host.twin:
            return
        self.average_moves_by_steps(host)
        self.moved(host)
        for j in host.neighbors:
            known = self.differences.get((min(host.vertex, j), max(host.vertex, j)))
            for r in [r for r in known or () if r > closed]:
                del known[r]

    def vanished(self, host: Host) -> None:
        """The newest writes of an agent are lost: its story so far stays, but leads nowhere."""
        writes = host.disk.writes
        state = writes[-1].state if writes else None
        count = state.count if state is not None else 0
        host.past_flux = (host.flux - (state.flux if state is not None else 0)) % PRIME
        for r in host.order[count:]:
            _, used = host.verdicts.pop(r)
            for j in used:
                self.open.pop((host.vertex, j, r), None)  # it stays in the sum
        del host.order[count:]

    def _advance(self, host: Host, closed: int) -> None:
        before, host.closed = host.closed, closed
        if not host.twin:
            for r in range(before + 1, closed + 1):
                self.edges_agree(host, r)

    # --- (5) what comes from another link changes nothing -------------------------------------

    def print_of(self, process: Process) -> Any:
        """All that a core knows, but its clock."""
        return _print(process.core)

    def stale_changed_nothing(
        self, process: Process, event: LinkEvent, before: Any, effects: list[Effect]
    ) -> None:
        """An event of a link that is not the neighbor's present one changes nothing."""
        self.world.count("stale events")
        if effects or _print(process.core) != before:
            raise ViolationError(
                "stale links", f"agent {process.vertex}: {event} of another link did something"
            )

    # --- (6) everybody gets to the end, and nobody waits in vain ------------------------------

    def in_time(self) -> None:
        """Once faults have stopped, all agents finish within a bound."""
        if self.world.now > self.world.faults.calm_at + self.bound_s:
            self.world.check_over()  # whoever is left may have nobody to begin from
            if self.world.over:
                return
            raise ViolationError(
                "liveness",
                f"{self.bound_s:.0f} s after the last fault: "
                + ", ".join(
                    f"agent {p.vertex} is {p.core.phase.value}, round {p.core.round}/"
                    f"{p.core.closed}"
                    for there in self.world.live
                    for p in there
                ),
            )

    def rang(self, process: Process) -> None:
        """A deadline that is due is not due for ever."""
        core = process.core
        if process.resuming:  # what came during a pause is still in line
            waited = []
        elif core.phase is Phase.WAITING:
            edges = core.edges.items()
            waited = [j for j, e in edges if e.up and e.stage.open and not e.agreed]
        elif core.phase is Phase.REJOINING:
            # Who believes a liar waits for what is as new as that: whom else it has not asked it
            # does not wait for.
            lied_to = self.world.plan.liar is not None
            waited = [
                j
                for j, e in core.edges.items()
                if e.up and not e.held and not e.seeking and e.wants > core.closed
                if e.sought or not lied_to
            ]
        else:
            waited = []
        ends = process.current
        process.waited = [
            j for j in waited if j in ends and ends[j].quiet_since() <= self.world.now
        ]
        if self.world.now == process.rang_at:
            process.rings += 1
            if process.rings > 20:
                raise ViolationError("liveness", f"the clock of agent {process.vertex} never stops")
        else:
            process.rang_at, process.rings = self.world.now, 0

    def begins_again(self, process: Process) -> None:
        """Once faults have stopped, an agent as fast as the others begins again once or twice,
        and then takes part.
        """
        plan = self.world.plan
        if self.world.now < self.world.faults.calm_at or plan.liar is not None:
            return
        process.rejoins += 1
        seconds = [pace.train_s + 2 * pace.disk_s + pace.combine_s for pace in plan.paces]
        if process.rejoins > 3 and max(seconds) < 3 * min(seconds) and not plan.odds.wild:
            raise ViolationError(
                "liveness", f"agent {process.vertex} begins again for the {process.rejoins}th time"
            )

    def nobody_waits_in_vain(self, process: Process, effects: list[Effect]) -> None:
        """Time alone ended a wait: no neighbor that was left out waited for this agent, or was
        done with the round, with nothing under way between the two.
        """
        for effect in effects:
            if type(effect) is Combine:
                phase, r = Phase.WAITING, effect.round
            elif type(effect) is Rejoin:
                phase, r = Phase.REJOINING, None
            else:
                continue
            for j in process.waited:
                self._waits(process, j, phase, r)

    def nobody_waits_for_what_is_not_due(self, process: Process) -> None:
        """Only edges of the edition of the open round's payload keep a round open."""
        core = process.core
        if core.phase is not Phase.WAITING or core.round <= core.closed:
            return
        due = self.world.plan.meshes[process.edition - 1].row(process.vertex).due(core.round)
        for j, edge in core.edges.items():
            if edge.stage.open and j not in due:
                raise ViolationError(
                    "due",
                    f"agent {process.vertex} waits in round {core.round} for {j}, which edition "
                    f"{process.edition} does not make its neighbor in this round",
                )

    def nobody_is_left_out(self, process: Process, effect: Combine) -> None:
        """A neighbor that is there, on a connection that is whole, and has not left the round, is
        sent the round's payload, but for a few rounds after it was sent again what it lost.
        """
        for j, edge in process.core.edges.items():
            served = edge.sent == effect.round or edge.acked or edge.closed >= effect.round
            other = self.hosts[j].process
            apart = other is None or other.edition != process.edition or edge.stage is Stage.APART
            # Whatever it says it is or has; and what it announces is refused.
            apart = apart or self.world.plan.liar in (j, process.vertex)
            if not edge.up or edge.done or served or apart:
                process.left_out.pop(j, None)
                continue
            end = process.current.get(j)
            if end is None or not end.whole or end.other.process.paused or not end.answered():
                continue  # whatever is sent now, it could not help
            link, rounds = process.left_out.get(j, (edge.link, 0))
            process.left_out[j] = (edge.link, rounds + 1 if link == edge.link else 1)
            if rounds >= _LEFT_OUT:
                raise ViolationError(
                    "nobody is left out",
                    f"agent {process.vertex} has sent {j} nothing of its last {rounds} rounds",
                )

    def _waits(self, process: Process, j: int, phase: Phase, r: int | None) -> None:
        end = process.current.get(j)
        if end is None:
            return
        other = end.other.process
        back = other.core.edges.get(process.vertex)
        if other.paused or other.lies or process.lies or back is None or not back.up:
            return
        core = other.core
        if r is not None and core.closed >= r:
            text = f"agent {process.vertex} waited for {j}, for which round {r} is over"
        elif core.phase is phase and (r is None or core.round == r):
            text = f"agents {process.vertex} and {j} waited for each other ({phase.value}, {r})"
        else:
            return
        raise ViolationError("nobody waits in vain", text)

    # --- a stop ------------------------------------------------------------------------------

    def ends(self, process: Process) -> None:
        """An agent ends, perhaps because it was told to: soon, and in doubt for nobody."""
        core = process.core
        limit = process.host.config.timing.reconnect_s
        took = process.clock() - process.stopped_at
        if took > limit * (1 + 1e-9) and not process.resuming:
            raise ViolationError(
                "a stop", f"agent {process.vertex} took {took:.3f} s of {limit:.3f}"
            )
        if process.lies or process.host.twin or core.round <= core.closed:
            return
        for j, end in process.current.items():
            other, edge = end.other.process, core.edges[j]
            back = other.core.edges.get(process.vertex)
            if back is None or not (end.whole and edge.up and back.up) or other.lies:
                continue
            if edge.stage is Stage.BOUND or back.stage is Stage.BOUND:
                continue  # one of the two does not know itself what it has said before
            self.world.count("stopped in an open round")
            self.left[process.vertex, j] = core.round, end, other.life

    def doubts(self, process: Process, j: int) -> None:
        """A round is in doubt: not since the neighbor was stopped, if its last words have come.

        Whoever has voted, and whose own app fails then, is in doubt for that.
        """
        r, end, life = self.left.get((j, process.vertex), (0, None, 0))
        told = end is not None and end.cut_at == NEVER and end.other.left_at >= end.last
        failed = process.failed_in == r
        if r == process.core.round and told and life == process.life and not failed:
            raise ViolationError(
                "a stop",
                f"agent {process.vertex} is in doubt about round {r}, since {j} was stopped in it",
            )

    # --- (7) nothing grows without bound ------------------------------------------------------

    def stays_small(self, process: Process, effects: list[Effect]) -> None:
        """An event makes a bounded number of effects and lines; memory is bounded."""
        core = process.core
        degree = len(process.host.neighbors)
        if len(effects) > 12 + 8 * degree:
            raise ViolationError("bounds", f"{len(effects)} effects of one event")
        lines = sum(1 for e in effects if type(e) is Note)
        lines += len({(e.name, e.neighbor) for e in effects if type(e) is Count})
        liar = 2 * self.world.plan.rounds * (self.world.plan.liar is not None)
        if lines > 4 + 4 * degree + liar:
            raise ViolationError("bounds", f"{lines} lines of one event")
        if len(core.near.kept) > degree + 3:
            raise ViolationError("bounds", f"keeps {len(core.near.kept)} own payloads")
        if len(process.disk.own) > degree + 4:
            raise ViolationError("bounds", f"{len(process.disk.own)} own payloads on the disk")
        if len(core._pending) > 12:
            raise ViolationError("bounds", f"{len(core._pending)} writes in line")
        for j, edge in core.edges.items():
            if len(edge.held) > 2:
                raise ViolationError("bounds", f"holds {len(edge.held)} payloads of neighbor {j}")
            if max(len(edge.doubts), len(edge.one_sided)) > _REMEMBERED:
                raise ViolationError("bounds", f"lists of neighbor {j} have no end")

    # --- (8) what an agent ends with -----------------------------------------------------------

    def finishes(self, process: Process, effect: Finish) -> None:
        """A final model has a neighbor's part that is a few rounds old at most, or says since
        when it has none.
        """
        mixed, rounds = process.host.state.mixed, effect.round - 1
        since = effect.alone_since
        if since >= 0:
            self.world.count("alone at the end")
            if since != mixed:
                raise ViolationError(
                    "fresh or marked",
                    f"agent {process.vertex} says that it was alone since round {since}; in fact "
                    f"since {mixed}",
                )
        elif process.core.near.present.shared_rounds(mixed, rounds) > _FEW:
            raise ViolationError(
                "fresh or marked",
                f"agent {process.vertex} ends round {rounds} as if it were not alone; no neighbor "
                f"had a part since round {mixed}",
            )

    def no_old_state_is_relabeled(self, process: Process, label: int) -> None:
        """A payload does not get the label of a round that is further ahead than an agent may
        be away: whoever missed more exchanges begins again from its neighbors.
        """
        editions = process.core.near.editions
        missed = editions.shared_rounds(process.host.closed, label - 1)
        if missed > self.world.plan.away_rounds:
            raise ViolationError(
                "fresh or marked",
                f"agent {process.vertex} shares a state of round {process.host.closed} as round "
                f"{label}; {self.world.plan.away_rounds} rounds may be missed",
            )

    # --- the moments at which something is checked ---------------------------------------------

    def began(self, host: Host) -> None:
        """A process begins."""
        if host.twin:
            return
        for j in host.neighbors:
            self.left.pop((host.vertex, j), None)  # it may take part in that round after all
            pair = (min(host.vertex, j), max(host.vertex, j))
            for r, used in self.differences.get(pair, {}).items():
                if used != host.vertex:
                    self._in_doubt(self.hosts[used], host, r)

    def offer_answered(self, process: Process, event: Offered, effects: list[Effect]) -> None:
        """An offer is taken or refused at once."""
        for effect in effects:
            kind = type(effect)
            if (kind is Reserve or kind is Refuse) and effect.link == event.link:
                return
        edge = process.core.edges.get(event.neighbor)
        if edge is not None and edge.up and process.core.phase is not Phase.STOPPED:
            raise ViolationError("offers", f"agent {process.vertex} does not answer {event.offer}")

    def heard(self, process: Process, event: LinkEvent) -> None:
        """A neighbor has said where it stands, on the present connection."""
        kind = type(event)
        j = event.neighbor
        if kind is Greeted:
            process.told[j] = event.hello.closed
        elif kind is Offered:
            if event.offer.final:
                return
            process.told[j] = max(process.told.get(j, 0), event.offer.closed)
        elif kind is Left and event.done:
            process.told[j] = event.closed or self.world.plan.rounds
        else:
            return
        edge = process.core.edges.get(j)
        if edge is None or not edge.up or process.host.twin:
            return
        if self._exempt(process.vertex, j, float("inf")):
            return
        self.differences_are_known(process, j)
        self.nothing_is_one_sided_that_agrees(process, j)

    def after(self, process: Process, event: Event, effects: list[Effect]) -> None:
        """An event has been handled, and its effects (there are some) are under way."""
        if len(effects) > 3 or type(event) is Completed:
            self.stays_small(process, effects)
        if type(event) is Tick:
            self.nobody_waits_in_vain(process, effects)
        elif type(event) is Journaled or type(event) is Announced:
            self.nobody_waits_for_what_is_not_due(process)

    def at_the_end(self) -> None:
        """All have ended: what is left must be explained."""
        for host in self.hosts:
            joins = host.process is not None and host.process.core.phase is Phase.JOINING
            if host.outcome not in ("done", "failed", "gone") and not joins:
                raise AssertionError(f"agent {host.vertex} ended as {host.outcome}")
            if host.outcome == "done" and not host.over:
                raise ViolationError(
                    "liveness", f"agent {host.vertex} is done in round {host.closed}"
                )
            self.moved(host)
        for i, j, r in self.open:
            if self._exempt(i, j, r) or self.hosts[j].closed < r:
                continue
            pair = (min(i, j), max(i, j))
            if r not in self.differences.get(pair, ()):
                raise ViolationError("network average", f"round {r} of {pair} is open, uncounted")
        if self.world.plan.conserves:
            self.memory_is_kept()

    def only_members_share(self, host: Host) -> None:
        """Who leaves the mesh has no part in the epoch of those that stay."""
        rounds = host.order[host.state.memory_from :]
        if not rounds:
            return
        used = [self.world.plan.meshes[host.editions_used.get(r, 1) - 1] for r in rounds[-2:]]
        mesh = used[-1]
        if used[0].members_since != mesh.members_since or len(used) < 2:
            return  # it learned while it trained, and enters the epoch with its next training
        for r in rounds:
            gone = host.verdicts[r][1].keys() - mesh.members
            if gone:
                raise ViolationError(
                    "memory",
                    f"agent {host.vertex} took from {min(gone)} in round {r}, which is no member "
                    "any more, and no epoch has begun since",
                )

    def memory_is_kept(self) -> None:
        """In an epoch, the trackers' sum is that of the last steps, but for counted differences.

        For each agent the tracker is the last step and what neighbors moved since the epoch
        began; and what two neighbors moved in the same epoch cancels. The last epoch must leave
        room for one more: there are `away_rounds` rounds between two at least.
        """
        for host in self.hosts:
            state = host.state
            if state.value is None and (state.y - state.g - state.memory_flux) % PRIME:
                raise ViolationError(
                    "memory", f"the tracker of agent {host.vertex} does not add up"
                )
        newest = max(host.state.epoch for host in self.hosts)
        plan = self.world.plan
        last = min(mesh.rounds for mesh in plan.meshes)
        inside = [h for h in self.hosts if h.state.epoch == newest]
        began = [h.disk.writes[-1].record["epoch_began"] for h in inside if h.disk.writes]
        entered = max([round_of(newest), *began])
        if newest and entered + plan.away_rounds > last:
            return
        for host in self.hosts:
            if host.state.epoch != newest or host.vertex == self.world.plan.liar:
                continue
            self.only_members_share(host)
            for r in host.order[host.state.memory_from :]:
                for j, (_, _, moved) in host.verdicts[r][1].items():
                    other = self.hosts[j]
                    if self._exempt(host.vertex, j, r) or other.outcome in ("gone", "failed"):
                        continue
                    pair = (min(host.vertex, j), max(host.vertex, j))
                    if r in self.differences.get(pair, ()):
                        self.world.count("memory: counted differences in the last epoch")
                        continue
                    back = other.verdicts.get(r, (0, {}))[1].get(host.vertex)
                    since = other.order[other.state.memory_from :]
                    if (
                        other.state.epoch != newest
                        or r not in since
                        or back is None
                        or (back[2] + moved) % PRIME
                    ):
                        raise ViolationError(
                            "memory",
                            f"epoch {round_of(newest)}: what agent {host.vertex} took from "
                            f"{j} in round {r} has no counterpart there",
                        )


def _bound_s(world: World) -> float:
    """Seconds in which an undisturbed mesh ends, however unlucky it begins."""
    plan = world.plan
    t = plan.timing
    slowest = max(1 / pace.clock_rate for pace in plan.paces)
    a_round = 1.0 + 3 * plan.round_s + 2 * (t.ceiling_s + t.reconnect_s + t.hello_s)
    a_round += t.resume_s + t.dead_after_s + t.transfer_s
    return slowest * (2 * t.start_s + 2 * t.linger_s + (plan.rounds + 4) * 3 * a_round)


def _print(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (int, float, str, bool):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return tuple((k, _print(v)) for k, v in value.items())
    if isinstance(value, list | tuple | deque):
        return tuple(_print(v) for v in value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(str, value)))
    if isinstance(value, type):
        return value.__name__
    names = list(getattr(value, "__dict__", ()))
    for base in kind.__mro__:
        names += [n for n in getattr(base, "__slots__", ()) if n not in names]
    return (kind.__name__, *((n, _print(getattr(value, n))) for n in names if n != "config"))
