"""How a run or a mesh is at one moment, as plain values that a page draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flower_dhb.pages.model import MISSING, REJOINED, TOOK_PART, UNKNOWN, Floats, Run
from flower_dhb.pages.thinning import kept
from flower_dhb.pages.words import count, score
from flower_dhb.runs.table import main_metric

if TYPE_CHECKING:
    from flower_dhb.peer.mesh.status import FleetStatus

__all__ = ["Agent", "Chart", "Link", "View", "chart_of", "view_of_mesh", "view_of_run"]

_POINTS = 300  # of a curve
_AGENTS, _LINKS, _WARNINGS = 1000, 3000, 30
_NAMED = 60  # agents whose names can be read in the picture
_OVER = ("finished", "stopped", "removed")
_WELL = ("training", "waiting", "combining", "sharing", *_OVER)


@dataclass(frozen=True, kw_only=True)
class Agent:
    """What an agent does. waits: for whom, by name. well: whether nobody has to look after it.

    place: where it is drawn, within -1 and 1; None if the graph is too large to be drawn.
    """

    name: str
    round: str
    state: str
    waits: str = ""
    well: bool = True
    place: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Link:
    """An edge between two agents, by position. state: `up`, `down` or `unknown`."""

    a: int
    b: int
    state: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A metric over rounds. points: round, mean, worst and best agent, NaN if not known."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    text: str

    def to_json(self) -> dict[str, object]:
        """Its line, its band and the labels of its axes, 480 wide and 260 high."""
        table = np.array(self.points)
        table[:, 2:] = np.where(np.isfinite(table[:, 2:]), table[:, 2:], table[:, 1:2])
        low, high = float(table[:, 1:].min()), float(table[:, 1:].max())
        first, last = float(table[0, 0]), float(table[-1, 0])
        x = 60 + 400 * (table[:, 0] - first) / ((last - first) or 1.0)
        y = 220 - 200 * (table[:, 1:] - low) / ((high - low) or 1.0)
        mean, worst, best = (
            [f"{a:.1f},{b:.1f}" for a, b in zip(x, column, strict=True)] for column in y.T
        )
        return {
            "title": f"{self.name}: the line is the mean, the band goes from worst to best agent",
            "text": self.text,
            "line": " ".join(mean),
            "band": " ".join([*best, *reversed(worst)]),
            "labels": [
                [54, 224, "end", score(self.name, low)],
                [54, 24, "end", score(self.name, high)],
                [60, 244, "start", f"round {first:,.0f}"],
                [460, 244, "end", f"{last:,.0f}"],
            ],
        }


@dataclass(frozen=True, kw_only=True)
class View:
    """One run or mesh. sentence: all of it in short. over: whether nothing more will come."""

    name: str
    sentence: str
    agents: Sequence[Agent] = ()
    links: Sequence[Link] = ()
    warnings: Sequence[str] = ()
    chart: Chart | None = None
    over: bool = False

    def to_json(self) -> dict[str, object]:
        """Plain values, as the page draws them: places are those of its two pictures."""
        return {
            "name": self.name,
            "sentence": self.sentence,
            "warnings": [*self.warnings] or ["none"],
            "graph": self._graph(),
            "chart": None if self.chart is None else self.chart.to_json(),
            "rows": [["" if a.well else "ill", a.name, a.round, a.state, a.waits]
                     for a in self.agents],
        }  # fmt: skip

    def _graph(self) -> dict[str, object] | None:
        places = [agent.place for agent in self.agents if agent.place is not None]
        if not places or len(places) < len(self.agents):
            return None
        at = [(round(100 * x, 1), round(-100 * y, 1)) for x, y in places]
        n, down = len(self.agents), sum(link.state == "down" for link in self.links)
        return {
            "text": f"{count(n, 'agent')}, {count(len(self.links), 'edge')}, {down} of them down",
            "size": round(max(4.0, min(16.0, 70.0 / n**0.5)), 1),
            "lines": [[link.state, *at[link.a], *at[link.b]] for link in self.links],
            "dots": [
                ["" if agent.well else "ill", *at[i], _short(agent.name) if n <= _NAMED else ""]
                for i, agent in enumerate(self.agents)
            ],
        }


def view_of_run(run: Run) -> View:
    """A run by what it has written so far. Whom an agent waits for is not written."""
    k, n = run.part.shape
    last = run.part[-1] if k else np.full(n, UNKNOWN, np.int8)
    names = {TOOK_PART: "took part", MISSING: "missing", REJOINED: "rejoined", UNKNOWN: "–"}
    agents: list[Agent] = []
    for i, name in enumerate(run.agents[:_AGENTS]):
        there = np.flatnonzero((run.part[:, i] == TOOK_PART) | (run.part[:, i] == REJOINED))
        agents.append(
            Agent(
                name=name,
                round=f"{run.rounds[there[-1]]:,}" if len(there) else "–",
                state=names[int(last[i])],
                well=last[i] != MISSING,
                place=_place(run.places, i),
            )
        )
    links = []
    for link in run.links[:_LINKS]:
        both = last[link.a] == TOOK_PART and last[link.b] == TOOK_PART
        state = "unknown" if UNKNOWN in (last[link.a], last[link.b]) else "up" if both else "down"
        links.append(Link(a=link.a, b=link.b, state=state))
    of = f" of {run.planned:,}" if run.planned else ""
    over = bool(run.planned) and run.last_round >= run.planned
    metric = main_metric(run.bands)
    chart = None
    if metric is not None:
        band = run.bands[metric]
        chart = chart_of(metric, np.column_stack([run.rounds, band])[kept(band, _POINTS)])
    missing = int((last == MISSING).sum())
    parts = [f"round {run.last_round:,}{of}", *(["finished"] if over else [])]
    parts += [f"{missing} of {n} agents missing"] if missing else [f"{n} agents"]
    parts += [chart.text] if chart is not None else []
    warnings = [f"Round {k:,}: {text}" for k, text in reversed(run.warnings)]
    warnings += [
        f"{event.times:,} times, last in round {event.last:,}: {event.what}" for event in run.events
    ]
    return View(
        name=run.name,
        sentence="; ".join(parts),
        agents=agents,
        links=links,
        warnings=[*warnings, *run.notes][:_WARNINGS],
        chart=chart,
        over=over,
    )


def view_of_mesh(
    name: str,
    fleet: FleetStatus,
    warnings: Sequence[str],
    places: Floats | None,
    chart: Chart | None,
) -> View:
    """A mesh by what its devices answer. warnings: what is found in it, the gravest first."""
    vertices = fleet.vertices
    at = {v: i for i, v in enumerate(vertices)}
    called = {v: f"{v} ({fleet.names[v]})" if v in fleet.names else str(v) for v in vertices}
    agents = []
    for i, v in enumerate(vertices[:_AGENTS]):
        reply, state, k = fleet.replies.get(v), fleet.state(v), fleet.round(v)
        waits = sorted(reply.waits_for) if reply is not None else []
        agents.append(
            Agent(
                name=called[v],
                round="–" if k is None else f"{k:,}",
                state=state,
                waits=", ".join(called.get(j, str(j)) for j in waits),
                well=state in _WELL,
                place=_place(places, i),
            )
        )
    sides: dict[tuple[int, int], list[bool]] = {}
    for v, reply in fleet.replies.items():
        for other in reply.neighbors:
            edge = (min(v, other.vertex), max(v, other.vertex))
            sides.setdefault(edge, []).append(other.up or other.done)
    links = []
    for a, b in fleet.edges[:_LINKS]:
        told = sides.get((min(a, b), max(a, b)), [])
        state = "unknown" if not told else "up" if any(told) else "down"
        links.append(Link(a=at[a], b=at[b], state=state))
    ks = [reply.round for reply in fleet.replies.values()]
    over = bool(ks) and all(r.phase in _OVER for r in fleet.replies.values())
    span = [f"{k:,}" for k in sorted({min(ks), max(ks)})] if ks else []
    parts = [f"{len(ks)} of {len(vertices)} devices answer"]
    parts += [f"round {' to '.join(span)} of {fleet.rounds:,}"] if ks else []
    parts += [chart.text] if chart is not None else []
    return View(
        name=name,
        sentence="; ".join(parts),
        agents=agents,
        links=links,
        warnings=list(warnings)[:_WARNINGS],
        chart=chart,
        over=over and not fleet.failures,
    )


def chart_of(name: str, table: Floats) -> Chart | None:
    """A chart of rows of round, mean, worst and best; None if there is none."""
    if not np.isfinite(table[:, 1]).any():
        return None
    table = table[np.isfinite(table[:, 1])]
    _, mean, worst, _ = table[-1]
    text = f"{name} {score(name, float(mean))} on average"
    text += f", {score(name, float(worst))} at the worst agent" if np.isfinite(worst) else ""
    return Chart(name=name, points=[(k, a, b, c) for k, a, b, c in table.tolist()], text=text)


def _short(name: str) -> str:
    """What fits into the picture of an agent: `3` of `3 (boat)`, nothing of what is longer."""
    number = name.partition(" (")[0]
    return number if len(number) <= 3 else ""


def _place(places: Floats | None, i: int) -> tuple[float, float] | None:
    return None if places is None else (float(places[i, 0]), float(places[i, 1]))
