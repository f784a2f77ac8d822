"""A mesh of peers as one run: each device tells of its own rounds, and nobody of all."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from flower_dhb.errors import ConfigError
from flower_dhb.metrics import is_better_when_lower, summarize
from flower_dhb.pages import graphs
from flower_dhb.pages.events import Events
from flower_dhb.pages.lines import number, read_rounds, running, text
from flower_dhb.pages.model import MISSING, REJOINED, TOOK_PART, UNKNOWN, Floats, Link, Run

__all__ = ["WEIGHT", "read_mesh"]

WEIGHT = "num-examples"  # of an agent in means
_Rounds = dict[int, dict[str, Any]]


def read_mesh(path: Path, folders: Mapping[int, Path]) -> Run:
    """The run of a mesh, by its folder or by what `mesh fetch` has brought.

    folders: of its devices, by vertex. Raises ConfigError if no device has a history.
    """
    notes: list[str] = []
    overview = _overview(path, notes)
    told: dict[int, _Rounds] = {}
    for v, folder in sorted(folders.items()):
        found = [
            p for p in (folder / "history.jsonl", folder / "state" / "history.jsonl") if p.exists()
        ]
        if found:
            rows, wrong = read_rounds(found[0])
            told[v] = {row["round"]: row for row in rows}
            notes += [f"vertex-{v}: {each}" for each in wrong]
    if not told:
        raise ConfigError(
            f"{path}: no device has a history there; 'flower-dhb mesh fetch' brings those of "
            "devices elsewhere"
        )
    hosts = _hosts(overview)
    seats = sorted({*told, *folders, *hosts})
    silent = [v for v in seats if v not in told]
    if silent:
        notes.append("no history is there of " + _listed(silent))
    status = {v: _status(folders[v] / "status.json") for v in folders}
    return _run(path, overview, hosts, seats, told, status, notes)


def _run(
    path: Path,
    overview: Mapping[str, Any],
    hosts: Mapping[int, str],
    seats: list[int],
    told: Mapping[int, _Rounds],
    status: Mapping[int, Mapping[str, Any]],
    notes: list[str],
) -> Run:
    at = {v: i for i, v in enumerate(seats)}
    ks = sorted({k for rounds in told.values() for k in rounds})
    row_of = {k: i for i, k in enumerate(ks)}
    shape = (len(ks), len(seats))
    part = np.full(shape, UNKNOWN, np.int8)
    seconds, received, payload = (np.full(shape, np.nan) for _ in range(3))
    apart: set[tuple[int, int, int]] = set()  # round, and the edge that did not count in it
    events = Events()
    graph = _graph(overview, status, at, hosts)
    near = _neighbors(graph)
    for v, rounds in told.items():
        i = at[v]
        if rounds:
            # Before its first and after its last line it may not have been there.
            part[row_of[min(rounds)] : row_of[max(rounds)] + 1, i] = MISSING
        for k, line in rounds.items():
            missed = line.get("missing")
            absent = {
                at[j]
                for j in (missed if isinstance(missed, list) else [])
                if type(j) is int and j in at
            }
            apart |= {(k, min(i, j), max(i, j)) for j in absent}
            failed = line.get("failure")
            part[row_of[k], i] = (
                MISSING if failed else REJOINED if line.get("rejoined") is True else TOOK_PART
            )
            if failed:
                events.add(k, [i], text(failed))
            seconds[row_of[k], i] = number(line.get("seconds"))
            received[row_of[k], i] = number(line.get("bytes"))
            if count := len(near[(k - 1) % len(near)].get(i, set()) - absent):
                payload[row_of[k], i] = received[row_of[k], i] / count
    bands, last = _metrics(told, ks, at)
    planned = [number(each.get("rounds")) for each in status.values()]
    known = [int(k) for k in planned if not np.isnan(k)]
    config = _config(overview)
    if not known:  # what the mesh was made for; a later edition may have changed it
        planned = [number(config.get(f"device.{key}")) for key in ("rounds", "run-config.rounds")]
        known = [int(k) for k in planned if not np.isnan(k)]
    return Run(
        name=path.resolve().name,
        path=str(path),
        runtime="a mesh of peers, with no server",
        agents=[f"{v} ({hosts[v]})" if hosts.get(v) else str(v) for v in seats],
        rounds=np.array(ks, np.int64),
        planned=max(known, default=0),
        seconds=running(_middle(seconds)),
        bytes=running(
            np.where(np.isfinite(received).any(axis=1), np.nansum(received, axis=1), np.nan)
        ),
        bands=bands,
        average_model={},
        consensus=np.full(len(ks), np.nan),
        part=part,
        last=last,
        agent_bytes=np.where(
            np.isfinite(received).any(axis=0), np.nansum(received, axis=0), np.nan
        ),
        graph="" if graph is None else graph.name,
        places=None if graph is None else graph.places(),
        links=[] if graph is None else _links(graph, part, payload, apart, ks),
        events=events.listed(),
        config=config,
        versions={
            f"vertex {v}": text(each["software"])
            for v, each in status.items()
            if each.get("software")
        },
        notes=notes,
    )


def _links(
    graph: graphs.Graph,
    part: Any,
    payload: Floats,
    apart: set[tuple[int, int, int]],
    ks: list[int],
) -> list[Link]:
    found, due = [], graph.due(ks)
    for at, ((a, b), weight) in enumerate(graph.weights.items()):
        off = np.array([(k, a, b) in apart for k in ks], np.bool_)
        off |= (part[:, a] != TOOK_PART) | (part[:, b] != TOOK_PART)
        # Of rounds in which an end was not there yet, or no more, nothing is known.
        seen = (part[:, a] != UNKNOWN) & (part[:, b] != UNKNOWN)
        carried = np.where(off | ~due[:, at], np.nan, payload[:, a] + payload[:, b])
        found.append(
            Link(
                a=a,
                b=b,
                weight=weight,
                failed=int((off & seen & due[:, at]).sum()),
                bytes=int(np.nansum(carried)) if np.isfinite(carried).any() else None,
            )
        )
    return found


def _metrics(
    told: Mapping[int, _Rounds], ks: list[int], at: Mapping[int, int]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Mean, worst and best agent of each round, and each agent's last values, by metric."""
    bands: dict[str, Floats] = {}
    last: dict[str, Floats] = {}
    for row, k in enumerate(ks):
        found: dict[int, dict[str, float]] = {}
        for v, rounds in told.items():
            values = rounds.get(k, {}).get("evaluate")
            if isinstance(values, dict):
                plain = {text(name): number(value) for name, value in values.items()}
                found[at[v]] = {name: x for name, x in plain.items() if not np.isnan(x)}
        weights = {i: max(values.pop(WEIGHT, 1.0), 0.0) for i, values in found.items()}
        for name, summary in summarize(found, weights).items():
            band = bands.setdefault(name, np.full((len(ks), 3), np.nan))
            band[row] = summary.mean, summary.worst, summary.best
            column = last.setdefault(name, np.full(len(at), np.nan))
            for i, values in found.items():
                column[i] = values.get(name, column[i])
    order = sorted(bands, key=lambda name: (is_better_when_lower(name), name))
    return {name: bands[name] for name in order}, {name: last[name] for name in order}


