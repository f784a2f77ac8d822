"""The rounds of one run, from the first to the models at its end, whatever ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid

from flower_dhb.errors import RoundError
from flower_dhb.flower.checkpoint import Checkpoint, Kept
from flower_dhb.flower.failures import Failure, Failures
from flower_dhb.flower.health import Health
from flower_dhb.flower.local_rounds import profile_of
from flower_dhb.flower.progress import round_line, tell_round
from flower_dhb.flower.records import Answer
from flower_dhb.flower.result import ServerlessResult
from flower_dhb.flower.round import Round
from flower_dhb.flower.segment import MOST_ROUNDS
from flower_dhb.flower.session import Locally, Owed, Session
from flower_dhb.metrics import RoundRecord, agents_text, grouped

__all__ = ["EvaluateFn", "OnRound", "Rounds"]

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
OnRound = Callable[[RoundRecord], object]

_LAST_REPORT_S = 60.0  # to wait for the agents' models when a run ends with an error


class Steps(Protocol):
    """What a strategy does in a round, a subclass's own way perhaps."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]: ...

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]: ...

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]: ...

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None: ...

    def evaluating(self, server_round: int) -> list[int]: ...

    def trained(self, of: Round, answers: Mapping[int, Answer]) -> MetricRecord | None: ...

    def evaluated(self, of: Round, answers: Mapping[int, Answer]) -> MetricRecord | None: ...


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a strategy's user wants of a run, as the arguments of ServerlessStrategy say it.

    join_evaluation: whether a round's models are evaluated in the next round's messages.
    join_rounds: whether rounds without an exchange come in one message with the round that ends
    them. join_local: whether they are evaluated there.
    """

    evaluate_every: int
    join_evaluation: bool
    join_rounds: bool
    join_local: bool
    measure_consensus: bool
    average: bool
    collect_models: bool
    on_round: OnRound | None

    @property
    def models(self) -> bool:
        """Whether the agents' final models are needed."""
        return self.average or self.collect_models


