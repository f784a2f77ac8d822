"""A folder that a run left, as the runs that a page shows."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError
from flower_dhb.pages import graphs
from flower_dhb.pages.comparisons import is_comparison, read_comparison
from flower_dhb.pages.events import Events
from flower_dhb.pages.lines import number, numbers, read_rounds, running, text, texts, vertices
from flower_dhb.pages.meshes import read_mesh
from flower_dhb.pages.model import MISSING, REJOINED, TOOK_PART, Floats, Link, Run

__all__ = ["read_run", "read_runs"]

_MOST_AGENTS = 20_000
_BLOCK = 512  # links whose rounds are held at a time
_BANDS = ("mean", "worst", "best")
_OURS = ("bytes_sent", "consensus")  # begin no name of a metric


def read_runs(path: Path) -> list[Run]:
    """What a folder holds: one run, or the methods of a comparison. Raises ConfigError if none."""
    return read_comparison(path) if is_comparison(path) else [read_run(path)]


def read_run(path: Path) -> Run:
    """A run, by the folder that it left or that `mesh fetch` has filled.

    Raises ConfigError if there is none. What is damaged is left out and noted.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: is no folder; name the folder of a run")
    if (path / "history.jsonl").exists():
        return _of_flower(path)
    devices = {
        int(folder.name.removeprefix("vertex-")): folder
        for folder in path.glob("vertex-*")
        if folder.name.removeprefix("vertex-").isascii()
        and folder.name.removeprefix("vertex-").isdigit()
    }
    if devices or (path / "mesh.toml").exists():
        return read_mesh(path, devices)
    raise ConfigError(
        f"{path}: holds no run: neither history.jsonl, which a run writes, nor compare.json, which "
        "'compare' writes, nor mesh.toml or vertex-0, vertex-1, …, which 'mesh create' and 'mesh "
        "fetch' write"
    )


def _of_flower(path: Path) -> Run:
    rows, notes = read_rounds(path / "history.jsonl")
    config = _toml(path / "config.toml", notes)
    about = _json(path / "run.json", notes)
    graph = graphs.of_edges(about.get("topology"))
    if graph is None:
        graph = graphs.of_name(
            str(config.get("topology", "")),
            str(config.get("weights", graphs.WEIGHTS)),
            config.get("share-every", 1),
        )
    if graph is None:
        notes.append("the communication graph is not known")
    n = len(graph.agents) if graph is not None else _count(rows)
    bands = _bands(rows)
    ks, part = [row["round"] for row in rows], _part(rows, n)
    by_agent = np.array([numbers(row.get("bytes_sent_by_agent"), n) for row in rows])
    by_agent = by_agent.reshape(len(rows), n)
    versions = about.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    planned = number(config.get("rounds", config.get("num-server-rounds")))
    events = Events()
    for row in rows:
        told = row.get("events")
        for event in told if isinstance(told, list) else []:
            if isinstance(event, Mapping):
                events.add(row["round"], vertices([event.get("agent")], n), text(event.get("what")))
    return Run(
        name=path.resolve().name,
        path=str(path),
        runtime="Flower",
        agents=list(graph.agents) if graph is not None else [str(v) for v in range(n)],
        rounds=np.array(ks, np.int64),
        planned=0 if np.isnan(planned) else int(planned),
        seconds=running([number(row.get("seconds")) for row in rows]),
        bytes=running([number(row.get("bytes_sent")) for row in rows]),
        bands=bands,
        average_model=_columns(rows, "_average_model"),
        consensus=np.array([number(row.get("consensus_distance")) for row in rows], np.float64),
        way=np.array([number(row.get("distance_from_start")) for row in rows], np.float64),
        part=part,
        last=_last(rows, n, bands),
        agent_bytes=np.nansum(by_agent, axis=0) if len(rows) else np.full(n, np.nan),
        graph="" if graph is None else graph.name,
        places=None if graph is None else graph.places(),
        links=[] if graph is None else _links(graph, ks, part, by_agent),
        warnings=[(row["round"], each) for row in rows for each in texts(row.get("warnings"))],
        events=events.listed(),
        split=_split(path / "split.json", n, notes),
        config=config,
        versions={text(k): text(v) for k, v in versions.items()},
        again=f"flower-dhb run . -c {shlex.quote(str(path / 'config.toml'))}" if config else "",
        notes=notes,
    )