def _middle(table: Floats) -> Floats:
    """The median of each row, NaN where nothing is known."""
    return np.array(
        [np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in table],
        np.float64,
    )


def _neighbors(graph: graphs.Graph | None) -> list[dict[int, set[int]]]:
    """Who is due to each agent, in each round of a period."""
    near: list[dict[int, set[int]]] = []
    turns = () if graph is None else graph.turns or [frozenset(graph.weights)]
    for edges in turns:
        near.append({})
        for a, b in edges:
            near[-1].setdefault(a, set()).add(b)
            near[-1].setdefault(b, set()).add(a)
    return near or [{}]


def _graph(
    overview: Mapping[str, Any],
    status: Mapping[int, Mapping[str, Any]],
    at: Mapping[int, int],
    hosts: Mapping[int, str],
) -> graphs.Graph | None:
    """Edges by the overview, or else by what the devices say of their neighbors."""
    pairs: set[tuple[int, int]] = set()
    listed = overview.get("edges")
    for edge in listed if isinstance(listed, list) else []:
        ends = edge.get("between") if isinstance(edge, dict) else None
        if isinstance(ends, list) and len(ends) == 2 and all(v in at for v in ends):
            pairs.add((at[ends[0]], at[ends[1]]))
    if not pairs:
        for v, each in status.items():
            seen = each.get("neighbors")
            for other in seen if isinstance(seen, list) else []:
                # A vertex of 0 is left out of the document.
                j = other.get("vertex", 0) if isinstance(other, dict) else None
                if type(j) is int and j in at and j != v:
                    pairs.add((at[v], at[j]))
    if not pairs:
        return None
    name = text(overview.get("topology", ""))
    ends = sorted((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1])
    planned = graphs.of_name(name, text(overview.get("weights", graphs.WEIGHTS))) if name else None
    known = planned.weights if planned is not None and {*planned.weights} == {*ends} else {}
    return graphs.Graph(
        name=name or "as the devices say",
        agents=[hosts.get(v) or str(v) for v in at],
        weights={edge: known.get(edge) for edge in ends},
        turns=_turns(overview.get("turns"), at),
    )


def _turns(listed: Any, at: Mapping[int, int]) -> tuple[frozenset[tuple[int, int]], ...]:
    """The edges of each round of a period, none where that cannot be read."""
    found = []
    for turn in listed if isinstance(listed, list) else []:
        pairs = turn if isinstance(turn, list) else []
        if not all(isinstance(p, list) and len(p) == 2 and {*p} <= {*at} for p in pairs):
            return ()
        ends = (sorted((at[a], at[b])) for a, b in pairs)
        found.append(frozenset((a, b) for a, b in ends))
    return tuple(found)


def _hosts(overview: Mapping[str, Any]) -> dict[int, str]:
    """Names of the vertices, empty where a vertex has none."""
    listed = overview.get("hosts")
    return {
        host["vertex"]: text(host.get("name", ""))
        for host in (listed if isinstance(listed, list) else [])
        if isinstance(host, dict) and type(host.get("vertex")) is int
    }


def _config(overview: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as flat as a run config is: tables in names with dots, no lists."""
    found: dict[str, Any] = {}
    for key, value in overview.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": inner for name, inner in _config(value).items()}
        elif not isinstance(value, list):
            found[key] = value
    return found


def _overview(path: Path, notes: list[str]) -> dict[str, Any]:
    """What the operator knows of the mesh: in its own folder, or as `mesh fetch` has copied it."""
    for name in ("mesh.toml", "overview.toml"):
        try:
            return tomllib.loads((path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            notes.append(f"{name}: is damaged, and left out")
            return {}
    notes.append(
        "overview.toml is not there, so weights and configuration are not known; fetch again "
        "with 'flower-dhb mesh fetch', or copy mesh.toml from the mesh's folder"
    )
    return {}


def _status(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            # 64-bit numbers are texts in JSON that comes from protobuf.
            rounds = str(found.get("rounds", ""))[:18]
            return found | ({"rounds": int(rounds)} if rounds.isdecimal() else {})
    return {}


def _listed(vertices: list[int]) -> str:
    shown = ", ".join(str(v) for v in vertices[:10])
    return f"vertices {shown}" + (f" and {len(vertices) - 10} more" if len(vertices) > 10 else "")
