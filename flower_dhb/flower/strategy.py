"""A Flower strategy that only relays: it averages nothing and holds no global model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from flower_dhb.algorithms import Algorithm, check_relayed, default_algorithm
from flower_dhb.errors import ConfigError, PayloadError
from flower_dhb.flower.arrays import named_arrays
from flower_dhb.flower.ledger import Ledger
from flower_dhb.flower.members import Members
from flower_dhb.flower.records import Answer
from flower_dhb.flower.relay import Relay
from flower_dhb.flower.result import ServerlessResult
from flower_dhb.flower.session import Session
from flower_dhb.graph import Topology
from flower_dhb.metrics import (
    LOWER_IS_BETTER,
    Metrics,
    RoundRecord,
    consensus_distance,
    summarize,
)
from flower_dhb.progress import tell, tell_round
from flower_dhb.types import STATISTICS, Layout, Statistics, unnamed_statistics

__all__ = ["ServerlessStrategy"]

# How often `start` was called in a run: each is a run of its own for the agents.
_starts: Counter[int] = Counter()

AggregateMetrics = Callable[[list[RecordDict], str], MetricRecord]


class ServerlessStrategy(Strategy):
    """Train over a communication graph; called as FedAvg is, but nothing is averaged here.

    In each round an agent receives its graph neighbors' payloads, combines them, trains,
    and sends its own; this strategy carries the payloads along the edges. The client
    side is `consensus_mod` (or `decentralize`).

    Parameters
    ----------
    topology : Topology
        Who talks to whom. Node `i` is the node whose config says `vertex` (or else
        `partition-id`) `i`.
    algorithm : Algorithm, optional
        The rule; `HeavyBall()` unless given.
    round_timeout_s : float, optional
        Seconds after which an agent that has not answered is missing for the round.
        None takes `timeout` of `start`.
    evaluate_every : int
        Rounds between two evaluations by the agents; 0 for none.
    weighted_by_key, arrayrecord_key, configrecord_key, train_metrics_aggr_fn, \
