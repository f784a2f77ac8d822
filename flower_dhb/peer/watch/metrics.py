"""Numbers for Prometheus: what the operator's status says, under names of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from flower_dhb.peer.wire import relay_pb2 as pb

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["families", "serve_metrics"]

_PREFIX = "flower_dhb_"

_OF_PEER: dict[str, tuple[str, Callable[[pb.StatusReply], float]]] = {
    "round": ("Last finished round", lambda r: r.round),
    "rounds": ("Rounds of the run", lambda r: r.rounds),
    "seconds_per_round": ("Median of recent rounds", lambda r: r.seconds_per_round),
    "train_seconds": ("Median of recent rounds: in the app", lambda r: r.train_s),
    "wait_seconds": ("Median of recent rounds: waiting for neighbors", lambda r: r.wait_s),
    "since_round_seconds": ("Since a round ended", lambda r: r.since_round_s),
    "stalled_seconds": ("The same where no round takes so long, else 0", lambda r: r.stalled_s),
    "lately_rounds": ("Newest rounds of the neighborhood, 20 at most", lambda r: r.lately),
    "lately_took_part": ("Those in which a neighbor counted here", lambda r: r.took_part),
    "app_failures": ("Rounds in a row in which the app failed", lambda r: r.failures),
    "evaluation_failing": (
        "Whether the app's evaluation failed in the last round",
        lambda r: bool(r.evaluation_error),
    ),
    "disk_failing": ("Whether the disk takes nothing", lambda r: bool(r.disk)),
    "alone": ("Whether no neighbor had a part lately", lambda r: r.HasField("alone_since")),
    "neighbors": ("Neighbors", lambda r: len(r.neighbors)),
    "neighbors_up": ("Connected neighbors", lambda r: sum(n.up for n in r.neighbors)),
    "waits_for_neighbors": ("Neighbors that keep its round open", lambda r: len(r.waits_for)),
    "one_sided": (
        "Rounds of edges that counted at one end only",
        lambda r: sum(n.one_sided for n in r.neighbors),
    ),
    "clock_seconds": ("The device's own clock, since 1970", lambda r: r.clock_s),
    "uptime_seconds": ("Since the process began", lambda r: r.uptime_s),
}
_OF_NEIGHBOR: dict[str, tuple[str, Callable[[pb.Neighbor], float]]] = {
    "neighbor_up": ("Whether it is connected", lambda n: n.up),
    "neighbor_finished": ("Whether it takes part in no later round", lambda n: n.done),
    "neighbor_round": ("The last round that it has ended, as it says", lambda n: n.closed),
    "neighbor_down_seconds": ("Since its connection ended, 0 if it is up", lambda n: n.down_s),
    "neighbor_lately_took_part": (
        "Of lately_rounds: its edge counted",
        lambda n: n.took_part,
    ),
    "neighbor_quarantined": (
        "Whether its payloads are not used",
        lambda n: n.quarantined_until > 0,
    ),
}
# What is not there is not known.
_KNOWN: dict[str, tuple[str, Callable[[pb.Neighbor], float | None]]] = {
    "neighbor_heard_seconds": (
        "Since anything came from it",
        lambda n: n.heard_s if n.HasField("heard_s") else None,
    ),
    "neighbor_agreed_seconds": (
        "Median, from sharing an own payload until the edge could count",
        lambda n: n.agreed_s if n.HasField("agreed_s") else None,
    ),
}


def families(reply: pb.StatusReply) -> Iterable[Metric]:
    """All metrics of one peer, from its answer to the operator."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    vertex = str(reply.vertex)
    for name, (text, value) in _OF_PEER.items():
        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["vertex"])
        gauge.add_metric([vertex], float(value(reply)))
        yield gauge
    left = GaugeMetricFamily(f"{_PREFIX}left_seconds", "Until its last round", labels=["vertex"])
    if reply.HasField("left_s"):
        left.add_metric([vertex], reply.left_s)
    yield left
    for name, ends in (
        ("certificate_days_left", reply.certificate_ends),
        ("authority_days_left", reply.authority_ends),
    ):
        days = GaugeMetricFamily(_PREFIX + name, "By the device's clock", labels=["vertex"])
        if reply.certificate:
            days.add_metric([vertex], (ends - reply.clock_s) / 86400.0)
        yield days
    for name, (text, known) in (_OF_NEIGHBOR | _KNOWN).items():
        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["vertex", "neighbor"])
        for neighbor in reply.neighbors:
            number = known(neighbor)
            if number is not None:
                gauge.add_metric([vertex, str(neighbor.vertex)], float(number))
        yield gauge
    phase = GaugeMetricFamily(
        f"{_PREFIX}info", "Its phase and version, always 1", labels=["vertex", "phase", "version"]
    )
    phase.add_metric([vertex, reply.phase, reply.software], 1.0)
    yield phase
    app = GaugeMetricFamily(f"{_PREFIX}app", "The app's own", labels=["vertex", "name"])
    for name, number in sorted(reply.metrics.items()):
        app.add_metric([vertex, name], number)
    yield app
    events = CounterMetricFamily(
        f"{_PREFIX}events", "What was counted", labels=["vertex", "event", "neighbor"]
    )
    for name, count in sorted(reply.counts.items()):
        kind, _, end = name.rpartition(".")
        event, of = (kind, end) if kind and end.isdecimal() else (name, "")
        events.add_metric([vertex, event, of], count)
    yield events


def serve_metrics(
    port: int, status: Callable[[pb.StatusRequest], pb.StatusReply]
) -> Callable[[], None]:
    """Serve numbers for Prometheus on a loopback port. Returns how to stop."""
    from prometheus_client import CollectorRegistry, start_http_server

    class Collector:
        def collect(self) -> Iterable[Metric]:
            """What Prometheus reads."""
            return families(status(pb.StatusRequest()))

    registry = CollectorRegistry()
    registry.register(Collector())
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
