"""Mistakes in the rules of editions of the mesh: who has which edges in which round."""

# ruff: noqa: E501 - texts of the core, as they stand there

from __future__ import annotations

from .protocol_rules import Mistake

__all__ = ["EDITIONS"]


def _in(file: str, *broken: tuple[str, str, str]) -> tuple[Mistake, ...]:
    return tuple(Mistake(rule, file, old, new) for rule, old, new in broken)


EDITIONS = (
    *_in(
        "agent.py",
        (
            "what was refused as beyond the run comes again when the run is longer",
            '                near.greet_anew(edge, "the run goes on", now)\n',
            "                pass\n",
        ),
        (
            "a payload of a round in which nobody is due is not written",
            "return bool(edition.due(label)) or before > 0",
            "return True",
        ),
        (
            "but while the end of a shared round before it is not on the disk",
            "return bool(edition.due(label)) or before > 0",
            "return bool(edition.due(label))",
        ),
        (
            "who joins from an older payload joins in its first round",
            "            self._label = max(self._label, (near.editions.next(self.closed) or 1) - 1)\n",
            "            pass\n",
        ),
        (
            "a record names no payload that is not on the disk",
            "kept = sorted(k for k in near.kept if k != near.unwritten)",
            "kept = sorted(near.kept)",
        ),
    ),
    *_in(
        "rounds.py",
        (
            "the newest payload that is on the disk stays there",
            "        needed.add(max((k for k in self.kept if k != self.unwritten), default=0))\n",
            "",
        ),
        (
            "an edge that is not due in a round is apart",
            "            if edge.neighbor not in due:\n",
            "            if edge.neighbor not in edition.neighbors:\n",
        ),
        (
            "who jumps over a round in which an edge was due says so",
            "                    self._send(edge, Release(missed))  # it may wait in that one\n",
            "                    pass\n",
        ),
        (
            "who shares a round by another schedule is told that the edge is not due",
            "if edge.neighbor not in edition.neighbors or edge.shares == round:",
            "if edge.neighbor not in edition.neighbors:",
        ),
        (
            "a neighbor is followed once it has passed a round that both share",
            "return edge.wants > self.present.next_due(edge.neighbor, self.closed)",
            "return edge.wants > self.closed + 1",
        ),
        (
            "who was apart for some rounds is waited for as long as they may take",
            "return edge.patience.deadline_after(apart)",
            "return edge.patience.deadline_s",
        ),
    ),
    *_in(
        "edition.py",
        (
            "rounds that are shared are counted by the edition that holds in each",
            "                shared += self.then(last).shared_rounds(after, last)",
            "                shared += self.newest.shared_rounds(after, last)",
        ),
    ),
    *_in(
        "patience.py",
        (
            "a pace is that of one round",
            "self._times.append((now - self._last[1]) / (round - before))",
            "self._times.append(now - self._last[1])",
        ),
    ),
    *_in(
        "neighborhood.py",
        (
            "nothing is said of a round in which an edge is not due",
            "elif self._is_over(edge, r) and not self._takes_turns(edge, r):",
            "elif self._is_over(edge, r):",
        ),
    ),
    *_in(
        "edition.py",
        (
            "the first round has the first entry of a period",
            "return turns[(round - 1) % len(turns)]",
            "return turns[round % len(turns)]",
        ),
        (
            "all neighbors of a period are neighbors",
            "if not places.keys() <= set(self.neighbors):",
            "if False:",
        ),
        (
            "the next round of an edge may be in the next period",
            "            whole, found = whole + 1, 0\n",
            "            found = 0\n",
        ),
        (
            "the last round of an edge may be in the period before",
            "- len(self.turns) * (found < 0)",
            "",
        ),
        (
            "a round without neighbors is not shared",
            "busy = accumulate((bool(near) for near in self.turns), initial=0)",
            "busy = accumulate((1 for near in self.turns), initial=0)",
        ),
        (
            "the newest edition that has begun holds",
            "return next((e for e in reversed(self.known) if e.begins <= round), None)",
            "return next((e for e in self.known if e.begins <= round), None)",
        ),
        (
            "an edition holds from the round in which it begins",
            "reversed(self.known) if e.begins <= round), None)",
            "reversed(self.known) if e.begins < round), None)",
        ),
        (
            "editions are known in the order of their numbers",
            "self.known = sorted(known, key=lambda edition: edition.number)",
            "self.known = list(known)",
        ),
        (
            "an older edition is no news",
            "if edition.number <= self.newest.number:",
            "if False:",
        ),
        (
            "the same edition is no news",
            "if edition.number <= self.newest.number:",
            "if edition.number < self.newest.number:",
        ),
        (
            "there is no round after the newest edition's last",
            "if first <= self.rounds and edition is not None and edition.member:",
            "if edition is not None and edition.member:",
        ),
        (
            "there is no round in which the agent is no member",
            "if first <= self.rounds and edition is not None and edition.member:",
            "if first <= self.rounds and edition is not None:",
        ),
        (
            "who comes back has rounds again",
            "begins = {after + 1, *(e.begins for e in self.known if e.begins > after)}",
            "begins = {after + 1}",
        ),
        (
            "neighbors of later editions are neighbors already",
            "later = [e for e in self.known if e.number > now.number]",
            "later: list[Edition] = []",
        ),
        (
            "neighbors of earlier editions are none any more",
            "later = [e for e in self.known if e.number > now.number]",
            "later = self.known",
        ),
    ),
    *_in(
        "rounds.py",
        (
            "an edge that is not due is not waited for",
            "                edge.stage = Stage.APART\n                if",
            "                if",
        ),
        (
            "who waits to join hears how far the others are",
            "                self._send(edge, Release(round))  # it may wait for this round to join\n",
            "                    pass\n",
        ),
        (
            "who has said that it is done takes no part",
            "elif edge.closed >= round or edge.done:",
            "elif edge.closed >= round:",
        ),
        (
            "editions are compared",
            "if said.edition == self.numbers[self.round]:",
            "if True:",
        ),
        (
            "what was held is compared too",
            "        if self._differs(edge, offer):\n            self._send(edge, Release(self.round))\n            return True\n",
            "",
        ),
        (
            "a payload says its edition",
            "            edition=self.numbers[round],\n",
            "            edition=self.editions.newest.number,\n",
        ),
        (
            "the edges of the open round are those of its payload's edition",
            "return self.current or self.editions.then(self.closed + 1)",
            "return self.editions.then(self.closed + 1)",
        ),
        (
            "an edge that has gone parts",
            "            elif edge.parted_at is None:\n                edge.parted_at = now\n",
            "",
        ),
        (
            "an edge that comes back does not part",
            "                edge.parted_at, edge.parted = None, False\n",
            "                pass\n",
        ),
        (
            "who is a neighbor again says so by new Hellos",
            "                if edge.parted and edge.link is not None:\n",
            "                if False:\n",
        ),
        (
            "who parts says what its disk says",
            "if edge.up and not edge.parted and self._told.closed >= counted:",
            "if edge.up and not edge.parted:",
        ),
        (
            "who parts says so once",
            "                edge.parted = True\n",
            "",
        ),
        (
            "an edge with an open end is kept",
            "knows = (edge.parted or not counted) and edge.settled and not edge.doubts",
            "knows = edge.parted or not counted",
        ),
        (
            "an edge is kept until the other end was told",
            "knows = (edge.parted or not counted) and edge.settled and not edge.doubts",
            "knows = edge.settled and not edge.doubts",
        ),
        (
            "an edge that nobody settles is closed in the end",
            "if knows or now >= self.parts_at(edge):",
            "if knows:",
        ),
        (
            "what counted on an edge is remembered",
            "                self.past[edge.neighbor] = edge.record()\n",
            "",
        ),
        (
            "an edge that comes back knows what counted",
            "            edge.restore(self.past.pop(j))\n",
            "            del self.past[j]\n",
        ),
        (
            "a restart has edges that are not settled",
            'if not record["settled"] or record["doubts"]:',
            "if False:",
        ),
        (
            "a restart has no edges that are settled and gone",
            'if not record["settled"] or record["doubts"]:',
            "if True:",
        ),
        (
            "who is not due leads nobody while others are there",
            "for e in due or self.up()",
            "for e in self.up()",
        ),
        (
            "who finds nobody that is due follows the others",
            "for e in due or self.up()",
            "for e in due",
        ),
        (
            "others may not have heard that the run ends before",
            "return self.editions.longest",
            "return self.editions.rounds",
        ),
        (
            "the part of an epoch is that of its members",
            "return (edition.members_since - 1) << _PART_BITS",
            "return 0",
        ),
    ),
    *_in(
        "neighborhood.py",
        (
            "a new connection is told again that the edge parts",
            "        edge.parted = False\n",
            "",
        ),
        (
            "a Hello's edition is compared",
            "            if self._differs(edge, hello):\n                pass\n            elif",
            "            if",
        ),
        (
            "a header's edition is compared",
            "differs = open_here and self._differs(edge, offer)",
            "differs = False",
        ),
        (
            "a payload of a round to come waits for its edition",
            "elif r < 1 or (r > rounds and not self._knows_more(offer)):",
            "elif not 0 < r <= rounds:",
        ),
        (
            "a Hello may speak of rounds that this agent has not heard of",
            "if not self._knows_more(hello):",
            "if True:",
        ),
        (
            "an epoch of members to come is not believed before they are known",
            " and part < self.editions.newest.members_since:",
            ":",
        ),
        (
            "a final model that nobody waits for any more is dropped",
            "        if offer.final and not self.seeking:\n            return\n",
            "",
        ),
        (
            "who leaves early does not lead to the end",
            "edge.wants = min(event.closed or last, last)",
            "edge.wants = last",
        ),
        (
            "who parts says how its last round ended",
            "            self._learn(edge, event.closed, edge.shares, 0, event.counted)\n",
            "",
        ),
        (
            "the goodbye of a connection does not take back what was said",
            "if event.done and (event.closed or not edge.done):",
            "if event.done:",
        ),
    ),
    *_in(
        "agent.py",
        (
            "a new edition is taken",
            "        near.meet(now)\n\n    def _trained",
            "\n    def _trained",
        ),
        (
            "what was trained is not shared where the agent is no member",
            "if self.near.editions.next(label - 1) != label:  # the mesh has changed meanwhile",
            "if False:",
        ),
        (
            "a late save does not end an open round",
            "if rests and self._is_over() and event.round == self.closed:",
            "if self._is_over() and event.round == self.closed:",
        ),
        (
            "the model is asked for once",
            "        if self._ends:\n            return\n",
            "",
        ),
        (
            "who goes on has no final model",
            "self.near.final, self._ends = None, False",
            "self._ends = False",
        ),
        (
            "who goes on says so by new Hellos",
            "                self.near.greet_anew(edge, \"the run goes on\", now)\n",
            "                pass\n",
        ),
        (
            "more rounds end a linger",
            "            if not self._is_over():\n                self._goes_on(now)\n            elif now",
            "            if now",
        ),
        (
            "more rounds are heard of while the last state is written",
            "            if not (self._ends or self._is_over()):\n",
            "            if False:\n",
        ),
        (
            "who joins does not begin alone",
            "if self._is_over() or self._joins or len(due)",
            "if self._is_over() or len(due)",
        ),
        (
            "nobody waits for an edge that is not due to begin",
            "            due = self.near.due()\n",
            "            due = list(self.edges.values())\n",
        ),
        (
            "who is no member where the others are passes these rounds",
            "            self.near.skip(target - 1)  # the others are where this agent is no member\n",
            "",
        ),
        (
            "who joins waits",
            "        if self._joins:\n            self.phase = Phase.JOINING\n            return\n",
            "",
        ),
        (
            "who joins begins from the round before its first",
            "elif any(self._comes_from(edge) >= first - 1 for edge in near.up()):",
            "elif any(self._comes_from(edge) >= 1 for edge in near.up()):",
        ),
        (
            "who joins begins before its neighbors are in its first round",
            "elif any(self._comes_from(edge) >= first - 1 for edge in near.up()):",
            "elif any(self._comes_from(edge) >= first for edge in near.up()):",
        ),
        (
            "a release says how far a neighbor is for one that joins",
            "            return max(edge.wants, edge.closed)\n",
            "            return edge.wants\n",
        ),
        (
            "who has left early is nobody to begin from",
            "if self._joins and not edge.done:",
            "if self._joins:",
        ),
        (
            "a state that was not saved as the last is saved again",
            "elif self._last_saved != self.closed:  # it was not known to be the last",
            "elif False:",
        ),
        (
            "the last state is saved as the last",
            "self._out.append(Save(self.closed, record, failure, self._edition, last, again))",
            "self._out.append(Save(self.closed, record, failure, self._edition, False, again))",
        ),
        (
            "a payload's edition is decided by its label",
            "edition = self.near.current = self.near.editions.then(label)",
            "edition = self.near.current = self.near.editions.newest",
        ),
        (
            "a restart goes on in the edition of its payload",
            'self._edition = number = found.get("edition", 1)',
            "self._edition = number = near.editions.newest.number",
        ),
        (
            "finished neighbors that know of fewer rounds are not the end",
            "all(edge.done and edge.wants >= self.rounds for edge in up)",
            "all(edge.done for edge in up)",
        ),
        (
            "a final model is not held beyond its use",
            "            for k in [k for k, (offer, _) in edge.held.items() if offer.final]:\n                del edge.held[k]\n",
            "",
        ),
        (
            "who was no member says so",
            "removed = not self.near.editions.newest.member",
            "removed = False",
        ),
        (
            "an epoch begins with the members",
            "newest = max(first, near.epochs_seen.get(part_of(first), 0))",
            "newest = near.epochs_seen.get(part_of(first), 0)",
        ),
        (
            "an epoch of other members is not entered",
            "newest = max(first, near.epochs_seen.get(part_of(first), 0))",
            "newest = max(first, *near.epochs_seen.values(), 0)",
        ),
        (
            "who is new has broken nothing",
            "            is_new = before.members_since != after.members_since\n",
            "            is_new = False\n",
        ),
        (
            "a first edition without a change of members makes nobody new",
            "is_new = after.members_since == after.number",
            "is_new = True",
        ),
        (
            "what was broken before the members changed is mended",
            "            near.broken = False\n        near.broken",
            "            pass\n        near.broken",
        ),
        (
            "a final model is of the round before its number",
            "ended = {j: k - self.edges[j].held[k][0].final for j, (k, _) in sources.items()}",
            "ended = {j: k for j, (k, _) in sources.items()}",
        ),
    ),
)  # fmt: skip
