"""One agent's round without I/O: adapt, offer payloads, combine with what has arrived."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

from numpy.typing import NDArray

from flower_dhb.agent import mixing
from flower_dhb.agent.codec import VectorSpec
from flower_dhb.agent.compression import NONE, Compression, Compressor
from flower_dhb.agent.compression.compressor import Codes
from flower_dhb.agent.compression.frame import Frame
from flower_dhb.agent.screening import (
    Lengths,
    Own,
    Screen,
    believable,
    clip_factors,
    clipped,
    distance,
)
from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.measurement import measured
from flower_dhb.errors import ConfigError, PayloadError, RoundError
from flower_dhb.types import Layout, NDArrays, Payload, State, dtype_name

__all__ = [
    "STATISTICS_VECTOR",
    "Node",
    "Pending",
    "Snapshot",
    "compressor_of",
    "parameter_vectors",
]

STATISTICS_VECTOR = "statistics"

Vectors: TypeAlias = tuple[NDArray[Any], NDArray[Any]]  # parameters and running statistics
# Of the model, what training began with, and what it led to, to what the agent goes on with.
Bound: TypeAlias = Callable[[Layout, Vectors, Vectors], Vectors]


@dataclass(frozen=True)
class Pending:
    """A round that is trained but not combined: its number, `z`, and the statistics of `z`.

    measured: what the rule measures in it. lengths: of the agent's own payload, against which its
    neighbors' are held; None where the rule screens and clips nothing. Both are functions of the
    vectors, taken when these have just been made, so that a round's two halves may lie in two
    processes and neither goes through all vectors for it again. codes: what is sent, where payloads
    are compressed; None where this one is sent whole.
    """

    round: int
    trained: NDArray[Any]
    statistics: NDArray[Any]
    measured: Mapping[str, float] = field(default_factory=dict)
    lengths: Lengths | None = None
    codes: Codes | None = None


@dataclass(frozen=True)
class Snapshot:
    """All that an agent must keep from one round to the next.

    round: the parameters are `x(round)`. statistics: running statistics, `(s,)`.
    local: arrays that never leave the agent. epoch: in which the rule's conserved memory, and
    a pending payload, are. screen: what screening remembers of its neighbors. sent: the memory
    of a compression, and the round of the payload that it is of. heard: the last public payload
    of each neighbor, where a compression sends changes of them.
    """

    round: int
    state: State
    statistics: NDArray[Any]
    local: NDArrays
    pending: Pending | None = None
    epoch: int = 0
    screen: Screen = field(default_factory=Screen)
    sent: Payload = field(default_factory=dict)
    heard: Mapping[int, Payload] = field(default_factory=dict)
    sent_round: int = 0

    @classmethod
    def first(
        cls,
        algorithm: Algorithm,
        compression: Compression,
        parameters: NDArray[Any],
        statistics: NDArray[Any],
        local: NDArrays,
    ) -> Snapshot:
        """At round 0, from the parameters and statistics that all agents share.

        All of them know what payload each would send from there, so the first one that is sent
        may be a change of it.
        """
        state = algorithm.start(parameters)
        sent: Payload = {}
        if compression.estimates:
            ready = measured(algorithm, state, parameters)
            sent = dict(algorithm.outgoing(ready, parameters))
        return cls(0, state, statistics, local, sent=sent)


class Node:
    """One agent: its vertex, its row of the mixing matrix, its rule, and its state.

    The order of calls in a round is `arrays` (what the app trains from), `adapt` (what
    it returned), `offer` for each payload that arrives, `combine`. A call that raises
    leaves the node as it was.

    weights: mixing weight by vertex, the agent's own and its neighbors'; sums to 1.
    compression: of payloads. What the node calls a payload is then what its neighbors make of
    what is sent, the public payload (`agent.compression`).
    screened: payloads that the last `combine` did not believe, a text by neighbor.
    """

    def __init__(
        self,
        vertex: int,
        algorithm: Algorithm,
        weights: Mapping[int, float],
        layout: Layout,
        snapshot: Snapshot,
        compression: Compression = NONE,
    ) -> None:
        if vertex not in weights or not abs(sum(weights.values()) - 1.0) <= 1e-9:
            raise ConfigError(
                f"agent {vertex}: weights of itself and its neighbors must sum to 1, got {weights}"
            )
        self.vertex = vertex
        self.algorithm = algorithm
        self.weights = dict(weights)
        self.layout = layout
        self.compression = compression
        self.compressor = compressor_of(compression, algorithm, layout)
        self._snapshot = snapshot
        self._public: tuple[Pending, Payload] | None = None
        self._arrived: dict[int, Payload] = {}
        self.screened: Mapping[int, str] = {}

    @classmethod
    def start(
        cls,
        vertex: int,
        algorithm: Algorithm,
        weights: Mapping[int, float],
        layout: Layout,
        arrays: Mapping[str, NDArray[Any]],
        compression: Compression = NONE,
    ) -> Node:
        """Node at round 0, with the initial arrays that all agents share."""
        parameters, statistics = layout.flatten(arrays)
        local = layout.local(arrays)
        snapshot = Snapshot.first(algorithm, compression, parameters, statistics, local)
        return cls(vertex, algorithm, weights, layout, snapshot, compression)

    # --- what it is -----------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """State to keep between rounds."""
        return self._snapshot

    @property
    def round(self) -> int:
        """The round that the parameters are of."""
        return self._snapshot.round

    @property
    def pending_round(self) -> int | None:
        """The round that waits for neighbors, if any."""
        return self._snapshot.pending.round if self._snapshot.pending else None

    @property
    def epoch(self) -> int:
        """The epoch of its memory and of a pending payload; edges count within one epoch."""
        return self._snapshot.epoch

    @property
    def neighbors(self) -> tuple[int, ...]:
        """Vertices that it exchanges payloads with, ascending."""
        return tuple(sorted(j for j in self.weights if j != self.vertex))

    @property
    def missing(self) -> tuple[int, ...]:
        """Neighbors whose payload of the pending round has not been accepted."""
        return tuple(j for j in self.neighbors if j not in self._arrived)

    @property
    def parameters(self) -> NDArray[Any]:
        """The parameter vector `x`, `(d,)`."""
        parameters: NDArray[Any] = self._snapshot.state.parameters
        return parameters

    def arrays(self) -> NDArrays:
        """The model's arrays at `x`, for the app to train from or to evaluate."""
        s = self._snapshot
        return self.layout.unflatten(s.state.parameters, s.statistics, s.local)

    @property
    def vectors(self) -> tuple[VectorSpec, ...]:
        """What each payload must hold."""
        return self.vectors_of(self.algorithm, self.layout)

    @staticmethod
    def vectors_of(algorithm: Algorithm, layout: Layout) -> tuple[VectorSpec, ...]:
        """What each payload of a rule on a model must hold."""
        return _specs(algorithm.vectors, layout)

    # --- a round --------------------------------------------------------------------

    def adapt(
        self,
        round: int,
        arrays: Mapping[str, NDArray[Any]],
        bound: Bound | None = None,
        *,
        sends: bool = True,
        whole: bool = False,
    ) -> Payload:
        """Take the locally trained arrays of a round and return the payload to send.

        bound: what the operator's policy makes of the update, before anything else is made of it.
        sends: whether any neighbor is to have it. whole: whether to send it so that neighbors need
        to hold nothing for it.
        Raises PayloadError if the arrays are not the model's, not finite, or not what the policy
        can bound, RoundError if the round before has not been combined.
        """
        s = self._snapshot
        if s.pending is not None:
            raise RoundError(
                f"agent {self.vertex}: round {s.pending.round} is not combined yet, cannot begin "
                f"round {round}"
            )
        if not round > s.round:
            raise RoundError(
                f"agent {self.vertex}: parameters are of round {s.round}, got round {round}"
            )
        try:
            trained, statistics = self.layout.flatten(arrays)
            if bound is not None:
                before = (s.state.parameters, s.statistics)
                trained, statistics = bound(self.layout, before, (trained, statistics))
        except PayloadError as error:
            raise PayloadError(f"round {round}, agent {self.vertex}: {error}") from None
        state = measured(self.algorithm, replace(s.state, round=round - 1), trained)
        pending = Pending(round, trained, statistics, state.measured)
        payload = self._whole(state, pending)
        if self.compressor is not None and sends:
            known = {} if whole and self.compressor.estimates else s.sent
            codes, payload = self.compressor.publish(payload, known, round, self.vertex)
            pending = replace(pending, codes=codes)
        if self._holds_against:
            x, names = s.state.parameters, self.algorithm.vectors
            pending = replace(pending, lengths=Lengths.of(names, payload, x, trained))
        self._snapshot = replace(s, local=self.layout.local(arrays), pending=pending)
        # Without codes it is made of the state again, and nobody has to keep it.
        self._public = None if pending.codes is None else (pending, payload)
        self._arrived = {}
        return payload

    def payload(self) -> Payload:
        """The payload of the pending round; the same each time it is asked for."""
        pending = self._require_pending()
        if self.compressor is None or pending.codes is None:
            return self._whole(self._state(pending), pending)
        if self._public is None or self._public[0] is not pending:
            s = self._snapshot
            vectors = self.compressor.decode(pending.codes, s.sent, pending.round)
            self._public = (pending, self._with_statistics(vectors, pending))
        return self._public[1]

    def frame(self) -> Frame | None:
        """What is sent of the pending round's payload; None if that is sent whole."""
        codes = self._require_pending().codes
        return None if codes is None else Frame(codes, self.payload(), self._snapshot.sent)

    @property
    def base(self) -> int:
        """Of which round's payload the pending one is sent as a change; -1 if it is of none."""
        pending, compressor = self._require_pending(), self.compressor
        if compressor is None or not compressor.estimates or pending.codes is None:
            return -1
        return self._snapshot.sent_round

    def known(self, neighbor: int) -> Payload | None:
        """A neighbor's last public payload, None if it is not here.

        Until a neighbor is heard for the first time, that is what any agent would have sent from
        the parameters that all began with.
        """
        s = self._snapshot
        if self.compressor is None or not self.compressor.estimates:
            return None
        return s.heard.get(neighbor, s.sent if s.sent_round == 0 else None)

    def _whole(self, state: State, pending: Pending) -> Payload:
        outgoing = self.algorithm.outgoing(state, pending.trained)
        payload = {name: outgoing[name] for name in self.algorithm.vectors}
        return self._with_statistics(payload, pending)

    def _with_statistics(self, vectors: Payload, pending: Pending) -> Payload:
        """A payload of the rule's vectors; running statistics are sent as they are."""
        if self.layout.statistics_size:
            return {**vectors, STATISTICS_VECTOR: pending.statistics}
        return vectors

    def offer(self, sender: int, round: int, payload: Payload) -> None:
        """Accept a neighbor's payload of the pending round.

        Raises PayloadError if the sender is no neighbor, has been heard already, or its
        payload is of another round or has other vectors.
        """
        who = f"round {round}, neighbor {sender}"
        pending = self._require_pending()
        if sender == self.vertex or sender not in self.weights:
            raise PayloadError(f"{who}: not a neighbor of agent {self.vertex}")
        if round != pending.round:
            raise PayloadError(f"{who}: agent {self.vertex} is in round {pending.round}")
        if sender in self._arrived:
            raise PayloadError(f"{who}: a payload of this round has been accepted already")
        _check_payload(who, payload, self.vectors)
        self._arrived[sender] = payload

    def combine(
        self, use: Collection[int] | None = None, *, screen: bool = True
    ) -> tuple[int, ...]:
        """End the pending round with the payloads that have arrived.

        use: if given, only these neighbors' payloads count (edges that both ends could
        use). screen: whether to hold payloads against the rule's screening; False where that
        was done before, so that what counted at both ends is used at both. A missing
        neighbor's weight returns to the agent's own payload. Returns the vertices of the
        missing neighbors, those whose payload was screened among them.
        """
        pending = self._require_pending()
        s = self._snapshot
        used = {j: p for j, p in self._arrived.items() if use is None or j in use}
        before = self._state(pending)
        factor, clips = self.algorithm.screening_factor, self.algorithm.clips
        distances: dict[int, float] = {}
        memory, self.screened = s.screen, {}
        if self._holds_against:
            memory = memory.begun(s.state.parameters)
            own = self._own(pending)
            distances = {j: own.distance(p) for j, p in used.items()}
            if screen and factor is not None:
                memory, self.screened = self._screen(memory, factor, own, used, distances)
                used = {j: p for j, p in used.items() if j not in self.screened}
        missing = tuple(j for j in self.neighbors if j not in used)
        weights = {j: w for j, w in self.weights.items() if j not in missing}
        # Summed in vertex order, whatever arrived first.
        weights[self.vertex] += sum(self.weights[j] for j in missing)
        if clips:
            factors = clip_factors(distances, self.algorithm.clip_radius)
            weights = clipped(weights, self.vertex, factors)
        state = self._mix(before, pending, weights, used)
        if factor is not None:
            moved = distance([state.parameters], [s.state.parameters])
            memory = memory.after(own, moved, distances.values())
        statistics = s.statistics
        if self.layout.statistics_size:
            vectors = {j: p[STATISTICS_VECTOR] for j, p in used.items()}
            vectors[self.vertex] = pending.statistics
            statistics = mixing.weighted_sum(mixing.convex(weights), vectors)
        new = Snapshot(pending.round, state, statistics, s.local, None, s.epoch, memory)
        self._snapshot = self._remember(before, pending, new)
        self._arrived, self._public = {}, None
        return missing

    def _mix(
        self,
        before: State,
        pending: Pending,
        weights: Mapping[int, float],
        payloads: Mapping[int, Payload],
    ) -> State:
        """The rule on the weighted sum of payloads, or of public ones beside its own whole one."""
        if self.compressor is not None:
            weights, payloads = self.compressor.mixing(
                self.payload(), payloads, weights, self.vertex, pending.round
            )
        return mixing.combine(
            self.algorithm, before, pending.trained, self.vertex, weights, payloads
        )

    def _remember(self, before: State, pending: Pending, new: Snapshot) -> Snapshot:
        """With what the compression keeps of the round: of the own payload, and the neighbors'."""
        s = self._snapshot
        if self.compressor is None or not self.neighbors:  # nothing is sent to anybody
            return replace(new, sent=s.sent, heard=s.heard, sent_round=s.sent_round)
        heard: Mapping[int, Payload] = s.heard
        whole: Payload = {}
        if self.compressor.estimates:
            found = {**heard, **{j: self.compressor.vectors(p) for j, p in self._arrived.items()}}
            heard = {j: found[j] for j in sorted(found) if j in self.weights}
        else:
            whole = self._whole(before, pending)
        sent = self.compressor.remember(whole, self.payload(), s.sent)
        return replace(new, sent=sent, heard=heard, sent_round=pending.round)

    @property
    def _holds_against(self) -> bool:
        """Whether the rule holds neighbors' payloads against the agent's own."""
        return self.algorithm.screening_factor is not None or self.algorithm.clips

    def _own(self, pending: Pending) -> Own:
        payload, names = self.payload(), self.algorithm.vectors
        lengths = pending.lengths
        if lengths is None:
            x = self._snapshot.state.parameters
            lengths = Lengths.of(names, payload, x, pending.trained)
        return Own(names, payload, lengths)

    def _screen(
        self,
        memory: Screen,
        factor: float,
        own: Own,
        payloads: Mapping[int, Payload],
        distances: dict[int, float],
    ) -> tuple[Screen, dict[int, str]]:
        """Whose payload is not to be used, and why; those are taken out of `distances`."""
        k = self._require_pending().round
        why, absurd = {}, []
        for j in sorted(payloads):
            is_absurd, text = memory.verdict(factor, k, own, j, payloads[j], distances[j])
            if text:
                why[j] = text
            if is_absurd:
                absurd.append(j)
        for j in why:
            del distances[j]
        return memory.judged(k, absurd, distances), why

    def join_epoch(self, epoch: int) -> None:
        """Begin a newer epoch with a correction of zero; an epoch that is not newer is ignored.

        Raises RoundError if a round is pending: its payload belongs to the epoch before.
        """
        s = self._snapshot
        if not epoch > s.epoch:
            return
        if s.pending is not None:
            raise RoundError(
                f"agent {self.vertex}: round {s.pending.round} of epoch {s.epoch} is not combined "
                f"yet, cannot begin epoch {epoch}"
            )
        self._snapshot = replace(s, state=self.algorithm.restart(s.state), epoch=epoch)

    def open_epoch(self, known: int) -> None:
        """Begin the epoch after all that are known, since the sum of the corrections is broken.

        For an agent that has lost its memory, or has not used what its neighbors did. The
        others join it when they hear of it. A rule that conserves nothing has one epoch only.
        """
        if self.algorithm.conserved:
            self.join_epoch(max(known, self.epoch) + 1)

    @classmethod
    def rejoin(
        cls,
        vertex: int,
        algorithm: Algorithm,
        weights: Mapping[int, float],
        layout: Layout,
        local: NDArrays,
        round: int,
        payloads: Mapping[int, Payload],
        compression: Compression = NONE,
    ) -> Node:
        """Node of an agent that has lost its state: its neighbors' average, zero momentum.

        The average is weighted as the mixing matrix weights them. round: the round of
        the payloads. A rule that screens leaves out payloads that are far longer than the
        others. Raises RoundError if there is no payload to begin from, PayloadError if one is
        not of a neighbor or holds other vectors.
        """
        for j, payload in payloads.items():
            who = f"round {round}, neighbor {j}"
            if j == vertex or j not in weights:
                raise PayloadError(f"{who}: not a neighbor of agent {vertex}")
            _check_payload(who, payload, cls.vectors_of(algorithm, layout))
        if algorithm.screening_factor is not None:
            payloads = believable(payloads, algorithm.vectors)
        total = sum(abs(weights[j]) for j in payloads)
        if not total > 0.0:
            raise RoundError(
                f"round {round}, agent {vertex}: state is lost and no neighbor's payload is here "
                "to rejoin from"
            )
        shares = {j: abs(weights[j]) / total for j in payloads}

        def average(name: str) -> NDArray[Any]:
            return mixing.weighted_sum(shares, {j: p[name] for j, p in payloads.items()})

        parameters = average(algorithm.vectors[0])
        statistics = layout.empty_statistics()
        if layout.statistics_size:
            statistics = average(STATISTICS_VECTOR)
        snapshot = Snapshot(round, algorithm.start(parameters), statistics, local)
        compressor = compressor_of(compression, algorithm, layout)
        if compressor is not None and compressor.estimates:
            heard = {j: compressor.vectors(p) for j, p in sorted(payloads.items())}
            snapshot = replace(snapshot, heard=heard)
        return cls(vertex, algorithm, weights, layout, snapshot, compression)

    def _state(self, pending: Pending) -> State:
        """The state with what the rule has measured in the pending round."""
        state = self._snapshot.state
        return replace(state, round=pending.round - 1, measured=pending.measured)

    def _require_pending(self) -> Pending:
        if self._snapshot.pending is None:
            raise RoundError(f"agent {self.vertex}: no round is pending; call adapt first")
        return self._snapshot.pending


