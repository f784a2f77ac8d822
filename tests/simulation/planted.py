"""Mistakes that a core (or the simulated shell) could have, each of which must be found.

A check that cannot fail proves nothing. Each mistake is put in by replacing a function while a
few schedules run; the promise that it breaks must be the one that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from flower_dhb.peer.protocol import agent
from flower_dhb.peer.protocol.agent import Agent
from flower_dhb.peer.protocol.edge import Edge, Stage
from flower_dhb.peer.protocol.effects import Combine, Reserve, Send
from flower_dhb.peer.protocol.events import Announced, Connected, LinkEvent
from flower_dhb.peer.protocol.messages import Ack, Hello
from flower_dhb.peer.protocol.neighborhood import Neighborhood
from flower_dhb.peer.protocol.rounds import Rounds

from .disk import Disk
from .mesh import Mesh
from .process import Host, Process

__all__ = ["PLANTED", "Planted", "planted"]


_TABLES: tuple[dict[type, Any], ...] = (agent._OF_LINK, agent._OWN)


@dataclass(frozen=True)
class Planted:
    """A mistake. breaks: the promise. profile: of schedules that show it, from the seed `first` on.
    place, name: what is replaced, by what `make` makes of it.
    """

    mistake: str
    breaks: str
    profile: str
    place: type
    name: str
    make: Callable[[Any], Any]
    first: int = 0


def _helps_for_ever(original: Any) -> Any:
    def take_ack(self: Neighborhood, edge: Edge, round: int, digest: int) -> None:
        if not edge.helping or round != edge.counted.round:
            original(self, edge, round, digest)

    return take_ack


@contextmanager
def planted(mistake: Planted) -> Iterator[None]:
    """The mistake is there while the context is open."""
    place = next(base for base in mistake.place.__mro__ if mistake.name in base.__dict__)
    original = place.__dict__[mistake.name]
    wrong = mistake.make(original)
    setattr(place, mistake.name, wrong)
    tables = [(t, key) for t in _TABLES for key, function in t.items() if function is original]
    for table, key in tables:
        table[key] = wrong
    try:
        yield
    finally:
        setattr(place, mistake.name, original)
        for table, key in tables:
            table[key] = original


def _nothing(_original: Any) -> Any:
    return lambda *_args, **_options: None


def _acks_at_once(original: Any) -> Any:
    def completed(self: Neighborhood, edge: Edge, event: Any, now: float) -> None:
        if event.offer.round > self.round and not event.offer.final:
            self.out.append(Send(edge.link, Ack(event.offer.round, event.offer.digest)))
        original(self, edge, event, now)

    return completed


def _hello_of_now(original: Any) -> Any:
    def hello(self: Neighborhood, edge: Edge) -> Hello:
        return replace(original(self, edge), closed=self.closed)

    return hello


def _trains_again(original: Any) -> Any:
    def restore(self: Agent, record: Any, payload: Any, kept: Any, now: float) -> None:
        original(self, {**record, "open": None}, None, kept, now)

    return restore


def _takes_any_round(original: Any) -> Any:
    def completed(self: Neighborhood, edge: Edge, event: Any, now: float) -> None:
        offer = event.offer
        if self.round > self.closed and offer.round > self.round and not offer.final:
            event = replace(event, offer=replace(offer, round=self.round))
        original(self, edge, event, now)

    return completed


def _any_link(original: Any) -> Any:
    def hear(self: Agent, event: LinkEvent, now: float) -> None:
        edge = self.edges[event.neighbor]
        if not isinstance(event, Connected) and edge.link is not None:
            event = replace(event, link=edge.link)
        original(self, event, now)

    return hear


def _ends_twice(original: Any) -> Any:
    def combined(self: Agent, event: Any, now: float) -> None:
        self._out.append(Combine(self.closed, self.closed, {}, 1))
        original(self, event, now)

    return combined


def _reserves_nothing(original: Any) -> Any:
    def handle(self: Agent, event: Any, now: float) -> Any:
        return [e for e in original(self, event, now) if not isinstance(e, Reserve)]

    return handle


def _older_state(original: Any) -> Any:
    def reload(self: Host) -> None:
        original(self)
        if len(self.disk.writes) > 2:
            self.state = self.disk.writes[-3].state

    return reload


def _uneven_weights(original: Any) -> Any:
    def weights(self: Host, number: int, round: int) -> dict[int, int]:
        return {j: w + (self.vertex == 0) for j, w in original(self, number, round).items()}

    return weights


def _raises(original: Any) -> Any:
    def acknowledged(self: Neighborhood, edge: Edge, event: Any, now: float) -> None:
        if event.round == 3:
            raise KeyError(event.round)
        original(self, edge, event, now)

    return acknowledged


def _keeps_no_prefix(original: Any) -> Any:
    def crash(self: Disk, kept: float) -> None:
        if self.writes and self.writes[-1].payload is not None:
            self.writes.pop()
        original(self, kept)

    return crash


def _same_to_all(_original: Any) -> Any:
    return lambda *_args: False


def _newest_weights(original: Any) -> Any:
    def weights(self: Host, number: int, round: int) -> dict[int, int]:
        return {**original(self, number, round), **original(self, max(self.known), round)}

    return weights


def _newest_edition(original: Any) -> Any:
    def restore(self: Agent, record: Any, payload: Any, kept: Any, now: float) -> None:
        found = record["open"]
        if found is not None:
            newest = self.near.editions.newest.number
            record = {**record, "open": {**found, "edition": newest}}
        original(self, record, payload, kept, now)

    return restore


def _all_are_due(original: Any) -> Any:
    def share(self: Neighborhood, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        for edge in self.edges.values():
            if edge.stage is Stage.APART:
                edge.stage = Stage.IDLE

    return share


def _never_stored(_original: Any) -> Any:
    def learn(self: Process, number: int, _b: object = None) -> None:
        if self.alive and not self.paused and number > max(self.host.known):
            self.handle(Announced(self.world.plan.meshes[number - 1].row(self.vertex)))

    return learn


def _same_members(original: Any) -> Any:
    return lambda self, vertex: replace(original(self, vertex), members_since=1)


PLANTED = (
    Planted(
        "editions of the mesh are not compared",
        "one edition",
        "editions",
        Neighborhood,
        "_differs",
        _same_to_all,
    ),
    Planted(
        "weights are those of the newest edition",
        "network average",
        "editions",
        Host,
        "weights",
        _newest_weights,
    ),
    Planted(
        "a restart takes the newest edition for that of its payload",
        "edges agree",
        "editions",
        Agent,
        "_restore",
        _newest_edition,
    ),
    Planted(
        "edges that are not due are waited for", "due", "growth", Rounds, "share", _all_are_due
    ),
    Planted(
        "an edition is used, and forgotten at a restart",
        "no exception",
        "editions",
        Process,
        "learn",
        _never_stored,
    ),
    Planted(
        "no epoch begins where the members change", "memory", "mutable", Mesh, "_row", _same_members
    ),
    Planted("a doubt is forgotten", "edges agree", "pairs", Edge, "doubt", _nothing),
    Planted(
        "a difference is not counted",
        "differences are known",
        "pairs",
        Neighborhood,
        "_disagree",
        _nothing,
    ),
    Planted(
        "a round is trained again after a restart",
        "same bytes",
        "pairs",
        Agent,
        "_restore",
        _trains_again,
    ),
    Planted(
        "a payload counts in another round",
        "same bytes",
        "links",
        Neighborhood,
        "completed",
        _takes_any_round,
    ),
    Planted(
        "an acknowledgment leaves before the journal",
        "disk first",
        "calm",
        Neighborhood,
        "completed",
        _acks_at_once,
    ),
    Planted(
        "a Hello says what no disk says",
        "disk first",
        "links",
        Neighborhood,
        "_hello",
        _hello_of_now,
    ),
    Planted(
        "the disk loses what it promised",
        "same bytes",
        "pairs",
        Disk,
        "crash",
        _keeps_no_prefix,
    ),
    Planted(
        "weights are not symmetric",
        "network average",
        "calm",
        Host,
        "weights",
        _uneven_weights,
    ),
    Planted(
        "the app goes on from an older state than the record",
        "network average",
        "crashes",
        Host,
        "reload",
        _older_state,
    ),
    Planted("links are not told apart", "stale links", "links", Agent, "_hear", _any_link),
    Planted(
        "a deadline that passed stays",
        "liveness",
        "calm",
        Agent,
        "next_deadline",
        lambda _original: lambda self: 0.0,
    ),
    Planted(
        "nobody is ever given up",
        "liveness",
        "late",
        Neighborhood,
        "wait_s",
        lambda _original: lambda self, edge, now: float(edge.stage.open and not edge.agreed),
    ),
    Planted(
        "nothing is sent again on a new connection",
        "nobody waits in vain",
        "links",
        Neighborhood,
        "_serve",
        _nothing,
    ),
    Planted(
        "who was sent again what it lost is sent nothing else",
        "nobody is left out",
        "loss",
        Neighborhood,
        "_take_ack",
        _helps_for_ever,
        first=80,
    ),
    Planted(
        "who is stopped takes no edge back",
        "a stop",
        "stops",
        Neighborhood,
        "withdraw",
        _nothing,
        first=5000,
    ),
    Planted("own payloads are kept for ever", "bounds", "calm", Neighborhood, "tidy", _nothing),
    Planted(
        "who was alone does not say so",
        "fresh or marked",
        "late",
        Agent,
        "alone_since",
        lambda _original: property(lambda self: -1),
    ),
    Planted("a round ends twice", "rounds go up", "pairs", Agent, "_combined", _ends_twice),
    Planted("an offer has no answer", "offers", "calm", Agent, "handle", _reserves_nothing),
    Planted("no epoch begins", "memory", "loss", Agent, "_renew", _nothing, first=30),
    Planted(
        "the core fails",
        "no exception",
        "calm",
        Neighborhood,
        "acknowledged",
        _raises,
    ),
)
