"""Pictures of runs as Vega-Lite specifications, each with its words and the table of its numbers.

Names that come from a run are data or titles in a specification, never names of fields, so that
nothing of them is read as an expression. `@name` is a color of the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from flower_dhb.metrics import is_better_when_lower, size_text
from flower_dhb.pages.graphs import DRAWN_LINKS
from flower_dhb.pages.model import MISSING, REJOINED, TOOK_PART, UNKNOWN, Floats, Run
from flower_dhb.pages.thinning import blocks, kept
from flower_dhb.pages.words import count, is_share, score

__all__ = [
    "COLORS",
    "DASHES",
    "LINKS",
    "LINKS_HEAD",
    "Picture",
    "consensus_picture",
    "graph_picture",
    "link_rows",
    "metric_pictures",
    "part_picture",
    "split_picture",
]

Spec: TypeAlias = dict[str, Any]

COLORS = 8  # runs that can be told apart
DASHES = ([1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 1], [1, 3], [9, 2, 2, 2, 2, 2])
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down",
           "triangle-right", "triangle-left")  # fmt: skip
LINKS_HEAD = ("Edge", "Weight", "Rounds that failed", "Bytes, both ways")
LINKS = 400  # edges in the tables of a page
_POINTS = 360  # of all curves of a picture
_METRICS = 4
_CELLS_WIDE, _CELLS_HIGH = 60, 40
_NAMED, _NUMBERED = 60, 20  # agents and cells whose text can still be read
_MEGA = 1e6
_STEPS = 4  # of color; text is read on each of them
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture. alt: what it shows, in words. key: how it is to be read.

    head, rows: the table of its numbers. cursor: for each row, where each run is then, by round
    (`r`), seconds (`s`) and megabytes (`m`); empty where there is no such axis.
    """

    id: str
    title: str
    alt: str
    key: str
    spec: Spec
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    cursor: Sequence[Sequence[Mapping[str, float | None]]] = field(default_factory=list)
    note: str = ""


def metric_pictures(runs: Sequence[Run], names: Sequence[str]) -> list[Picture]:
    """How each metric of the agents' own models went, with the band from worst to best agent."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.bands))
    metrics.sort(key=lambda name: (not is_share(name), is_better_when_lower(name)))
    return [
        _curves(
            runs,
            names,
            id=f"metric-{at}",
            title=f"{name[:1].upper()}{name[1:]}",
            what=name,
            bands=[run.bands.get(name) for run in runs],
            extra=[run.average_model.get(name) for run in runs],
            share=is_share(name),
        )
        for at, name in enumerate(metrics[:_METRICS])
    ]


def consensus_picture(runs: Sequence[Run], names: Sequence[str]) -> Picture | None:
    """How far the agents' models are apart; None if no run has measured it."""
    bands = [run.consensus[:, None] if np.isfinite(run.consensus).any() else None for run in runs]
    if all(band is None for band in bands):
        return None
    return _curves(
        runs, names, id="consensus", title="Consensus distance", what="distance", bands=bands,
        extra=[None] * len(runs), share=False,
    )  # fmt: skip