class Rounds:
    """Goes through the rounds of one run and writes down what there is to keep.

    limit: seconds that a round's training, and its evaluation, may take. configs: of training
    and of evaluation, sent to the app with every message. evaluate_fn: an observer of the
    network average. checkpoint: where to keep what the run needs to go on. kept: the run that
    goes on here.
    """

    def __init__(
        self,
        steps: Steps,
        run: Session,
        result: ServerlessResult,
        wishes: Wishes,
        *,
        limit: float,
        configs: tuple[ConfigRecord, ConfigRecord],
        evaluate_fn: EvaluateFn | None,
        checkpoint: Checkpoint | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._checkpoint, self._kept = checkpoint, kept
        self._steps, self._run, self._result, self._wishes = steps, run, result, wishes
        self._limit, self._configs, self._evaluate_fn = limit, configs, evaluate_fn
        topology = run.topology
        self._failures = Failures(topology.n_agents, trained=kept is not None)
        self._health = Health(
            {v: topology.neighbors(v) for v in range(topology.n_agents)},
            lambda k, vertex: topology.due(vertex, k),
        )
        self._policies: dict[int, str] = {}  # by vertex, as told in the log
        self._reached = 0  # the newest round that agents have trained

    def go(self, rounds: int) -> int:
        """All rounds, or fewer if `on_round` says so. Returns the last."""
        run, steps = self._run, self._steps
        ends = False
        first = 1
        if self._kept is not None:
            first = self._kept.round + 1
            if self._go_on(self._kept, rounds):
                return self._kept.round
        k = first - 1
        while k < rounds:
            begin = time.monotonic()
            first, k = k + 1, self._until(k + 1, rounds)
            run.begin(k)
            locally = self._locally(first, k)
            run.wait(self._limit)
            replies = run.exchange(
                steps.configure_train(k, ArrayRecord(), self._configs[0], run.relay.grid),
                self._limit * (k - first + 1),
            )
            self._reached = k
            self._keep_metrics(k, steps.aggregate_train(k, replies))
            spent = self._fill_locally(locally)
            if run.owed is not None:
                ends = self._settle(run.owed, rounds)
            seconds = time.monotonic() - begin
            self._look_at(locally, seconds)
            if self._checkpoint is not None:
                before = [one.record for one in locally]
                self._checkpoint.keep(run.ledger, run.record, self._result, before)
            for one in locally:
                ends |= self._close(one, rounds)
            last = k == rounds or ends
            if self._wishes.join_evaluation and not last and self._looks_at(k):
                self._owe(k, time.monotonic() - begin, spent)
                continue
            self._evaluate(k, last=last)
            run.took(time.monotonic() - begin, spent)
            ends |= self._close(run.now, rounds)
            if ends:
                return k
        self._failures.end()
        return max(rounds, k)

    # --- rounds without an exchange -------------------------------------------------------

    def _until(self, first: int, rounds: int) -> int:
        """The round that the next message asks for: the first from here with an exchange.

        Or one before it, after whose evaluation somebody waits for a word.
        """
        wishes, graphs, k = self._wishes, self._run.topology, first
        most = min(rounds, first + MOST_ROUNDS - 1) if wishes.join_rounds else first
        while k < most and not len(graphs.shared(k).edge_weights.ends):
            if self._looks_at(k) and not (wishes.join_local and self._evaluate_fn is None):
                break
            k += 1
        return k

    def _locally(self, first: int, last: int) -> tuple[Round, ...]:
        """Have the messages of the round that has begun ask for those before it, too."""
        run, wishes = self._run, self._wishes
        run.locally = None
        if first == last:
            return ()
        rounds = tuple(run.new_round(k) for k in range(first, last))
        looked = [k for k in range(first, last) if wishes.evaluate_every and self._looks_at(k)]
        run.begin_locally(
            Locally(
                rounds=rounds,
                evaluating={k: self._steps.evaluating(k) for k in looked},
                measured=tuple(looked) if wishes.measure_consensus else (),
                config=self._configs[1],
            )
        )
        return rounds

    def _fill_locally(self, rounds: Iterable[Round]) -> list[dict[str, float]]:
        """The records of local rounds, from what the agents tell of them; what each has taken."""
        run, spent = self._run, []
        locally, n, result = run.locally, run.topology.n_agents, self._result
        if locally is None:
            return []
        for now in rounds:
            k, lines = now.number, {v: found.get(now.number) for v, found in locally.lines.items()}
            there = {v: line for v, line in sorted(lines.items()) if line is not None}
            for v in range(n):
                line = there.get(v)
                if line is None:
                    now.note(
                        v, f"nothing was heard of it; see the events of round {run.now.number}"
                    )
                elif line.failure:
                    now.failed(v, Failure(line.failure, line.detail))
            now.record.policies |= {v: p for v, p in run.record.policies.items() if v in there}
            delivered = [v for v, line in there.items() if not line.failure]
            now.close(delivered, dict.fromkeys(delivered, 0), n)
            metrics = self._steps.trained(now, locally.answers("train", k))
            if metrics is not None:
                result.train_metrics_clientapp[k] = metrics
            if k in locally.evaluating:
                self._fill_evaluated(now, locally)
            now.record.profile = profile_of(there.values())
            now.record.seconds = sum(now.record.profile.values())
            spent.append(now.record.profile)
            now.flush()
        return spent

    def _fill_evaluated(self, now: Round, locally: Locally) -> None:
        """What the agents tell of their evaluation of a local round."""
        answers = locally.answers("evaluate", now.number)
        evaluating = locally.evaluating[now.number]
        for vertex in evaluating:
            if vertex in answers and answers[vertex].failure:
                now.note(vertex, answers[vertex].failure)
        evaluated = {v: answer for v, answer in answers.items() if v in evaluating}
        metrics = self._steps.evaluated(now, evaluated)
        if metrics is not None:
            self._result.evaluate_metrics_clientapp[now.number] = metrics
        self._run.measure(answers, now, distance=now.number in locally.measured)

    def _look_at(self, locally: Iterable[Round], seconds: float) -> None:
        """End a run that cannot come to anything, with the round that shows it."""
        run, last = self._run, self._run.now
        for now in (*locally, last):
            run.now = now
            spent = seconds if now is last else 0.0
            self._failures.look(now.number, now.delivered, now.failures, spent)

    # --- the rest of a round --------------------------------------------------------------

    def _go_on(self, kept: Kept, rounds: int) -> bool:
        """Take up a run whose ServerApp has died. Returns whether it is to end at once."""
        for line in kept.lines:
            line.give(self._result)
            if line.record.round > 0:
                self._result.history.append(line.record)
                self._health.observe(line.record)
                tell_round(line.record)
        log(INFO, "The run goes on after round %d of %d", kept.round, rounds)
        self._reached, ends = kept.round, False
        for line in kept.before:
            line.give(self._result)
            self._run.resume(line.record)
            ends |= self._close(self._run.now, rounds)
        if kept.unfinished is None:
            return ends
        begin = time.monotonic()
        kept.unfinished.give(self._result)
        self._run.resume(kept.unfinished.record)
        self._evaluate(kept.round, last=kept.round >= rounds or ends)
        self._run.took(time.monotonic() - begin)
        return self._close(self._run.now, rounds) or ends

    def _evaluate(self, k: int, *, last: bool) -> None:
        """Let the agents evaluate a round, and the observer see its average, if they are to."""
        run, steps, wishes = self._run, self._steps, self._wishes
        run.wants_parameters = last and wishes.models
        if wishes.evaluate_every and (k % wishes.evaluate_every == 0 or last):
            run.wants_parameters |= self._evaluate_fn is not None
            replies = run.exchange(
                steps.configure_evaluate(k, ArrayRecord(), self._configs[1], run.relay.grid),
                self._limit,
            )
            metrics = steps.aggregate_evaluate(k, replies)
            if metrics is not None:
                self._result.evaluate_metrics_clientapp[k] = metrics
        if self._evaluate_fn is not None and (
            not wishes.evaluate_every or k % wishes.evaluate_every == 0 or last
        ):
            if not wishes.evaluate_every:
                run.report(k, self._limit)
            if run.reports.of(k):
                self.observe(run.now, run.reports.average())

    def _looks_at(self, k: int) -> bool:
        """Whether a round is evaluated, by the agents or by an observer, though not the last."""
        every = self._wishes.evaluate_every
        return k % every == 0 if every else self._evaluate_fn is not None

    def _owe(self, k: int, seconds: float, locally: Sequence[Mapping[str, float]]) -> None:
        """Leave a round's evaluation to the messages of the next one."""
        config = ConfigRecord({**self._configs[1], "server-round": k})
        self._run.took(seconds, locally)
        self._run.owed = Owed(
            round=self._run.now,
            vertices=self._steps.evaluating(k) if self._wishes.evaluate_every else (),
            config=config,
            parameters=self._evaluate_fn is not None,
            distance=self._wishes.measure_consensus and self._wishes.evaluate_every > 0,
        )

    def _settle(self, owed: Owed, rounds: int) -> bool:
        """Complete a round with what came of its evaluation. Returns whether the run is to end."""
        self._run.owed = None
        for vertex in owed.vertices:
            answer = owed.answers.get(vertex)
            if answer is None:
                owed.round.note(vertex, "not evaluated: no answer to the next round's message")
            elif answer.failure:
                owed.round.note(vertex, answer.failure)
        evaluated = {v: owed.answers[v] for v in owed.vertices if v in owed.answers}
        metrics = self._steps.evaluated(owed.round, evaluated)
        if metrics is not None:
            self._result.evaluate_metrics_clientapp[owed.round.number] = metrics
        self._run.measure(owed.answers, owed.round, distance=owed.distance)
        if self._run.reports.of(owed.round.number):
            self.observe(owed.round, self._run.reports.average())
        return self._close(owed.round, rounds)

    def _close(self, now: Round, rounds: int) -> bool:
        """Write a round down and tell everyone. Returns whether the run is to end here."""
        record = now.record
        now.flush()
        self._result.history.append(record)
        found = self._health.observe(record)
        now.end(found)
        for finding in found:
            self._result.warn(f"round {record.round}: {finding}")
        if self._checkpoint is not None:
            self._checkpoint.append(record, self._result)
        log(INFO, "%s", round_line(record, rounds))
        self._tell_policies(record)
        tell_round(record)
        if self._wishes.on_round is None:
            return False
        answer = self._wishes.on_round(record)
        if isinstance(answer, bool | np.bool_) and answer:
            log(INFO, "on_round ends the run after round %d of %d", record.round, rounds)
            return True
        return False

    def _tell_policies(self, record: RoundRecord) -> None:
        """Say of each node once, and when it changes, what its operator's policy is."""
        new = [(v, p) for v, p in record.policies.items() if self._policies.get(v) != p]
        self._policies |= dict(new)
        for vertices, policy in grouped(new):
            log(INFO, "%s: the node's policy is: %s", agents_text(vertices), policy)

    def observe(self, of: Round, arrays: ArrayRecord) -> None:
        """Let the observer have the average model of a round."""
        if self._evaluate_fn is None:
            return
        observed = self._evaluate_fn(of.number, arrays)
        if observed is None:
            return
        self._result.evaluate_metrics_serverapp[of.number] = observed
        if of.number > 0:
            of.observed(dict(observed.items()))
        elif self._checkpoint is not None:
            self._checkpoint.append(of.record, self._result)

    def finish(self, last: int, limit: float | None = None) -> None:
        """Collect the final models and form the average, each only if asked for."""
        run, result, wishes = self._run, self._result, self._wishes
        if result.history:
            result.missing = list(result.history[-1].missing)
        if run.ledger.encryption != "none":
            result.lacks_arrays(
                f'payloads are encrypted (encryption="{run.ledger.encryption}"), so that no '
                "parameters come here. Each node keeps its own model where its node config says, "
                "model-file='…'"
            )
            run.combine_last(last, self._limit if limit is None else limit)
            return
        if not wishes.average:
            result.lacks_arrays(
                "the strategy was made with average=False; set average=True, or read the agents' "
                "own models from result.models (collect_models=True)"
            )
        if not wishes.models:
            return
        run.begin(last)
        run.report(last, self._limit if limit is None else limit)
        result.missing = [v for v in range(run.topology.n_agents) if v not in run.reports.vertices]
        if wishes.collect_models:
            result.models = {v: run.reports.model(v) for v in sorted(run.reports.vertices)}
        if not wishes.average:
            return
        n, reported = run.topology.n_agents, sorted(run.reports.vertices)
        if not reported:
            result.lacks_arrays(
                "no agent reported its parameters at the end of the run: see the events of "
                "result.history. A longer timeout or round_timeout_s helps if agents were late"
            )
            return
        result.arrays = run.reports.average()
        who = f"all {n} agents"
        if len(reported) < n:
            who = f"{len(reported)} of {n} agents"
            absent = agents_text(v for v in range(n) if v not in reported)
            self._result.warn(f"result.arrays is the average of {who}: {absent} did not report")
        log(
            INFO,
            "result.arrays is the network average of the final models of %s, formed for you "
            "alone; no agent has it (average=False leaves it out)",
            who,
        )

    def keep(self, error: BaseException) -> None:
        """After an error: keep the round that was not finished, and the models if there are any."""
        run, result = self._run, self._result
        if run.owed is not None:
            result.history.append(run.owed.round.record)
        record = run.record
        run.now.flush()
        for one in (*(() if run.locally is None else run.locally.rounds), run.now):
            known = any(r is one.record for r in result.history)
            if one.delivered and not known:
                result.history.append(one.record)
        result.lacks_arrays(f"the run ended with an error in round {record.round}: {error!r}")
        last = max(record.round, self._reached)
        there = not isinstance(error, RoundError) or any(
            len(r.missing) < run.topology.n_agents for r in result.history
        )
        if isinstance(error, Exception) and there and last > 0:
            try:
                self.finish(last, min(self._limit, _LAST_REPORT_S))
            except Exception as another:
                log(WARNING, "the agents' models could not be collected: %s", another)
        elif self._wishes.average and run.reports.vertices:
            result.arrays = run.reports.average()  # of the last evaluated round
        kept = (
            f"{len(result.history)} rounds are kept in strategy.result: their history, metrics, "
            f"{'' if result.has_arrays else 'no '}average (strategy.result.arrays), "
            f"{len(result.models)} models"
        )
        error.add_note(kept)
        log(WARNING, "The run ended with an error in round %d. %s", record.round, kept)

    def _keep_metrics(self, k: int, answer: tuple[ArrayRecord | None, MetricRecord | None]) -> None:
        """Keep what `aggregate_train`, a subclass's perhaps, returned."""
        arrays, metrics = answer
        if metrics is not None:
            self._result.train_metrics_clientapp[k] = metrics
        text = (
            "aggregate_train returned arrays, which nobody gets: there is no global model that "
            "could be sent. What changes the agents' models belongs into the app or the rule"
        )
        if arrays is not None and text not in self._result.warnings:
            self._result.warn(text)