evaluate_metrics_aggr_fn
        As for `flwr.serverapp.strategy.FedAvg`.
    statistics : sequence of str or int, or callable, optional
        Which arrays are running statistics, as those of batch normalization: they are
        averaged, without momentum. Name patterns, indices of arrays (`2` is the third), or
        a callable `(name, array) -> bool`. None: the names that torch and Keras use. An
        empty sequence: no array is one.
    lower_is_better : sequence of str
        Name patterns of metrics of which the worst agent has the highest.
    measure_consensus : bool
        Whether agents report their parameters when they evaluate, so that the consensus
        distance can be measured. They are not averaged for it.
    average : bool
        Form the network average of the final models once, at the end, as `Result.arrays`,
        for whoever goes on with it. No agent ever has it. With False, reading
        `Result.arrays` raises an error.
    collect_models : bool
        Collect each agent's final model, as `Result.models`.
    node_timeout_s : float, optional
        Seconds to wait for the nodes. None: 10 in simulation, 600 in deployment.
    on_round : callable, optional
        Called with the `RoundRecord` of each finished round.

    Raises
    ------
    ConfigError
        If a value is not allowed, or the rule diverges on this graph.
    """

    def __init__(
        self,
        topology: Topology,
        algorithm: Algorithm | None = None,
        *,
        round_timeout_s: float | None = None,
        evaluate_every: int = 1,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: AggregateMetrics | None = None,
        evaluate_metrics_aggr_fn: AggregateMetrics | None = None,
        statistics: Statistics | None = None,
        lower_is_better: Sequence[str] = LOWER_IS_BETTER,
        measure_consensus: bool = True,
        average: bool = True,
        collect_models: bool = False,
        node_timeout_s: float | None = None,
        on_round: Callable[[RoundRecord], None] | None = None,
    ) -> None:
        if not isinstance(topology, Topology):
            raise ConfigError(f"topology must be a Topology, got {type(topology).__name__}")
        if round_timeout_s is not None and not round_timeout_s > 0.0:
            raise ConfigError(f"round_timeout_s must be above 0, got {round_timeout_s}")
        if not evaluate_every >= 0:
            raise ConfigError(f"evaluate_every must be at least 0, got {evaluate_every}")
        self.topology = topology
        self.algorithm = algorithm if algorithm is not None else default_algorithm()
        check_relayed(self.algorithm, topology)
        self.round_timeout_s = round_timeout_s
        self.evaluate_every = evaluate_every
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn
        self.statistics = statistics
        self.lower_is_better = tuple(lower_is_better)
        self.measure_consensus = measure_consensus
        self.average = average
        self.collect_models = collect_models
        self.node_timeout_s = node_timeout_s
        self.on_round = on_round
        self._run: Session | None = None

    def summary(self) -> None:
        """Log what will be run."""
        log(INFO, "\t├──> Topology: %r", self.topology)
        log(INFO, "\t├──> Algorithm: %s", self.algorithm)
        log(INFO, "\t└──> Relays only: no averaging, no global model")

    # --- the run --------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> ServerlessResult:
        """Run the rounds. All agents start from `initial_arrays`.

        Parameters
        ----------
        timeout : float
            Seconds that a round's training, and its evaluation, may take.
        train_config, evaluate_config : ConfigRecord, optional
            Sent to the app with every message, with `server-round` set.
        evaluate_fn : callable, optional
            An observer: called with the round and the network average, which is formed
            for it at every evaluation (and only then).

        Raises
        ------
        ConfigError
            If the nodes do not cover the graph, or no agent reports `weighted_by_key`.
        PayloadError
            If the initial arrays are not finite.
        """
        log(INFO, "Starting %s over %d rounds:", type(self).__name__, num_rounds)
        self.summary()
        tell("start", rounds=num_rounds, agents=self.topology.n_agents)
        self._run = run = self._open(grid, initial_arrays)
        result = ServerlessResult()
        limit = self.round_timeout_s if self.round_timeout_s is not None else timeout
        if evaluate_fn is not None and (first := evaluate_fn(0, initial_arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = first
        for k in range(1, num_rounds + 1):
            begin = time.monotonic()
            run.record = record = RoundRecord(round=k)
            replies = run.exchange(
                self.configure_train(k, initial_arrays, train_config or ConfigRecord(), grid), limit
            )
            _, metrics = self.aggregate_train(k, replies)
            if metrics is not None:
                result.train_metrics_clientapp[k] = metrics
            if self.evaluate_every and (k % self.evaluate_every == 0 or k == num_rounds):
                run.wants_parameters = self._wants_parameters(evaluate_fn is not None)
                self._evaluate_round(k, result, evaluate_config or ConfigRecord(), limit)
                if evaluate_fn is not None and run.parameters:
                    observed = evaluate_fn(k, run.average())
                    if observed is not None:
                        result.evaluate_metrics_serverapp[k] = observed
                        record.evaluate_average_model = dict(observed.items())
            record.seconds = time.monotonic() - begin
            result.history.append(record)
            log(INFO, "%s", _line(record, num_rounds, result.evaluate_metrics_clientapp.get(k)))
            tell_round(record, result.evaluate_metrics_clientapp.get(k))
            if self.on_round is not None:
                self.on_round(record)
        self._finish(result, num_rounds, limit)
        run.dismiss()
        return result

    def _evaluate_round(
        self, k: int, result: ServerlessResult, config: ConfigRecord, limit: float
    ) -> None:
        run = self._opened()
        replies = run.exchange(
            self.configure_evaluate(k, ArrayRecord(), config, run.relay.grid), limit
        )
        metrics = self.aggregate_evaluate(k, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[k] = metrics

    def _finish(self, result: ServerlessResult, num_rounds: int, limit: float) -> None:
        """Collect the final models and form the average, each only if asked for."""
        if not self.average:
            result.lacks_arrays(
                "the strategy was made with average=False; set average=True, or read the agents' "
                "own models from result.models (collect_models=True)"
            )
        if not (self.average or self.collect_models):
            return
        run = self._opened()
        if run.parameters_round != num_rounds:
            run.record = RoundRecord(round=num_rounds)
            run.wants_parameters = True
            messages = run.messages("report", num_rounds, ConfigRecord())
            run.take_parameters(run.sort(run.exchange(messages, limit), "report"), num_rounds)
        if self.collect_models:
            result.models = {v: run.model(v) for v in sorted(run.parameters)}
        if not self.average:
            return
        n, reported = self.topology.n_agents, sorted(run.parameters)
        if not reported:
            result.lacks_arrays(
                "no agent reported its parameters at the end of the run: see the events of "
                "result.history. A longer timeout or round_timeout_s helps if agents were late"
            )
            return
        result.arrays = run.average()
        log(
            INFO,
            "result.arrays is the network average of the final models of %s, formed for you "
            "alone; no agent has it (average=False leaves it out)",
            f"all {n} agents" if len(reported) == n else f"{len(reported)} of {n} agents",
        )

    def _wants_parameters(self, observed: bool) -> bool:
        return self.measure_consensus or self.average or self.collect_models or observed

    # --- Flower's Strategy interface ------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One message per agent: its neighbors' payloads, its row of the mixing matrix."""
        if self._run is None:
            self._run = self._open(grid, arrays)
        config["server-round"] = server_round
        self._run.members.refresh()
        return self._run.messages("train", server_round, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """File the payloads for their receivers. The arrays returned are always None."""
        run = self._opened()
        answers = run.sort(replies, "train")
        run.deliver(server_round, answers)
        run.record.train = {v: a.app_metrics for v, a in answers.items() if len(a.metrics)}
        metrics = self._summary(run.record.train, answers, self.train_metrics_aggr_fn)
        if metrics is not None:
            metrics["agents-missing"] = len(run.record.missing)
            metrics["agents-rejoined"] = len(run.record.rejoined)
            metrics["bytes-sent"] = run.record.bytes_sent
        return None, metrics

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,  # noqa: ARG002 (Flower's signature)
        config: ConfigRecord,
        grid: Grid,  # noqa: ARG002
    ) -> list[Message]:
        """One message per agent, which combines and then evaluates its own model."""
        if not self.evaluate_every:
            return []
        config["server-round"] = server_round
        return self._opened().messages("evaluate", server_round, config)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Mean over agents of the apps' metrics, worst and best agent, consensus distance."""
        run = self._opened()
        answers = run.sort(replies, "evaluate")
        run.record.evaluate = {v: a.app_metrics for v, a in answers.items() if len(a.metrics)}
        metrics = self._summary(run.record.evaluate, answers, self.evaluate_metrics_aggr_fn)
        run.take_parameters(answers, server_round)
        if self.measure_consensus and run.parameters:
            distance = consensus_distance([v["parameters"] for v in run.parameters.values()])
            run.record.consensus_distance = distance
            metrics = metrics if metrics is not None else MetricRecord()
            metrics["consensus-distance"] = distance
        return metrics

    # --- inside ---------------------------------------------------------------------

    def _open(self, grid: Grid, arrays: ArrayRecord) -> Session:
        initial = named_arrays(arrays)
        layout = Layout.of(initial, STATISTICS if self.statistics is None else self.statistics)
        if self.statistics is None:
            _say_where_statistics_may_lie(initial)
        run_id = grid.run.run_id
        _starts[run_id] += 1
        try:
            ledger = Ledger(
                self.topology,
                self.algorithm,
                layout,
                initial,
                run=_name(run_id, _starts[run_id]),
                arrays_key=self.arrayrecord_key,
                config_key=self.configrecord_key,
            )
        except PayloadError as error:
            raise PayloadError(f"initial_arrays: {error}") from None
        relay = Relay(grid)
        members = Members(self.topology, relay)
        members.enroll(self.node_timeout_s)
        return Session(relay, members, ledger, layout, layout.local(initial), self.topology)

    def _opened(self) -> Session:
        if self._run is None:
            raise ConfigError("the strategy has no run yet; call start, or configure_train first")
        return self._run

    def _summary(
        self,
        per_agent: Mapping[int, Metrics],
        answers: Mapping[int, Answer],
        aggregate: AggregateMetrics | None,
    ) -> MetricRecord | None:
        """Metrics over agents, weighted as FedAvg weights them."""
        key = self.weighted_by_key
        weights: dict[int, float] = {}
        for vertex, metrics in per_agent.items():
            weight = metrics.get(key)
            if isinstance(weight, int | float):
                weights[vertex] = float(weight)
            else:
                self._opened().note(vertex, f"metrics lack '{key}', left out of the mean")
        if not per_agent:
            return None
        if not weights:
            raise ConfigError(
                f"no agent's metrics hold '{key}', by which they are weighted; the app's metrics "
                f"are {sorted(next(iter(per_agent.values())))}. Add it, or set weighted_by_key"
            )
        named = {v: {n: m for n, m in per_agent[v].items() if n != key} for v in weights}
        summary = MetricRecord(dict(summarize(named, weights, self.lower_is_better)))
        if aggregate is not None:
            for name, value in aggregate([answers[v].metrics for v in weights], key).items():
                summary[name] = value
        return summary


