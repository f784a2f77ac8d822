"""One mistake for each rule of the peers' protocol: what the rule is, and how to break it.

A mistake replaces a text that occurs exactly once in its file (a test says so), so whoever
changes the core meets its rules here.
"""

# ruff: noqa: E501 - texts of the core, as they stand there

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EDGE", "ROUNDS", "Mistake"]


@dataclass(frozen=True)
class Mistake:
    """A rule of flower_dhb/peer/protocol/`file`, and the change that breaks it."""

    rule: str
    file: str
    old: str
    new: str


def _in(file: str, *broken: tuple[str, str, str]) -> tuple[Mistake, ...]:
    return tuple(Mistake(rule, file, old, new) for rule, old, new in broken)


EDGE = _in(
    "edge.py",
    (
        "a payload counts if the other end has acknowledged ours",
        "return self.stage is Stage.VOTED and self.acked",
        "return self.stage is Stage.VOTED",
    ),
    (
        "a payload counts if we have acknowledged it",
        "return self.stage is Stage.VOTED and self.acked",
        "return self.acked",
    ),
    (
        "what is given up after the vote is in doubt",
        "(Stage.VOTED, Step.GIVE_UP): Stage.DOUBT",
        "(Stage.VOTED, Step.GIVE_UP): Stage.RELEASED",
    ),
    (
        "what may have been voted for before a restart is in doubt too",
        "(Stage.BOUND, Step.GIVE_UP): Stage.DOUBT",
        "(Stage.BOUND, Step.GIVE_UP): Stage.RELEASED",
    ),
    (
        "a vote for a payload that is lost is no vote",
        "(Stage.VOTED, Step.FORGOTTEN): Stage.IDLE",
        "(Stage.VOTED, Step.FORGOTTEN): Stage.VOTED",
    ),
    (
        "a doubt is remembered",
        "self.doubts = [*self.doubts, round][-REMEMBERED:]",
        "pass",
    ),
    (
        "doubts that are remembered are bounded",
        "self.doubts = [*self.doubts, round][-REMEMBERED:]",
        "self.doubts = [*self.doubts, round]",
    ),
    (
        "one-sided rounds that are remembered are bounded",
        "sorted([*self.one_sided, round])[-REMEMBERED:]",
        "sorted([*self.one_sided, round])",
    ),
    (
        "a round that is older than all that is remembered is not counted again",
        "if len(self.one_sided) >= REMEMBERED and round < min(self.one_sided):",
        "if False:",
    ),
    (
        "a one-sided round is counted once",
        "if round in self.one_sided:\n            return False",
        "if False:\n            return False",
    ),
    (
        "a one-sided round is no doubt any more",
        "            self.doubts.remove(round)\n        if round == self.counted.round:",
        "            pass\n        if round == self.counted.round:",
    ),
    (
        "a one-sided round is settled",
        "            self.settled, self.helping = True, False\n        if round in self.one_sided:",
        "            pass\n        if round in self.one_sided:",
    ),
    ("doubts outlive the process", '"doubts": list(self.doubts)', '"doubts": []'),
    ("one-sided rounds outlive the process", '"one_sided": list(self.one_sided)', '"one_sided": []'),
    ("an open question outlives the process", '"settled": self.settled', '"settled": True'),
    (
        "what counted last outlives the process",
        'self.counted = Counted(*record["counted"])',
        "self.counted = NEVER",
    ),
)  # fmt: skip

