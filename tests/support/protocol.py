"""One agent of the protocol core, driven by hand: what happens, and what it wants done, in words.

Agents are letters (`a` is vertex 0), and a payload is named by its agent and its round: `b3`;
`b3'` is another payload of the same round. Steps and effects are short sentences of one grammar:

    up b round=3 digest=b3 closed=2 counted=2:b2:a2 holds=a3 doubts=1,2 done
    payload b3 closed=2 ack=a3        its header, and all of its bytes if they are reserved
    payload b3 +                      the same; closed and counted are as both ends know them
    ack b a3, release b 3, seek b, bye b done, heard b, down b
    trained, journaled, combined, saved, wait 2.5
    announce 2 begins=9 rounds=60 neighbors=bc since=2    an edition of the mesh; without neighbors
                                                          the agent is no member any more
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from flower_dhb.peer.protocol import effects as fx
from flower_dhb.peer.protocol import events as ev
from flower_dhb.peer.protocol.agent import Agent
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.messages import (
    NEVER,
    Ack,
    Counted,
    Goodbye,
    Hello,
    Message,
    Offer,
    Release,
    Seek,
)
from flower_dhb.peer.protocol.settings import Config, Timing

# A day where a test does not speak of it.
TIMING = Timing(
    ceiling_s=100.0,
    least_s=1.0,
    factor=3.0,
    reconnect_s=20.0,
    resume_s=30.0,
    start_s=200.0,
    linger_s=50.0,
    hello_s=5.0,
    dead_after_s=86400.0,
    transfer_s=86400.0,
)
FINAL = "final"


# --- names ------------------------------------------------------------------------------


def letter(vertex: int) -> str:
    return chr(ord("a") + vertex)


def vertex(letter: str) -> int:
    return ord(letter) - ord("a")


def digest(name: str) -> int:
    """A number from which the name can be read again; 0 for none."""
    return int.from_bytes(name.encode(), "big")


def name(digest: int) -> str:
    return digest.to_bytes(16, "big").lstrip(b"\0").decode()


def payload(name: str) -> ev.Payload:
    return ev.Payload(digest(name), name)


def round_of(name: str) -> int:
    return int(name[1:].partition("'")[0])


def own_name(agent: str, round: int, life: int) -> str:
    """The payload that an agent makes in one of its lives: `a1`, `a1'`, `a1'2`, ..."""
    return f"{agent}{round}" + ("'" if life else "") + (str(life) if life > 1 else "")


# --- sentences --------------------------------------------------------------------------

DIGESTS = {"digest", "ack", "holds"}
ROUNDS = {"doubts", "one_sided"}


def fields_from(said: list[str]) -> dict[str, Any]:
    """`closed=2 counted=2:b2:a2 doubts=1,2 done` as arguments of a message."""
    found: dict[str, Any] = {}
    for part in said:
        key, _, value = part.partition("=")
        if key in DIGESTS:
            found[key] = digest(value)
        elif key in ROUNDS:
            found[key] = tuple(int(r) for r in value.split(","))
        elif key == "counted":
            r, mine, yours = value.split(":")
            found[key] = Counted(int(r), digest(mine), digest(yours))
        elif key == "pace_s":
            found[key] = float(value)
        else:
            found[key] = int(value) if value else True
    return found


def fields_to(message: Hello | Offer | Goodbye, leave_out: tuple[str, ...] = ()) -> str:
    """Inverse of `fields_from`: what is not at its default."""
    parts = []
    for f in fields(message):
        value = getattr(message, f.name)
        usual = not value or value == NEVER or (f.name == "edition" and value == 1)
        if f.name in leave_out or usual:
            continue
        if f.name in DIGESTS:
            parts.append(f"{f.name}={name(value)}")
        elif f.name in ROUNDS:
            parts.append(f"{f.name}={','.join(map(str, value))}")
        elif f.name == "counted":
            parts.append(f"counted={value.round}:{name(value.mine)}:{name(value.yours)}")
        else:
            parts.append(f.name if value is True else f"{f.name}={value}")
    return " ".join(["", *parts])


def sentence(message: Message) -> str:
    match message:
        case Hello():
            return f"hello{fields_to(message)}"
        case Ack():
            of = "" if round_of(name(message.digest)) == message.round else f" as {message.round}"
            return f"ack {name(message.digest)}{of}"
        case Release():
            return f"release {message.round}"
        case Seek():
            return "seek"
        case Goodbye():
            return f"goodbye{fields_to(message, ('text', 'closed'))}"


def used(payloads: Mapping[int, ev.Payload]) -> str:
    return " ".join(str(found.handle) for found in payloads.values()) or "nobody"


def of_edition(number: int) -> str:
    return f" edition {number}" if number > 1 else ""


def edition_from(number: str, said: list[str]) -> Edition:
    """`2 begins=9 rounds=60 neighbors=bc since=2` as an edition."""
    found = dict(part.split("=") for part in said)
    neighbors = tuple(map(vertex, found.get("neighbors", "")))
    return Edition(
        int(number),
        int(found.get("begins", 1)),
        int(found.get("rounds", 50)),
        neighbors,
        bool(neighbors),
        int(found.get("since", 1)),
    )


def own(effect: fx.Effect) -> str:
    """An effect on the agent's own app and disk."""
    match effect:
        case fx.Train():
            return f"train {effect.round}" + (f" epoch {effect.epoch}" if effect.epoch else "")
        case fx.Journal():
            again = effect.trained_as != effect.round
            return (
                f"journal {effect.round}"
                + (f" trained as {effect.trained_as}" if again else "")
                + (f" epoch {effect.epoch}" if effect.epoch else "")
                + (" early" if effect.early else "")
                + of_edition(effect.edition)
                + ("" if effect.lasting else " in memory")
            )
        case fx.Combine():
            by = of_edition(effect.edition)
            return f"combine {effect.round}{by}: {used(effect.payloads)}"
        case fx.Rejoin():
            sources = " ".join(f"{p.handle}@{k}" for k, p in effect.payloads.values())
            return f"rejoin {effect.round}{of_edition(effect.edition)}: {sources}"
        case fx.Save():
            return f"save {effect.round}{of_edition(effect.edition)}" + (
                f" failed: {effect.failure}" if effect.failure else ""
            )
        case fx.Free():
            return f"free {effect.round}"
        case fx.Finish():
            alone = effect.alone_since
            if effect.removed:
                return f"finish removed after {effect.round - 1}"
            return "finish" + (f" alone since {alone}" if alone >= 0 else "")
        case fx.Neighbors():
            return f"neighbors {''.join(map(letter, effect.vertices))}"
        case fx.End():
            return "end done" if effect.done else "end"
        case fx.Fail():
            return f"fail: {effect.why}"
    raise TypeError(f"no such effect: {effect}")


