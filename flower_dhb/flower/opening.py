"""What a run of the relay begins with: its layout, its books, and a node on every vertex."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord
from flwr.common import log
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.algorithms import Algorithm
from flower_dhb.errors import PayloadError
from flower_dhb.flower.arrays import named_arrays
from flower_dhb.flower.checkpoint import Kept
from flower_dhb.flower.ledger import Ledger
from flower_dhb.flower.limits import check_layout, check_state, memory_warning
from flower_dhb.flower.members import Members
from flower_dhb.flower.relay import Relay
from flower_dhb.flower.reports import Reports
from flower_dhb.flower.result import ServerlessResult
from flower_dhb.flower.session import Session
from flower_dhb.topology.turns import Graphs
from flower_dhb.types import STATISTICS, Encryption, Layout, Statistics, unnamed_statistics

__all__ = ["Opening"]

# How often a run of Flower's began training: each time is a run of its own for the agents.
_starts: Counter[int] = Counter()


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How runs of one strategy begin; the fields are arguments of ServerlessStrategy."""

    topology: Graphs
    algorithm: Algorithm
    statistics: Statistics | None
    arrays_key: str
    config_key: str
    weighted_by_key: str
    lower_is_better: tuple[str, ...]
    measure_consensus: bool
    node_timeout_s: float | None
    encryption: Encryption = "none"
    compression: Compression = NONE
    bind_nodes: bool = False

    def session(
        self,
        grid: Grid,
        arrays: ArrayRecord,
        result: ServerlessResult,
        kept: Kept | None = None,
    ) -> Session:
        """Begin a run of all agents from `arrays`; waits for a node on every vertex.

        result: takes the warnings. kept: the run that goes on instead. Raises PayloadError if
        the arrays are not finite, ConfigError if the nodes do not cover the graph, if Flower
        cannot carry the model, or if the run that goes on is another one's, and StateError if
        it is damaged.
        """
        if kept is not None:
            kept.check(self.topology, self.algorithm)
            arrays = kept.initial
        initial = named_arrays(arrays)
        layout = Layout.of(initial, STATISTICS if self.statistics is None else self.statistics)
        if self.statistics is None:
            _say_where_statistics_may_lie(initial, result)
        check_layout(self.algorithm, layout)
        warning = memory_warning(self.algorithm, layout, self.topology.n_agents)
        if warning:
            result.warn(warning)
        run_id = grid.run.run_id
        _starts[run_id] += 1
        try:
            ledger = Ledger(
                self.topology,
                self.algorithm,
                layout,
                initial,
                run=_name(run_id, _starts[run_id]) if kept is None else kept.run,
                arrays_key=self.arrays_key,
                config_key=self.config_key,
                encryption=self.encryption,
                compression=self.compression,
            )
        except PayloadError as error:
            raise PayloadError(f"initial_arrays: {error}") from None
        if kept is not None:
            kept.fill(ledger)
        relay = Relay(grid)
        members = Members(
            self.topology,
            relay,
            run=ledger.run,
            encryption=self.encryption,
            bind_nodes=self.bind_nodes,
        )
        members.enroll(self.node_timeout_s)
        in_context = members.in_context()
        degree = max((len(self.topology.neighbors(v)) for v in in_context), default=0)
        check_state(self.algorithm, layout, in_context, self.compression, degree)
        return Session(
            relay,
            members,
            ledger,
            Reports(layout, layout.local(initial), layout.flatten(initial)[0]),
            self.topology,
            weighted_by_key=self.weighted_by_key,
            lower_is_better=self.lower_is_better,
            wants_distance=self.measure_consensus,
        )


def _say_where_statistics_may_lie(
    initial: Mapping[str, NDArray[Any]], result: ServerlessResult
) -> None:
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
    result.warn(
        f"the arrays' names are numbers, and arrays {places} look like the moving mean and "
        "variance of a batch normalization. As parameters they get momentum, and a variance "
        f"can become negative. {remedy}"
    )


def _name(run_id: int, start: int) -> str:
    """Name of a run, of one length, so that payloads of a repeated run are as long."""
    return f"{run_id:016x}" + (f".{start}" if start > 1 else "")
