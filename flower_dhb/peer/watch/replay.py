"""Compute a recorded run again, and say whether every peer did what the law says.

Needs what the flight recorder wrote with `record = "payloads"`, of all peers or of some.
Each round of each peer is one check by itself, from recorded payloads and the recorded
state before; so the first wrong step of a peer is named, and its later ones do not hide
behind it. All records are gone through side by side, round by round, so that no more of them is
in memory than a few hundred lines each.

Three things are kept apart. *Not as the law says* is what a record shows (`Finding`). What
nobody can decide (a failure between two acknowledgments, which lets an edge count at one end
only) is *counted in doubt*, and known on the disk of one of its ends (`Doubt`). Where a record is
missing, or has no vectors, there is *no evidence* (`Unseen`), and nobody is guilty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from flower_dhb.agent import mixing
from flower_dhb.agent.compression import NONE, Compression, Compressor
from flower_dhb.agent.node import compressor_of
from flower_dhb.agent.screening import clip_factors, clipped, distance
from flower_dhb.algorithms import Algorithm, algorithm_from_config
from flower_dhb.algorithms.measurement import measured
from flower_dhb.errors import ConfigError
from flower_dhb.peer.protocol.edition import in_turn
from flower_dhb.peer.watch.editions import FORMER, read_editions
from flower_dhb.peer.watch.ledger import Ledger, read_ledger
from flower_dhb.peer.watch.recorder import fingerprint
from flower_dhb.peer.watch.records import Record, Spans, read_record
from flower_dhb.peer.wire.edition import MeshEdition
from flower_dhb.references import folder_here
from flower_dhb.types import Layout, State

__all__ = ["Doubt", "Finding", "Replay", "Unseen", "of_mesh"]

Arrays = Mapping[str, NDArray[Any]]

_START = "start.safetensors"  # the initial arrays, in the mesh's folder


@dataclass(frozen=True)
class Finding:
    """Something that a peer did and the law does not say.

    text: the same for all findings of a kind. off: how far it is from the law, where that is a
    number. detail: what is of this round alone.
    """

    vertex: int
    round: int
    text: str
    off: float | None = None
    detail: str = ""

    def __str__(self) -> str:
        off = "" if self.off is None else f", by up to {self.off:.3g}"
        return f"vertex {self.vertex}, round {self.round}: {self.text}{off}{self.detail}"


@dataclass(frozen=True)
class Doubt:
    """An edge that counted at one end only, and is known to have. evidence: who knows, and how."""

    edge: tuple[int, int]
    evidence: str
    rounds: Spans

    def __str__(self) -> str:
        return f"edge {self.edge[0]}–{self.edge[1]}, {self.rounds}: {self.evidence}"


@dataclass(frozen=True)
class Unseen:
    """What could not be checked. is_gap: a round is missing between others of a record."""

    subject: str
    text: str
    rounds: Spans
    is_gap: bool = False

    def __str__(self) -> str:
        rounds = f", {self.rounds}" if len(self.rounds) else ""
        return f"{self.subject}{rounds}: {self.text}"


@dataclass
class _Life:
    """One record on its way through the rounds. at: the last round that was looked at."""

    record: Record
    at: int | None = None
    before: str | None = None
    last: State | None = None
    epoch: int = 0


@dataclass
class Replay:
    """All checks on the records of a mesh.

    records: of each vertex, one for each device that has been it. editions: of the mesh, by
    number; each line says which one its round was of. ledgers: what the peers' disks say
    of their edges. compressor: of payloads, None if they were sent as they are. All that follows
    is what `findings` has gone through. one_sided: edges that counted at one end only and are known
    to have, in all rounds; unseen: those that cannot be judged.
    """

    records: Mapping[int, Sequence[Record]]
    editions: Mapping[int, MeshEdition]
    algorithm: Algorithm
    ledgers: Mapping[int, Ledger] = field(default_factory=dict)
    compressor: Compressor | None = None
    rounds_checked: int = 0
    rounds_computed: int = 0
    one_sided: int = 0
    unseen: int = 0

    def __post_init__(self) -> None:
        self._found: list[Finding] = []
        self._doubts: dict[tuple[tuple[int, int], str], Spans] = {}
        self._unseen: dict[tuple[str, str, bool], Spans] = {}
        self._rows: dict[tuple[int, int, int], Mapping[int, float] | None] = {}

    # --- what comes of it -----------------------------------------------------------------

    @property
    def doubts(self) -> list[Doubt]:
        """Edges that counted at one end only, and are known to have."""
        return [Doubt(edge, why, rounds) for (edge, why), rounds in sorted(self._doubts.items())]

    @property
    def no_evidence(self) -> list[Unseen]:
        """What could not be checked, and why."""
        return [
            Unseen(subject, text, rounds, is_gap)
            for (subject, text, is_gap), rounds in self._unseen.items()
        ]

    @property
    def gaps(self) -> list[Unseen]:
        """Rounds that are missing between others of a record."""
        return [unseen for unseen in self.no_evidence if unseen.is_gap]

    def findings(self) -> list[Finding]:
        """What is not as the law says, by vertex and round. Goes through all records."""
        self._begin_anew()
        for v in sorted({v for edition in self.editions.values() for v in edition.vertices}):
            if v not in self.records:
                self._miss(f"vertex {v}", "there is no record of it", None)
        lives = [_Life(record) for _, all_of in sorted(self.records.items()) for record in all_of]
        steps = merge(*(zip(life.record.lines, repeat(i)) for i, life in enumerate(lives)))
        for k, i in steps:
            self._found += self._look(lives[i], k)
        self._found.sort(key=lambda finding: (finding.vertex, finding.round))
        return self._found

    def _begin_anew(self) -> None:
        self.rounds_checked = self.rounds_computed = self.one_sided = self.unseen = 0
        self._found.clear()
        self._doubts.clear()
        self._unseen.clear()

    def _miss(self, subject: str, text: str, k: int | None, *, is_gap: bool = False) -> None:
        spans = self._unseen.setdefault((subject, text, is_gap), Spans())
        if k is not None:
            spans.add(k)

    # --- a round of a record ----------------------------------------------------------------

    def _look(self, life: _Life, k: int) -> Iterator[Finding]:
        record, vertex = life.record, life.record.vertex
        line = record.lines[k]
        if not line.get("rejoined"):
            self.rounds_checked += 1
            yield from self._check_chain(life, k, line)
            yield from self._check_edges(vertex, k, line)
            if life.last is not None and line.get("epoch", 0) > life.epoch:
                life.last = self.algorithm.restart(life.last)
            yield from self._check_memory(record, k, line, life.last)
            yield from self._compute(record, k, line)
        life.at, life.before, life.last = k, line.get("to"), _combined(record, k)
        life.epoch = line.get("left_epoch", 0)

    def _check_chain(self, life: _Life, k: int, line: Mapping[str, Any]) -> Iterator[Finding]:
        if life.before is None or life.at is None or line["from"] == life.before:
            return
        vertex = life.record.vertex
        if k == life.at + 1:
            yield Finding(vertex, k, "did not begin from the parameters of its round before")
            return
        life.last = None  # it ended a round of which there is no line
        key = (f"vertex {vertex}", "not in its record", True)
        self._unseen.setdefault(key, Spans()).add(life.at + 1, k - 1)

    def _check_edges(self, vertex: int, k: int, line: Mapping[str, Any]) -> Iterator[Finding]:
        row = self._row(vertex, k, line)
        if row is None:
            n = line.get("edition", 1)
            yield Finding(vertex, k, f"took part by edition {n}, in which it has no place")
        for name, received in line["received"].items():
            j = int(name)
            if row is not None and (j not in row or j == vertex):
                yield Finding(vertex, k, f"used a payload of {j}, which is no neighbor")
            if j not in self.records:
                self.unseen += 1
                continue  # which was said
            other = self._of(j, k)
            theirs = other.lines.get(k)
            counted = f"counted the edge to {j}"
            if theirs is None:
                self._check_absent(vertex, other, k)
            elif theirs.get("rejoined"):
                yield from self._differs(vertex, j, k, f"{counted}, which took no part in it")
            elif theirs.get("edition", 1) != line.get("edition", 1):
                text = f"{counted}, which was in edition {theirs.get('edition', 1)} of the mesh"
                yield from self._differs(vertex, j, k, text)
            elif theirs["sent"] != received:
                detail = f": {theirs['sent']}, not {received}"
                yield from self._differs(vertex, j, k, f"{counted}, which sent another", detail)
            elif str(vertex) not in theirs["received"]:
                yield from self._differs(vertex, j, k, f"{counted}, which did not count it")

    def _check_absent(self, vertex: int, other: Record, k: int) -> None:
        """An edge counted, and the other end's record has nothing of this round."""
        j = other.vertex
        if not self._is_known(vertex, j, k):
            self.unseen += 1
            text = f"the record of vertex {j} has nothing of it"
            self._miss(_edge(vertex, j), text, k, is_gap=other.covers(k))

    def _row(self, vertex: int, k: int, line: Mapping[str, Any]) -> Mapping[int, float] | None:
        """The weights of a vertex in a round, None if it had none by the edition of that round."""
        number = line.get("edition", 1)
        edition = self.editions.get(number)
        if edition is None or vertex not in edition.vertices:
            return None
        key = vertex, number, in_turn(range(len(edition.turns)), k) if edition.turns else 0
        if key not in self._rows:
            self._rows[key] = edition.row_at(vertex, k)
        return self._rows[key]

    def _of(self, vertex: int, k: int) -> Record:
        """The record of the device that was a vertex in a round, as far as one can tell."""
        lives = self.records[vertex]
        if len(lives) == 1:
            return lives[0]
        took_part = [r for r in lives if r.took_part(k)]
        return (took_part or [r for r in lives if r.covers(k)] or [lives[-1]])[0]

    def _differs(
        self, vertex: int, j: int, k: int, text: str, detail: str = ""
    ) -> Iterator[Finding]:
        """The ends of an edge do not say the same of a round."""
        if not self._is_known(vertex, j, k):
            yield Finding(vertex, k, f"{text}; neither of them knows", detail=detail)

    def _is_known(self, vertex: int, j: int, k: int) -> bool:
        """Whether the disk of one end knows that an edge counted at the other end only."""
        for end, other in ((vertex, j), (j, vertex)):
            evidence = self.ledgers[end].evidence(other, k) if end in self.ledgers else None
            if evidence is not None:
                self.one_sided += 1
                key = (min(vertex, j), max(vertex, j)), f"vertex {end}'s disk {evidence}"
                self._doubts.setdefault(key, Spans()).add(k)
                return True
        return False

    def _check_memory(
        self, record: Record, k: int, line: Mapping[str, Any], last: State | None
    ) -> Iterator[Finding]:
        """What a round began from, as it was recorded: the vectors, not their fingerprints."""
        shared = record.arrays(k, "shared")
        if shared is None:
            return
        before = _state(shared, "before/")
        if fingerprint({"x": before.parameters}) != line["from"]:
            yield Finding(record.vertex, k, "the recorded start is not that of its own record")
        for name in self._differing(before, last):
            yield Finding(record.vertex, k, f"did not begin from the '{name}' of its round before")

    def _differing(self, state: State, other: State | None) -> list[str]:
        """Vectors of the rule's memory that differ between two states."""
        if other is None:
            return []
        return [
            name
            for name in self.algorithm.memory
            if not np.array_equal(state.memory[name], other.memory[name])
        ]

    def _compute(self, record: Record, k: int, line: Mapping[str, Any]) -> Iterator[Finding]:
        vertex = record.vertex
        shared, combined = record.arrays(k, "shared"), record.arrays(k, "combined")
        who = f"vertex {vertex}"
        if shared is None or combined is None:
            self._miss(who, "not computed again: its record has no vectors of it", k)
            return
        trained = shared["trained"]
        before = replace(_state(shared, "before/"), round=k - 1)
        before = measured(self.algorithm, before, trained)
        sent = {name: shared[f"sent/{name}"] for name in self.algorithm.vectors}
        outgoing = self.algorithm.outgoing(before, trained)
        if not self._makes(vertex, k, outgoing, sent, shared):
            yield Finding(vertex, k, "sent something else than its rule makes of its training")
        row = self._row(vertex, k, line)
        payloads: dict[int, Arrays] = {}
        for j in map(int, line["received"]):
            theirs = self._of(j, k).arrays(k, "shared") if j in self.records else None
            if theirs is None:
                self._miss(who, f"not computed again: there are no vectors of vertex {j}", k)
                return
            payloads[j] = {name: theirs[f"sent/{name}"] for name in self.algorithm.vectors}
        if row is None or not set(payloads) <= set(row):
            return  # which is a finding by itself
        weights = {j: row[j] for j in payloads}
        weights[vertex] = row[vertex] + sum(
            w for j, w in row.items() if j not in {*payloads, vertex}
        )
        if self.algorithm.clips:
            names = self.algorithm.vectors
            mine = [sent[name] for name in names]
            away = {j: distance(mine, [p[name] for name in names]) for j, p in payloads.items()}
            factors = clip_factors(away, self.algorithm.clip_radius)
            weights = clipped(weights, vertex, factors)
        if self.compressor is not None:
            weights, payloads = self.compressor.mixing(sent, payloads, weights, vertex, k)
        state = mixing.combine(self.algorithm, before, trained, vertex, weights, payloads)
        if line.get("left_epoch", 0) > line.get("epoch", 0):
            state = self.algorithm.restart(state)
        self.rounds_computed += 1
        found = _state(combined, "")
        if not np.array_equal(state.parameters, found.parameters):
            off = float(np.abs(state.parameters - found.parameters).max())
            yield Finding(vertex, k, "combined to other parameters", off)
        for name in self._differing(state, found):
            off = float(np.abs(state.memory[name] - found.memory[name]).max())
            yield Finding(vertex, k, f"combined to another '{name}'", off)
        if fingerprint({"x": found.parameters}) != line["to"]:
            yield Finding(vertex, k, "the recorded parameters are not those of its own record")

    def _makes(self, vertex: int, k: int, payload: Arrays, sent: Arrays, shared: Arrays) -> bool:
        """Whether a payload is what was sent, or stands for what its codes and memory make."""
        names, compressor = self.algorithm.vectors, self.compressor
        if compressor is None or f"codes/{names[0]}" not in shared:
            return all(np.array_equal(sent[name], payload[name]) for name in names)
        codes = {name: shared[f"codes/{name}"] for name in names}
        known = {name: shared[f"known/{name}"] for name in names if f"known/{name}" in shared}
        public = compressor.decode(codes, known, k)
        if any(not np.array_equal(sent[name], public[name]) for name in names):
            return False
        if compressor.compression.select == "lowrank":  # its factors are a machine's own
            return True
        again = compressor.encode(payload, known, k, vertex)
        return again is not None and all(np.array_equal(again[n], codes[n]) for n in names)


