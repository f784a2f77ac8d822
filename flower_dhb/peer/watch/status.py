"""How a peer is doing: the answer to the operator."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

from numpy.typing import NDArray

from flower_dhb import __version__
from flower_dhb.metrics import sketch
from flower_dhb.peer.monitor import Monitor, plain
from flower_dhb.peer.protocol.agent import Agent, Phase
from flower_dhb.peer.protocol.edge import Edge
from flower_dhb.peer.watch.lately import Lately
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.identity import utc_now
from flower_dhb.peer.wire.tls import Standing

__all__ = ["FINISHED", "REMOVED", "Progress"]

SKETCH_LIMIT = 4096
FINISHED = "finished"  # the phase of a peer whose last round is over
REMOVED = "removed"  # the same of one that is no member of the mesh any more


class Progress:
    """Where a peer is, kept by the thread that does its rounds and read by everyone else.

    evaluated: names in `metrics` that the app's evaluation reports; evaluation_error: what it
    said in the last round, if it failed. guard: held while the agent is looked at. disk: says
    why the disk takes nothing, empty if it does. dials: neighbors that this
    peer dials. quarantined: the last round in which a neighbor's payload is not used.
    """

    def __init__(self, run: str, agent: Agent, monitor: Monitor, lately: Lately) -> None:
        self.run = run
        self.round = 0
        self.metrics: dict[str, float] = {}
        self.evaluated: set[str] = set()
        self.evaluation_error = ""
        self.parameters: NDArray[Any] | None = None
        self.guard: AbstractContextManager[Any] = nullcontext()
        self.disk: Callable[[], str] = str
        self.dials: Collection[int] = ()
        self.quarantined: dict[int, int] = {}
        self._agent, self._monitor, self._lately = agent, monitor, lately
        self._times: deque[tuple[float, float, float]] = deque(maxlen=16)
        self._begun = time.monotonic()
        # What it shows and believes; None without TLS, or if the files cannot be read.
        self.standing: Callable[[], Standing | None] = lambda: None
        self.bulletins: Callable[[], Mapping[str, int]] = dict

    @property
    def rounds(self) -> int:
        """Rounds of the run, as far as this peer knows."""
        return self._agent.rounds

    @property
    def phase(self) -> str:
        """What it does, in one word."""
        phase = self._agent.phase
        near = self._agent.near
        if near.final is not None and phase in (Phase.LINGERING, Phase.STOPPED):
            return FINISHED if near.editions.newest.member else REMOVED
        return phase.value

    @property
    def alone_since(self) -> int | None:
        """The last round in which a neighbor had a part, where it has been alone since."""
        since = self._agent.alone_since
        return None if since < 0 else since

    def finished_round(
        self,
        round: int,
        seconds: float,
        parameters: NDArray[Any],
        *,
        train_s: float = 0.0,
        wait_s: float = 0.0,
    ) -> None:
        """A round is over. parameters: kept by reference. train_s, wait_s: parts of seconds."""
        self.round, self.parameters = round, parameters
        self._times.append((seconds, train_s, wait_s))

    @property
    def seconds_per_round(self) -> float:
        """Median of the recent rounds, 0 before the first."""
        return self._usual(0)

    def _usual(self, part: int) -> float:
        times = [entry[part] for entry in list(self._times)]
        return float(median(times)) if times else 0.0

    def reply(self, request: pb.StatusRequest) -> pb.StatusReply:
        """Answer the operator."""
        with self.guard:
            reply = self._facts(time.monotonic())
            parameters = self.parameters
        buckets = min(request.sketch, SKETCH_LIMIT)
        if buckets and parameters is not None:
            reply.sketch.extend(sketch(parameters, buckets, self.run))
        for kind, number in self.bulletins().items():
            reply.bulletins[kind] = number
        standing = self.standing()
        if standing is not None:
            reply.certificate, reply.issuer = standing.serial, standing.issuer
            reply.certificate_ends = int(standing.ends.timestamp())
            if standing.authority_ends is not None:
                reply.authority_ends = int(standing.authority_ends.timestamp())
            reply.trusts.extend(standing.trusts)
        return reply

    def _facts(self, now: float) -> pb.StatusReply:
        monitor, lately, pace_s = self._monitor, self._lately, self.seconds_per_round
        left = max(self.rounds - self.round, 0)
        return pb.StatusReply(
            vertex=monitor.vertex,
            run=self.run,
            round=self.round,
            rounds=self.rounds,
            phase=self.phase,
            seconds_per_round=pace_s,
            bytes_sent=monitor.total("bytes-sent"),
            bytes_received=monitor.total("bytes-received"),
            neighbors=[self._neighbor(edge, now) for edge in self._agent.edges.values()],
            counts=monitor.named(),
            metrics=self.metrics,
            software=__version__,
            uptime_s=now - self._begun,
            alone_since=self.alone_since,
            evaluated=sorted(self.evaluated & self.metrics.keys()),
            since_round_s=lately.since_round_s(now),
            stalled_s=lately.stalled_s(pace_s, now),
            lately=len(lately.rounds()),
            took_part=lately.took_part(),
            waits_for=lately.waits_for(now),
            failures=lately.failures,
            last_error=plain(lately.last_error),
            disk=plain(self.disk()),
            clock_s=utc_now().timestamp(),
            ago_s={k: s for k, s in monitor.ago_s().items() if not k.startswith("bytes-")},
            train_s=self._usual(1),
            wait_s=self._usual(2),
            left_s=left * pace_s if pace_s > 0.0 or not left else None,
            evaluation_error=plain(self.evaluation_error),
        )

    def _neighbor(self, edge: Edge, now: float) -> pb.Neighbor:
        j, lately = edge.neighbor, self._lately
        until = self.quarantined.get(j, 0)
        return pb.Neighbor(
            vertex=j,
            up=edge.up,
            round=edge.wants,
            deadline_s=edge.patience.deadline_s,
            misses=edge.rounds_missed,
            one_sided=edge.one_sided_total,
            in_doubt=edge.unknown,
            closed=edge.closed,
            done=edge.done,
            pace_s=edge.patience.usual_s or edge.patience.told_s,
            heard_s=lately.heard_s(j, now),
            down_s=lately.down_s(j, now),
            why_down=self._why_down(edge),
            dials=j in self.dials,
            agreed_s=lately.agreed_s(j),
            took_part=lately.took_part(j),
            quarantined_until=until if until >= self._agent.round else 0,
            differs=self._differing(edge, now),
        )

    def _why_down(self, edge: Edge) -> str:
        found = None if edge.up else self._monitor.trouble(edge.neighbor)
        return "" if found is None else plain(found.text)

    def _differing(self, edge: Edge, now: float) -> list[str]:
        """What was found to differ on the present connection."""
        end = f".{edge.neighbor}"
        return [
            name.removeprefix("differs.").removesuffix(end)
            for name, ago in self._monitor.ago_s().items()
            if name.startswith("differs.") and name.endswith(end) and now - ago >= edge.opened_at
        ]
