"""How a peer is doing: the answer to the operator, and numbers for Prometheus."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flower_dhb import __version__
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.agent import Agent, Phase
from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["FINISHED", "Progress", "serve_metrics", "sketch"]

SKETCH_LIMIT = 4096
FINISHED = "finished"  # the phase of a peer whose last round is over


class Progress:
    """Where a peer is, kept by the thread that does its rounds and read by everyone else."""

    def __init__(self, run: str, agent: Agent, monitor: Monitor) -> None:
        self.run, self.rounds = run, agent.config.rounds
        self.round = 0
        self.metrics: dict[str, float] = {}
        self.parameters: NDArray[Any] | None = None
        self._agent, self._monitor = agent, monitor
        self._seconds: deque[float] = deque(maxlen=16)
        self._begun = time.monotonic()

    @property
    def phase(self) -> str:
        """What it does, in one word."""
        phase = self._agent.phase
        if self._agent.near.final is not None and phase in (Phase.LINGERING, Phase.STOPPED):
            return FINISHED
        return phase.value

    @property
    def alone_since(self) -> int | None:
        """The last round in which a neighbor had a part, where it has been alone since."""
        since = self._agent.alone_since
        return None if since < 0 else since

    def finished_round(self, round: int, seconds: float, parameters: NDArray[Any]) -> None:
        """A round is over. parameters: kept by reference."""
        self.round, self.parameters = round, parameters
        self._seconds.append(seconds)

    @property
    def seconds_per_round(self) -> float:
        """Median of the recent rounds, 0 before the first."""
        return float(median(self._seconds)) if self._seconds else 0.0

    def reply(self, request: pb.StatusRequest) -> pb.StatusReply:
        """Answer the operator."""
        buckets, parameters = min(request.sketch, SKETCH_LIMIT), self.parameters
        edges = self._agent.edges.values()
        return pb.StatusReply(
            vertex=self._monitor.vertex,
            run=self.run,
            round=self.round,
            rounds=self.rounds,
            phase=self.phase,
            seconds_per_round=self.seconds_per_round,
            bytes_sent=self._monitor.total("bytes-sent"),
            bytes_received=self._monitor.total("bytes-received"),
            neighbors=[
                pb.Neighbor(
                    vertex=e.neighbor,
                    up=e.up,
                    round=e.wants,
                    deadline_s=e.patience.deadline_s,
                    misses=e.rounds_missed,
                    one_sided=e.one_sided_total,
                    in_doubt=e.unknown,
                )
                for e in edges
            ],
            sketch=sketch(parameters, buckets, self.run)
            if buckets and parameters is not None
            else (),
            counts=self._monitor.named(),
            metrics=self.metrics,
            software=__version__,
            uptime_s=time.monotonic() - self._begun,
            alone_since=self.alone_since,
        )


def sketch(parameters: NDArray[Any], buckets: int, seed: str) -> NDArray[np.float32]:
    """Random projection of `(d,)` to `(buckets,)` that keeps distances.

    Each element is added to one bucket with a random sign, both drawn from `seed`; the
    squared distance of two sketches has the mean of the true one and a relative standard
    deviation of `sqrt(2 / buckets)`.
    Source: Charikar, Chen & Farach-Colton, ICALP 2002 (count sketch).
    """
    rng = np.random.default_rng(xxhash.xxh3_64_intdigest(seed.encode()))
    sums = np.zeros(buckets)
    for start in range(0, len(parameters), 2**20):
        part = parameters[start : start + 2**20]
        bucket = rng.integers(0, buckets, len(part))
        sign = 2.0 * rng.integers(0, 2, len(part)) - 1.0
        sums += np.bincount(bucket, weights=sign * part, minlength=buckets)
    return sums.astype(np.float32)


def serve_metrics(
    port: int, progress: Progress, agent: Agent, monitor: Monitor
) -> Callable[[], None]:
    """Serve numbers for Prometheus on a loopback port. Returns how to stop."""
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

    class Collector:
        def collect(self) -> Iterable[Metric]:
            """What Prometheus reads."""
            vertex = str(monitor.vertex)
            gauges: Mapping[str, tuple[str, float]] = {
                "round": ("Last finished round", progress.round),
                "rounds": ("Rounds of the run", progress.rounds),
                "seconds_per_round": ("Median of recent rounds", progress.seconds_per_round),
                "neighbors_up": (
                    "Connected neighbors",
                    sum(edge.up for edge in agent.edges.values()),
                ),
                "neighbors": ("Neighbors", len(agent.edges)),
                "one_sided": (
                    "Rounds of edges that counted at one end only",
                    sum(edge.one_sided_total for edge in agent.edges.values()),
                ),
                "alone": ("Whether no neighbor had a part lately", agent.alone_since >= 0),
            }
            for name, (text, value) in gauges.items():
                gauge = GaugeMetricFamily(f"flower_dhb_{name}", text, labels=["vertex"])
                gauge.add_metric([vertex], value)
                yield gauge
            for name, number in list(progress.metrics.items()):
                gauge = GaugeMetricFamily(
                    "flower_dhb_app", "The app's own", labels=["vertex", "name"]
                )
                gauge.add_metric([vertex, name], number)
                yield gauge
            events = CounterMetricFamily(
                "flower_dhb_events", "What was counted", labels=["vertex", "event", "neighbor"]
            )
            for (name, neighbor), count in sorted(monitor.counts().items(), key=str):
                events.add_metric([vertex, name, "" if neighbor is None else str(neighbor)], count)
            yield events

    registry = CollectorRegistry()
    registry.register(Collector())
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
