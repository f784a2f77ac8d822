"""Mistakes in the life of an agent and in its patience: the rules of agent.py and patience.py."""

# ruff: noqa: E501 - texts of the core, as they stand there

from __future__ import annotations

from .protocol_rules import Mistake, _in

__all__ = ["AGENT", "PATIENCE"]

AGENT: tuple[Mistake, ...] = _in(
    "agent.py",
    # events
    (
        "after the end nothing happens",
        "        if self.stopped:\n            return []",
        "        if False:\n            return []",
    ),
    (
        "what an older connection brings is dropped",
        "if edge.link is None or event.link != edge.link:",
        "if edge.link is None:",
    ),
    (
        "what comes before the Hello is dropped",
        "if kind is Disconnected or kind is Greeted or edge.connection is Connection.UP:",
        "if True:",
    ),
    ("every event is a sign of life", "        edge.heard_at = now\n", ""),
    (
        "connections are watched whatever happens",
        "            self._watch(now)\n",
        "",
    ),
    # to begin
    (
        "a payload of an open round is sent again after a restart",
        "            self._resumes = found\n",
        "            pass\n",
    ),
    (
        "a payload that is known early is trained for again",
        '            if found["early"]:',
        "            if False:",
    ),
    (
        "who comes back needs one neighbor",
        "least = min(1, len(due)) if self.closed > origin else len(due)",
        "least = len(due)",
    ),
    (
        "who begins waits for all neighbors",
        "least = min(1, len(due)) if self.closed > origin else len(due)",
        "least = 1",
    ),
    (
        "who begins late finds a run under way",
        "            if any(e.closed > origin or e.wants > origin + 1 for e in self.near.up()):",
        "            if False:",
    ),
    (
        "a run in its first round is not under way",
        "if any(e.closed > origin or e.wants > origin + 1 for e in self.near.up()):",
        "if any(e.closed > origin or e.wants > origin for e in self.near.up()):",
    ),
    (
        "where a run is under way, the other neighbors get a moment",
        "self._until = min(self._until, now + self.config.timing.reconnect_s)\n            if self",
        "self._until = now\n            if self",
    ),
    (
        "a run begins without those that do not come",
        "            elif now >= self._until:\n                self._out.append(Note(\"starting",
        "            elif False:\n                self._out.append(Note(\"starting",
    ),
    # a round
    (
        "absence is noticed once the model is there",
        "        if self._absent(target):\n            self._seek(now)\n            return\n        label",
        "        label",
    ),
    (
        "absence is noticed before training",
        "        if self._absent(target):\n            self._seek(now)\n            return\n"
        "        self._begin(",
        "        self._begin(",
    ),
    (
        "a payload is labelled with the round that neighbors are in",
        "label = max(target, self._planned)",
        "label = self._planned",
    ),
    (
        "a label does not fall behind the plan",
        "label = max(target, self._planned)",
        "label = target",
    ),
    (
        "an early payload is shared while its round trains",
        "        if self._early:",
        "        if False:",
    ),
    (
        "a round with an early payload ends after its training",
        "        self.phase, self._early_shared = Phase.TRAINING, shared\n",
        "        self.phase, self._early_shared = Phase.WAITING if shared else Phase.TRAINING, shared\n",
    ),
    (
        "a failed round is left",
        "        self.near.skip(label)\n        self._save(event.why)",
        "        self._save(event.why)",
    ),
    ("who fails too often ends", "if self._failures >= _FAILURES_LIMIT:", "if False:"),
    (
        "a success forgives failures",
        "            self._failures = 0\n            self.phase = Phase.WAITING\n\n    def _saved",
        "            self.phase = Phase.WAITING\n\n    def _saved",
    ),
    (
        "a success with an early payload forgives failures",
        "            self._failures = 0\n            self.phase = Phase.WAITING\n            return",
        "            self.phase = Phase.WAITING\n            return",
    ),
    (
        "a state is told once it is on the disk",
        "        self._pending.append((Save, self.closed, record))\n",
        "        self._pending.append((Save, self.closed, record))\n"
        '        self.near.durable(record["closed"], record["epoch"], record["edges"])\n',
    ),
    (
        "what is on the disk is told",
        '        self.near.durable(record["closed"], record["epoch"], record["edges"])\n'
        "        rests",
        "        rests",
    ),
    (
        "a state that a later record has told is not told again",
        "            return  # a later record said so before",
        "            pass  # a later record said so before",
    ),
    (
        "a run is finished once its last state is on the disk",
        "        if self.near.is_durable:\n",
        "        if True:\n",
    ),
    (
        "the model is written after the last round",
        "if rests and self._is_over() and event.round == self.closed:",
        "if rests and event.round == self.closed:",
    ),
    (
        "a round that ends early without anybody, or fails, keeps the pace",
        "self._rests = alone and now < self.near.begun + self._pace_s() and not",
        "self._rests = False and not",
    ),
    (
        "a round with a neighbor ends at once",
        "alone = not (open_here and any(edge.agreed for edge in near.edges.values()))",
        "alone = True",
    ),
    (
        "a round that fails ends when its rest is over",
        "if open_here and any(near.wait_s(edge, now) > 0.0 for edge in near.edges.values()):",
        "if any(edge.up for edge in near.edges.values()):",
    ),
    (
        "who has fallen far behind does not rest",
        "and not self._falls_back(now)",
        "",
    ),
    (
        "who is a little behind rests",
        "return ahead > max(1, self.config.away_rounds // 2)",
        "return ahead > 0",
    ),
    (
        "a pace is a second where none is known",
        "return self.near.own_pace.usual_s or max(of_others, default=0.0) or _UNKNOWN_PACE_S",
        "return self.near.own_pace.usual_s or max(of_others, default=0.0)",
    ),
    (
        "the pace is the usual one",
        "return self.near.own_pace.usual_s or max(of_others, default=0.0) or _UNKNOWN_PACE_S",
        "return max(of_others, default=0.0) or _UNKNOWN_PACE_S",
    ),
    (
        "where the own pace is unknown it is that of the others",
        "return self.near.own_pace.usual_s or max(of_others, default=0.0) or _UNKNOWN_PACE_S",
        "return self.near.own_pace.usual_s or _UNKNOWN_PACE_S",
    ),
    # the end
    (
        "who finishes says so",
        "            self._out.append(Send(edge.link, goodbye))\n",
        "            pass\n",
    ),
    (
        "a finished agent lingers",
        "now >= self._until or all(edge.done for edge in self.edges.values())",
        "True",
    ),
    (
        "it lingers no longer than its neighbors need",
        "now >= self._until or all(edge.done for edge in self.edges.values())",
        "now >= self._until",
    ),
    (
        "it lingers no longer than its time",
        "now >= self._until or all(edge.done for edge in self.edges.values())",
        "all(edge.done for edge in self.edges.values())",
    ),
    (
        "who was alone says so",
        "return self.mixed if began and self._alone_at(self.closed) else -1",
        "return -1",
    ),
    (
        "who has closed no round of the run was not alone in one",
        "return self.mixed if began and self._alone_at(self.closed) else -1",
        "return self.mixed if self._alone_at(self.closed) else -1",
    ),
    (
        "a run begins after its origin",
        "            self.near.closed = self.near.round = origin\n",
        "            pass\n",
    ),
    (
        "who was in no round of a run that goes on has ended none",
        "done = self.closed > self.config.origin",
        "done = self.closed > 0",
    ),
    (
        "who begins a run that goes on waits for all neighbors",
        "least = min(1, len(due)) if self.closed > origin else len(due)",
        "least = min(1, len(due)) if self.closed > 0 else len(due)",
    ),
    (
        "a run that goes on is not under way before its first round",
        "if any(e.closed > origin or e.wants > origin + 1 for e in self.near.up()):",
        "if any(e.closed > 0 or e.wants > 1 for e in self.near.up()):",
    ),
    (
        "the memory of a run that goes on is of its epoch",
        "            self.near.begin(config.epoch)\n",
        "            self.near.begin(0)\n",
    ),
    (
        "who never had a neighbor was alone from the start",
        "return shared > (0 if self.mixed == self.config.origin else _FEW)",
        "return shared > _FEW",
    ),
    (
        "a few rounds alone are nothing to speak of",
        "return shared > (0 if self.mixed == self.config.origin else _FEW)",
        "return shared > 0",
    ),
    (
        "rounds in which nobody is due make nobody alone",
        "shared = self.near.present.shared_rounds(self.mixed, round)",
        "shared = round - self.mixed",
    ),
    (
        "where nobody is due nobody sets the pace",
        "            alone = False  # by schedule: nobody is to set the pace\n",
        "            pass\n",
    ),
    ("being alone is said once", "elif not self._alone and self.alone_since", "elif self.alone_since"),
    (
        "being alone is said when it begins",
        '            self._out.append(Note("alone", {"since": self.alone_since}))\n',
        "",
    ),
    (
        "company is a payload that counts",
        "            self.mixed, self._alone = self._label, False\n",
        "            pass\n",
    ),
    # a stop
    (
        "a stop waits for the other vote of an edge that has one",
        "            if now >= self._until or not self.near.half_agreed():\n",
        "            if True:\n",
    ),
    (
        "it does not wait for longer than a connection may take to come back",
        "            if now >= self._until or not self.near.half_agreed():\n",
        "            if not self.near.half_agreed():\n",
    ),
    (
        "a second stop ends the wait of the first",
        "self._until = now if again else now + self.config.timing.reconnect_s",
        "self._until = now + self.config.timing.reconnect_s",
    ),
    (
        "who stops takes back the edges for which it has not voted",
        "                self.near.withdraw()\n",
        "                pass\n",
    ),
    # absence
    (
        "a few rounds missed are no absence",
        "if missed > self.config.away_rounds:",
        "if missed > 2:",
    ),
    (
        "many rounds missed are an absence",
        "if missed > self.config.away_rounds:",
        "if False:",
    ),
    (
        "rounds in which nobody was due are no absence",
        "missed = self.near.editions.shared_rounds(self.closed, target - 1)",
        "missed = target - 1 - self.closed",
    ),
    (
        "nor do they make a payload too old to begin from",
        "since = self.near.editions.shared_rounds(round, target)",
        "since = target - round",
    ),
    (
        "who finds only finished neighbors was away",
        "return over and self._alone_at(self.rounds)",
        "return False",
    ),
    (
        "who was with its neighbors a few rounds ago was not",
        "return over and self._alone_at(self.rounds)",
        "return over",
    ),
    (
        "rounds that are left count as alone among finished neighbors",
        "return over and self._alone_at(self.rounds)",
        "return over and self._alone_at(self.closed)",
    ),
    (
        "who finds one that trains still was not",
        "over = bool(up) and all(edge.done and edge.wants >= self.rounds for edge in up)",
        "over = bool(up) and any(edge.done and edge.wants >= self.rounds for edge in up)",
    ),
    (
        "who begins again asks for payloads",
        "for edge in self.near.up():\n            self._out.append(Send(edge.link, Seek()))\n",
        "for edge in self.near.up():\n",
    ),
    (
        "who begins again takes a final model",
        "        self.near.seeking = True\n",
        "",
    ),
    (
        "who has begun again takes none",
        "        self.near.seeking = False\n",
        "",
    ),
    (
        "if whoever was ahead is gone, training goes on",
        "        if gone:  #",
        "        if False:  #",
    ),
    (
        "payloads of those as far behind are not taken",
        "if newest and self._is_recent(newest[0] - edge.held[newest[0]][0].final, target):",
        "if newest:",
    ),
    (
        "those as far behind are not waited for",
        "elif edge.up and self._is_recent(self._comes_from(edge), target) and not edge.seeking:",
        "elif edge.up and not edge.seeking:",
    ),
    (
        "those that begin again too are not waited for, whatever round they name",
        "elif edge.up and self._is_recent(self._comes_from(edge), target) and not edge.seeking:",
        "elif edge.up and self._is_recent(edge.wants, target):",
    ),
    (
        "who connects meanwhile is asked too",
        "                if not edge.sought:",
        "                if False:",
    ),
    ("nobody is asked twice", "                if not edge.sought:", "                if True:"),
    (
        "once a payload is here, the others are not waited for long",
        "        if sources:\n            self._until = min(",
        "        if False:\n            self._until = min(",
    ),
    (
        "the others are waited for",
        "        if waiting and now < self._until:",
        "        if waiting and not sources and now < self._until:",
    ),
    (
        "who has nothing to give is cut off",
        '                near.cut(edge, "no-payload", now)\n',
        "                pass\n",
    ),
    (
        "who takes a final model is in the last round",
        "min(where_to_join(ended.values()), rounds)",
        "where_to_join(ended.values()) + 1",
    ),
    (
        "who begins again is ahead of no neighbor that has yet to begin the newest round",
        "min(where_to_join(ended.values()), rounds)",
        "min(max(ended.values()), rounds)",
    ),
    (
        "who begins again says which round it has ended",
        "        self.near.skip(self._label)\n        self.mixed",
        "        self.near.closed = self._label\n        self.mixed",
    ),
    (
        "who has begun again is not alone",
        "        self.mixed = self._label\n",
        "",
    ),
    (
        "a model that cannot be taken ends the run here",
        "        if event.failure:\n",
        "        if False:\n",
    ),
    # memory
    (
        "who begins again has broken the mean",
        "near.broken = near.broken or lost",
        "pass",
    ),
    (
        "nothing is renewed where nothing is conserved",
        "        if not self.config.conserves:\n            return\n",
        "",
    ),
    (
        "a newer epoch is taken",
        "if newest > near.epoch:",
        "if False:",
    ),
    (
        "a mean that is broken begins an epoch",
        "        if near.broken and (",
        "        if False and (",
    ),
    (
        "a payload that was refused breaks the mean",
        "self.near.broken = self.near.broken or event.refused",
        "pass",
    ),
    (
        "what is broken stays so until it is mended",
        "self.near.broken = self.near.broken or event.refused",
        "self.near.broken = event.refused",
    ),
    (
        "an epoch has the number of who began it",
        "(begins << EPOCH_BITS) + 2 * self.config.vertex",
        "begins << EPOCH_BITS",
    ),
    (
        "epochs do not follow each other at once",
        "not self._epoch_began or target >= self._epoch_began + self.config.away_rounds",
        "True",
    ),
    (
        "an epoch is newer than all before",
        "begins = max(target, round_of(near.epoch) + 1)",
        "begins = target",
    ),
    (
        "an epoch mends what was broken",
        "near.broken, self._epoch_began = False, target",
        "self._epoch_began = target",
    ),
    # the disk
    ("what is broken outlives the process", '"broken": near.broken', '"broken": False'),
    ("company outlives the process", '"mixed": self.mixed', '"mixed": 0'),
    ("an epoch outlives the process", '"epoch": near.epoch', '"epoch": 0'),
    (
        "the pace outlives the process",
        'near.own_pace.usual_s = record["pace"]',
        "pass",
    ),
    (
        "when an epoch began outlives the process",
        '"epoch_began": self._epoch_began',
        '"epoch_began": 0',
    ),
    ("payloads that are kept outlive the process", "            if k in kept:", "            if False:"),
    (
        "a record of an open round needs its payload",
        "            if payload is None:",
        "            if False:",
    ),
    (
        "the disk is what a restarted agent tells",
        "            near.durable(near.closed, near.epoch, edges)\n",
        "            pass\n",
    ),
)  # fmt: skip

PATIENCE: tuple[Mistake, ...] = _in(
    "patience.py",
    ("who misses a round gets half of the time", "usual * 0.5**self.misses", "usual"),
    (
        "who misses many gets none",
        "if self.misses > _MISSES_TO_NOTHING:",
        "if False:",
    ),
    ("being in time forgives half", "self.misses //= 2", "self.misses = 0"),
    ("being in time forgives", "self.misses //= 2", "pass"),
    ("who returns gets half", "self.misses = min(self.misses, 1)", "self.misses = 0"),
    (
        "a pace is that of rounds in a row",
        "if self._last is not None and self._last[0] == before:",
        "if self._last is not None:",
    ),
    (
        "a deadline is no shorter than the least",
        "max(self._factor * pace * rounds, self._least_s)",
        "self._factor * pace * rounds",
    ),
    (
        "what a neighbor says of its pace stands for what was not seen",
        "self.told_s or self.own_s",
        "self.own_s",
    ),
    (
        "the own pace stands for one that is not known",
        "self.told_s or self.own_s",
        "self.told_s",
    ),
    (
        "what was seen goes before what was said",
        "pace = self.usual_s if self.known else self.told_s or self.own_s",
        "pace = self.told_s or self.usual_s or self.own_s",
    ),
)
