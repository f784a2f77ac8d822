"""What `flower-dhb compare` leaves, as runs side by side: one for each method on each graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flower_dhb.errors import ConfigError
from flower_dhb.metrics import is_better_when_lower
from flower_dhb.pages import graphs
from flower_dhb.pages.lines import number, numbers, text
from flower_dhb.pages.model import UNKNOWN, Floats, Run

__all__ = ["MOST", "is_comparison", "read_comparison"]

MOST = 8  # runs of a comparison on a page, those with the best scores
_VIEWS = ("rounds", "mean", "worst", "average", "consensus", "megabytes")
# What makes a case.
_SAME = ("topology", "split", "local_steps", "optimizer", "schedule", "compression")
_USUAL = {"local_steps": 1, "optimizer": "sgd", "schedule": "constant", "compression": "none"}


def is_comparison(path: Path) -> bool:
    """Whether a folder is what `flower-dhb compare` writes, finished or not."""
    if (path / "compare.json").is_file():
        return True
    return any(_settings(each) is not None for each in _kept(path)[:1])


def read_comparison(path: Path) -> list[Run]:
    """The methods of a comparison, best first if there are more than `MOST`.

    Curves are means over seeds. Raises ConfigError if there is nothing that can be read.
    """
    whole = path / "compare.json"
    found = _of_document(path, whole) if whole.is_file() else _of_kept(path)
    if not found:
        raise ConfigError(f"{path}: the comparison has no run that was evaluated")
    if len(found) <= MOST:
        return found
    note = f"{MOST} of {len(found)} runs of the comparison are shown, those with the best mean"
    best = sorted(found, key=_rank)[:MOST]
    return [replace(run, notes=[*run.notes, note]) for run in found if run in best]


def _rank(run: Run) -> float:
    ((name, band),) = run.bands.items()
    value = float(band[-1, 0])
    return value if is_better_when_lower(name) else -value


def _of_document(path: Path, file: Path) -> list[Run]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ConfigError(f"{file}: is damaged; '{path / 'runs'}' has the single runs") from None
    settings = _mapping(_mapping(document).get("settings"))
    outcomes = _mapping(document).get("outcomes")
    versions = _mapping(_mapping(document).get("versions"))
    metric = text(_mapping(document).get("metric", "score"))
    found = []
    for outcome in outcomes if isinstance(outcomes, list) else []:
        about = {**settings, **_mapping(outcome)}
        runs = about.pop("runs", None)
        run = _run(path, about, metric, runs if isinstance(runs, list) else [], versions, [])
        found += [run] if run is not None else []
    return _named(found)


def _of_kept(path: Path) -> list[Run]:
    """Those that are finished, of a comparison that is not: tuning's runs are left out."""
    groups: dict[str, tuple[dict[str, Any], list[Any]]] = {}
    for file in _kept(path):
        settings = _settings(file)
        if settings is None or settings.get("part") != "test":
            continue
        same = {k: v for k, v in settings.items() if k not in ("seed", "data", "code", "graph")}
        curves = _mapping(json.loads(file.read_text(encoding="utf-8"))).get("curves")
        groups.setdefault(json.dumps(same, sort_keys=True), (same, []))[1].append(curves)
    found = []
    for same, curves in groups.values():
        same["method"] = text(_mapping(same.get("algorithm")).get("name", "a rule"))
        note = "the comparison is not finished; the runs that are so far were read"
        # The name of the metric is not kept, but the worst agent has more of what is no gain.
        tables = [_table(_mapping(each)) for each in curves]
        down = any((each[2] > each[1]).any() for each in tables)
        run = _run(path, same, "error" if down else "score", curves, {}, [note])
        found += [run] if run is not None else []
    return _named(found)


def _kept(path: Path) -> list[Path]:
    return sorted((path / "runs").glob("*.json"))


def _settings(file: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    found = _mapping(_mapping(document).get("run"))
    return dict(found) if "algorithm" in found and "curves" in document else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _run(
    path: Path,
    about: Mapping[str, Any],
    metric: str,
    runs: Sequence[Any],
    versions: Mapping[str, Any],
    notes: list[str],
) -> Run | None:
    """The mean over seeds of one method; None if nothing of it was evaluated."""
    curves = [_mapping(each) for each in runs]
    tables = [_table(each) for each in curves]
    tables = [each for each in tables if each.shape[1]]
    if not tables:
        return None
    shortest = min(each.shape[1] for each in tables)
    whole = np.mean([each[:, :shortest] for each in tables], axis=0)
    rounds, mean, worst, average, consensus, megabytes = whole
    scores = [each.get("agents") for each in curves]
    n = max((len(each) for each in scores if isinstance(each, list)), default=0)
    last = np.array([numbers(each, n) for each in scores], np.float64).reshape(-1, n)
    stopped = [text(each["stopped"]) for each in curves if each.get("stopped")]
    topology = text(about.get("topology", ""))
    graph = graphs.of_name(topology, text(about.get("weights", graphs.WEIGHTS)))
    if graph is not None and len(graph.agents) != n:
        graph = None
    planned = number(about.get("rounds"))
    seeds = f"mean over {len(tables)} seeds" if len(tables) > 1 else "one seed"
    config = {k: about[k] for k in sorted(about) if isinstance(about[k], str | int | float)}
    blank = np.full(shortest, np.nan)
    return Run(
        name=text(about.get("method", "a rule")),
        path=str(path),
        runtime=f"the engine, all agents in one process ({seeds})",
        agents=list(graph.agents) if graph is not None else [str(v) for v in range(n)],
        rounds=rounds.astype(np.int64),
        planned=0 if np.isnan(planned) else int(planned),
        seconds=blank,
        bytes=megabytes * 1e6,
        bands={metric: np.column_stack([mean, worst, blank])},
        average_model={metric: average} if np.isfinite(average).any() else {},
        consensus=consensus,
        part=np.full((shortest, n), UNKNOWN, np.int8),
        last={metric: last.mean(axis=0)} if n and np.isfinite(last).all() else {},
        agent_bytes=np.full(n, np.nan),
        graph=topology,
        places=None if graph is None else graph.places(),
        links=[] if graph is None else graph.unused(),
        warnings=[(int(rounds[-1]), f"a run was stopped: {why}") for why in stopped],
        config=config,
        versions={text(k): text(v) for k, v in versions.items() if not isinstance(v, Mapping)},
        notes=notes,
    )


def _table(curves: Mapping[str, Any]) -> Floats:
    """A row for each of `_VIEWS`, as long as the shortest of them."""
    rows = [curves.get(name) for name in _VIEWS]
    k = min(len(row) if isinstance(row, list) else 0 for row in rows)
    return np.array([numbers(row, k) for row in rows], np.float64).reshape(len(_VIEWS), k)


def _named(runs: list[Run]) -> list[Run]:
    """Names that tell them apart: of what differs between cases, beside the method."""
    cases = [{k: run.config.get(k, _USUAL.get(k, "")) for k in _SAME} for run in runs]
    differ = [k for k in _SAME if len({str(case[k]) for case in cases}) > 1]
    return [
        replace(run, name=", ".join([run.name, *(text(case[k]) for k in differ)]))
        for run, case in zip(runs, cases, strict=True)
    ]