def _edge(a: int, b: int) -> str:
    return f"edge {min(a, b)}–{max(a, b)}"


def _combined(record: Record, k: int) -> State | None:
    arrays = record.arrays(k, "combined")
    return None if arrays is None else _state(arrays, "")


def _state(arrays: Arrays, prefix: str) -> State:
    memory = f"{prefix}memory/"
    return State(
        arrays[f"{prefix}parameters"],
        {k.removeprefix(memory): v for k, v in arrays.items() if k.startswith(memory)},
    )


def of_mesh(document: Mapping[str, Any], directory: Path, fetched: Path | None = None) -> Replay:
    """Replay of a mesh whose devices' directories lie beside its `mesh.toml`.

    fetched: where `flower-dhb mesh fetch` has put the records, if they are not there. Among
    them are those of vertices that were removed, and of devices that were replaced.
    """
    editions = read_editions(directory)
    records: dict[int, list[Record]] = {}
    ledgers = {}
    for v in sorted({v for edition in editions.values() for v in edition.vertices}):
        state = directory / f"vertex-{v}" / "state" if fetched is None else fetched / f"vertex-{v}"
        former = sorted((directory / FORMER).glob(f"vertex-{v}-*/state"))
        for each in (*former, state):
            if (each / "record").exists():
                records.setdefault(v, []).append(read_record(each / "record", v))
        ledger = read_ledger(state)
        if ledger is not None:
            ledgers[v] = ledger
    if not records:
        raise ConfigError(
            f'{fetched or directory}: no records; set record = "payloads" in peer.toml'
        )
    app = folder_here(document.get("device", {}).get("app"))
    algorithm = algorithm_from_config(document["algorithm"], app)
    compression = Compression.parse(document.get("device", {}).get("compression", NONE))
    compressor = None
    if compression.on:
        try:
            layout = Layout.of(load_file(directory / _START))
        except OSError as error:
            raise ConfigError(
                f"{directory / _START}: {error.strerror or error}; what was sent of compressed "
                "payloads follows from the model's arrays, so put the file back that 'mesh create' "
                "wrote there, or that of a device"
            ) from None
        compressor = compressor_of(compression, algorithm, layout)
    return Replay(records, editions, algorithm, ledgers, compressor)
