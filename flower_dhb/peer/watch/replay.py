"""Compute a recorded run again, and say whether every peer did what the law says.

Needs what the flight recorder wrote with `record = "payloads"`, of all peers or of some.
Each round of each peer is one check by itself, from recorded payloads and the recorded
state before; so the first wrong step of a peer is named, and its later ones do not hide
behind it.

An edge that counted at one end only is a finding unless one of its ends knows of it: what
nobody can decide (a failure between two acknowledgments) is counted, on the disk, and such
differences are summed up here. Where a record is missing there is nothing to compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from flower_dhb.agent import mixing
from flower_dhb.agent.screening import clip_factors, clipped, distance
from flower_dhb.algorithms import Algorithm, algorithm_from_config
from flower_dhb.errors import ConfigError
from flower_dhb.peer.watch.editions import FORMER, read_editions
from flower_dhb.peer.watch.ledger import Ledger, read_ledger
from flower_dhb.peer.watch.recorder import fingerprint
from flower_dhb.peer.wire.edition import MeshEdition
from flower_dhb.types import State

__all__ = ["Finding", "Record", "Replay", "of_mesh", "read_record"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Finding:
    """Something that a peer did and the law does not say."""

    vertex: int
    round: int
    text: str

    def __str__(self) -> str:
        return f"vertex {self.vertex}, round {self.round}: {self.text}"


@dataclass(frozen=True)
class Record:
    """What one peer wrote down: a line a round, and the files beside it."""

    vertex: int
    lines: Mapping[int, Mapping[str, Any]]
    directory: Path

    def covers(self, k: int) -> bool:
        """Whether a round lies between its first line and its last."""
        return bool(self.lines) and min(self.lines) < k < max(self.lines)

    def arrays(self, k: int, what: str) -> dict[str, NDArray[Any]] | None:
        """Vectors of a round, None if the recorder kept checksums only."""
        path = self.directory / f"round-{k}-{what}.safetensors"
        return dict(load_file(path)) if path.exists() else None


def read_record(directory: Path, vertex: int) -> Record:
    """One peer's record. Raises ConfigError if there is none."""
    path = directory / "record.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f'{path}: {error.strerror}; set record = "payloads" in the device\'s peer.toml'
        ) from None
    lines: dict[int, Mapping[str, Any]] = {}
    for line in text.splitlines():
        try:
            document = json.loads(line)
            lines[int(document["round"])] = document
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a crash; the round was done again
    return Record(vertex, lines, directory)