def _say_where_statistics_may_lie(initial: Mapping[str, NDArray[Any]]) -> None:
    """Arrays named by numbers do not tell what they are, so the user has to."""
    places = unnamed_statistics(initial)
    if places is None:
        return
    remedy = (
        "Name running statistics by index, as in ServerlessStrategy(..., statistics=[2, 3]), or "
        "say that there are none with statistics=[]"
    )
    if not places:
        log(
            INFO,
            "the arrays have numbers for names, so no running statistics are known. %s",
            remedy,
        )
        return
    log(
        WARNING,
        "the arrays have numbers for names, and arrays %s look like the moving mean and variance "
        "of a batch normalization. Treated as parameters, a variance can become negative. %s",
        places,
        remedy.replace("[2, 3]", str(places)),
    )


def _name(run_id: int, start: int) -> str:
    """Name of a run, of one length, so that payloads of a repeated run are as long."""
    return f"{run_id:016x}" + (f".{start}" if start > 1 else "")


def _line(record: RoundRecord, rounds: int, metrics: MetricRecord | None) -> str:
    """One plain line that says how a round went."""
    parts = [f"round {record.round}/{rounds}"]
    metrics = metrics if metrics is not None else MetricRecord()
    for name, value in metrics.items():
        worst = metrics.get(f"{name}-worst")
        if isinstance(value, float) and isinstance(worst, float):
            parts.append(f"{name} {value:.4g} (worst {worst:.4g})")
    if record.consensus_distance is not None:
        parts.append(f"consensus distance {record.consensus_distance:.3g}")
    if record.missing:
        parts.append(f"missing {record.missing}")
    parts.append(f"{record.seconds:.2f} s")
    return " | ".join(parts)