# --- one agent --------------------------------------------------------------------------


class End:
    """Agent `a` and its neighbors, which are connected and begin with it unless told otherwise.

    counts, notes: what it counted and noted. writes: what went to the disk, the oldest first,
    as a restart would find it: kind, round, record (a JSON text), own payload.
    """

    def __init__(
        self,
        neighbors: str = "b",
        *,
        me: str = "a",
        connected: bool = True,
        started: bool = True,
        timing: Timing = TIMING,
        now: float = 1000.0,
        life: int = 0,
        record: str | None = None,
        kept: tuple[str, ...] = (),
        open: str = "",
        rounds: int = 50,
        editions: tuple[Edition, ...] = (),
        **config: Any,
    ) -> None:
        self.now, self.me, self.life = now, me, life
        self.counts: Counter[tuple[str, str]] = Counter()
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.writes: list[tuple[str, int, str, str]] = []
        self.effects: list[fx.Effect] = []
        self.links: dict[str, str] = {}
        self._dials = 0
        self._mine = ""  # the newest own payload
        self._said: list[str] = []
        self._made = {"timing": timing, "neighbors": neighbors, "me": me, "rounds": rounds}
        self._made |= {"editions": editions, **config}
        self.agent = Agent(
            Config(
                vertex=vertex(me),
                editions=editions
                or (Edition(1, 1, rounds, tuple(sorted(map(vertex, neighbors)))),),
                timing=timing,
                **config,
            ),
            now,
            record=None if record is None else json.loads(record),
            payload=payload(open) if open else None,
            kept={round_of(k): payload(k) for k in kept},
        )
        if started:
            self.handle(ev.Started())
            if connected:
                self.do(*(f"up {j}" for j in neighbors))
                self.said()

    def edge(self, j: str = "b") -> Any:
        return self.agent.edges[vertex(j)]

    @property
    def phase(self) -> str:
        return str(self.agent.phase.value)

    # What happens.

    def do(self, *steps: str) -> list[str]:
        """Take steps. Returns what the last of them had for effects."""
        before = len(self._said)
        for step in steps:
            before = len(self._said)
            word, *said = step.split()
            getattr(self, f"_{word}")(*said)
        return self._said[before:]

    def said(self) -> list[str]:
        """All effects since the last look."""
        said, self._said = self._said, []
        return said

    def count(self, name: str, j: str = "b") -> int:
        return self.counts[name, j]

    def noted(self, name: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self.notes if found == name]

    def handle(self, event: ev.Event) -> None:
        effects = self.agent.handle(event, self.now)
        self.effects += effects
        for effect in effects:
            self._see(effect)

    def _see(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Count():
                j = "" if effect.neighbor is None else letter(effect.neighbor)
                self.counts[effect.name, j] += 1
                return
            case fx.Note():
                self.notes.append((effect.name, dict(effect.fields)))
                return
            case fx.Send():
                self._to(effect.link, sentence(effect.message))
            case fx.SendPayload():
                offer = effect.offer
                if not offer.final:
                    assert name(offer.digest) == effect.payload.handle
                kind = FINAL if offer.final else "payload"
                rest = fields_to(offer, ("round", "digest", "final"))
                self._to(effect.link, f"{kind} {effect.payload.handle}{rest}")
            case fx.Reserve():
                self._to(effect.link, f"reserve {name(effect.offer.digest)}")
            case fx.Refuse():
                self._to(effect.link, f"refuse {effect.reason.value} {effect.round}")
            case fx.Close():
                self._to(effect.link, f"close{' at once' if effect.at_once else ''}: {effect.text}")
            case _:
                self._said.append(own(effect))
                if isinstance(effect, fx.Journal | fx.Save):
                    kind = "journal" if isinstance(effect, fx.Journal) else "save"
                    mine = own_name(self.me, effect.round, self.life)
                    if isinstance(effect, fx.Journal):
                        self._mine = mine
                        if not effect.lasting:
                            return
                    self.writes.append(
                        (kind, effect.round, json.dumps(effect.record), mine * (kind == "journal"))
                    )

    def _to(self, link: object, said: str) -> None:
        j = str(link)[0]
        old = "" if self.links.get(j) == link else " (old link)"
        self._said.append(f"{j}: {said}{old}")

    # Of a connection.

    def _link(self, j: str) -> ev.LinkEvent:
        return ev.LinkEvent(vertex(j), self.links.get(j, f"{j}?"))

    def _from(self, kind: Any, j: str, *arguments: Any) -> None:
        link = self._link(j)
        self.handle(kind(link.neighbor, link.link, *arguments))

    def _dial(self, j: str) -> None:
        self._dials += 1
        before = self.links.get(j)
        self.links[j] = f"{j}{self._dials}"
        if before is not None:
            assert before != self.links[j]
        self._from(ev.Connected, j)

    def _hello(self, j: str, *said: str) -> None:
        self._from(ev.Greeted, j, Hello(**fields_from(list(said))))

    def _up(self, j: str, *said: str) -> None:
        self._dial(j)
        self._hello(j, *said)

    def _down(self, j: str) -> None:
        self._from(ev.Disconnected, j)

    def _offer_of(self, which: str, said: tuple[str, ...]) -> Offer:
        usual = []
        if "+" in said:
            usual = [f"closed={round_of(which) - 1}", *self._counted(which[0]).split()]
        made = fields_from([*usual, *(word for word in said if word != "+")])
        final = bool(made.get("final"))
        k = made.pop("round", None)
        if k is None:
            k = self.agent.rounds + 1 if final else round_of(which)
        return Offer(round=k, digest=digest(which), **made)

    def _offer(self, which: str, *said: str) -> None:
        self._from(ev.Offered, which[0], self._offer_of(which, said))

    def _whole(self, which: str, *said: str) -> None:
        self._from(ev.Completed, which[0], self._offer_of(which, said), payload(which))

    def _payload(self, which: str, *said: str) -> None:
        self._offer(which, *said)
        if f"{which[0]}: reserve {which}" in self._said:
            self._said.remove(f"{which[0]}: reserve {which}")
            self._whole(which, *said)

    def _ack(self, j: str, which: str, *of: str) -> None:
        r = int(of[0]) if of else round_of(which)
        self._from(ev.Acknowledged, j, r, digest(which))

    def _release(self, j: str, round: str) -> None:
        self._from(ev.Released, j, int(round))

    def _seek(self, j: str) -> None:
        self._from(ev.Sought, j)

    def _bye(self, j: str, *said: str) -> None:
        made = fields_from(list(said))
        about = made.get("done", False), made.get("counted", NEVER), made.get("closed", 0)
        self._from(ev.Left, j, *about)

    def _broken(self, j: str) -> None:
        self._from(ev.Broken, j)

    def _arriving(self, j: str, n_bytes: str, total: str) -> None:
        self._from(ev.Arriving, j, int(n_bytes), int(total))

    def _heard(self, j: str) -> None:
        self._from(ev.Heard, j)

    # Of the agent itself.

    def _start(self) -> None:
        self.handle(ev.Started())

    def _announce(self, number: str, *said: str) -> None:
        self.handle(ev.Announced(edition_from(number, list(said))))

    def _trained(self) -> None:
        self.handle(ev.Trained())

    def _failed(self, *why: str) -> None:
        self.handle(ev.TrainingFailed(" ".join(why) or "why"))

    def _journaled(self) -> None:
        self.handle(ev.Journaled(payload(self._mine)))

    def _screened(self, j: str, round: str) -> None:
        self.handle(ev.Screened(vertex(j), int(round)))

    def _combined(self, *how: str) -> None:
        self.handle(ev.Combined(refused="refused" in how))

    def _rejoined(self, *failure: str) -> None:
        self.handle(ev.Rejoined(" ".join(failure)))

    def _saved(self, *round: str) -> None:
        last = next((w[1] for w in reversed(self.writes) if w[0] == "save"), 0)
        self.handle(ev.Saved(int(round[0]) if round else last))

    def _finished(self) -> None:
        self.handle(ev.Finished(payload(f"{self.me}51")))

    def _stop(self) -> None:
        self.handle(ev.Stopped())

    def _wait(self, seconds: str) -> None:
        self.now += float(seconds)
        self.handle(ev.Tick())

    def _later(self, seconds: str) -> None:
        """Time passes, and nothing says so."""
        self.now += float(seconds)

    # More than one at a time.

    def _share(self) -> None:
        """Train, and write the payload to the disk."""
        self.do("trained", "journaled")

    def _next(self) -> None:
        """End the round that has been combined: the next one trains."""
        self.do("combined", "saved")

    def _round(self, seconds: str = "0") -> None:
        """A round in which all neighbors take part, from training to training."""
        self.do("share")
        self.now += float(seconds)
        k = self.agent.round
        for j in self.links:
            self.do(f"payload {j}{k} + ack={self.me}{k}")
        self.do("next")

    def _counted(self, j: str) -> str:
        c = self.edge(j).counted
        return f"counted={c.round}:{name(c.yours)}:{name(c.mine)}" if c.round else ""

    # A crash.

    def reborn(self, writes: int | None = None, **changes: Any) -> End:
        """The agent that starts from the first so many writes: all of them, unless told less."""
        found = self.writes if writes is None else self.writes[:writes]
        record, mine = found[-1][2:] if found else (None, "")
        named = json.loads(record)["kept"] if record else []
        held = {w[1]: w[3] for w in found if w[0] == "journal"}
        made = {
            "record": record,
            "open": mine,
            "kept": tuple(held[k] for k in named if k in held),
            "life": self.life + 1,
            "now": self.now,
            "connected": False,
            **self._made,
            **changes,
        }
        again = End(**made)
        again.writes = list(found)
        return again


def after(*steps: str, **made: Any) -> End:
    """An end to which all of this has happened."""
    end = End(**made)
    end.do(*steps)
    return end
