"""What each agent is due: which payloads it must still combine, and what it may rejoin from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header
from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.agent.compression import frame as compressed
from flower_dhb.agent.envelope import Envelope, read_envelope
from flower_dhb.agent.node import Node, compressor_of, parameter_vectors
from flower_dhb.algorithms import Algorithm
from flower_dhb.errors import ConfigError, PayloadError
from flower_dhb.flower.arrays import frame_of, npy_array, start_frame
from flower_dhb.flower.records import Answer, Ask, Instruction, digest_of
from flower_dhb.metrics import SKETCH
from flower_dhb.topology.turns import Graphs
from flower_dhb.types import Encryption, Layout

__all__ = ["Ledger"]


@dataclass
class _Due:
    """An agent's parameters are of `round` once it has combined `payloads`."""

    round: int = 0
    payloads: dict[int, Array] = field(default_factory=dict)
    uncertain: bool = False  # its state may be lost: let it rejoin
    epoch: int = 0  # of its memory, and of the payload that it has trained
    quarantined: tuple[int, ...] = ()  # neighbors whose payload of `round` it will not use
    sealed_for: Collection[int] | None = None  # who can open its payload; None: all neighbors
    lost: bool = False  # it has answered that it could not go on: it needs payloads that are whole
    base: int = -1  # of which round its payload is a change; -1: of none
    begins_from: dict[int, int] = field(default_factory=dict)  # rounds of what it rejoins from