def compressor_of(
    compression: Compression, algorithm: Algorithm, layout: Layout
) -> Compressor | None:
    """Of the payloads of a rule on a model, None if they are sent as they are.

    Raises ConfigError if the model cannot be compressed so.
    """
    return Compressor.of(compression, algorithm.vectors, layout) if compression.on else None


def parameter_vectors(layout: Layout) -> tuple[VectorSpec, ...]:
    """Vectors that hold a whole model, as opposed to a rule's payload."""
    return _specs(("parameters",), layout)


@lru_cache(maxsize=64)
def _specs(names: tuple[str, ...], layout: Layout) -> tuple[VectorSpec, ...]:
    specs = [VectorSpec(name, layout.dtype.name, layout.size) for name in names]
    if layout.statistics_size:
        dtype = layout.statistics_dtype.name
        specs.append(VectorSpec(STATISTICS_VECTOR, dtype, layout.statistics_size))
    return tuple(specs)


def _check_payload(who: str, payload: Payload, expected: tuple[VectorSpec, ...]) -> None:
    found = tuple(VectorSpec(k, dtype_name(v.dtype), v.size) for k, v in payload.items())
    if found != expected or any(v.ndim != 1 for v in payload.values()):
        shapes = [f"{k} {v.dtype.name}{list(v.shape)}" for k, v in payload.items()]
        wanted = [f"{e.name} {e.dtype}[{e.size}]" for e in expected]
        raise PayloadError(
            f"{who}: payload holds {shapes}, expected {wanted}; all agents must run the same "
            "model and algorithm"
        )
