"""Mistakes in what happens to payloads and answers: more rules of neighborhood.py."""

# ruff: noqa: E501 - texts of the core, as they stand there

from __future__ import annotations

from .protocol_rules import Mistake, _in

__all__ = ["PAYLOADS"]

PAYLOADS: tuple[Mistake, ...] = _in(
    "neighborhood.py",
    (
        "a final model is for who asks",
        "if not self.seeking or not self.closed < r <= rounds + 1:",
        "if r != rounds + 1:",
    ),
    (
        "a final model is of no round",
        "if not self.seeking or not self.closed < r <= rounds + 1:",
        "if not self.seeking:",
    ),
    (
        "a screened payload is not held",
        "        if edge.held.pop(round, None) is not None:\n",
        "        if round in edge.held:\n",
    ),
    (
        "a screened payload's edge is given up",
        "            edge.broken = round\n",
        "            pass\n",
    ),
    ("payloads are of rounds of the run", "elif r < 1 or (r > rounds and not self._knows_more(offer)):", "elif not 0 < r:"),
    (
        "an epoch is heard of in a header",
        "            self._see_epoch(offer.epoch)\n",
        "",
    ),
    (
        "a header says what its sender has ended",
        "            self._learn(edge, offer.closed, r, offer.digest, offer.counted)\n",
        "",
    ),
    ("a header says where its sender is", "            edge.wants = max(edge.wants, r)\n", ""),
    (
        "who shares a round that is open here has begun again",
        "            edge.seeking = edge.seeking and r <= self.closed\n",
        "",
    ),
    (
        "who is asked while it begins again says that it does",
        "        if self.seeking and not edge.sought:\n            edge.sought = True\n",
        "        if False:\n            edge.sought = True\n",
    ),
    (
        "and says so once",
        "        if self.seeking and not edge.sought:\n            edge.sought = True\n",
        "        if self.seeking:\n            edge.sought = True\n",
    ),
    (
        "who gives an old payload while it seeks has not begun again",
        "            edge.seeking = edge.seeking and r <= self.closed\n",
        "            edge.seeking = False\n",
    ),
    (
        "a header acknowledges",
        "            if offer.ack:\n                self._take_ack(edge, r, offer.ack)\n",
        "",
    ),
    (
        "who has got what it lost is helped no longer",
        "            edge.helping = False\n            self._serve(edge)\n",
        "            self._serve(edge)\n",
    ),
    (
        "who has got what it lost is served at once",
        "            edge.helping = False\n            self._serve(edge)\n",
        "            edge.helping = False\n",
    ),
    (
        "who has got something else is helped still",
        "if edge.helping and (round, digest) == (edge.counted.round, edge.counted.mine):",
        "if edge.helping and round == edge.counted.round:",
    ),
    (
        "who goes on after it was helped is served",
        "            self._serve(edge)\n            if self._is_over",
        "            if self._is_over",
    ),
    (
        "payloads of rounds that are over are refused",
        "            if self._is_over(edge, r):\n"
        "                if r !=",
        "            if False:\n                if r !=",
    ),
    (
        "whoever shares a round that was given up here is told again",
        "                if r != edge.counted.round or r in edge.one_sided:",
        "                if r in edge.one_sided:",
    ),
    (
        "whoever shares a round that is one-sided here is told",
        "                if r != edge.counted.round or r in edge.one_sided:",
        "                if r != edge.counted.round:",
    ),
    (
        "what counted is not released",
        "                if r != edge.counted.round or r in edge.one_sided:",
        "                if True:",
    ),
    (
        "a payload that is acknowledged is not replaced",
        "if held is not None and (voted or held[1].digest == offer.digest):",
        "if held is not None and held[1].digest == offer.digest:",
    ),
    (
        "a payload that is not acknowledged may be replaced",
        "if held is not None and (voted or held[1].digest == offer.digest):",
        "if held is not None:",
    ),
    (
        "a payload that comes again is acknowledged again",
        "            if voted:\n                self._send(edge, Ack(r, held[1].digest))\n",
        "",
    ),
    (
        "no payload comes after a later one",
        "if edge.held and r < max(edge.held) and r != self.round:",
        "if False:",
    ),
    (
        "at most two payloads are held",
        "for old in [k for k in edge.held if k != self.open_round or k == r]:",
        "for old in [k for k in edge.held if k == r]:",
    ),
    (
        "the open round's payload is held while the next one comes",
        "for old in [k for k in edge.held if k != self.open_round or k == r]:",
        "for old in list(edge.held):",
    ),
    (
        "what breaks off is over",
        "        edge.receiving_since = None\n        r = edge.broken",
        "        r = edge.broken",
    ),
    (
        "an edge whose payload breaks off is given up",
        "        if r == self.round > self.closed and edge.stage.open and r not in edge.held:",
        "        if False:",
    ),
    (
        "what is here does not break off",
        "        if r == self.round > self.closed and edge.stage.open and r not in edge.held:",
        "        if r == self.round > self.closed and edge.stage.open:",
    ),
    (
        "a transfer is over when the payload is complete",
        "        r = offer.round\n        edge.receiving_since = None\n        if self._is_over",
        "        r = offer.round\n        if self._is_over",
    ),
    (
        "a payload that is complete too late is dropped",
        "        if self._is_over(edge, r):\n"
        "            self.out.append(Count",
        "        if False:\n            self.out.append(Count",
    ),
    (
        "a payload in time says the neighbor's pace",
        "            edge.patience.arrived(r, now, self.editions.then(r).last_due(edge.neighbor, r))\n",
        "            pass\n",
    ),
    (
        "nothing is acknowledged before the own payload is on the disk",
        "        if r == self.round and not self._joins(edge):\n            self._vote(edge)",
        "        if r > self.round and not offer.final:\n"
        "            self._send(edge, Ack(r, event.payload.digest))\n"
        "        if r == self.round and not self._joins(edge):\n            self._vote(edge)",
    ),
    (
        "a payload that comes after ours is acknowledged",
        "        if edge.take(Step.VOTE):\n            self._send(",
        "        if edge.take(Step.VOTE) and False:\n            self._send(",
    ),
    (
        "nobody acknowledges what was not sent",
        "if event.round > self.round:",
        "if event.round > self.rounds:",
    ),
    (
        "an acknowledgment is of the open round",
        "if round != self.round or self.round <= self.closed or not edge.stage.open:",
        "if self.round <= self.closed or not edge.stage.open:",
    ),
    (
        "an acknowledgment after a release comes too late",
        "if round != self.round or self.round <= self.closed or not edge.stage.open:",
        "if round != self.round or self.round <= self.closed:",
    ),
    (
        "an acknowledgment names the payload that it is for",
        "if self.kept[round].digest == digest:",
        "if True:",
    ),
    ("nobody releases a round after the last", "if r > self.last:", "if False:"),
    (
        "who fails is not followed",
        "            edge.wants = min(r + 1, self.last)\n",
        "            edge.wants = max(r + 9, edge.wants)\n",
    ),
    (
        "a release says what its sender has ended",
        "        edge.closed = max(edge.closed, r)\n        if (",
        "        if (",
    ),
    (
        "what is released does not count",
        "            r >= self.round > self.closed\n",
        "            r > self.round > self.closed\n",
    ),
    (
        "who has passed a round is not waited for",
        "            r >= self.round > self.closed\n",
        "            r == self.round > self.closed\n",
    ),
    (
        "who holds our payload may have counted the round before the one that it leaves",
        "            and (r == self.round or not edge.acked)\n",
        "",
    ),
    (
        "what is released after it counted is one-sided",
        "        elif r == edge.counted.round and not edge.settled:\n            self._disagree(edge, r)\n",
        "",
    ),
    (
        "who has finished gives its model",
        "        if self.final is not None:\n            r =",
        "        if False:\n            r =",
    ),
    ("who is asked gives its newest payload", "max(self.kept))", "min(self.kept))"),
    ("who has finished is not waited for", "        if event.done and (", "        if False and ("),
    (
        "who finishes says what counted",
        "            self._learn(edge, last, edge.shares, 0, event.counted)\n",
        "",
    ),
)  # fmt: skip