class Replay:
    """All checks on the records of a mesh.

    records: of each vertex, one for each device that has been it. editions: of the mesh, by
    number; each line says which one its round was of. ledgers: what the peers' disks say
    of their edges. one_sided: edges that counted at one end only and are known to have, in all
    rounds; unseen: those of which one end's record is missing. Both are sums of what `findings`
    has gone through.
    """

    def __init__(
        self,
        records: Mapping[int, Sequence[Record]],
        editions: Mapping[int, MeshEdition],
        algorithm: Algorithm,
        ledgers: Mapping[int, Ledger] | None = None,
    ) -> None:
        self._records, self._editions, self._algorithm = records, editions, algorithm
        self._ledgers = ledgers or {}
        self.rounds_checked = self.rounds_computed = 0
        self.one_sided = self.unseen = 0

    def findings(self) -> Iterator[Finding]:
        """What is not as the law says, by vertex and round."""
        lives = [(v, record) for v, all_of in sorted(self._records.items()) for record in all_of]
        for vertex, record in lives:
            before: str | None = None
            last: State | None = None
            epoch = 0
            for k, line in sorted(record.lines.items()):
                if not line.get("rejoined"):
                    self.rounds_checked += 1
                    yield from self._check_chain(vertex, k, line, before)
                    yield from self._check_edges(vertex, k, line)
                    if last is not None and line.get("epoch", 0) > epoch:
                        last = self._algorithm.restart(last)
                    yield from self._check_memory(record, k, line, last)
                    yield from self._compute(record, k, line)
                before, last = line.get("to"), _combined(record, k)
                epoch = line.get("left_epoch", 0)

    def _check_chain(
        self, vertex: int, k: int, line: Mapping[str, Any], before: str | None
    ) -> Iterator[Finding]:
        if before is not None and line["from"] != before:
            yield Finding(vertex, k, "did not begin from the parameters of its round before")

    def _check_edges(self, vertex: int, k: int, line: Mapping[str, Any]) -> Iterator[Finding]:
        row = self._row(vertex, line)
        if row is None:
            n = line.get("edition", 1)
            yield Finding(vertex, k, f"took part by edition {n}, in which it has no place")
        for name, received in line["received"].items():
            j = int(name)
            if row is not None and (j not in row or j == vertex):
                yield Finding(vertex, k, f"used a payload of {j}, which is no neighbor")
            if j not in self._records:
                continue
            other = self._of(j, k)
            theirs = other.lines.get(k)
            if theirs is None and not other.covers(k):
                self.unseen += 1
            elif theirs is None or theirs.get("rejoined"):
                yield from self._differs(vertex, j, k, "which took no part in it")
            elif theirs.get("edition", 1) != line.get("edition", 1):
                text = f"which was in edition {theirs.get('edition', 1)} of the mesh"
                yield from self._differs(vertex, j, k, text)
            elif theirs["sent"] != received:
                text = f"which sent {theirs['sent']}, not {received}"
                yield from self._differs(vertex, j, k, text)
            elif str(vertex) not in theirs["received"]:
                yield from self._differs(vertex, j, k, "which did not count it")

    def _row(self, vertex: int, line: Mapping[str, Any]) -> Mapping[int, float] | None:
        """The weights of a vertex in a round, None if it had none by the edition of that round."""
        edition = self._editions.get(line.get("edition", 1))
        if edition is None or vertex not in edition.vertices:
            return None
        return edition.row(vertex)

    def _of(self, vertex: int, k: int) -> Record:
        """The record of the device that was a vertex in a round, as far as one can tell."""
        lives = self._records[vertex]
        took_part = [r for r in lives if k in r.lines and not r.lines[k].get("rejoined")]
        return (took_part or [r for r in lives if r.covers(k)] or [lives[-1]])[0]

    def _differs(self, vertex: int, j: int, k: int, text: str) -> Iterator[Finding]:
        """The ends of an edge do not say the same of a round."""
        ends = ((vertex, j), (j, vertex))
        if any(a in self._ledgers and self._ledgers[a].counts(b, k) for a, b in ends):
            self.one_sided += 1
        else:
            yield Finding(vertex, k, f"counted the edge to {j}, {text}; neither of them knows")

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
            for name in self._algorithm.memory
            if not np.array_equal(state.memory[name], other.memory[name])
        ]

    def _compute(self, record: Record, k: int, line: Mapping[str, Any]) -> Iterator[Finding]:
        vertex = record.vertex
        shared, combined = record.arrays(k, "shared"), record.arrays(k, "combined")
        if shared is None or combined is None:
            return
        before = _state(shared, "before/")
        trained = shared["trained"]
        sent = {name: shared[f"sent/{name}"] for name in self._algorithm.vectors}
        outgoing = self._algorithm.outgoing(before, trained)
        if any(not np.array_equal(sent[name], outgoing[name]) for name in sent):
            yield Finding(vertex, k, "sent something else than its rule makes of its training")
        row = self._row(vertex, line)
        payloads: dict[int, Arrays] = {}
        for j in map(int, line["received"]):
            theirs = self._of(j, k).arrays(k, "shared") if j in self._records else None
            if theirs is None:
                return  # that peer's record is not here: nothing to compute with
            payloads[j] = {name: theirs[f"sent/{name}"] for name in self._algorithm.vectors}
        if row is None or not set(payloads) <= set(row):
            return  # which is a finding by itself
        weights = {j: row[j] for j in payloads}
        weights[vertex] = row[vertex] + sum(
            w for j, w in row.items() if j not in {*payloads, vertex}
        )
        if self._algorithm.clips:
            names = self._algorithm.vectors
            mine = [sent[name] for name in names]
            away = {j: distance(mine, [p[name] for name in names]) for j, p in payloads.items()}
            factors = clip_factors(away, self._algorithm.clip_radius)
            weights = clipped(weights, vertex, factors)
        state = mixing.combine(self._algorithm, before, trained, vertex, weights, payloads)
        if line.get("left_epoch", 0) > line.get("epoch", 0):
            state = self._algorithm.restart(state)
        self.rounds_computed += 1
        found = _state(combined, "")
        if not np.array_equal(state.parameters, found.parameters):
            off = float(np.abs(state.parameters - found.parameters).max())
            yield Finding(vertex, k, f"combined to other parameters, by up to {off:.3g}")
        for name in self._differing(state, found):
            off = float(np.abs(state.memory[name] - found.memory[name]).max())
            yield Finding(vertex, k, f"combined to another '{name}', by up to {off:.3g}")
        if fingerprint({"x": found.parameters}) != line["to"]:
            yield Finding(vertex, k, "the recorded parameters are not those of its own record")


def _combined(record: Record, k: int) -> State | None:
    arrays = record.arrays(k, "combined")
    return None if arrays is None else _state(arrays, "")


def _state(arrays: Arrays, prefix: str) -> State:
    memory = f"{prefix}memory/"
    return State(
        arrays[f"{prefix}parameters"],
        {k.removeprefix(memory): v for k, v in arrays.items() if k.startswith(memory)},
    )


def of_mesh(document: Mapping[str, Any], directory: Path) -> Replay:
    """Replay of a mesh whose devices' directories lie beside its `mesh.toml`.

    Among them are those of vertices that were removed, and of devices that were replaced.
    """
    editions = read_editions(directory)
    records: dict[int, list[Record]] = {}
    ledgers = {}
    for v in sorted({v for edition in editions.values() for v in edition.vertices}):
        state = directory / f"vertex-{v}" / "state"
        former = sorted((directory / FORMER).glob(f"vertex-{v}-*/state"))
        for each in (*former, state):
            if (each / "record").exists():
                records.setdefault(v, []).append(read_record(each / "record", v))
        ledger = read_ledger(state)
        if ledger is not None:
            ledgers[v] = ledger
    if not records:
        raise ConfigError(f'{directory}: no records; set record = "payloads" in peer.toml')
    algorithm = algorithm_from_config(document["algorithm"])
    return Replay(records, editions, algorithm, ledgers)
