"""A Flower strategy that only relays: it averages nothing and holds no global model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from logging import ERROR, INFO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flower_dhb.agent.compression import Compression
from flower_dhb.algorithms import Algorithm, check_relayed
from flower_dhb.engine.publics import check_compression
from flower_dhb.errors import ConfigError
from flower_dhb.flower.arguments import (
    a_rule,
    a_topology,
    check_callable,
    check_choice,
    check_count,
    check_encryption,
    check_flag,
    check_key,
    check_patterns,
    check_seconds,
    check_type,
    evaluating_fraction,
    least_nodes,
    maybe_seconds,
    refuse,
    refuse_encrypted,
    train_everywhere,
    unless_encrypted,
)
from flower_dhb.flower.checkpoint import held
from flower_dhb.flower.opening import Opening
from flower_dhb.flower.progress import tell
from flower_dhb.flower.records import Answer
from flower_dhb.flower.relay import is_deployed
from flower_dhb.flower.result import ServerlessResult
from flower_dhb.flower.round import Round
from flower_dhb.flower.rounds import EvaluateFn, OnRound, Rounds, Wishes
from flower_dhb.flower.segments import TRANSPORTS, Segments
from flower_dhb.flower.session import Session
from flower_dhb.flower.summary import AggregateMetrics, sum_up
from flower_dhb.metrics import (
    LOWER_IS_BETTER,
)
from flower_dhb.topology.planning import check_rule_on
from flower_dhb.topology.turns import Graphs
from flower_dhb.types import Encryption, Statistics

__all__ = ["ServerlessStrategy"]


class ServerlessStrategy(Strategy):
    """Train over a communication graph; called as FedAvg is, but no server averages here.

    In each round an agent receives its graph neighbors' payloads, combines them, trains,
    and sends its own; this strategy carries the payloads along the edges. The client
    side is `consensus_mod` (or `decentralize`). What FedAvg's arguments mean here:
    `docs/flower.md`.

    Parameters
    ----------
    topology : Topology, Turns or str
        Who talks to whom, such as `Topology.ring(8)` or `"ring:8"`; or graphs that take turns,
        such as `"one-peer:8"`. Node `i` is the node whose config says `vertex` (or else
        `partition-id`) `i`.
    algorithm : Algorithm or str, optional
        The rule, or its name, such as `"dsgd"`; `SafeguardedHeavyBall()` unless given.
    round_timeout_s : float, optional
        Seconds after which an agent that has not answered is missing for the round.
        None takes `timeout` of `start`.
    evaluate_every : int
        Rounds between two evaluations by the agents, the last round being evaluated in any
        case; 0 for none.
    share_every : int
        Rounds from one exchange to the next. In the rounds between, nothing is sent, and each
        agent combines what it has trained alone. One message asks for all of them.
    join_evaluation : bool, optional
        Whether the models of a round are evaluated in the message of the next round's
        training, so that a round costs one message and one process start in place of two. A
        round's record is complete one round later then, and `on_round` and `evaluate_fn` are
        called then. None: where the run is a deployment, and no subclass has evaluations of
        its own.
    transport : str
        Who carries the payloads. `"relay"`: this strategy. `"direct"`: the nodes themselves, in
        segments of rounds that one message opens; see `docs/flower.md`.
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
    measure_consensus : bool, optional
        Whether agents tell a random projection of their parameters, of 1,024 numbers, when
        they evaluate: from it the consensus distance is known within a few percent. None: unless
        payloads are encrypted.
    average : bool, optional
        Form the network average of the final models once, at the end, as `Result.arrays`,
        for whoever goes on with it. No agent ever has it. With False, reading
        `Result.arrays` raises an error. None: unless payloads are encrypted.
    collect_models : bool
        Collect each agent's final model, as `Result.models`.
    node_timeout_s : float, optional
        Seconds to wait for the nodes. None: 10 in simulation, 600 in deployment.
    encryption : str
        `"neighbors"`: payloads are sealed by their sender for its neighbors, so that neither
        this strategy nor Flower's SuperLink can read or change them. Each SuperNode needs its
        keys, `mesh` in its node config. No parameters come here then, so that there is no
        average, no model and no consensus distance; what asks for them is refused. `"none"`:
        payloads are as they are.
    compression : str
        Of payloads: `"bf16"`, `"int8"`, `"int4"` (each also with `:whole`), `"topk:0.1"`,
        `"randk:0.1"`, `"lowrank:2"` (each also with `+bf16`, `+int8` or `+int4`), and to each a
        rate, as in `"topk:0.5+int4@0.5"`; `"none"` sends them as they are. The network average
        moves as without.
    bind_nodes : bool
        Each vertex belongs to the key with which its SuperNode has logged in to the SuperLink,
        for the whole run: another SuperNode that claims the vertex is refused by name. For
        SuperLinks with `--enable-supernode-auth`; without it each start has another key.
    on_round : callable, optional
        Called with the `RoundRecord` of each finished round. If it returns True, the run
        ends there, with its models, its average and its history.
    checkpoint : str or Path, optional
        Folder in which each round is kept until the run is over. If the ServerApp dies, `start`
        goes on from the last round in it, with the same graph, rule and folder. Agents whose
        node config names a `state-dir` have lost nothing; the others begin again from their
        neighbors' payloads.
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
        topology: Graphs | str,
        algorithm: Algorithm | str | None = None,
        *,
        round_timeout_s: float | None = None,
        evaluate_every: int = 1,
        share_every: int = 1,
        transport: str = "relay",
        join_evaluation: bool | None = None,
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
        measure_consensus: bool | None = None,
        average: bool | None = None,
        collect_models: bool = False,
        node_timeout_s: float | None = None,
        encryption: Encryption = "none",
        compression: Compression | str = "none",
        bind_nodes: bool = False,
        on_round: OnRound | None = None,
        checkpoint: str | Path | None = None,
        **others: Any,
    ) -> None:
        refuse(others, _arguments())
        self.topology = a_topology(topology, share_every)
        self.algorithm = a_rule(algorithm)
        check_relayed(self.algorithm)
        check_rule_on(self.algorithm, self.topology)
        n = self.topology.n_agents
        self.round_timeout_s = maybe_seconds("round_timeout_s", round_timeout_s)
        self.node_timeout_s = maybe_seconds("node_timeout_s", node_timeout_s, zero=True)
        self.evaluate_every = check_count("evaluate_every", evaluate_every, least=0)
        self.fraction_train = train_everywhere(fraction_train)
        self.fraction_evaluate = evaluating_fraction(fraction_evaluate)
        self.join_evaluation = (
            None if join_evaluation is None else check_flag("join_evaluation", join_evaluation)
        )
        self.transport = check_choice("transport", transport, TRANSPORTS)
        if self.transport == "direct":
            self._check_direct()
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
        self.encryption = check_encryption(encryption)
        meant = Compression.parse(compression)
        self.compression = check_compression(meant, self.algorithm, self.topology)
        self.bind_nodes = check_flag("bind_nodes", bind_nodes)
        self.measure_consensus = unless_encrypted(
            "measure_consensus", measure_consensus, encryption
        )
        self.average = unless_encrypted("average", average, encryption)
        self.collect_models = check_flag("collect_models", collect_models)
        if collect_models:
            refuse_encrypted("collect_models=True", encryption)
        self.on_round = on_round
        if checkpoint is not None and not (isinstance(checkpoint, str | Path) and str(checkpoint)):
            raise ConfigError(f"checkpoint must be the path of a folder, got {checkpoint!r}")
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.result = ServerlessResult()
        self._run: Session | None = None

    def summary(self) -> None:
        """Log what will be run."""
        log(INFO, "\t├──> Topology: %r", self.topology)
        log(INFO, "\t├──> Algorithm: %s", self.algorithm)
        if self.encryption != "none":
            log(INFO, "\t├──> Payloads are sealed for the neighbors: nothing here can read them")
        if self.compression.on:
            log(INFO, "\t├──> Compression: %s", self.compression)
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
        if evaluate_fn is not None:
            refuse_encrypted("evaluate_fn", self.encryption)

        if self.transport == "direct" and type(grid).__name__ == "InMemoryGrid":
            raise ConfigError(
                'transport="direct" needs all nodes of the graph running at once, and a simulation '
                'runs a few at a time: take transport="relay" there, or simulate(...)'
            )
        log(INFO, "Starting %s over %d rounds:", type(self).__name__, rounds)
        self.summary()
        tell("start", rounds=rounds, agents=self.topology.n_agents)
        self.result = result = ServerlessResult()
        with held(self.checkpoint) as checkpoint:
            kept = checkpoint.read() if checkpoint is not None else None
            self._run = run = self._opening.session(grid, initial_arrays, result, kept)
            if checkpoint is not None:
                checkpoint.open(initial_arrays, kept)
            kind = Segments if self.transport == "direct" else Rounds
            course = kind(
                self,
                run,
                result,
                Wishes(
                    evaluate_every=self.evaluate_every,
                    join_evaluation=self._joins(run),
                    join_rounds=self._has_own("configure_train", "aggregate_train") is None,
                    join_local=self.join_evaluation is not False
                    and self._has_own("configure_evaluate", "aggregate_evaluate") is None,
                    measure_consensus=self.measure_consensus,
                    average=self.average,
                    collect_models=self.collect_models,
                    on_round=self.on_round,
                ),
                limit=limit,
                configs=(configs[0], configs[1]),
                evaluate_fn=evaluate_fn,
                checkpoint=checkpoint,
                kept=kept,
            )
            try:
                if kept is None:
                    course.observe(run.now, initial_arrays)
                course.finish(course.go(rounds))
                run.dismiss()
                tell("end", incomplete=result.incomplete)
                if result.incomplete:
                    log(ERROR, "%s", result.incomplete)
                if checkpoint is not None:
                    checkpoint.remove()
            except BaseException as error:
                course.keep(error)
                raise
            finally:
                self._run = None
        return result

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
            self._run = self._opening.session(grid, arrays, self.result)
        run = self._run
        if run.now.number != server_round:
            if not server_round > run.now.number:
                raise ConfigError(
                    f"configure_train: round {server_round} after round {run.now.number}; "
                    "rounds must rise. A new run needs a new ServerlessStrategy"
                )
            run.begin(server_round)
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
        metrics = self.trained(run.now, answers)
        run.now.flush()
        return None, metrics

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,  # noqa: ARG002 (Flower's signature)
        config: ConfigRecord,
        grid: Grid,  # noqa: ARG002
    ) -> list[Message]:
        """One message per agent that evaluates: it combines, then evaluates its own model.

        The other agents, if only a fraction evaluates, are asked to report where that is
        needed.
        """
        if not self.evaluate_every:
            return []
        run = self._current(server_round, "configure_evaluate")
        config["server-round"] = server_round
        evaluating = self.evaluating(server_round)
        messages = run.messages(
            "evaluate", server_round, ConfigRecord(dict(config.items())), evaluating
        )
        if run.wants_parameters or run.wants_distance:
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
        metrics = self.evaluated(run.now, answers)
        run.measure(answers, run.now, distance=self.measure_consensus)
        run.now.flush()
        return metrics

    # --- what a run of `start` asks --------------------------------------------------

    def evaluating(self, server_round: int) -> list[int]:
        """Who evaluates in a round: as many as FedAvg takes, drawn anew, the same in every run."""
        n = self.topology.n_agents
        count = min(max(int(n * self.fraction_evaluate), self.min_evaluate_nodes), n)
        drawn = np.random.default_rng([n, server_round]).permutation(n)[:count]
        return sorted(int(v) for v in drawn)

    def trained(self, of: Round, answers: Mapping[int, Answer]) -> MetricRecord | None:
        """Keep what agents have answered to a training, and sum up the apps' metrics."""
        return self._sum_up("train", of, answers, self.train_metrics_aggr_fn)

    def evaluated(self, of: Round, answers: Mapping[int, Answer]) -> MetricRecord | None:
        """Keep what agents have answered to an evaluation, and sum up the apps' metrics."""
        return self._sum_up("evaluate", of, answers, self.evaluate_metrics_aggr_fn)

    def _sum_up(
        self,
        part: Literal["train", "evaluate"],
        of: Round,
        answers: Mapping[int, Answer],
        aggregate: AggregateMetrics | None,
    ) -> MetricRecord | None:
        of.said(part, answers)
        return sum_up(part, of.record, answers, aggregate, of.note, self.topology.n_agents)

    # --- inside ---------------------------------------------------------------------

    def _has_own(self, *names: str) -> str | None:
        """The first of some methods that a subclass has its own of, None if it has none."""
        own = (n for n in names if getattr(type(self), n) is not getattr(ServerlessStrategy, n))
        return next(own, None)

    def _check_direct(self) -> None:
        """Nodes that hold rounds among themselves ask no subclass of this strategy."""
        name = self._has_own(
            *("configure_train", "aggregate_train"), *("configure_evaluate", "aggregate_evaluate")
        )
        if name is not None:
            raise ConfigError(
                f'transport="direct": {type(self).__name__} has its own {name}, which nobody '
                'would call; take transport="relay", or do it in the app'
            )

    @property
    def _opening(self) -> Opening:
        return Opening(
            topology=self.topology,
            algorithm=self.algorithm,
            statistics=self.statistics,
            arrays_key=self.arrayrecord_key,
            config_key=self.configrecord_key,
            weighted_by_key=self.weighted_by_key,
            lower_is_better=self.lower_is_better,
            measure_consensus=self.measure_consensus,
            node_timeout_s=self.node_timeout_s,
            encryption=self.encryption,
            compression=self.compression,
            bind_nodes=self.bind_nodes,
        )

    def _joins(self, run: Session) -> bool:
        """Whether evaluations come with the next round's training: one process start, not two."""
        if self._has_own("configure_evaluate", "aggregate_evaluate") is not None:
            return False  # a subclass words its evaluations itself
        return is_deployed(run.relay.grid) if self.join_evaluation is None else self.join_evaluation

    def _opened(self) -> Session:
        if self._run is None:
            raise ConfigError("the strategy has no run yet; call start, or configure_train first")
        return self._run

    def _current(self, server_round: int, caller: str) -> Session:
        run = self._opened()
        if server_round != run.now.number:
            raise ConfigError(
                f"{caller}: round {server_round}, but configure_train was called for round "
                f"{run.now.number}; call it first in every round"
            )
        return run


def _arguments() -> list[str]:
    parameters = inspect.signature(ServerlessStrategy.__init__).parameters
    return [name for name in parameters if name not in ("self", "others")]
