"""A Flower strategy that only relays: it averages nothing and holds no global model."""

from __future__ import annotations

import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from flower_dhb.algorithms import Algorithm, check_relayed
from flower_dhb.errors import ConfigError, PayloadError, RoundError
from flower_dhb.flower.arguments import (
    a_rule,
    a_topology,
    check_callable,
    check_count,
    check_flag,
    check_key,
    check_patterns,
    check_seconds,
    check_type,
    evaluating_fraction,
    least_nodes,
    maybe_seconds,
    refuse,
    train_everywhere,
)
from flower_dhb.flower.arrays import named_arrays
from flower_dhb.flower.failures import Failures
from flower_dhb.flower.health import Health
from flower_dhb.flower.ledger import Ledger
from flower_dhb.flower.members import Members
from flower_dhb.flower.progress import round_line, tell, tell_round
from flower_dhb.flower.relay import Relay
from flower_dhb.flower.result import ServerlessResult
from flower_dhb.flower.session import Session
from flower_dhb.flower.summary import AggregateMetrics, sum_up
from flower_dhb.metrics import (
    LOWER_IS_BETTER,
    RoundRecord,
    agents_text,
    consensus_distance,
)
from flower_dhb.topology.graph import Topology
from flower_dhb.types import STATISTICS, Layout, Statistics, unnamed_statistics

__all__ = ["ServerlessStrategy"]

# How often `start` was called in a run: each is a run of its own for the agents.
_starts: Counter[int] = Counter()

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
OnRound = Callable[[RoundRecord], object]

_LAST_REPORT_S = 60.0  # to wait for the agents' models when a run ends with an error


