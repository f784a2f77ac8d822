"""Direct rounds as the strategy sees them: one message opens a segment, its answers tell of it.

Within a segment nodes exchange payloads among themselves, over the peers' protocol; what comes
back are the rounds' histories, from which records are made as of relayed rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from logging import INFO
from statistics import median
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common import log

from flower_dhb.errors import ConfigError
from flower_dhb.flower.failures import Failure
from flower_dhb.flower.members import Members
from flower_dhb.flower.records import Answer, Ask
from flower_dhb.flower.round import Round
from flower_dhb.flower.rounds import Rounds
from flower_dhb.flower.segment import AWAY_ROUNDS, RoundLine, Segment
from flower_dhb.metrics import Metrics, agents_text
from flower_dhb.topology.turns import Graphs

__all__ = ["TRANSPORTS", "Edges", "Segments", "oldest_state"]

TRANSPORTS = ("relay", "direct")

_FIRST = 4  # rounds of the first segment, whose pace nobody knows
_AIM_S = 60.0  # of a segment: a message of Flower's costs some seconds, and none can be called back
_MOST = 2048  # rounds of one segment
_LEAST_LIMIT_S = 300.0  # for a segment whose pace is not known, or changes
_GENEROUS = 4.0  # how much longer than expected a segment may take
_START_S = 60.0  # nodes enter a segment as far apart as their processes start
_BEHIND_S = 90.0  # how long the last answer is waited for after the first one
_WAIT_S = 300.0  # that a round waits for a neighbor that is alive, where nothing else is said
_ANSWER_S = 60.0  # for an answer on its way, and a process that ends


class Edges:
    """Which edges of the graph count in a segment, and who dials.

    Raises ConfigError if a node cannot hold rounds with its neighbors at all.
    """

    def __init__(self, topology: Graphs, members: Members) -> None:
        self._topology, self._members = topology, members
        n = topology.n_agents
        lost = [v for v in range(n) if not members.is_direct(v)]
        if lost:
            raise ConfigError(
                f'transport="direct": the nodes of {agents_text(lost)} have no identity of a mesh, '
                "by which their neighbors know them. Name each node's directory of the mesh in its "
                "node config, mesh='…', as 'flower-dhb mesh' writes it"
            )
        near = {v: topology.neighbors(v) for v in range(n)}
        alone = [v for v in range(n) if all(self.dials(v, j) is None for j in near[v])]
        if alone:
            raise ConfigError(
                f'transport="direct": {agents_text(alone)} can reach no neighbor and be reached by '
                "none. Give it or a neighbor an address in the node config, address='10.0.0.3:9440'"
            )

    def relayed(self) -> list[tuple[int, int]]:
        """Edges neither of whose ends has an address: they count in relayed rounds alone."""
        edges = self._topology.edges
        found = [(a, b) for a, b in edges if self.dials(a, b) is None]
        if found and len(self._topology.graphs) > 1:
            pairs = ", ".join(f"{a}-{b}" for a, b in found[:8])
            raise ConfigError(
                f"transport=\"direct\": edges {pairs} of '{self._topology.name}' have no end with "
                "an address, and would have their turn in rounds that no relay carries. Give one "
                "end an address in the node config, address='10.0.0.3:9440'"
            )
        return found

    def rows(self, vertex: int, first: int, last: int) -> tuple[dict[int, float], ...]:
        """An agent's weights in each round of a segment, where they are not always the same."""
        if len(self._topology.graphs) == 1:
            return ()
        shared = self._topology.shared
        return tuple(shared(k).weights_of(vertex) for k in range(first, last + 1))

    def dials(self, one: int, other: int) -> int | None:
        """Which of two neighbors dials the other, None if neither can."""
        reachable = [v for v in sorted((one, other)) if self._members.address(v)]
        if not reachable:
            return None
        a, b = sorted((one, other))
        if len(reachable) == 1:
            return b if reachable[0] == a else a
        return a if (a + b) % 2 else b  # shared out evenly

    def of(self, vertex: int, among: Collection[int]) -> tuple[tuple[int, ...], dict[int, str]]:
        """An agent's neighbors in a segment of these agents, and the addresses that it dials."""
        near = [
            j
            for j in self._topology.neighbors(vertex)
            if j in among and self.dials(vertex, j) is not None
        ]
        dialed = [j for j in near if self.dials(vertex, j) == vertex]
        return tuple(near), {j: self._members.address(j) for j in dialed}


def oldest_state(graphs: Graphs, vertex: int, first: int) -> int:
    """The oldest round from whose state an agent may enter a segment that begins with `first`.

    What counts is the exchanges that it has missed: in a round without one it misses nothing.
    """
    missed = 0
    for k in range(first - 1, 0, -1):
        missed += bool(graphs.due(vertex, k))
        if missed > AWAY_ROUNDS:
            return k
    return 0


