"""Two agents of the protocol core, joined in memory: every frame, app and disk by hand.

to a, to b       the next frame arrives there; a payload arrives in two steps
app a, disk a    its app answers; its oldest write is on the disk
go 5             five of these, each that which has waited longest
cut, heal        the connection ends, with all that is on its way; a new one begins
part             it ends, and stays away for longer than anybody waits
crash a          it starts again from its disk; what was not written yet is lost
crash a late     the same, but all that it had begun to write is there
lose a           it starts again with an empty disk
wait 3           time passes for both
"""

from __future__ import annotations

from collections import deque
from typing import Any

from flower_dhb.peer.protocol import effects as fx
from flower_dhb.peer.protocol import events as ev
from flower_dhb.peer.protocol import messages as ms
from tests.support.protocol import End, name, own_name, vertex

OTHER = {"a": "b", "b": "a"}


class Pair:
    """Agents a and b, connected, each about to train its first round.

    used: what each of them counted, by round, as its present life knows it: own payload and
    the other's. Raises AssertionError where an agent promises what is not on its disk.
    """

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.ends = {x: End(OTHER[x], me=x, connected=False, **config) for x in "ab"}
        self.used: dict[str, dict[int, tuple[str, str]]] = {"a": {}, "b": {}}
        self._seen = {"a": 0, "b": 0}
        self._line: dict[str, deque[Any]] = {"a": deque(), "b": deque()}  # by receiver
        self._jobs: dict[str, deque[str]] = {"a": deque(), "b": deque()}
        self._writes: dict[str, deque[tuple[str, int, str]]] = {"a": deque(), "b": deque()}
        self._durable = {"a": 0, "b": 0}  # writes by number
        self._promised: dict[str, dict[int, set[str]]] = {"a": {}, "b": {}}  # journals, by round
        self._over: set[str] = set()
        self.up = False
        self.do("heal", "to a", "to b")

    def __getitem__(self, who: str) -> End:
        return self.ends[who]

    def do(self, *steps: str) -> None:
        for step in steps:
            word, *said = step.split()
            getattr(self, f"_{word}")(*said)

    # What happens.

    def _to(self, x: str) -> bool:
        if not self._line[x]:
            return False
        what = self._line[x].popleft()
        end, j = self.ends[x], OTHER[x]
        begin = len(end.effects)
        match what:
            case ms.Hello():
                end._from(ev.Greeted, j, what)
            case ms.Ack():
                end._from(ev.Acknowledged, j, what.round, what.digest)
            case ms.Release():
                end._from(ev.Released, j, what.round)
            case ms.Seek():
                end._from(ev.Sought, j)
            case ms.Goodbye():
                end._from(ev.Left, j, what.done, what.counted)
            case ("whole", offer, found):
                end._from(ev.Completed, j, offer, found)
            case (offer, found):
                end._from(ev.Offered, j, offer)
                if any(isinstance(e, fx.Reserve) for e in end.effects[begin:]):
                    self._line[x].appendleft(("whole", offer, found))
        self._see(x)
        return True

    def _app(self, x: str) -> bool:
        if not self._jobs[x]:
            return False
        self.ends[x].do(self._jobs[x].popleft())
        self._see(x)
        return True

    def _disk(self, x: str) -> bool:
        if not self._writes[x]:
            return False
        kind, k, mine = self._writes[x].popleft()
        self._durable[x] += 1
        if kind == "journal":
            self._promised[x].setdefault(k, set()).add(mine)
            self.ends[x].do("journaled")
        else:
            self.ends[x].do(f"saved {k}")
        self._see(x)
        return True

    def _go(self, moves: str) -> None:
        left = int(moves)
        turns = deque(f"{what} {x}" for what in ("to", "app", "disk") for x in "ab")
        while left:
            for _ in range(len(turns)):
                turns.rotate(-1)
                word, x = turns[-1].split()
                if getattr(self, f"_{word}")(x):
                    left -= 1
                    break
            else:
                return

    def _cut(self) -> None:
        if self.up:
            self.up = False
            for x in "ab":
                self._line[x].clear()
                self.ends[x].do(f"down {OTHER[x]}")
                self._see(x)

    def _part(self) -> None:
        self.do("cut", "wait 40")

    def _heal(self) -> None:
        if not self.up and not any(end.agent.stopped for end in self.ends.values()):
            self.up = True
            for x in "ab":
                self.ends[x].do(f"dial {OTHER[x]}")
                self._see(x)

    def _wait(self, seconds: str) -> None:
        for x in "ab":
            end = self.ends[x]
            end.do(f"wait {seconds}")
            due = end.agent.next_deadline()
            assert due is None or due > end.now, "a tick that is due again at once"
            self._see(x)

    def _crash(self, x: str, how: str = "") -> None:
        self._again(x, None if how == "late" else self._durable[x])

    def _lose(self, x: str) -> None:
        self._promised[x] = {}
        self._again(x, 0)
        # With the state all rounds are gone that it grew from; what is counted is the last.
        other = self.used[OTHER[x]]
        for k in sorted(other)[:-1]:
            del other[k]

    def _again(self, x: str, writes: int | None) -> None:
        if self.ends[x].agent.stopped:
            return
        self._cut()
        self._over.discard(x)
        self._jobs[x].clear()
        self._writes[x].clear()
        self.ends[x] = end = self.ends[x].reborn(writes)
        self._durable[x] = len(end.writes)
        for kind, k, _, mine in end.writes:
            if kind == "journal":
                self._promised[x].setdefault(k, set()).add(mine)
        closed = end.agent.closed
        self.used[x] = {k: v for k, v in self.used[x].items() if k <= closed}
        self._seen[x] = 0
        self._see(x)

    # What follows.

    def _see(self, x: str) -> None:
        end = self.ends[x]
        new, self._seen[x] = end.effects[self._seen[x] :], len(end.effects)
        for effect in new:
            match effect:
                case fx.Send() | fx.SendPayload():
                    self._check(x, effect)
                    if isinstance(effect, fx.Send):
                        self._line[OTHER[x]].append(effect.message)
                    else:
                        self._line[OTHER[x]].append((effect.offer, effect.payload))
                case fx.Train():
                    self._jobs[x].append("trained")
                case fx.Combine():
                    self._jobs[x].append("combined")
                    mine = end.agent.near.kept[effect.round].handle
                    for found in effect.payloads.values():
                        self.used[x][effect.round] = (mine, found.handle)
                case fx.Rejoin():
                    self._jobs[x].append("rejoined")
                case fx.Finish():
                    self._over.add(x)  # and stays: `finished` would let it go
                case fx.Journal():
                    mine = own_name(x, effect.round, end.life)
                    self._writes[x].append(("journal", effect.round, mine))
                case fx.Save():
                    self._writes[x].append(("save", effect.round, ""))
                case fx.Close():
                    self._cut()

    def _check(self, x: str, effect: fx.Send | fx.SendPayload) -> None:
        """Nothing leaves before what it promises is on the disk."""
        edge = self.ends[x].agent.edges[vertex(OTHER[x])]
        assert effect.link == edge.link
        message = effect.message if isinstance(effect, fx.Send) else effect.offer
        assert edge.up or isinstance(message, ms.Hello), f"{message} before the other's Hello"
        promised = self._promised[x]
        if isinstance(message, ms.Offer) and not message.final:
            assert name(message.digest) in promised.get(message.round, ()), message
            if message.ack:
                assert message.round in promised, message
        if isinstance(message, ms.Ack):
            assert message.round in promised, message

    # Both at the end.

    def settle(self) -> None:
        """No more faults: all that is on its way arrives, until both have ended all rounds.

        Raises AssertionError if they do not.
        """
        for _ in range(3000):
            self._heal()
            busy = False
            for x in "ab":
                busy |= self._to(x) | self._disk(x) | self._app(x)
            if self._over == {"a", "b"}:
                break
            if not busy:
                due = [end.agent.next_deadline() for end in self.ends.values()]
                at = min(t for t in due if t is not None)
                self._wait(str(max(at - self.ends["a"].now, 0.0) + 1e-6))
        else:
            raise AssertionError("no end: " + str([end.phase for end in self.ends.values()]))
        self.do("cut", "heal", "to a", "to b")  # Hellos tell all that is known
        for x in "ab":
            while self._to(x):
                pass

    def different(self) -> list[int]:
        """Rounds that counted at one end only, or with other payloads."""
        a = {(k, mine, yours) for k, (mine, yours) in self.used["a"].items()}
        b = {(k, yours, mine) for k, (mine, yours) in self.used["b"].items()}
        return sorted({k for k, *_ in a ^ b})


def pair(*steps: str, **config: Any) -> Pair:
    """Two agents to which all of this has happened."""
    both = Pair(**config)
    both.do(*steps)
    return both


__all__ = ["OTHER", "Pair", "pair"]