class ServerlessStrategy(Strategy):
    """Train over a communication graph; called as FedAvg is, but no server averages here.

    In each round an agent receives its graph neighbors' payloads, combines them, trains,
    and sends its own; this strategy carries the payloads along the edges. The client
    side is `consensus_mod` (or `decentralize`). What FedAvg's arguments mean here:
    `docs/flower.md`.

    Parameters
    ----------
    topology : Topology or str
        Who talks to whom, such as `Topology.ring(8)` or `"ring:8"`. Node `i` is the node
        whose config says `vertex` (or else `partition-id`) `i`.
    algorithm : Algorithm or str, optional
        The rule, or its name, such as `"dsgd"`; `SafeguardedHeavyBall()` unless given.
    round_timeout_s : float, optional
        Seconds after which an agent that has not answered is missing for the round.
        None takes `timeout` of `start`.
    evaluate_every : int
        Rounds between two evaluations by the agents, the last round being evaluated in any
        case; 0 for none.
    fraction_evaluate : float
        Fraction of the agents that evaluate, drawn anew at each evaluation and alike in
        every run, as many as FedAvg takes; 0.0 for none.
    fraction_train, min_train_nodes, min_evaluate_nodes, min_available_nodes
        As for FedAvg, where they agree with "every agent of the graph trains in every
        round"; refused otherwise.
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
        Called with the `RoundRecord` of each finished round. If it returns True, the run
        ends there, with its models, its average and its history.
    **others
        Arguments of Flower's other strategies are refused by name, with the reason.

    Attributes
    ----------
    result : ServerlessResult
        What `start` returns; what there is of it if `start` ends with an error.

    Raises
    ------
    ConfigError
        If a value is not allowed, or the rule diverges on this graph.
    """

    def __init__(
        self,
        topology: Topology | str,
        algorithm: Algorithm | str | None = None,
        *,
        round_timeout_s: float | None = None,
        evaluate_every: int = 1,
        fraction_train: float | None = 1.0,
        fraction_evaluate: float | None = 1.0,
        min_train_nodes: int | None = None,
        min_evaluate_nodes: int | None = None,
        min_available_nodes: int | None = None,
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
        on_round: OnRound | None = None,
        **others: Any,
    ) -> None:
        refuse(others, _arguments())
        self.topology = a_topology(topology)
        self.algorithm = a_rule(algorithm)
        check_relayed(self.algorithm, self.topology)
        n = self.topology.n_agents
        self.round_timeout_s = maybe_seconds("round_timeout_s", round_timeout_s)
        self.node_timeout_s = maybe_seconds("node_timeout_s", node_timeout_s, zero=True)
        self.evaluate_every = check_count("evaluate_every", evaluate_every, least=0)
        self.fraction_train = train_everywhere(fraction_train)
        self.fraction_evaluate = evaluating_fraction(fraction_evaluate)
        if self.fraction_evaluate == 0.0:
            self.evaluate_every = 0
        self.min_train_nodes = least_nodes("min_train_nodes", min_train_nodes, n, 2)
        self.min_evaluate_nodes = least_nodes("min_evaluate_nodes", min_evaluate_nodes, n, 2)
        self.min_available_nodes = least_nodes("min_available_nodes", min_available_nodes, n, 2)
        self.weighted_by_key = check_key("weighted_by_key", weighted_by_key)
        self.arrayrecord_key = check_key("arrayrecord_key", arrayrecord_key)
        self.configrecord_key = check_key("configrecord_key", configrecord_key)
        if arrayrecord_key == configrecord_key:
            raise ConfigError(
                f"arrayrecord_key and configrecord_key must differ, both are '{arrayrecord_key}'"
            )
        for name, function in (
            ("train_metrics_aggr_fn", train_metrics_aggr_fn),
            ("evaluate_metrics_aggr_fn", evaluate_metrics_aggr_fn),
            ("on_round", on_round),
        ):
            check_callable(name, function)
        self.train_metrics_aggr_fn = train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn
        self.statistics = statistics
        self.lower_is_better = check_patterns("lower_is_better", lower_is_better)
        self.measure_consensus = check_flag("measure_consensus", measure_consensus)
        self.average = check_flag("average", average)
        self.collect_models = check_flag("collect_models", collect_models)
        self.on_round = on_round
        self.result = ServerlessResult()
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
        timeout: float | None = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> ServerlessResult:
        """Run the rounds. All agents start from `initial_arrays`.

        Whatever ends a run early, an error in `evaluate_fn` or `on_round` and Ctrl-C among
        it, `self.result` holds what there is by then.

        Parameters
        ----------
        num_rounds : int
            At least 0. With 0 the result's arrays are the initial ones.
        timeout : float, optional
            Seconds that a round's training, and its evaluation, may take; None for no limit.
        train_config, evaluate_config : ConfigRecord, optional
            Sent to the app with every message, with `server-round` set.
        evaluate_fn : callable, optional
            An observer: called with the round and the network average, which is formed for
            it, before the first round and at each evaluation; in every round where the
            agents do not evaluate at all (`evaluate_every=0`).

        Raises
        ------
        ConfigError
            If a value is not allowed, if the nodes do not cover the graph, or if in round 1
            no agent reports `weighted_by_key`.
        PayloadError
            If the initial arrays are not finite.
        RoundError
            If the app fails in all agents: in round 1, in the same way; or in three rounds
            in a row; or if no agent has trained by the end.
        """
        rounds = check_count("num_rounds", num_rounds, least=0)
        limit = math.inf if timeout is None else check_seconds("timeout", timeout)
        limit = limit if self.round_timeout_s is None else self.round_timeout_s
        check_type("initial_arrays", initial_arrays, ArrayRecord, "ArrayRecord(net.state_dict())")
        configs = []
        for name, config in (("train_config", train_config), ("evaluate_config", evaluate_config)):
            configs.append(ConfigRecord() if config is None else config)
            check_type(name, configs[-1], ConfigRecord, "ConfigRecord({'lr': 0.1})")
        check_callable("evaluate_fn", evaluate_fn)

        log(INFO, "Starting %s over %d rounds:", type(self).__name__, rounds)
        self.summary()
        tell("start", rounds=rounds, agents=self.topology.n_agents)
        self.result = result = ServerlessResult()
        self._run = run = self._open(grid, initial_arrays)
        try:
            self._observe(0, initial_arrays, evaluate_fn)
            last = self._rounds(run, rounds, limit, (configs[0], configs[1]), evaluate_fn)
            self._finish(run, last, limit)
            run.dismiss()
        except BaseException as error:
            self._keep(run, error, limit)
            raise
        finally:
            self._run = None
        return result

    def _rounds(
        self,
        run: Session,
        rounds: int,
        limit: float,
        configs: tuple[ConfigRecord, ConfigRecord],
        evaluate_fn: EvaluateFn | None,
    ) -> int:
        """All rounds, or fewer if `on_round` says so. Returns the last."""
        failures = Failures(self.topology.n_agents)
        health = Health({v: self.topology.neighbors(v) for v in range(self.topology.n_agents)})
        for k in range(1, rounds + 1):
            begin = time.monotonic()
            run.begin(self._record(k))
            run.wait(limit)
            replies = run.exchange(
                self.configure_train(k, ArrayRecord(), configs[0], run.relay.grid), limit
            )
            self._keep_metrics(k, self.aggregate_train(k, replies))
            failures.look(k, run.delivered, run.failures)
            last = k == rounds
            run.wants_parameters = self.measure_consensus or (last and self._wants_models)
            if self.evaluate_every and (k % self.evaluate_every == 0 or last):
                run.wants_parameters |= evaluate_fn is not None
                replies = run.exchange(
                    self.configure_evaluate(k, ArrayRecord(), configs[1], run.relay.grid), limit
                )
                metrics = self.aggregate_evaluate(k, replies)
                if metrics is not None:
                    self.result.evaluate_metrics_clientapp[k] = metrics
            if evaluate_fn is not None and (
                not self.evaluate_every or k % self.evaluate_every == 0 or last
            ):
                if not self.evaluate_every:
                    run.report(k, limit)
                if run.parameters_round == k and run.parameters:
                    self._observe(k, run.average(), evaluate_fn)
            run.record.seconds = time.monotonic() - begin
            if self._close_round(run, rounds, health):
                return k
        failures.end()
        return rounds

    def _close_round(self, run: Session, rounds: int, health: Health) -> bool:
        """Write a round down and tell everyone. Returns whether the run is to end here."""
        record = run.record
        run.flush()
        self.result.history.append(record)
        for finding in health.observe(record):
            record.warnings.append(finding)
            self._warn(f"round {record.round}: {finding}")
        log(INFO, "%s", round_line(record, rounds))
        tell_round(record)
        if self.on_round is None:
            return False
        answer = self.on_round(record)
        if isinstance(answer, bool | np.bool_) and answer:
            log(INFO, "on_round ends the run after round %d of %d", record.round, rounds)
            return True
        return False

    def _observe(self, k: int, arrays: ArrayRecord, evaluate_fn: EvaluateFn | None) -> None:
        """Let the observer have the average model."""
        if evaluate_fn is None:
            return
        observed = evaluate_fn(k, arrays)
        if observed is None:
            return
        self.result.evaluate_metrics_serverapp[k] = observed
        if k > 0:
            self._opened().record.evaluate_average_model = dict(observed.items())

    @property
    def _wants_models(self) -> bool:
        return self.average or self.collect_models

    def _finish(self, run: Session, last: int, limit: float) -> None:
        """Collect the final models and form the average, each only if asked for."""
        result = self.result
        if not self.average:
            result.lacks_arrays(
                "the strategy was made with average=False; set average=True, or read the agents' "
                "own models from result.models (collect_models=True)"
            )
        if not self._wants_models:
            return
        run.begin(self._record(last))
        run.report(last, limit)
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
        who = f"all {n} agents"
        if len(reported) < n:
            who = f"{len(reported)} of {n} agents"
            absent = agents_text(v for v in range(n) if v not in run.parameters)
            self._warn(f"result.arrays is the average of {who}: {absent} did not report")
        log(
            INFO,
            "result.arrays is the network average of the final models of %s, formed for you "
            "alone; no agent has it (average=False leaves it out)",
            who,
        )

    def _keep(self, run: Session, error: BaseException, limit: float) -> None:
        """After an error: keep the round that was not finished, and the models if there are any."""
        result, record = self.result, run.record
        run.flush()
        if run.delivered and not any(r is record for r in result.history):
            result.history.append(record)
        result.lacks_arrays(f"the run ended with an error in round {record.round}: {error!r}")
        last = record.round
        if isinstance(error, Exception) and not isinstance(error, RoundError) and last > 0:
            try:
                self._finish(run, last, min(limit, _LAST_REPORT_S))
            except Exception as another:
                log(WARNING, "the agents' models could not be collected: %s", another)
        elif self.average and run.parameters:
            result.arrays = run.average()  # of the last evaluated round
        kept = (
            f"{len(result.history)} rounds are kept in strategy.result: their history, metrics, "
            f"{'' if result.has_arrays else 'no '}average (strategy.result.arrays), "
            f"{len(result.models)} models"
        )
        error.add_note(kept)
        log(WARNING, "The run ended with an error in round %d. %s", record.round, kept)

    def _warn(self, text: str) -> None:
        self.result.warnings.append(text)
        log(WARNING, "%s", text)

    def _record(self, k: int) -> RoundRecord:
        return RoundRecord(
            round=k, weighted_by_key=self.weighted_by_key, lower_is_better=self.lower_is_better
        )

    def _keep_metrics(self, k: int, answer: tuple[ArrayRecord | None, MetricRecord | None]) -> None:
        """Keep what `aggregate_train`, a subclass's perhaps, returned."""
        arrays, metrics = answer
        if metrics is not None:
            self.result.train_metrics_clientapp[k] = metrics
        text = (
            "aggregate_train returned arrays, which nobody gets: there is no global model that "
            "could be sent. What changes the agents' models belongs into the app or the rule"
        )
        if arrays is not None and text not in self.result.warnings:
            self._warn(text)

    # --- Flower's Strategy interface ------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One message per agent: its neighbors' payloads, its row of the mixing matrix.

        `start` calls it; a loop of your own may, with `grid.send_and_receive` and
        `aggregate_train` after it. Then the first call opens the run, and `arrays` are what
        the agents start from.
        """
        if self._run is None:
            check_type("arrays", arrays, ArrayRecord, "ArrayRecord(net.state_dict())")
            self._run = self._open(grid, arrays)
        run = self._run
        if run.record.round != server_round:
            if not server_round > run.record.round:
                raise ConfigError(
                    f"configure_train: round {server_round} after round {run.record.round}; "
                    "rounds must rise. A new run needs a new ServerlessStrategy"
                )
            run.begin(self._record(server_round))
        config["server-round"] = server_round
        run.members.refresh()
        # A copy: a schedule may change the config for the next round while messages wait.
        return run.messages("train", server_round, ConfigRecord(dict(config.items())))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """File the payloads for their receivers, and sum up the apps' metrics.

        There are no arrays to return: the first value is None.
        """
        run = self._current(server_round, "aggregate_train")
        answers = run.sort(replies, "train")
        run.deliver(server_round, answers)
        run.record.train = {v: a.app_metrics for v, a in answers.items() if len(a.metrics)}
        metrics = sum_up(
            "train",
            run.record,
            answers,
            self.train_metrics_aggr_fn,
            run.note,
            self.topology.n_agents,
        )
        run.flush()
        return None, metrics

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,  # noqa: ARG002 (Flower's signature)
        config: ConfigRecord,
        grid: Grid,  # noqa: ARG002
    ) -> list[Message]:
        """One message per agent that evaluates: it combines, then evaluates its own model.

        The other agents, if only a fraction evaluates, are asked for their parameters where
        those are needed.
        """
        if not self.evaluate_every:
            return []
        run = self._current(server_round, "configure_evaluate")
        config["server-round"] = server_round
        evaluating = self._evaluating(server_round)
        messages = run.messages(
            "evaluate", server_round, ConfigRecord(dict(config.items())), evaluating
        )
        if run.wants_parameters:
            others = [v for v in range(self.topology.n_agents) if v not in evaluating]
            messages += run.messages("report", server_round, ConfigRecord(), others)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Sum up the apps' metrics over agents.

        Worst and best agent and the consensus distance are in the round's record.
        """
        run = self._current(server_round, "aggregate_evaluate")
        answers = run.sort(replies, "evaluate", "report")
        run.record.evaluate = {v: a.app_metrics for v, a in answers.items() if len(a.metrics)}
        metrics = sum_up(
            "evaluate",
            run.record,
            answers,
            self.evaluate_metrics_aggr_fn,
            run.note,
            self.topology.n_agents,
        )
        run.take_parameters(answers, server_round)
        if self.measure_consensus and run.parameters:
            vectors = [v["parameters"] for v in run.parameters.values()]
            run.record.consensus_distance = consensus_distance(vectors)
            run.record.distance_from_start = run.distance_from_start()
        run.flush()
        return metrics

    # --- inside ---------------------------------------------------------------------

    def _open(self, grid: Grid, arrays: ArrayRecord) -> Session:
        initial = named_arrays(arrays)
        layout = Layout.of(initial, STATISTICS if self.statistics is None else self.statistics)
        if self.statistics is None:
            self._say_where_statistics_may_lie(initial)
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
        return Session(
            relay,
            members,
            ledger,
            layout,
            layout.local(initial),
            self.topology,
            record=self._record(0),
            wants_parameters=self.measure_consensus,
            start=layout.flatten(initial)[0],
        )

    def _say_where_statistics_may_lie(self, initial: Mapping[str, NDArray[Any]]) -> None:
        """Arrays named by numbers do not tell what they are, so the user has to."""
        places = unnamed_statistics(initial)
        if places is None:
            return
        remedy = (
            "Name running statistics by index, as in ServerlessStrategy(..., statistics="
            f"{places or [2, 3]}), or say that there are none with statistics=[]"
        )
        if not places:
            log(INFO, "the arrays' names are numbers, which tell no statistics. %s", remedy)
            return
        self._warn(
            f"the arrays' names are numbers, and arrays {places} look like the moving mean and "
            "variance of a batch normalization. As parameters they get momentum, and a variance "
            f"can become negative. {remedy}"
        )

    def _opened(self) -> Session:
        if self._run is None:
            raise ConfigError("the strategy has no run yet; call start, or configure_train first")
        return self._run

    def _current(self, server_round: int, caller: str) -> Session:
        run = self._opened()
        if server_round != run.record.round:
            raise ConfigError(
                f"{caller}: round {server_round}, but configure_train was called for round "
                f"{run.record.round}; call it first in every round"
            )
        return run

    def _evaluating(self, k: int) -> list[int]:
        """Who evaluates in a round: as many as FedAvg takes, drawn anew, the same in every run."""
        n = self.topology.n_agents
        count = min(max(int(n * self.fraction_evaluate), self.min_evaluate_nodes), n)
        drawn = np.random.default_rng([n, k]).permutation(n)[:count]
        return sorted(int(v) for v in drawn)


def _arguments() -> list[str]:
    parameters = inspect.signature(ServerlessStrategy.__init__).parameters
    return [name for name in parameters if name not in ("self", "others")]


def _name(run_id: int, start: int) -> str:
    """Name of a run, of one length, so that payloads of a repeated run are as long."""
    return f"{run_id:016x}" + (f".{start}" if start > 1 else "")