class Segments(Rounds):
    """Goes through a run's rounds in segments of about a minute.

    Where there are edges that need it, a relayed round follows each segment. `limit` is how long a
    round may wait for an agent that is alive.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._edges = Edges(self._run.topology, self._run.members)
        self._relayed = self._edges.relayed()
        self._wait_s = self._limit if math.isfinite(self._limit) else _WAIT_S
        self._number = 0
        self._pace_s = 0.0  # seconds of a round in the last segment

    def go(self, rounds: int) -> int:
        """All rounds, or fewer if `on_round` says so. Returns the last."""
        if self._relayed:
            pairs = ", ".join(f"{a}-{b}" for a, b in self._relayed)
            self._result.warn(
                f"edges {pairs} have no end with an address: they count in the relayed round after "
                "each segment alone. An address in the node config of one end makes them direct"
            )
        done = 0
        if self._kept is not None:
            if self._go_on(self._kept, rounds):
                return self._kept.round
            done = self._where(self._kept.round, rounds)
        while done < rounds:
            ends, done = self._hold(done + 1, rounds)
            if not ends and self._relayed and done < rounds:
                done += 1
                ends = self._relay(done, rounds)
            if ends:
                return done
        self._failures.end()
        return max(rounds, done)

    def _where(self, done: int, rounds: int) -> int:
        """The round that the agents are in, who went on while no ServerApp was there."""
        run = self._run
        run.begin(max(rounds, done))
        run.wait(self._limit)
        messages = run.messages("report", run.now.number, ConfigRecord())
        answers = run.sort(run.exchange(messages, _ANSWER_S + self._wait_s), "report")
        run.ledger.forget_frames()
        found = max((answer.state_round for answer in answers.values()), default=done)
        if found > done:
            self._result.warn(
                f"rounds {done + 1} to {found} were held while the ServerApp was away: the models "
                "have them, and the history has not"
            )
        return max(found, done)

    # --- one segment --------------------------------------------------------------------

    def _hold(self, first: int, rounds: int) -> tuple[bool, int]:
        """One segment. Returns whether the run is to end, and the last round."""
        run, begin = self._run, time.monotonic()
        last = self._last(first, rounds)
        self._number += 1
        run.begin(last)
        run.wait(_ANSWER_S)
        limit_s = max(_LEAST_LIMIT_S, _GENEROUS * self._pace_s * (last - first + 1))
        evaluated = {k: self._evaluating(k, rounds) for k in range(first, last + 1)}
        asked = run.ready(last)
        segments = {}
        for v in asked:
            near, dials = self._edges.of(v, asked)
            if not near:
                run.now.note(v, "no neighbor is there with whom it could hold rounds")
                continue
            segments[v] = Segment(
                number=self._number,
                first=first,
                last=last,
                oldest=oldest_state(run.topology, v, first),
                limit_s=limit_s,
                start_s=_START_S,
                wait_s=self._wait_s,
                neighbors=near,
                dials=dials,
                rows=self._edges.rows(v, first, last),
                evaluated=tuple(k for k, who in evaluated.items() if v in who),
                measured=self._measured(evaluated),
            )
        log(
            INFO,
            "segment %d: rounds %d to %d, among %d agents",
            self._number,
            first,
            last,
            len(asked),
        )
        most_s = _START_S + limit_s + min(self._wait_s, _WAIT_S) + _ANSWER_S
        config = ConfigRecord(dict(self._configs[0].items()))
        messages = run.segment_messages(segments, config, self._configs[1], ttl_s=most_s)
        answers = run.sort(run.exchange(messages, most_s, behind_s=_BEHIND_S), "segment")
        run.ledger.forget_frames()
        seconds = time.monotonic() - begin
        return self._write(first, last, rounds, answers, seconds)

    def _held(
        self,
        trained: Mapping[int, Answer],
        evaluated: Mapping[int, Answer],
        rounds: int,
        *,
        newest: bool,
    ) -> bool:
        """Close the present round, which the agents tell of. Returns whether the run is to end.

        newest: whether the agents still have the models of this round.
        """
        run, now = self._run, self._run.now
        metrics = self._steps.trained(now, trained)
        if metrics is not None:
            self._result.train_metrics_clientapp[now.number] = metrics
        self._failures.look(now.number, now.delivered, now.failures)
        if evaluated:
            metrics = self._steps.evaluated(now, evaluated)
            if metrics is not None:
                self._result.evaluate_metrics_clientapp[now.number] = metrics
            run.measure(evaluated, now, distance=True)
        if newest and self._checkpoint is not None:
            self._checkpoint.keep(run.ledger, run.record, self._result)
        if newest and self._evaluate_fn is not None:
            run.report(now.number, self._limit)
            self.observe(now, run.reports.average())
        return self._close(now, rounds)

    def _relay(self, k: int, rounds: int) -> bool:
        """A relayed round, in which all edges count. Returns whether the run is to end."""
        run, steps, begin = self._run, self._steps, time.monotonic()
        run.begin(k)
        run.wait(self._limit)
        messages = steps.configure_train(k, ArrayRecord(), self._configs[0], run.relay.grid)
        self._keep_metrics(k, steps.aggregate_train(k, run.exchange(messages, self._limit)))
        self._failures.look(k, run.now.delivered, run.now.failures)
        if self._checkpoint is not None:
            self._checkpoint.keep(run.ledger, run.record, self._result)
        self._evaluate(k, last=k == rounds)
        run.took(time.monotonic() - begin)
        return self._close(run.now, rounds)

    def _last(self, first: int, rounds: int) -> int:
        """The last round of a segment that begins with `first`."""
        length = _FIRST
        if self._pace_s > 0.0:
            length = min(max(int(_AIM_S / self._pace_s), 1), _MOST)
        last = min(first + length - 1, rounds)
        if self._evaluate_fn is not None:  # the observer gets an average only where a segment ends
            every = self._wishes.evaluate_every or 1
            last = min(last, -(-first // every) * every)
        return last

    def _evaluating(self, k: int, rounds: int) -> Collection[int]:
        every = self._wishes.evaluate_every
        if not every or (k % every and k != rounds):
            return ()
        return self._steps.evaluating(k)

    def _measured(self, evaluated: Mapping[int, Collection[int]]) -> tuple[int, ...]:
        if not self._wishes.measure_consensus:
            return ()
        return tuple(k for k, who in evaluated.items() if who)

    # --- what came of it ------------------------------------------------------------------

    def _write(
        self, first: int, last: int, rounds: int, answers: Mapping[int, Answer], seconds: float
    ) -> tuple[bool, int]:
        """Close the rounds that the answers tell of, one after the other."""
        run, opened = self._run, self._run.now
        lines: dict[int, dict[int, RoundLine]] = {}
        for v, answer in answers.items():
            for line in answer.lines:
                if first <= line.round <= last:
                    lines.setdefault(line.round, {})[v] = line
        reached = self._reached = max(lines, default=first)
        paces = [median(line.seconds for line in a.lines) for a in answers.values() if a.lines]
        self._pace_s = max(paces, default=self._pace_s)
        spent = sum(max(line.seconds for line in found.values()) for found in lines.values())
        ends = False
        for k in range(first, reached + 1):
            now = opened if k == last else run.new_round(k)
            now.record.policies |= opened.record.policies
            if k == reached and now is not opened:
                now.record.events += opened.record.events
                now.failures |= opened.failures
            run.now = now
            found = lines.get(k, {})
            now.record.seconds = max((line.seconds for line in found.values()), default=0.0)
            if k == first:  # what Flower took for the message that opened the segment
                now.record.seconds += max(seconds - spent, 0.0)
            trained, evaluated = self._fill(now, found)
            ends |= self._held(trained, evaluated, rounds, newest=k == reached)
        return ends, reached

    def _fill(
        self, now: Round, lines: Mapping[int, RoundLine]
    ) -> tuple[dict[int, Answer], dict[int, Answer]]:
        """A round's record, from what the agents tell of it; their metrics, as answers."""
        k, n = now.number, self._run.topology.n_agents
        counted = {v: line for v, line in sorted(lines.items()) if line.counts}
        for v, line in sorted(lines.items()):
            if line.failure:
                now.failed(v, Failure(line.failure))
            if line.rejoined:
                now.rejoined(v, k)
            for text in line.events:
                now.note(v, text)
            for j in line.missing:
                if v in counted and j in counted:
                    now.note(v, f"its edge to agent {j} did not count")
        now.close(counted.keys(), {v: line.n_bytes for v, line in counted.items()}, n)
        if any(line.counts for line in lines.values()):
            for a, b in self._relayed:
                now.record.events.append((a, f"its edge to agent {b} waits for a relayed round"))
        trained = {v: _answer("train", v, line, line.train) for v, line in counted.items()}
        evaluated = {
            v: _answer("evaluate", v, line, line.evaluate)
            for v, line in sorted(lines.items())
            if line.evaluate or line.sketch
        }
        return trained, evaluated


def _answer(ask: Ask, vertex: int, line: RoundLine, metrics: Metrics) -> Answer:
    """A line as the answer of a relayed round."""
    records = RecordDict({"metrics": MetricRecord(dict(metrics))} if metrics else {})  # type: ignore[arg-type]
    return Answer(
        ask=ask,
        vertex=vertex,
        round=line.round,
        state_round=line.round,
        metrics=records,
        sketch=line.sketch,
    )