ROUNDS = _in(
    "rounds.py",
    (
        "a payload that comes is waited for past its deadline",
        "            until = max(until, self._arrives_until(edge))\n",
        "            pass\n",
    ),
    (
        "a payload that cannot come whole in time is not",
        "            if whole > end:",
        "            if False:",
    ),
    (
        "a payload that breaks off again and again is waited for less",
        "self.config.timing.dead_after_s * 0.5**edge.in_vain",
        "self.config.timing.dead_after_s",
    ),
    (
        "a payload that comes is waited for no longer than the ceiling",
        "return min(edge.moved_at + pause_s, end)",
        "return edge.moved_at + pause_s",
    ),
    (
        "in a run that begins all get the time to start",
        "if self._together and not edge.patience.known:",
        "if False:",
    ),
    (
        "who was seen to be in time gets no more time to start",
        "if self._together and not edge.patience.known:",
        "if self._together:",
    ),
    (
        "who comes later was not there when the run began",
        "self._together or (round == first and not resumed)",
        "True",
    ),
    (
        "who is there from the first round of a run that goes on was there when it began",
        "        first = self.config.origin + 1\n",
        "        first = 1\n",
    ),
    (
        "the time to start ends with the ceiling",
        "until = max(until, min(late, self._shared_at + timing.ceiling_s))",
        "until = max(until, late)",
    ),
    (
        "the own pace is that of the round before, where no other is known",
        "max(self._last_s, now - self.begun)",
        "now - self.begun",
    ),
    (
        "the own pace is that of the first round, where no other is known",
        "max(self._last_s, now - self.begun)",
        "self._last_s",
    ),
    (
        "after a restart an end is bound by the votes that it may have given",
        "Stage.BOUND if resumed else Stage.IDLE",
        "Stage.IDLE",
    ),
    (
        "an acknowledgment is of one round",
        "            edge.acked = edge.lacking = False\n            if edge.neighbor",
        "            if edge.neighbor",
    ),
    (
        "who lacks a payload that counts gets it before the next",
        "edge.helping = edge.lacking and not edge.settled",
        "edge.helping = False",
    ),
    (
        "who has ended a round already takes no part in it",
        "elif edge.closed >= round or edge.done:",
        "elif False:",
    ),
    (
        "a payload that came first is acknowledged when the round is shared",
        "elif round in edge.held and not self._joins(edge):",
        "elif False:",
    ),
    (
        "whoever is in another epoch is told of it",
        "            return False\n        self._serve(edge)\n",
        "            return False\n",
    ),
    (
        "a payload that broke off before its round is not waited for in it",
        "            elif edge.broken == round:\n                self._give_up(edge)\n",
        "",
    ),
    (
        "a payload takes the acknowledgment along",
        "ack = edge.held[self.round][1].digest if edge.stage is Stage.VOTED else 0",
        "ack = 0",
    ),
    (
        "older payloads are dropped when a round is shared",
        "            for old in [r for r in edge.held if r < round]:\n"
        "                del edge.held[old]\n",
        "",
    ),
    (
        "ends of different epochs do not count with each other",
        "if not self.config.conserves or offer.epoch == self.epochs[self.round]:",
        "if True:",
    ),
    (
        "epochs separate nobody where nothing is conserved",
        "if not self.config.conserves or offer.epoch == self.epochs[self.round]:",
        "if offer.epoch == self.epochs[self.round]:",
    ),
    (
        "a payload says the epoch that it was made in",
        "            self.epochs[round],\n",
        "            self.epoch,\n",
    ),
    (
        "a doubt is waited for no longer than the ceiling",
        "limit_s = timing.ceiling_s if bound",
        "limit_s = 1e9 if bound",
    ),
    (
        "who may have voted waits for the other end",
        "bound = edge.stage in (Stage.BOUND, Stage.VOTED)",
        "bound = edge.stage is Stage.VOTED",
    ),
    (
        "who has voted waits for the other end",
        "bound = edge.stage in (Stage.BOUND, Stage.VOTED)",
        "bound = edge.stage is Stage.BOUND",
    ),
    (
        "a neighbor that is gone is not waited for as one that is here",
        "until = min(until, again)",
        "pass",
    ),
    (
        "a neighbor that is in doubt may come back in this round",
        "back = max(edge.down_since, self._shared_at) if bound else edge.down_since",
        "back = edge.down_since",
    ),
    (
        "one that is gone for long costs no round its time",
        "back = max(edge.down_since, self._shared_at) if bound else edge.down_since",
        "back = max(edge.down_since, self._shared_at)",
    ),
    (
        "after a restart the others have time to notice",
        "again = max(again, self._resumes_until)",
        "pass",
    ),
    (
        "who greets has the time for it",
        "again = max(again, edge.opened_at + timing.hello_s)",
        "pass",
    ),
    (
        "a round is open until the last edge is decided",
        "at = max((self._waited_until(edge)",
        "at = min((self._waited_until(edge)",
    ),
    (
        "what counts is in the order of the vertices",
        "self.edges = dict(sorted([*self.edges.items(), (j, edge)]))",
        "self.edges[j] = edge",
    ),
    (
        "a round that counted is open at the other end until it says how it ended",
        "edge.settled = edge.theirs == edge.counted",
        "edge.settled = True",
    ),
    (
        "what the other end has said already settles a round",
        "edge.settled = edge.theirs == edge.counted",
        "edge.settled = False",
    ),
    (
        "a round that counted says where the neighbor was",
        "                edge.anchor = (round, now)\n",
        "",
    ),
    (
        "who counted with us goes on to the next round",
        "edge.wants = max(edge.wants, min(round + 1, self.rounds))",
        "pass",
    ),
    (
        "there is no round after the last",
        "edge.wants = max(edge.wants, min(round + 1, self.rounds))",
        "edge.wants = max(edge.wants, round + 1)",
    ),
    (
        "the payloads of a round go with it",
        "            edge.held.pop(round, None)\n",
        "",
    ),
    (
        "the own pace is that of the rounds",
        "        self.own_pace.arrived(round, now)\n",
        "",
    ),
    (
        "who ends a round without sharing says so",
        "            if not open_here or self.round != round:\n"
        "                self._send(edge, Release(round))\n",
        "",
    ),
    (
        "who leaves an open round gives its edges up",
        "            if open_here:\n                self._give_up(edge)\n",
        "",
    ),
    (
        "what is known to have counted there is one-sided, not in doubt",
        "if edge.stage is Stage.DOUBT and edge.theirs.round == self.round:",
        "if False:",
    ),
    (
        "doubts are counted",
        '            self.out.append(Count("in-doubt", edge.neighbor))\n',
        "",
    ),
    (
        "who misses a round is waited for less",
        "        edge.patience.missed()\n",
        "",
    ),
    (
        "who gives an edge up says so",
        "        edge.rounds_missed += 1\n        self._send(edge, Release(self.round))",
        "        edge.rounds_missed += 1",
    ),
    (
        "what counted there and is lost here is one-sided",
        "        edge.take(Step.TOLD)\n        if edge.theirs.round == self.round:",
        "        edge.take(Step.TOLD)\n        if False:",
    ),
    (
        "a difference breaks a mean that is conserved",
        "            self.broken = True\n",
        "",
    ),
    (
        "differences are counted",
        '            self.out.append(Count("one-sided", edge.neighbor))\n',
        "",
    ),
    (
        "differences are said",
        '            self.out.append(Note("one-sided", {"neighbor": j, "rounds": rounds}))\n',
        "            pass\n",
    ),
    (
        "an own payload is kept until the others say how its round ended",
        "for e in self.edges.values() if not e.settled}",
        "for e in self.edges.values() if False}",
    ),
    (
        "own payloads that nobody can ask for are let go",
        "if len(self.kept) < 2:",
        "if True:",
    ),
    (
        "the newest own payload is kept",
        "        needed.add(max(self.kept))\n",
        "",
    ),
    (
        "nothing is sent before the other's Hello",
        "        if edge.up:\n            self.out.append(Send(edge.link, message))",
        "        if edge.link is not None:\n            self.out.append(Send(edge.link, message))",
    ),
    (
        "no payload is sent before the other's Hello",
        "        if not edge.up:\n            return\n        r = edge.counted.round",
        "        if edge.link is None:\n            return\n        r = edge.counted.round",
    ),
    (
        "a header says of past rounds what the disk says",
        "            self._told.closed,\n            self.told_counted(edge),\n            ack,",
        "            self.closed,\n            edge.counted,\n            ack,",
    ),
    (
        "who was restarted in a round that counted gets its payload again",
        "if edge.helping and r in self.kept:",
        "if False:",
    ),
    (
        "a payload is put in line once on a connection",
        "if self.round > self.closed and wants and edge.sent != self.round:",
        "if self.round > self.closed and wants:",
    ),
    (
        "who holds a payload is not sent it",
        "wants = edge.stage.open and not edge.acked and not edge.done and",
        "wants = edge.stage.open and not edge.done and",
    ),
    (
        "neighbors that are gone lead nobody",
        "due = [e for e in self.due() if e.up]",
        "due = self.due()",
    ),
    (
        "who begins again itself leads nobody",
        "            if self._has_passed(e) and not e.seeking",
        "            if self._has_passed(e)",
    ),
    (
        "no label is after the last round",
        "return min(where_to_join(ahead) if ahead else self.closed + 1, self.rounds)",
        "return where_to_join(ahead) if ahead else self.closed + 1",
    ),
    (
        "of two rounds that neighbors are in, who comes from further behind takes the earlier",
        "return newest - (newest - 1 in rounds)",
        "return newest",
    ),
    (
        "who is in step with some goes on in the later one: else two groups would never meet",
        "return min(where_to_join(ahead) if ahead else self.closed + 1, self.rounds)",
        "return min(where_to_join([self.closed + 1, *ahead]), self.rounds)",
    ),
    (
        "nobody is followed further than its pace allows",
        "if edge.wants <= max(known, self.closed) + _LEAD * (1 + (now - since) / pace):",
        "if True:",
    ),
    (
        "who is ahead as far as time allows is followed",
        "_LEAD * (1 + (now - since) / pace):",
        "_LEAD:",
    ),
    (
        "a burst of payloads is no pace",
        "        pace = max(pace, own / _LEAD)  # however fast its payloads come\n",
        "",
    ),
    (
        "two who say nearly the same are followed",
        "if any(other.wants >= edge.wants - _LEAD for other in others):",
        "if False:",
    ),
    (
        "the only neighbor is followed",
        "if not others or edge.anchor is None:",
        "if edge.anchor is None:",
    ),
    (
        "whoever is gone speaks for nobody",
        "others = [e for e in self.edges.values() if e is not edge and e.up]",
        "others = [e for e in self.edges.values() if e is not edge]",
    ),
    (
        "who is not followed is counted",
        '        self.out.append(Count("not-followed", edge.neighbor))\n',
        "",
    ),
)  # fmt: skip
