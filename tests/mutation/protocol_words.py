"""Mistakes in connections, in Hellos, and in what they settle: rules of neighborhood.py."""

# ruff: noqa: E501 - texts of the core, as they stand there

from __future__ import annotations

from .protocol_rules import Mistake, _in

__all__ = ["WORDS"]

WORDS: tuple[Mistake, ...] = _in(
    "neighborhood.py",
    # connections
    (
        "a newer connection takes the place of an older one",
        "if edge.link is not None and edge.link != event.link:",
        "if False:",
    ),
    (
        "on a new connection a payload is sent again",
        "edge.receiving_since, edge.sent = None, 0",
        "edge.receiving_since = None",
    ),
    (
        "a transfer ends with its connection",
        "edge.receiving_since, edge.sent = None, 0",
        "edge.sent = 0",
    ),
    (
        "who begins again asks on each connection",
        "edge.sought, edge.seeking, edge.broken = False, False, 0",
        "edge.seeking, edge.broken = False, 0",
    ),
    (
        "who began again may lead on its next connection",
        "edge.sought, edge.seeking, edge.broken = False, False, 0",
        "edge.sought, edge.broken = False, 0",
    ),
    (
        "a new connection is a new attempt",
        "edge.sought, edge.seeking, edge.broken = False, False, 0",
        "edge.sought, edge.seeking = False, False",
    ),
    (
        "the time to come back begins when the connection ends",
        "edge.receiving_since, edge.down_since = None, now",
        "edge.receiving_since = None",
    ),
    (
        "a connection on which nothing is heard ends",
        "edge.heard_at + timing.dead_after_s",
        "edge.heard_at + 1e9",
    ),
    (
        "who does not say Hello is cut off",
        "if edge.connection is Connection.GREETING and edge.opened_at + timing.hello_s < at:",
        "if False:",
    ),
    (
        "a payload that takes too long is cut off",
        "            if late < at:\n",
        "            if False:\n",
    ),
    (
        "a payload that comes is not cut off",
        "late = min(edge.moved_at, paced) + timing.transfer_s",
        "late = edge.receiving_since + timing.transfer_s",
    ),
    (
        "a payload that trickles is cut off",
        "late = min(edge.moved_at, paced) + timing.transfer_s",
        "late = edge.moved_at + timing.transfer_s",
    ),
    (
        "a payload that has stopped is cut off, however much of it came",
        "late = min(edge.moved_at, paced) + timing.transfer_s",
        "late = paced + timing.transfer_s",
    ),
    (
        "a link that is too slow is named",
        "or needs_s <= timing.ceiling_s:",
        "or True:",
    ),
    (
        "a link that is fast enough is not",
        "or needs_s <= timing.ceiling_s:",
        "or False:",
    ),
    (
        "a slow link is named once",
        "        edge.told_slow = True\n",
        "",
    ),
    (
        "a link is not judged by its first moments",
        "or elapsed < timing.dead_after_s or",
        "or",
    ),
    (
        "a second Hello on a connection is refused",
        "if edge.connection is not Connection.GREETING:",
        "if False:",
    ),
    # what a Hello says
    ("a Hello says what the disk has ended", "closed=told.closed,", "closed=self.closed,"),
    ("a Hello says the round that the disk has", "round=told.round,", "round=self.round,"),
    (
        "a Hello says what counted on the disk",
        "counted=self.told_counted(edge),\n            holds",
        "counted=edge.counted,\n            holds",
    ),
    (
        "a Hello says which payload is held",
        "            holds = edge.held[told.round][1].digest\n",
        "            holds = 0\n",
    ),
    (
        "a Hello says that a payload is held whose round counted",
        "            holds = edge.counted.yours\n",
        "            holds = 0\n",
    ),
    (
        "a vote that was taken back is not told",
        "told.round == self.round and edge.stage is Stage.VOTED:",
        "told.round == self.round and told.round in edge.held:",
    ),
    (
        "a Hello tells doubts",
        'doubts=tuple(record["doubts"]) if record is not None else (),',
        "doubts=(),",
    ),
    (
        "a Hello tells the doubts that the disk has",
        'doubts=tuple(record["doubts"]) if record is not None else (),',
        "doubts=tuple(edge.doubts),",
    ),
    (
        "a Hello tells one-sided rounds",
        'one_sided=tuple(record["one_sided"]) if record is not None else (),',
        "one_sided=(),",
    ),
    ("a Hello says that its sender has finished", "done=self.final is not None,", "done=False,"),
    ("a Hello tells the epoch", "epoch=told.epoch,", "epoch=0,"),
    # what a Hello settles
    (
        "a Hello's round is within the run",
        "edge.wants = min(edge.wants, self.last)",
        "pass",
    ),
    (
        "who has finished looks for no model any more",
        "edge.done, edge.seeking = True, False",
        "edge.done = True",
    ),
    (
        "a Hello says how fast its sender is",
        "            pace_s=self.own_pace.usual_s,\n",
        "",
    ),
    (
        "how fast a neighbor is, is taken from its Hello",
        "        edge.patience.told_s = hello.pace_s\n",
        "",
    ),
    (
        "a Hello says whether its sender has finished",
        "        edge.done = hello.done\n",
        "",
    ),
    (
        "an epoch is heard of in a Hello",
        "        self._see_epoch(hello.epoch)\n",
        "",
    ),
    (
        "at first contact a neighbor may be anywhere, and later it may not",
        "if edge.anchor is None:",
        "if True:",
    ),
    (
        "who returns gets half of the time",
        "        edge.patience.returned()\n",
        "",
    ),
    (
        "a one-sided round that is open here does not count",
        "            if r == self.round and edge.stage.open:\n                self._told_lost(edge)\n"
        "            if 0 < r",
        "            if 0 < r",
    ),
    (
        "one-sided rounds are known at both ends",
        "            if 0 < r <= self.last:\n                self._disagree(edge, r)\n",
        "            pass\n",
    ),
    (
        "there are no one-sided rounds outside the run",
        "if 0 < r <= self.last:",
        "if True:",
    ),
    (
        "what the other end doubts does not count here",
        "if r == self.round and edge.stage.open and r > self.closed:",
        "if False:",
    ),
    (
        "a doubt about a round that counted is one-sided",
        "            elif r == edge.counted.round:\n                self._disagree(edge, r)\n"
        "        if self.round",
        "        if self.round",
    ),
    (
        "a Hello acknowledges",
        "            elif self._stands(edge, hello.holds):\n                edge.acked = True",
        "            elif self._stands(edge, hello.holds):\n                pass",
    ),
    (
        "a payload that is acknowledged again is there",
        "edge.acked, edge.lacking = True, False",
        "edge.acked = True",
    ),
    (
        "who was restarted after its vote gets the payload again",
        "                self._send_payload(edge, self.round)\n            if edge.stage",
        "                pass\n            if edge.stage",
    ),
    (
        "and its vote stands",
        "                self._send_payload(edge, self.round)\n            if edge.stage",
        "                edge.acked = False\n            if edge.stage",
    ),
    (
        "a Hello acknowledges the payload that it names",
        "self._stands(edge, hello.holds)",
        "hello.holds != 0",
    ),
    (
        "what our Hello did not name is not held",
        "return holds == self.kept[self.round].digest and edge.said == (self.round, holds)",
        "return holds == self.kept[self.round].digest",
    ),
    (
        "what a connection's Hello named is remembered",
        "edge.said = hello.round, hello.digest",
        "pass",
    ),
    (
        "a vote is said again after a new connection",
        "            if edge.stage is Stage.VOTED:\n"
        "                self._send(edge, Ack(self.round, edge.held[self.round][1].digest))\n"
        "        self._answer_open",
        "        self._answer_open",
    ),
    (
        "who connects after the end is told",
        "            self._send(edge, Goodbye(True,",
        "            (edge, Goodbye(True,",
    ),
    (
        "who was restarted in a round that counted gets its acknowledgment again",
        "                self._send(edge, Ack(r, c.yours))",
        "                pass",
    ),
    (
        "and its payload, if it does not hold it",
        "edge.helping = hello.holds != c.mine",
        "edge.helping = False",
    ),
    (
        "and no payload that it holds",
        "edge.helping = hello.holds != c.mine",
        "edge.helping = True",
    ),
    (
        "a payload that is gone makes the round one-sided",
        "if edge.helping and r not in self.kept:",
        "if False:",
    ),
    (
        "who is in a round that was given up here is told",
        "elif self._is_over(edge, r) and not self._takes_turns(edge, r):\n"
        "            self._send(edge, Release(r))",
        "elif False:\n            self._send(edge, Release(r))",
    ),
    (
        "payloads of a life that was lost are dropped",
        "            del edge.held[r]\n            if r == self.round:",
        "            if r == self.round:",
    ),
    (
        "payloads that their sender still knows are kept",
        "known = r == hello.round and edge.held[r][1].digest == hello.digest",
        "known = False",
    ),
    (
        "a payload that its sender trained again is another",
        "known = r == hello.round and edge.held[r][1].digest == hello.digest",
        "known = r == hello.round",
    ),
    (
        "a vote is forgotten with its payload",
        "            if r == self.round:\n                edge.take(Step.FORGOTTEN)",
        "            pass",
    ),
    (
        "acknowledgments of a life that was lost count no more",
        "            edge.acked = False\n        for r",
        "            pass\n        for r",
    ),
    # what both know
    (
        "who says less than before has lost it",
        "            edge.settled = False  # whatever it said before",
        "            pass  # whatever it said before",
    ),
    (
        "a round is settled by the same payloads",
        "if theirs == ours or theirs.round > ours.round:",
        "if theirs.round >= ours.round:",
    ),
    (
        "who counted a later round knew of this one",
        "if theirs == ours or theirs.round > ours.round:",
        "if theirs == ours:",
    ),
    (
        "a round that they ended without us is one-sided",
        "            elif over >= ours.round:\n                self._disagree(edge, ours.round)\n",
        "            elif over >= ours.round:\n                pass\n",
    ),
    (
        "a round is one-sided if the payload that counted is lost",
        "                self._disagree(edge, ours.round)  # its state is lost\n",
        "                pass\n",
    ),
    (
        "who is in a round still may count it",
        "elif afresh and not (round == ours.round and digest == ours.yours):",
        "elif afresh:",
    ),
    (
        "and only with the payload that counted here",
        "elif afresh and not (round == ours.round and digest == ours.yours):",
        "elif afresh and round != ours.round:",
    ),
    (
        "what counted there counts here",
        "            else:\n                edge.acked = True\n",
        "            else:\n",
    ),
    (
        "it counts with the payload that we have",
        "if theirs.mine != self.kept[r].digest:",
        "if False:",
    ),
    (
        "it counts with the payload that they have",
        "if held is not None and held[1].digest != theirs.yours:",
        "if False:",
    ),
    (
        "what counted there and not here is one-sided",
        "elif r > ours.round or (r > 0 and r == ours.round and theirs != ours):",
        "elif False:",
    ),
    (
        "so it is if it counted there with other payloads",
        "elif r > ours.round or (r > 0 and r == ours.round and theirs != ours):",
        "elif r > ours.round:",
    ),
    (
        "a doubt is kept until the other end has ended the round",
        "if over >= r or (afresh and round != r):",
        "if True:",
    ),
    (
        "a doubt ends",
        "if over >= r or (afresh and round != r):",
        "if False:",
    ),
    (
        "a doubt ends if the other end has lost the round",
        "if over >= r or (afresh and round != r):",
        "if over >= r:",
    ),
    (
        "who shares a later round has passed the open one",
        "over = max(closed, round - 1)",
        "over = closed",
    ),
    (
        "who has ended the open round without us does not count it",
        "if undecided and edge.stage.open and over >= self.round != theirs.round:",
        "if False:",
    ),
    (
        "an epoch is of a round of the run",
        "if round_of(epoch) <= self.rounds + 1 and",
        "if",
    ),
)  # fmt: skip
