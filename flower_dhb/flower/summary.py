"""What Flower's metrics of a round are: those of the apps over agents, under their own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from flwr.app import MetricRecord, RecordDict

from flower_dhb.errors import ConfigError
from flower_dhb.flower.arguments import check_type
from flower_dhb.flower.records import Answer
from flower_dhb.metrics import Metrics, RoundRecord, weights_of

__all__ = ["AggregateMetrics", "sum_up"]

AggregateMetrics = Callable[[list[RecordDict], str], MetricRecord]


def sum_up(
    part: Literal["train", "evaluate"],
    record: RoundRecord,
    answers: Mapping[int, Answer],
    aggregate: AggregateMetrics | None,
    note: Callable[[int, str], None],
    n_agents: int,
) -> MetricRecord | None:
    """Means over agents, weighted as FedAvg weights them; or what `aggregate` makes of them.

    note: takes an event, the vertex and what befell it. Raises ConfigError if in round 1
    most agents report metrics, and none its weight.
    """
    key = record.weighted_by_key
    per_agent = record.train if part == "train" else record.evaluate
    if not per_agent:
        return None
    weights, events = weights_of(per_agent, key)
    if not weights and aggregate is None and record.round == 1:
        _refuse_without_weights(key, per_agent, n_agents)
    for vertex, text in events:
        note(vertex, text)
    if aggregate is not None:
        metrics = aggregate([answers[v].metrics for v in weights or per_agent], key)
        answered = f"what {part}_metrics_aggr_fn returns"
        check_type(answered, metrics, MetricRecord, "MetricRecord({'loss': 0.5})")
        return metrics
    if not sum(weights.values()) > 0.0:
        note(min(per_agent), f"no agent has a '{key}' above 0, so all count alike")
    summary = record.train_summary if part == "train" else record.evaluate_summary
    return MetricRecord({name: found.mean for name, found in summary.items()})


def _refuse_without_weights(key: str, per_agent: Mapping[int, Metrics], n_agents: int) -> None:
    """That most agents lack their weight from the start is a mistake of the app's."""
    if 2 * len(per_agent) > n_agents:
        raise ConfigError(
            f"no agent's metrics hold '{key}' as a number >= 0, by which they are weighted; the "
            f"app's metrics are {sorted(next(iter(per_agent.values())))}. Add it, or set "
            "weighted_by_key"
        )