class Ledger:
    """The relay's books. It keeps frames until their receivers have combined them.

    Of graphs that take turns, a round has the edges of its own graph; no other payload is
    carried, and an agent without an edge in a round keeps its payload to itself. What agents begin
    again from may come from any neighbor.

    An edge counts in a round only if both its ends delivered, so a lost payload never
    changes the network average. What an agent is due stays due until it has answered:
    an agent that crashed in the middle combines later what its neighbors have combined.

    Under a rule that conserves something, an edge counts only within an epoch. An agent that
    has broken the sum opens the next one; the ledger learns of it from the answer, and all
    others join with their next training.

    Sealed payloads are carried as they are: the ledger reads who sent them, in which round, and
    for whom. An edge counts only if each end has sealed for the other.

    Where payloads are sent as changes of those before (`agent.compression`), the ledger knows who
    holds what: an edge counts only if both ends can make something of what the other has sent.
    Where they cannot, the next payloads are asked for whole.

    epoch: the newest that any agent has told of. attempt: how often the run was taken up again.
    encryption: whether payloads are sealed.
    """

    def __init__(
        self,
        topology: Graphs,
        algorithm: Algorithm,
        layout: Layout,
        arrays: Mapping[str, NDArray[Any]],
        *,
        run: str,
        arrays_key: str,
        config_key: str,
        encryption: Encryption = "none",
        compression: Compression = NONE,
    ) -> None:
        self._topology = topology
        self._algorithm = algorithm
        self._layout = layout
        self.run = run
        self.attempt = 0
        self.encryption = encryption
        self.epoch = 0
        self._keys: dict[str, Any] = {"arrays_key": arrays_key, "config_key": config_key}
        self._start = start_frame(layout, arrays, run)
        self._local = {name: npy_array(array) for name, array in layout.local(arrays).items()}
        self._due = {v: _Due() for v in range(topology.n_agents)}
        self._newest: dict[int, tuple[int, Array]] = {}
        self.compression = compression
        self._compressor = compressor_of(compression, algorithm, layout)
        # The round of the payload that an agent holds of each neighbor. All know that of round 0.
        self._held = {v: dict.fromkeys(topology.neighbors(v), 0) for v in self._due}
        self._last = dict.fromkeys(self._due, 0)  # rounds of the agents' own last payloads

    def instruction(
        self,
        vertex: int,
        ask: Ask,
        round: int,
        *,
        report: bool,
        measure: bool = False,
        announcements: Mapping[int, str] | None = None,
    ) -> Instruction:
        """What to tell an agent now; payloads of its graph neighbors and of nobody else.

        announcements: of those vertices that have keys.
        """
        announced = announcements or {}
        due = self._due[vertex]
        neighbors = self._topology.neighbors(vertex)
        own = {}
        if len(self._topology.graphs) > 1:
            own = self._topology.together.weights_of(vertex)
        rejoin = {}
        if due.uncertain and due.round > 0:
            rejoin = {j: self._newest[j] for j in neighbors if j in self._newest}
            due.begins_from = {j: number for j, (number, _) in rejoin.items()}
        # Before the first exchange there is nothing else to begin again from.
        nobody = due.uncertain and not (rejoin or due.payloads)
        return Instruction(
            ask=ask,
            run=self.run,
            round=round,
            vertex=vertex,
            state_round=due.round,
            weights=self._topology.shared(due.round).weights_of(vertex),
            mean_weights=own,
            sends=bool(self._topology.due(vertex, round)),
            algorithm=self._algorithm,
            layout=self._layout,
            payloads=due.payloads,
            rejoin=rejoin,
            start=self._start if due.round == 0 or nobody else None,
            local=self._local,
            report=report,
            measure=measure,
            epoch=self.epoch,
            attempt=self.attempt,
            encryption=self.encryption,
            compression=self.compression,
            whole=ask in ("train", "segment") and self._is_behind(vertex),
            announcements={j: announced.get(j, "") for j in neighbors} if announced else {},
            announced=digest_of(announced[vertex]) if vertex in announced else "",
            **self._keys,
        )

    def _is_behind(self, vertex: int) -> bool:
        """Whether a neighbor that can be reckoned with will not hold an agent's last payload.

        One that does not answer is not reckoned with: for its sake alone nothing is sent whole.
        """
        if not self.compression.estimates:
            return False
        last = self._last[vertex]
        for j in self._topology.neighbors(vertex):
            due = self._due[j]
            held = due.round if vertex in due.payloads else self._held[j].get(vertex, -1)
            if due.lost or (not due.uncertain and held != last):
                return True
        return False

    def books(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """All that must be kept, to go on from here: a plain document, and frames by name."""
        frames = {f"{j}/{number}": frame for j, (number, frame) in self._newest.items()}
        for due in self._due.values():
            frames |= {f"{j}/{due.round}": frame for j, frame in due.payloads.items()}
        document = {
            "run": self.run,
            "topology": self._topology.digest,
            "algorithm": self._algorithm.to_config(),
            "layout": self._layout.to_config(),
            "compression": str(self.compression),
            "epoch": self.epoch,
            "due": [
                [v, due.round, sorted(due.payloads), due.epoch, list(due.quarantined)]
                for v, due in self._due.items()
            ],
            "newest": [[j, number] for j, (number, _) in self._newest.items()],
            "last": [[v, number] for v, number in self._last.items()],
            "held": [
                [v, j, number] for v, held in self._held.items() for j, number in held.items()
            ],
        }
        return document, frames

    def restore(
        self, document: Mapping[str, Any], frames: Mapping[str, Array], attempt: int
    ) -> None:
        """Go on from `books`, as another attempt: each agent may have lost its state.

        Raises ConfigError if they are of another model, and KeyError, ValueError or TypeError if
        they are not complete.
        """
        if document["layout"] != self._layout.to_config():
            raise ConfigError(
                "checkpoint: the run that is to go on divides its model into parameters and "
                "running statistics in another way; make the strategy with the same 'statistics'"
            )
        if document["compression"] != str(self.compression):
            raise ConfigError(
                f"checkpoint: the run that is to go on has compression "
                f"'{document['compression']}', the strategy '{self.compression}'"
            )
        due = {
            int(v): _Due(
                int(number),
                {int(j): frames[f"{j}/{number}"] for j in senders},
                uncertain=True,
                epoch=int(epoch),
                quarantined=tuple(int(j) for j in quarantined),
            )
            for v, number, senders, epoch, quarantined in document["due"]
        }
        if sorted(due) != sorted(self._due):
            raise ValueError(f"books of vertices {sorted(due)}, expected {sorted(self._due)}")
        self._newest = {
            int(j): (int(number), frames[f"{j}/{number}"]) for j, number in document["newest"]
        }
        self._last = {int(v): int(number) for v, number in document["last"]}
        self._held = {v: {} for v in due}
        for v, j, number in document["held"]:
            self._held[int(v)][int(j)] = int(number)
        self._due = due
        self.epoch, self.attempt = int(document["epoch"]), attempt

    def check(self, vertex: int, round: int, frame: Array) -> None:
        """Raise PayloadError unless the frame is this agent's payload of this round."""
        specs = Node.vectors_of(self._algorithm, self._layout)
        expected = Header(self.run, round, vertex, specs)
        if self.encryption == "none":
            compressed.check(frame_of(frame), expected, self._compressor)
            return
        envelope = _envelope(frame, expected.sender)
        envelope.check(self.run, round, vertex)
        sizes = compressed.sizes(expected, self._compressor)
        if envelope.size != expected.frame_bytes and envelope.size not in sizes:
            raise PayloadError(
                f"{expected.sender}: {envelope.size} bytes are sealed, expected "
                f"{expected.frame_bytes}; all agents must run the same model and algorithm"
            )
        strangers = envelope.receivers.keys() - set(self._topology.neighbors(vertex))
        if strangers:
            raise PayloadError(
                f"{expected.sender}: the payload is sealed for vertices {sorted(strangers)[:20]}, "
                "which are no neighbors"
            )

    def check_epoch(self, answer: Answer) -> None:
        """Raise PayloadError if an answer tells of an epoch that its agent cannot be in."""
        if answer.ask == "segment" and self._algorithm.conserved:
            return  # neighbors number the epochs that they open by their rounds
        most = self.epoch + 1 if self._algorithm.conserved else self.epoch
        if answer.epoch > most:
            raise PayloadError(
                f"its node did not answer as this agent: it is in epoch {answer.epoch}, expected "
                f"{most} at most"
            )

    def parameters(self, answer: Answer) -> dict[str, NDArray[Any]]:
        """Vectors of a report. Raises PayloadError if the frame is not as it should be."""
        if answer.parameters is None:
            return {}
        specs = parameter_vectors(self._layout)
        header = Header(self.run, answer.state_round, answer.vertex, specs)
        return codec.decode(frame_of(answer.parameters), header)

    def sketch(self, answer: Answer) -> NDArray[np.float64] | None:
        """Projection in a report. Raises PayloadError if it is not as it should be."""
        if not answer.sketch:
            return None
        found, expected = np.array(answer.sketch), min(self._layout.size, SKETCH)
        if not (len(found) == expected and np.isfinite(found).all()):
            raise PayloadError(
                f"the projection of its parameters has {len(found)} numbers, expected {expected} "
                "finite ones"
            )
        return found

    def acknowledge(self, answer: Answer) -> None:
        """Note that an agent has combined what it was due.

        What it has trained since counts for itself alone, unless `deliver` follows.
        """
        due = self._due[answer.vertex]
        if answer.state_round < 0:
            due.uncertain = due.lost = True
            return
        trained = answer.payload is not None or self.keeps_to_itself(answer)
        self._hold(answer, due)
        combined = answer.round if trained else answer.state_round
        self._due[answer.vertex] = _Due(
            combined, epoch=answer.epoch, quarantined=answer.quarantined, base=answer.base
        )
        if answer.payload is not None:
            self._last[answer.vertex] = answer.round
        self.epoch = max(self.epoch, answer.epoch)

    def keeps_to_itself(self, answer: Answer) -> bool:
        """Whether an agent has trained a round in which nobody is to get its payload."""
        due = self._topology.due(answer.vertex, answer.round)
        return answer.trained and answer.payload is None and not due

    def _hold(self, answer: Answer, due: _Due) -> None:
        """Note whose payloads an agent has combined, so that it holds them from now on."""
        held = self._held[answer.vertex]
        if answer.rejoined:
            held.clear()
            held.update(due.begins_from)
        if answer.refused:  # which ones, nobody says in numbers
            held.clear()
        elif not answer.rejoined:
            held.update(dict.fromkeys(due.payloads, due.round))

    def forget_frames(self) -> None:
        """The agents have held rounds among themselves: what is here of before is of no use."""
        self._newest = {}
        self._held = {vertex: {} for vertex in self._held}

    def doubt(self, vertex: int) -> None:
        """An agent has not answered: it may have lost its state."""
        self._due[vertex].uncertain = True

    def deliver(
        self, round: int, frames: Mapping[int, Array], alone: Collection[int] = ()
    ) -> dict[int, int]:
        """Close a round: the frames that came in time go to the neighbors that came too.

        Neighbors whose payloads are of different epochs are missing to each other, and so are
        two of which one has the other in quarantine. alone: who has trained, and has no edge in
        this round. Returns the bytes that each sender's payload took over its edges.
        """
        sent = dict.fromkeys(alone, 0)
        for vertex in alone:
            self._due[vertex] = _Due(round, epoch=self._due[vertex].epoch)
        told = {vertex: self._due[vertex] for vertex in frames}
        held = self._held if self.compression.estimates else None
        if self.encryption != "none":
            for vertex, frame in frames.items():
                told[vertex].sealed_for = _envelope(frame, f"vertex {vertex}").receivers.keys()
        for vertex, frame in frames.items():
            partners = [
                j for j in self._topology.due(vertex, round) if _together(told, vertex, j, held)
            ]
            self._due[vertex] = _Due(
                round, {j: frames[j] for j in partners}, epoch=told[vertex].epoch
            )
            if self.compression.estimates and told[vertex].base >= 0:
                self._newest.pop(vertex, None)  # who has lost its state can make nothing of it
            else:
                self._newest[vertex] = (round, frame)
            sent[vertex] = len(frame_of(frame)) * len(partners)
        return sent


def _together(
    told: Mapping[int, _Due], a: int, b: int, held: Mapping[int, Mapping[int, int]] | None
) -> bool:
    """Whether two neighbors that have delivered can use each other's payloads.

    held: of which rounds each holds the payloads of its neighbors, where that matters.
    """
    if b not in told or told[a].epoch != told[b].epoch:
        return False
    return all(
        one not in told[other].quarantined
        and _can_open(told[other], one)
        and (held is None or told[other].base in (-1, held[one].get(other)))
        for one, other in ((a, b), (b, a))
    )


def _can_open(sender: _Due, receiver: int) -> bool:
    return sender.sealed_for is None or receiver in sender.sealed_for


def _envelope(frame: Array, who: str) -> Envelope:
    return read_envelope(frame_of(frame), who)[0]