def _curves(
    runs: Sequence[Run],
    names: Sequence[str],
    *,
    id: str,
    title: str,
    what: str,
    bands: Sequence[Floats | None],
    extra: Sequence[Floats | None],
    share: bool,
) -> Picture:
    points: list[dict[str, Any]] = []
    chosen: list[dict[int, int]] = []  # of each run: round to position
    each = max(_POINTS // max(sum(band is not None for band in bands), 1), 24)
    rising: list[float] = []
    for run, name, band, average in zip(runs, names, bands, extra, strict=True):
        if band is None:
            chosen.append({})
            continue
        columns = band if average is None else np.column_stack([band, average])
        at = kept(columns, each)
        chosen.append({int(run.rounds[i]): int(i) for i in at})
        for i in at:
            point = {"run": name, **_position(run, i), "v": _plain(band[i, 0])}
            if band.shape[1] == 3:
                best = band[i, 2] if np.isfinite(band[i, 2]) else band[i, 0]
                point |= {"lo": _plain(band[i, 1]), "hi": _plain(best)}
            if average is not None:
                point["avg"] = _plain(average[i])
            points.append(point)
            rising.append(float(band[i, 0]))
    shown = [name for name, band in zip(names, bands, strict=True) if band is not None]
    scale: Spec = {"zero": False, "nice": True}
    positive = [value for value in rising if value > 0]
    if id == "consensus" and positive and max(positive) > 20 * min(positive):
        scale = {"type": "log"}
        points = [p for p in points if p["v"] is not None and p["v"] > 0]
    top = {"domainMax": 1} if share and max(rising, default=0) <= 1 else {}
    y_axis = {"title": None, "tickCount": 5, **({"format": ".0%"} if share else {})}
    # A label that is moved inwards at the right end would lie upon the one before it.
    axis = {"labelFlush": False, "labelBound": True, "labelOverlap": "greedy", "labelSeparation": 6}
    x = {
        "field": "r", "type": "quantitative", "title": "Round", "scale": {"nice": False},
        "axis": axis,
    }  # fmt: skip
    colored = _by_run(names, shown)
    y = {"type": "quantitative", "axis": y_axis, "scale": scale | top}
    banded = any(band is not None and band.shape[1] == 3 for band in bands)
    layers: list[Spec] = []
    data = {"data": {"name": "points"}}
    color_only = {"color": colored["color"]}
    if banded:
        layers.append(
            data
            | {
                "mark": {"type": "area", "opacity": 0.2, "aria": False},
                "encoding": {"x": x, "y": y | {"field": "lo"}, "y2": {"field": "hi"}, **color_only},
            }
        )
    layers.append(
        data
        | {
            "mark": {"type": "line", "strokeWidth": 2, "aria": False},
            "encoding": {"x": x, "y": y | {"field": "v"}, **colored},
        }
    )
    averaged = any(column is not None for column in extra)
    if averaged:
        layers.append(
            data
            | {
                "transform": [{"filter": "isValid(datum.avg)"}],
                "mark": {"type": "point", "size": 26, "filled": True, "aria": False},
                "encoding": {"x": x, "y": y | {"field": "avg"}, **color_only},
            }
        )
    layers.append(
        {
            "data": {"name": "cursor"},
            "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False, "color": "@ink"},
            "encoding": {"x": x | {"field": "x"}},
        }
    )
    key = [
        "The line is the mean over agents"
        if banded
        else "Root mean square over agents of the distance to their average"
    ]
    if banded:
        best = any(band is not None and np.isfinite(band[:, 2]).any() for band in bands)
        key.append(f"the band goes from the worst agent to the {'best' if best else 'mean'}")
    if averaged:
        key.append("dots are the average of all models, which only an observer has")
    several = len(runs) > 1
    heads = ["Round"]
    for name, band, average in zip(names, bands, extra, strict=True):
        if band is None:
            continue
        before = f"{name}: " if several else ""
        labels = ["mean", "worst agent", "best agent"] if band.shape[1] == 3 else [what]
        heads += [before + label for label in labels]
        if average is not None:
            heads.append(f"{before}average model")
    rows, cursor = _rows(runs, bands, extra, chosen, what)
    ends = [
        f"{name}: {score(what, band[np.isfinite(band[:, 0]), 0][0])} to "
        f"{score(what, band[np.isfinite(band[:, 0]), 0][-1])}"
        for name, band in zip(names, bands, strict=True)
        if band is not None and np.isfinite(band[:, 0]).any()
    ]
    told = (np.isfinite(band).any(axis=1) for band in bands if band is not None)
    total = sum(int(rows.sum()) for rows in told)
    left_out = sum(len(found) for found in chosen) < total
    return Picture(
        id=id,
        title=title,
        alt=f"{title} over the run, from the first to the last measurement. {'; '.join(ends)}.",
        key=f"{'; '.join(key)}.",
        spec={
            "$schema": _SCHEMA,
            "width": "container",
            "height": 260,
            "datasets": {"points": points, "cursor": []},
            "layer": layers,
        },
        head=heads,
        rows=rows,
        cursor=cursor,
        note="Of a long run the first, the last and each stretch's highest and lowest rounds "
        "are shown."
        if left_out
        else "",
    )


def _rows(
    runs: Sequence[Run],
    bands: Sequence[Floats | None],
    extra: Sequence[Floats | None],
    chosen: Sequence[Mapping[int, int]],
    what: str,
) -> tuple[list[list[str]], list[list[dict[str, float | None]]]]:
    rows, cursor = [], []
    for k in sorted({k for found in chosen for k in found}):
        row, here = [f"{k:,}"], []
        for run, band, average, found in zip(runs, bands, extra, chosen, strict=True):
            if band is None:
                continue
            i = found.get(k)
            width = band.shape[1] + (average is not None)
            if i is None:
                row += ["–"] * width
                continue
            row += [score(what, float(value)) for value in band[i]]
            if average is not None:
                row.append(score(what, float(average[i])))
            here.append(_position(run, i))
        rows.append(row)
        cursor.append(here)
    return rows, cursor


def _position(run: Run, i: int) -> dict[str, float | None]:
    return {
        "r": int(run.rounds[i]),
        "s": _plain(run.seconds[i]),
        "m": _plain(run.bytes[i] / _MEGA),
    }


def _by_run(names: Sequence[str], shown: Sequence[str]) -> Spec:
    """Color and dashes by run; the page has the legend, which a narrow screen can wrap."""
    at = [list(names).index(name) for name in shown]
    common = {"field": "run", "type": "nominal", "legend": None}
    return {
        "color": common | {"scale": {"domain": list(shown), "range": [f"@run-{i}" for i in at]}},
        "strokeDash": common | {"scale": {"domain": list(shown), "range": [DASHES[i] for i in at]}},
    }


def part_picture(run: Run, id: str, share: int = 1) -> Picture | None:
    """Who contributed in which round: agents by rounds; None if nothing is known.

    share: number of runs that share a page.
    """
    k, n = run.part.shape
    if not k or not n or not (run.part != UNKNOWN).any():
        return None
    across = blocks(k, int(_CELLS_WIDE / share**0.5))
    down = blocks(n, int(_CELLS_HIGH / share**0.5))
    cells: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    names = [_agents_of(run, block) for block in down]
    for name, (top, bottom) in zip(names, down, strict=True):
        line = []
        for left, right in across:
            part = run.part[left:right, top:bottom]
            known = int((part != UNKNOWN).sum())
            there = int((part == TOOK_PART).sum())
            gone, back = int((part == MISSING).sum()), int((part == REJOINED).sum())
            taken = there / known if known else None
            cells.append(
                {
                    "a": name,
                    "k": _rounds_of(run, (left, right)),
                    "x": left,
                    "share": taken,
                    "mark": "missing" if gone else "rejoined" if back else None,
                    "text": f"{name}, {_rounds_of(run, (left, right))}: "
                    + (f"{there} of {known} took part" if known else "not known")
                    + (f", {gone} missing" if gone else "")
                    + (f", {back} rejoined" if back else ""),
                }
            )
            line.append(f"{taken:.0%}" if taken is not None else "–")
        if k <= _NUMBERED:
            rows.append([name, *line])
        else:
            part = run.part[:, top:bottom]
            rows.append(
                [
                    name,
                    *(
                        f"{int((part == what).sum()):,}"
                        for what in (TOOK_PART, MISSING, REJOINED, UNKNOWN)
                    ),
                ]
            )
    head = (
        ["Agent", *(_rounds_of(run, block) for block in across)]
        if k <= _NUMBERED
        else ["Agent", "took part", "missing", "rejoined", "not known"]
    )
    x = {
        "field": "x",
        "type": "ordinal",
        "title": "Round",
        "axis": {"labelExpr": "''", "ticks": False, "domain": False},
    }
    # Rounds are named at the ends of the axis alone: labels between would overlap on a phone.
    ends = f"Round {run.rounds[0]:,} at the left, {run.last_round:,} at the right"
    x["title"] = ends
    y = {
        "field": "a",
        "type": "nominal",
        "sort": names,
        "title": None,
        "axis": {"labelOverlap": True, "labelLimit": 110, "ticks": False, "domain": False},
    }
    missed = int((run.part == MISSING).sum())
    whole = int((run.part != UNKNOWN).sum())
    return Picture(
        id=id,
        title="Who contributed in which round",
        alt=f"Agents from top to bottom, rounds from left to right. {whole - missed:,} of "
        f"{whole:,} contributions arrived; {count(missed, 'was', 'were')} missing.",
        key="A filled cell took part; a cell with a cross holds a round in which the agent was "
        "missing, one with a ring a round in which it rejoined; the paler, the fewer took part.",
        spec={
            "$schema": _SCHEMA,
            "width": "container",
            "height": max(60, min(16, 460 // len(down)) * len(down)),
            "datasets": {"cells": cells},
            "layer": [
                {
                    "data": {"name": "cells"},
                    "mark": {"type": "rect", "aria": False, "stroke": "@page", "strokeWidth": 0.5},
                    "encoding": {
                        "x": x,
                        "y": y,
                        "color": {
                            "field": "share",
                            "type": "quantitative",
                            "scale": {"domain": [0, 1], "range": ["@empty", "@full"]},
                            "legend": None,
                        },
                        "tooltip": {"field": "text", "type": "nominal"},
                    },
                },
                {
                    "data": {"name": "cells"},
                    "transform": [{"filter": "isValid(datum.mark)"}],
                    "mark": {
                        "type": "point",
                        "aria": False,
                        "strokeWidth": 1.4,
                        "size": 26,
                        "color": "@bad",
                    },
                    "encoding": {
                        "x": x,
                        "y": y,
                        "shape": {
                            "field": "mark",
                            "type": "nominal",
                            "scale": {
                                "domain": ["missing", "rejoined"],
                                "range": ["M-1,-1L1,1M-1,1L1,-1", "circle"],
                            },
                            "legend": None,
                        },
                        "tooltip": {"field": "text", "type": "nominal"},
                    },
                },
            ],
        },
        head=head,
        rows=rows,
        note=""
        if len(across) == k and len(down) == n
        else f"{count(n, 'agent')} and {count(k, 'round')} are gathered to {len(down)} × "
        f"{len(across)} cells.",
    )


def _agents_of(run: Run, block: tuple[int, int]) -> str:
    first, after = block
    if after - first == 1:
        return run.agents[first]
    return f"{run.agents[first]} to {run.agents[after - 1]}"


def _rounds_of(run: Run, block: tuple[int, int]) -> str:
    first, after = block
    a, b = int(run.rounds[first]), int(run.rounds[after - 1])
    return f"round {a:,}" if a == b else f"rounds {a:,} to {b:,}"


def graph_picture(run: Run, id: str, share: int = 1) -> Picture | None:
    """Who talks to whom, with weights and edges that failed.

    share: number of runs that share a page. None if the graph is not known, or too large.
    """
    if run.places is None or not 0 < len(run.links) <= DRAWN_LINKS // share:
        return None
    k = max(len(run.rounds), 1)
    strongest = max((abs(link.weight or 0.0) for link in run.links), default=0.0) or 1.0
    edges = []
    for link in run.links:
        (x, y), (x2, y2) = run.places[link.a].tolist(), run.places[link.b].tolist()
        weight = link.weight
        kind = "failed" if link.failed else "negative" if (weight or 0.0) < 0 else "sound"
        told = [f"{run.agents[link.a]} – {run.agents[link.b]}"]
        told += [] if weight is None else [f"weight {weight:.3g}"]
        told.append(
            f"did not count in {link.failed:,} of {k:,} rounds"
            if link.failed
            else "counted in every round"
        )
        told += [] if link.bytes is None else [size_text(link.bytes)]
        edges.append(
            {
                "x": x, "y": y, "x2": x2, "y2": y2, "mx": (x + x2) / 2, "my": (y + y2) / 2,
                "kind": kind, "label": f"{link.failed:,}×" if link.failed else "",
                "wide": 1.0 + 2.5 * (abs(weight) / strongest if weight is not None else 0.4),
                "text": ", ".join(told),
            }
        )  # fmt: skip
    n = run.n_agents
    vertices = [
        {"x": x, "y": y, "a": name, "text": f"agent {name}: missing in {missed:,} of {k:,} rounds"}
        for (x, y), name, missed in zip(run.places.tolist(), run.agents, run.missed, strict=True)
    ]
    reach = {"domain": [-1.14, 1.14], "nice": False}
    axis: Spec = {"type": "quantitative", "axis": None, "scale": reach}
    tip = {"tooltip": {"field": "text", "type": "nominal"}}
    layers: list[Spec] = [
        {
            "data": {"name": "edges"},
            "mark": {"type": "rule", "aria": False},
            "encoding": {
                "x": axis | {"field": "x"},
                "y": axis | {"field": "y"},
                "x2": {"field": "x2"},
                "y2": {"field": "y2"},
                "strokeWidth": {"field": "wide", "type": "quantitative", "scale": None},
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    "legend": None,
                    "scale": {
                        "domain": ["sound", "negative", "failed"],
                        "range": ["@run-0", "@run-3", "@bad"],
                    },
                },
                "strokeDash": {
                    "field": "kind",
                    "type": "nominal",
                    "legend": None,
                    "scale": {
                        "domain": ["sound", "negative", "failed"],
                        "range": [[1, 0], [2, 3], [8, 4]],
                    },
                },
                **tip,
            },
        },
        {
            "data": {"name": "vertices"},
            "mark": {
                "type": "point",
                "filled": True,
                "opacity": 1,
                "stroke": "@ink",
                "fill": "@page",
                "strokeWidth": 1.3,
                "aria": False,
                "size": max(40.0, min(620.0, 14000.0 / n)),
            },
            "encoding": {"x": axis | {"field": "x"}, "y": axis | {"field": "y"}, **tip},
        },
    ]
    if len(run.links) <= 200:
        layers.append(
            {
                "data": {"name": "edges"},
                "mark": {"type": "text", "aria": False, "color": "@bad", "fontWeight": "bold",
                         "fontSize": 11, "dy": -7, "stroke": "@page", "strokeWidth": 0.3},
                "encoding": {"x": axis | {"field": "mx"}, "y": axis | {"field": "my"},
                             "text": {"field": "label"}},
            }
        )  # fmt: skip
    if n <= _NAMED:
        layers.append(
            {
                "data": {"name": "vertices"},
                "mark": {"type": "text", "aria": False, "color": "@ink", "fontSize": 11,
                         "limit": 60},
                "encoding": {"x": axis | {"field": "x"}, "y": axis | {"field": "y"},
                             "text": {"field": "a"}, **tip},
            }
        )  # fmt: skip
    failed = sum(link.failed > 0 for link in run.links)
    edges_text = count(len(run.links), "edge")
    return Picture(
        id=id,
        title="Who talks to whom",
        alt=f"Graph {run.graph}: {count(n, 'agent')}, {edges_text}; "
        + (f"{failed:,} of them did not count in some rounds." if failed else "none ever failed."),
        key="An edge is as wide as its weight. A dashed edge with a number did not count in so "
        "many rounds; a dotted edge has a negative weight.",
        spec={
            "$schema": _SCHEMA,
            "width": "container",
            "height": 380,
            "datasets": {"edges": edges, "vertices": vertices},
            "layer": layers,
        },
        head=LINKS_HEAD,
        rows=link_rows(run, most := LINKS // share),
        note=""
        if len(run.links) <= most
        else f"The table has the {most:,} of {edges_text} that failed most.",
    )


def link_rows(run: Run, most: int) -> list[list[str]]:
    """The table of a run's edges, those first that failed most."""
    return [
        [
            f"{run.agents[link.a]} – {run.agents[link.b]}",
            "–" if link.weight is None else f"{link.weight:.4g}",
            f"{link.failed:,}",
            size_text(link.bytes),
        ]
        for link in sorted(run.links, key=lambda link: (-link.failed, link.a, link.b))[:most]
    ]


def split_picture(run: Run, id: str) -> Picture | None:
    """Samples of each class that each agent has; None if that is not known."""
    if run.split is None:
        return None
    classes, n = run.split.shape
    across, down = blocks(n, _CELLS_WIDE), blocks(classes, _CELLS_HIGH)
    numbered = max(len(across), len(down)) <= _NUMBERED
    names = [_agents_of(run, block) for block in across]
    rows_named = [str(a) if b - a == 1 else f"{a} to {b - 1}" for a, b in down]
    table = np.array(
        [[run.split[a:b, c:d].sum() for c, d in across] for a, b in down], np.int64
    ).reshape(len(down), len(across))
    most = max(int(table.max(initial=0)), 1)
    cells = [
        {
            "a": names[j],
            "c": rows_named[i],
            "n": int(table[i, j]),
            "label": f"{table[i, j]}" if table[i, j] else "",
            "step": int(np.ceil(_STEPS * table[i, j] / most)),
            "text": f"agent {names[j]}, class {rows_named[i]}: {table[i, j]:,} samples",
        }
        for i in range(len(down))
        for j in range(len(across))
    ]
    x = {
        "field": "a",
        "type": "nominal",
        "sort": names,
        "title": "Agent",
        "axis": {"labelAngle": 0, "labelOverlap": True, "labelLimit": 50, "ticks": False},
    }
    y = {
        "field": "c",
        "type": "nominal",
        "sort": rows_named,
        "title": "Class",
        "axis": {"ticks": False, "labelOverlap": True},
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "aria": False, "stroke": "@page", "strokeWidth": 0.5},
            "encoding": {
                "x": x,
                "y": y,
                "color": {
                    "field": "step",
                    "type": "ordinal",
                    "legend": None,
                    "scale": {
                        "domain": list(range(_STEPS + 1)),
                        "range": [f"@step-{step}" for step in range(_STEPS + 1)],
                    },
                },
                "tooltip": {"field": "text", "type": "nominal"},
            },
        }
    ]
    if numbered:
        layers.append(
            {
                "mark": {"type": "text", "aria": False, "fontSize": 10},
                "encoding": {
                    "x": x,
                    "y": y,
                    "text": {"field": "label"},
                    "color": {
                        "condition": {"test": f"datum.step > {_STEPS // 2}", "value": "@page"},
                        "value": "@ink",
                    },
                },
            }
        )
    each = run.split.sum(axis=0)
    return Picture(
        id=id,
        title="Which agent has which data",
        alt=f"{count(classes, 'class', 'classes')} by {count(n, 'agent')}; an agent has "
        f"{each.min():,} to {each.max():,} samples of up to "
        f"{int((run.split > 0).sum(axis=0).max(initial=0))} classes.",
        key="The darker a cell, the more samples of the class an agent has.",
        spec={
            "$schema": _SCHEMA,
            "width": "container",
            "height": max(80, 22 * min(len(down), 20)),
            "data": {"values": cells},
            "layer": layers,
        },
        head=["Class", *names],
        rows=[[rows_named[i], *(f"{v:,}" for v in table[i])] for i in range(len(down))],
    )


def _plain(value: Any) -> float | None:
    found = float(value)
    return float(f"{found:.6g}") if np.isfinite(found) else None