def _links(
    graph: graphs.Graph, rounds: Sequence[int], part: NDArray[np.int8], by_agent: Floats
) -> list[Link]:
    """What each edge carried: it counts in a round in which it is due and both ends delivered."""
    there, due = part == TOOK_PART, graph.due(rounds)
    partners = np.zeros((part.shape[1], part.shape[0]))  # by agent: its rows lie together
    here = np.ascontiguousarray(there.T)
    for at, (a, b) in enumerate(graph.weights):
        both = here[a] & here[b] & due[:, at]
        partners[a] += both
        partners[b] += both
    partners = partners.T
    # A round's payload goes in equal parts to all neighbors that took part.
    each = np.divide(by_agent, partners, out=np.zeros(part.shape), where=partners > 0)
    known = bool(np.isfinite(by_agent).any())
    ends = np.array([*graph.weights], np.int64).reshape(-1, 2)
    failed, carried = np.zeros(len(ends), np.int64), np.zeros(len(ends))
    for start in range(0, len(ends), _BLOCK):
        a, b = ends[start : start + _BLOCK].T
        asked = due[:, start : start + _BLOCK]
        both = there[:, a] & there[:, b] & asked
        failed[start : start + _BLOCK] = (asked & ~both).sum(axis=0)
        sent = np.where(both, np.nan_to_num(each[:, a] + each[:, b]), 0.0)
        carried[start : start + _BLOCK] = sent.sum(axis=0)
    return [
        Link(a=a, b=b, weight=weight, failed=int(failed[at]), bytes=int(sent) if known else None)
        for at, (((a, b), weight), sent) in enumerate(
            zip(graph.weights.items(), carried, strict=True)
        )
    ]


def _part(rows: Sequence[Mapping[str, Any]], n: int) -> NDArray[np.int8]:
    part = np.full((len(rows), n), TOOK_PART, np.int8)
    for at, row in enumerate(rows):
        part[at, vertices(row.get("rejoined"), n)] = REJOINED
        part[at, vertices(row.get("missing"), n)] = MISSING
    return part


def _bands(rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    names = _names(rows, "_mean")
    found = {}
    for name in names:
        table = [[number(row.get(f"{name}_{which}")) for which in _BANDS] for row in rows]
        band = np.array(table, np.float64).reshape(-1, 3)
        if np.isfinite(band[:, 0]).any():
            found[name] = band
    return found


def _columns(rows: Sequence[Mapping[str, Any]], ending: str) -> dict[str, Floats]:
    found = {}
    for name in _names(rows, ending):
        column = np.array([number(row.get(f"{name}{ending}")) for row in rows], np.float64)
        if np.isfinite(column).any():
            found[name] = column
    return found


def _names(rows: Sequence[Mapping[str, Any]], ending: str) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row)
    found = [text(key.removesuffix(ending)) for key in keys if key.endswith(ending)]
    return [name for name in found if name and not name.startswith(_OURS)]


def _last(rows: Sequence[Mapping[str, Any]], n: int, names: Iterable[str]) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    for name in names:
        value = np.full(n, np.nan)
        for row in reversed(rows):
            here = numbers(row.get(name), n)
            value = np.where(np.isnan(value), here, value)
            if np.isfinite(value).all():
                break
        if np.isfinite(value).any():
            found[name] = value
    return found


def _count(rows: Sequence[Mapping[str, Any]]) -> int:
    """Number of agents by the lists of a history."""
    lists = [
        value
        for row in rows
        for key, value in row.items()
        if isinstance(value, list)
        and key not in ("events", "warnings", "missing", "rejoined", "policies")
    ]
    return min(max((len(value) for value in lists), default=0), _MOST_AGENTS)


def _split(path: Path, n: int, notes: list[str]) -> NDArray[np.int64] | None:
    counts = _json(path, notes).get("counts")
    try:
        table = np.array(counts, np.float64)
    except (ValueError, TypeError):
        table = np.zeros(0)
    good = table.ndim == 2 and table.shape[1] == n and bool((table >= 0).all())
    if counts is not None and not good:
        notes.append(f"{path.name}: is damaged, and left out")
    return table.astype(np.int64) if good and table.size else None


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A document, empty if there is none or it is damaged, which is noted."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name}: is damaged, and left out")
        return {}
    return found


def _toml(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name}: is not there, so the run's configuration is not known")
    except (OSError, ValueError, RecursionError):
        notes.append(f"{path.name}: is damaged, and left out")
    return {}
