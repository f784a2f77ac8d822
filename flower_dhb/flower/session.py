"""One run of the relay: messages out, answers sorted, payloads delivered, events noted."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING

from flwr.app import Array, ConfigRecord, Message, MessageType
from flwr.common import log

from flower_dhb.errors import FlowerDhbError, PayloadError
from flower_dhb.flower.failures import Failure
from flower_dhb.flower.ledger import Ledger
from flower_dhb.flower.local_rounds import LocalLine, LocalRounds
from flower_dhb.flower.members import Members
from flower_dhb.flower.profile import Profile
from flower_dhb.flower.records import Answer, Ask, Farewell, Instruction
from flower_dhb.flower.relay import Relay, Sent, is_unavailable, read_answer
from flower_dhb.flower.reports import Reports
from flower_dhb.flower.round import Round
from flower_dhb.flower.segment import Segment
from flower_dhb.metrics import (
    LOWER_IS_BETTER,
    RoundRecord,
)
from flower_dhb.topology.turns import Graphs

__all__ = ["Locally", "Owed", "Session"]

_FAREWELL_S = 30.0  # deployed nodes ask for messages every three seconds, and start a process
_LOOK_S = 0.5  # between two looks at who is connected, while nobody can be asked


@dataclass
class Owed:
    """A round whose models are evaluated in the messages of the next round's training.

    vertices: who evaluates, with `config`. parameters, distance: what all agents report.
    answers: those that have come.
    """

    round: Round
    vertices: Collection[int]
    config: ConfigRecord
    parameters: bool
    distance: bool
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Locally:
    """Rounds without an exchange, which the agents train before the round of their message.

    evaluating: who evaluates, by round, with `config`. measured: rounds after which all agents tell
    the projection of their parameters. lines: what has come of them, by vertex.
    """

    rounds: tuple[Round, ...]
    evaluating: Mapping[int, Collection[int]]
    measured: tuple[int, ...]
    config: ConfigRecord
    lines: dict[int, dict[int, LocalLine]] = field(default_factory=dict)

    def of(self, vertex: int) -> LocalRounds:
        """What one agent is told of them."""
        return LocalRounds(
            first=self.rounds[0].number,
            evaluated=tuple(k for k, who in self.evaluating.items() if vertex in who),
            measured=self.measured,
            evaluates=self.config,
        )

    def take(self, answer: Answer) -> None:
        """Keep what an agent tells of these rounds, and of no others."""
        numbers = {one.number for one in self.rounds}
        found = {line.round: line for line in answer.locally if line.round in numbers}
        self.lines[answer.vertex] = found

    def answers(self, ask: Ask, round: int) -> dict[int, Answer]:
        """What the agents tell of one of these rounds, as if it had a message of its own."""
        lines = {v: found[round] for v, found in sorted(self.lines.items()) if round in found}
        if ask == "train":
            return {
                v: Answer(
                    ask=ask,
                    vertex=v,
                    round=round,
                    state_round=round - 1,
                    failure=line.failure,
                    detail=line.detail,
                    metrics=line.metrics,
                )
                for v, line in lines.items()
            }
        return {
            v: Answer(
                ask=ask,
                vertex=v,
                round=round,
                state_round=round,
                failure=line.evaluation_failure,
                metrics=line.evaluated,
                sketch=line.sketch,
            )
            for v, line in lines.items()
        }


@dataclass
class Session:
    """One run: its relay, its nodes, its books, and the record of the current round."""

    relay: Relay
    members: Members
    ledger: Ledger
    reports: Reports
    topology: Graphs
    weighted_by_key: str = "num-examples"
    lower_is_better: tuple[str, ...] = LOWER_IS_BETTER
    wants_parameters: bool = False
    wants_distance: bool = False
    owed: Owed | None = None
    locally: Locally | None = None
    now: Round = field(init=False)
    _unheard: set[int] = field(default_factory=set)  # were waited for in vain; nobody waits again
    _without_message: int = 0  # rounds that had no message of their own

    def __post_init__(self) -> None:
        """Begin before the first round."""
        self.now = self.new_round(0)

    @property
    def record(self) -> RoundRecord:
        """What is written down of the current round."""
        return self.now.record

    def begin(self, round: int) -> None:
        """Begin a round."""
        self.now.flush()
        self.reports.begin(round)
        self.now, self.relay.profile = self.new_round(round), Profile()

    def begin_locally(self, locally: Locally) -> None:
        """The messages of the round that has begun ask for these rounds, too."""
        self.locally = locally
        self._without_message += len(locally.rounds)

    def took(self, seconds: float, locally: Sequence[Mapping[str, float]] = ()) -> None:
        """The current round took so long, the local rounds of its message included.

        locally: what each of those took, by `PARTS`, which is told of them and not of this one.
        """
        parts = self.relay.profile.parts(seconds)
        for spent in locally:
            parts = {name: max(part - spent.get(name, 0.0), 0.0) for name, part in parts.items()}
            seconds -= sum(spent.values())
        self.record.seconds = sum(parts.values()) if locally and parts else max(seconds, 0.0)
        self.record.profile = parts

    def resume(self, record: RoundRecord) -> None:
        """Go on with a round that was trained and delivered before this run was taken up."""
        self.now.flush()
        delivered = set(range(self.topology.n_agents)) - set(record.missing)
        self.now = Round(record, delivered)

    def new_round(self, number: int) -> Round:
        """A round of which nothing is known yet."""
        return Round(
            RoundRecord(
                number, weighted_by_key=self.weighted_by_key, lower_is_better=self.lower_is_better
            )
        )

    def wait(self, limit: float) -> None:
        """If nobody can be asked, wait until those who are busy have answered, or come back.

        Without this, all agents that are slower than a round's deadline would use up the
        rounds that are left within a moment.
        """
        begin = time.monotonic()
        self.members.refresh()
        if self._connected() - self.relay.busy:
            return
        while self._connected() & self.relay.busy or not self._connected():
            left = limit - (time.monotonic() - begin)
            if left <= 0.0:
                break
            if self.relay.busy:
                self.sort(self.relay.collect(self.relay.busy, min(left, _LOOK_S)))
            else:
                time.sleep(min(left, _LOOK_S / 5))
            self.members.refresh()

    def _connected(self) -> set[int]:
        return {v for v in range(self.topology.n_agents) if self.members.node(v) is not None}

    def messages(
        self, ask: Ask, round: int, config: ConfigRecord, among: Collection[int] | None = None
    ) -> list[Message]:
        """One message for each agent, or each of some, that is connected and not busy."""
        messages = []
        announced = self._announcements()
        for vertex, node in self.ready(round, among).items():
            instruction = self._instruction(vertex, ask, round, announced)
            kind = "evaluate" if ask == "evaluate" else "train"
            message = Message(instruction.to_records(config), node, kind, group_id=str(round))
            self.relay.address(message, Sent(node, vertex, ask, round, self._turn(round)))
            messages.append(message)
        return messages

    def segment_messages(
        self,
        segments: Mapping[int, Segment],
        config: ConfigRecord,
        evaluates: ConfigRecord,
        ttl_s: float,
    ) -> list[Message]:
        """One message for each agent that is to hold a segment's rounds with its neighbors.

        ttl_s: seconds after which Flower delivers it no more, since the segment is over.
        """
        messages = []
        announced = self._announcements()
        for vertex, segment in segments.items():
            node, last = self.members.node(vertex), segment.last
            if node is None:
                continue
            made = self.ledger.instruction(
                vertex, "report", last, report=False, announcements=announced
            )
            made = replace(made, ask="segment", segment=segment, evaluates=evaluates)
            content = made.to_records(config)
            message = Message(content, node, MessageType.TRAIN, group_id=str(last), ttl=ttl_s)
            sent = Sent(node, vertex, "segment", last, self._turn(last))
            self.relay.address(message, sent)
            messages.append(message)
        return messages

    def ready(self, round: int, among: Collection[int] | None = None) -> dict[int, int]:
        """The nodes of all agents, or of some, that are connected and not busy."""
        busy = self.relay.busy
        found = {}
        for vertex in range(self.topology.n_agents) if among is None else sorted(among):
            moved = self.members.settle(vertex)
            if moved:
                self._doubt(vertex, moved)
                self._unheard.discard(vertex)
            node = self.members.node(vertex)
            if node is None:
                self._doubt(vertex, "not connected")
            elif vertex in busy and not moved and not self._gives_up(vertex, round):
                self.now.note(vertex, "still busy with an earlier message")
            else:
                found[vertex] = node
        return found

    def _instruction(
        self, vertex: int, ask: Ask, round: int, announced: Mapping[int, str]
    ) -> Instruction:
        report, measure = self.wants_parameters, self.wants_distance
        owed = self.owed
        if ask == "train":
            report, measure = (False, False) if owed is None else (owed.parameters, owed.distance)
        made = self.ledger.instruction(
            vertex,
            ask,
            round,
            report=report,
            measure=measure,
            announcements=announced,
        )
        if ask == "train" and owed is not None and vertex in owed.vertices:
            made = replace(made, evaluates=owed.config)
        if ask == "train" and self.locally is not None:
            made = replace(made, locally=self.locally.of(vertex))
        return made

    def _turn(self, round: int) -> int:
        """A round's number among those that have messages of their own."""
        return round - self._without_message

    def _announcements(self) -> dict[int, str]:
        """What neighbors are to seal their payloads with, where they do."""
        if self.ledger.encryption == "none":
            return {}
        found = {v: self.members.announcement(v) for v in range(self.topology.n_agents)}
        return {vertex: text for vertex, text in found.items() if text}

    def _gives_up(self, vertex: int, round: int) -> bool:
        """Whether an open message counts as lost, so that the agent is sent a new one."""
        if not self.relay.give_up(vertex, self._turn(round)):
            return False
        self._doubt(vertex, "its message or its answer seems to be lost; it is asked anew")
        return True

    def _doubt(self, vertex: int, text: str) -> None:
        """An agent may have lost its state: let it rejoin with its next message."""
        self.now.note(vertex, text)
        self.ledger.doubt(vertex)

    def _silent(self, vertex: int, text: str) -> None:
        """So may one whose node did not answer; another node may take its vertex."""
        self._doubt(vertex, text)
        self.members.doubt(vertex)

    def exchange(
        self, messages: Iterable[Message], limit: float, behind_s: float = math.inf
    ) -> list[Message]:
        """Send messages and wait for their replies until the deadline.

        An agent that was waited for in vain is not waited for again before it has answered, unless
        there is nobody else: a node that died costs one deadline. behind_s: how long the other
        replies may come after the first one.
        """
        refused, waiting = self.relay.send(list(messages))
        for sent in refused:
            self.now.note(sent.vertex, "Flower did not accept the message for its node")
        asked = {sent.vertex for sent in waiting}
        awaited = asked - self._unheard or asked
        replies = self.relay.collect(awaited, limit, behind_s)
        for sent in waiting:
            if sent.vertex not in self.relay.busy:
                continue
            if sent.vertex in awaited:
                self._silent(sent.vertex, f"no answer to '{sent.ask}' within {limit:g} s")
            else:
                why = f"no answer to '{sent.ask}' yet, for which no round waits after the last one"
                self._silent(sent.vertex, why)
            self._unheard.add(sent.vertex)
        return replies

    def sort(self, replies: Iterable[Message], *asks: Ask) -> dict[int, Answer]:
        """Answers to this round's messages by vertex; everything else is dealt with here."""
        current: dict[int, Answer] = {}
        for message in replies:
            sent = self.relay.origin(message)
            if sent is None:
                continue
            if sent.ask == "vertex":
                vertex, what = self.members.claim(sent, message)
                if what:
                    self.now.note(vertex, what)
                continue
            if not is_unavailable(message):
                self._unheard.discard(sent.vertex)
            answer = self._answer(sent, message, asks)
            if answer is None:
                self.ledger.doubt(sent.vertex)
                self.members.doubt(sent.vertex, ask=not message.has_error())
                continue
            self.members.answered(sent.vertex)
            epoch = self.ledger.epoch
            self.ledger.acknowledge(answer)
            self.now.bound_by(sent.vertex, answer.policy)
            if answer.announcement:
                self.members.announces(sent.node_id, answer.announcement)
            for text in answer.refused:
                self.now.note(sent.vertex, f"refused a payload: {text}")
            for text in answer.remarks:
                self.now.note(sent.vertex, text)
            if answer.failure:
                self._failed(sent, asks, Failure(answer.failure, answer.detail))
            if answer.rejoined:
                self.now.rejoined(sent.vertex, answer.state_round)
            if self.ledger.epoch > epoch:
                self.now.note(sent.vertex, _new_epoch(answer))
            if self._is_current(sent, asks):
                current[sent.vertex] = answer
                if self.locally is not None and sent.ask == "train":
                    self.locally.take(answer)
                self.relay.profile.told(sent.vertex, answer.spent)
                if self.owed is not None and sent.ask == "train":
                    self.owed.answers[sent.vertex] = answer.evaluation
            else:
                self.now.note(sent.vertex, f"late answer to '{sent.ask}' of round {sent.round}")
        for sent in self.relay.unanswered():
            self._silent(sent.vertex, f"no answer to '{sent.ask}'")
        return dict(sorted(current.items()))

    def _is_current(self, sent: Sent, asks: Collection[Ask]) -> bool:
        return sent.ask in asks and sent.round == self.now.number

    def _failed(self, sent: Sent, asks: Collection[Ask], failure: Failure) -> None:
        if self._is_current(sent, asks):
            self.now.failed(sent.vertex, failure)
        else:
            self.now.note(sent.vertex, failure.text)

    def _answer(self, sent: Sent, message: Message, asks: Collection[Ask]) -> Answer | None:
        """What an agent answers, None if it is nothing that can be used; the event says why."""
        try:
            answer = read_answer(sent, message)
            self.ledger.check_epoch(answer)
            return answer
        except FlowerDhbError as error:
            if is_unavailable(message):
                self.now.note(
                    sent.vertex, str(error)
                )  # late or lost, which is no failure of the app
            else:
                full = str(message.error.reason) if message.has_error() else ""
                self._failed(sent, asks, Failure(str(error), full if "\n" in full else ""))
            return None

    def deliver(self, round: int, answers: Mapping[int, Answer]) -> None:
        """Hand each valid payload to those neighbors that delivered too."""
        frames: dict[int, Array] = {}
        alone: set[int] = set()
        for vertex, answer in answers.items():
            if answer.payload is None:
                if self.ledger.keeps_to_itself(answer):
                    alone.add(vertex)
                continue
            try:
                self.ledger.check(vertex, round, answer.payload)
            except PayloadError as error:
                self.now.failed(vertex, Failure(f"payload refused: {error}"))
                continue
            frames[vertex] = answer.payload
        sent = self.ledger.deliver(round, frames, alone)
        self.now.close(frames.keys() | alone, sent, self.topology.n_agents)

    def take_reports(self, answers: Mapping[int, Answer], round: Round) -> None:
        """Keep what agents report of their parameters, beside reports of the same round."""
        models, sketches = {}, {}
        for vertex, answer in answers.items():
            try:
                vectors, sketch = self.ledger.parameters(answer), self.ledger.sketch(answer)
            except PayloadError as error:
                round.note(vertex, f"report refused: {error}")
                continue
            if vectors:
                models[vertex] = vectors
            if sketch is not None:
                sketches[vertex] = sketch
        self.reports.take(round.number, models, sketches)

    def report(self, round: int, limit: float) -> None:
        """Ask those agents for their parameters of a round that have not reported them."""
        known = self.reports.of(round)
        asked = [v for v in range(self.topology.n_agents) if v not in known]
        if not asked:
            return
        self.wants_parameters = True
        replies = self.exchange(self.messages("report", round, ConfigRecord(), asked), limit)
        self.take_reports(self.sort(replies, "report"), self.now)
        self.now.flush()

    def measure(self, answers: Mapping[int, Answer], round: Round, *, distance: bool) -> None:
        """Keep what agents report, and write down how far they are apart, if that is wanted."""
        self.take_reports(answers, round)
        distances = self.reports.distances() if distance else None
        if distances is not None:
            round.measured(*distances)

    def combine_last(self, round: int, limit: float) -> None:
        """Let those agents combine the last round that have not evaluated it.

        They keep the model at their nodes; nothing of it comes here.
        """
        asked = [v for v in range(self.topology.n_agents) if v not in self.record.evaluate]
        if asked:
            replies = self.exchange(self.messages("report", round, ConfigRecord(), asked), limit)
            self.sort(replies, "report")
            self.now.flush()

    def dismiss(self) -> None:
        """Tell the agents that keep their state in files that the run is over.

        Whoever does not hear it removes the file when another run begins.
        """
        messages = []
        for vertex in range(self.topology.n_agents):
            node = self.members.node(vertex)
            if node is None or not self.members.keeps_file(vertex):
                continue
            farewell = Farewell(run=self.ledger.run, vertex=vertex)
            message = Message(farewell.to_records(), node, MessageType.TRAIN)
            self.relay.address(message, Sent(node, vertex, "finish", 0))
            messages.append(message)
        try:
            _, waiting = self.relay.send(messages)
            self.relay.collect({sent.vertex for sent in waiting}, _FAREWELL_S)
        except FlowerDhbError as error:  # the run has its results already
            log(WARNING, "the agents could not be told that the run is over: %s", error)


def _new_epoch(answer: Answer) -> str:
    """For the history: what begins, and why."""
    if answer.rejoined:
        why = "its memory is lost"
    elif answer.refused:
        why = "an edge has counted at one end only"
    else:
        why = "an answer in which it told of a loss has not arrived"
    return (
        f"epoch {answer.epoch} begins, since {why}: all agents restart what the rule tracks with "
        "their next training, so that its mean is right again"
    )
