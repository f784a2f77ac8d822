"""A fleet in a terminal: what needs somebody on top, then a line for each device.

Whatever the height, nothing that needs somebody is left out. What is folded first are devices
that are well, then what is only worth knowing, then findings of one kind into one line.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from flower_dhb.peer.mesh.findings import KINDS, Finding, findings
from flower_dhb.peer.mesh.status import OVER, FleetStatus
from flower_dhb.peer.sentences import in_words

__all__ = ["View", "draw"]

_NEEDS, _NOTE, _DIM = "bold yellow", "cyan", "dim"
_LEAST_ROWS = 2  # of the table, as long as findings can be folded instead
# Phases that take turns in every round.
_WORK = dict.fromkeys(("waiting", "journaling", "combining"), "training")
_WEIGHT = "num-examples"  # of an app's metrics the one that Flower asks for
_STYLES = {
    "silent": "red",
    "ended": "red",
    "failing": "red",
    "no disk": "red",
    "stalled": "red",
    "alone": "yellow",
    "starting": "dim",
    "unknown": "dim",
    "finished": "green",
    "removed": "dim",
}


@dataclass(frozen=True)
class View:
    """How much room there is. height: lines, None for as many as it takes.

    metrics: names of the app's to show; those that its evaluation reports if there are none.
    """

    width: int = 80
    height: int | None = None
    metrics: tuple[str, ...] = ()


def draw(fleet: FleetStatus, view: View) -> list[Text]:
    """A fleet, line by line."""
    found = findings(fleet)
    head = _head(fleet, view.width)
    needy = {v for finding in found if finding.needs for v in finding.vertices}
    n_devices = len(fleet.vertices)
    if view.height is None:
        return [*head, *_told(found, view.width), *_table(fleet, fleet.vertices, needy, view)]
    # A line of titles, some rows, and a line for the devices that have none.
    room = view.height - len(head)
    told = _fitted(found, view.width, room - 2 - min(n_devices, _LEAST_ROWS))
    rows = room - len(told) - 1
    if n_devices <= rows:
        return [*head, *told, *_table(fleet, fleet.vertices, needy, view)]
    shown = _chosen(fleet, needy, max(rows - 1, 0))
    table = _table(fleet, shown, needy, view) if shown else []
    rest = [v for v in fleet.vertices if v not in shown]
    return [*head, *told, *table, _rest(fleet, rest, needy, view.width)]


def _chosen(fleet: FleetStatus, needy: set[int], n: int) -> list[int]:
    """Devices that get a line where not all do: first those that need somebody."""
    order = sorted(fleet.vertices, key=lambda v: (v not in needy, v))
    return sorted(order[:n])


# --- the head -------------------------------------------------------------------------------


def _head(fleet: FleetStatus, width: int) -> list[Text]:
    states = Counter(_WORK.get(s := fleet.state(v), s) for v in fleet.vertices)
    counted = ", ".join(f"{n} {state}" for state, n in states.most_common())
    known = (fleet.round(v) for v in fleet.vertices)
    rounds = [k for k in known if k is not None]
    parts = [f"{len(fleet.vertices)} devices: {counted}"]
    if rounds and fleet.rounds:
        least, most = min(rounds), max(rounds)
        shown = str(most) if least == most else f"{least} to {most}"
        parts.append(f"round {shown} of {fleet.rounds}")
    if fleet.left_s:
        parts.append(f"{in_words(fleet.left_s)} left")
    lines = _joined(parts, width)
    parts, pace = [], fleet.pace
    if pace is not None:
        parts.append(f"{in_words(pace.round_s)} a round")
        took = f"{in_words(pace.part_s)} of it"
        if pace.edge is not None:
            parts.append(f"slowest: the link of edge {pace.edge[0]}-{pace.edge[1]}, {took}")
        elif pace.vertex is not None and pace.part_s > 0.0:
            parts.append(f"slowest: {fleet.called(pace.vertex)} trains {took}")
    distance = fleet.consensus_distance
    if distance is not None:
        parts.append(f"consensus distance {distance:.3g}")
    versions = {r.software for r in fleet.replies.values() if r.software}
    if len(versions) == 1:
        parts.append(f"version {versions.pop()}")
    return [Text(line) for line in [*lines, *_joined(parts, width)]]


def _joined(parts: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" | {part}"
        else:
            lines += textwrap.wrap(part, width)
    return lines


# --- findings -------------------------------------------------------------------------------


def _told(found: Sequence[Finding], width: int) -> list[Text]:
    """All of them, in full."""
    if not found:
        return [Text("nothing needs anybody", _DIM)]
    return [line for f in found for line in _wrapped(f.text, f.needs, width)]


def _fitted(found: Sequence[Finding], width: int, room: int) -> list[Text]:
    """All of them in so many lines: in full, by kind with a remedy, or by kind alone.

    Where not all can be told in full, the gravest are.
    """
    needs = list(_by_kind(f for f in found if f.needs))
    notes = list(_by_kind(f for f in found if not f.needs))
    groups = [*needs, *notes]
    level = dict.fromkeys((kind for kind, _ in groups), 0)

    def lines() -> list[Text]:
        return [*_at(needs, level, width), *_at(notes, level, width)]

    for wanted in (1, 2):
        for kind, _ in groups:
            before, level[kind] = level[kind], wanted
            if len(lines()) > room:
                level[kind] = before
    return lines() or _told(found, width)


def _at(
    groups: Sequence[tuple[str, list[Finding]]], level: Mapping[str, int], width: int
) -> list[Text]:
    """Findings by kind, each at its level: 0 in short, 1 by kind, 2 in full."""
    lines, short, needs = [], [], True
    for kind, group in groups:
        needs = group[0].needs
        if level[kind] == 0:
            short.append(f"{KINDS[kind].title}: {_places(group, 6)}")
        elif level[kind] == 2 or len(group) == 1:
            lines += _told(group, width)
        else:
            text = f"{KINDS[kind].title}: {_places(group)}. {KINDS[kind].remedy}".rstrip()
            lines += _wrapped(text, needs, width)
    for text in _joined(short, width - 2):
        lines += _wrapped(text, needs, width)
    return lines


def _by_kind(found: Iterable[Finding]) -> Iterable[tuple[str, list[Finding]]]:
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.kind, []).append(finding)
    return groups.items()


def _places(group: Sequence[Finding], most: int = 12) -> str:
    places = [f.place for f in group]
    shown = ", ".join(places[:most])
    return shown + (f" and {len(places) - most} more" if len(places) > most else "")


def _wrapped(text: str, needs: bool, width: int) -> list[Text]:
    mark, style = ("! ", _NEEDS) if needs else ("- ", _NOTE)
    wrapped = textwrap.wrap(
        text, width, initial_indent=mark, subsequent_indent="  ", break_on_hyphens=False
    )
    return [Text(line, style) for line in wrapped]


# --- devices --------------------------------------------------------------------------------


def _table(fleet: FleetStatus, vertices: Sequence[int], needy: set[int], view: View) -> list[Text]:
    versions = {r.software for r in fleet.replies.values() if r.software}
    titles = ["device", "state", "round", "s/round", "part", "edges", "cert"]
    if len(versions) > 1:
        titles.append("version")
    rows = [_row(fleet, v, len(versions) > 1) for v in vertices]
    widths = [max(len(t), *(len(row[i]) for row in rows)) for i, t in enumerate(titles)]
    while len(widths) > 1 and sum(widths) + 2 * len(widths) > view.width:  # columns go whole
        widths.pop()
    left = ("device", "state", "version")
    lines = []
    for v, row in [(None, [*titles, "more"]), *zip(vertices, rows, strict=True)]:
        cells = [
            cell.ljust(w) if title in left else cell.rjust(w)
            for title, cell, w in zip(titles, row, widths, strict=False)
        ]
        more = [row[-1]] if v is None else _more(fleet, v, view.metrics)
        line = _fitting("  ".join(cells), more, view.width)
        style = "bold" if v is None else _STYLES.get(fleet.state(v), "")
        lines.append(Text(line, style or ("yellow" if v in needy else "")))
    return lines


def _fitting(line: str, more: Sequence[str], width: int) -> str:
    """A line with as much more as there is room for; an ellipsis stands for the rest.

    A part is there whole or not at all, so no number is cut; of a list some are there.
    """
    whole = "  ".join([line, *more]).rstrip()
    if len(whole) <= width:
        return whole
    for part in more:
        longer = f"{line}  {part}"
        if len(longer) > width - 2:
            items = part.split(", ")
            some = (f"{line}  {', '.join(items[:n])}," for n in range(len(items) - 1, 0, -1))
            line = next((text for text in some if len(text) <= width - 2), line)
            break
        line = longer
    return f"{line} …"


def _row(fleet: FleetStatus, vertex: int, with_version: bool) -> list[str]:
    name = fleet.names.get(vertex, "")
    label = f"{vertex} {name}"[:12].rstrip()
    reply = fleet.replies.get(vertex)
    k = fleet.round(vertex)
    rounds = reply.rounds if reply is not None else fleet.rounds
    row = [label, fleet.state(vertex), "" if k is None else f"{k}/{rounds}"]
    if reply is None:
        return [*row, "", "", "", "", *([""] if with_version else [])]
    up = sum(n.up for n in reply.neighbors)
    days = (reply.certificate_ends - fleet.now_s) / 86400.0
    row += [
        f"{reply.seconds_per_round:.3g}" if reply.seconds_per_round else "",
        f"{reply.took_part}/{reply.lately}" if reply.lately else "",
        "" if reply.phase in OVER else f"{up}/{len(reply.neighbors)}",
        f"{days:.0f} d" if reply.certificate_ends and fleet.now_s else "",
    ]
    return [*row, *([reply.software] if with_version else [])]


def _more(fleet: FleetStatus, vertex: int, chosen: tuple[str, ...]) -> list[str]:
    """What is to be said of a device beside its numbers, in parts."""
    reply = fleet.replies.get(vertex)
    if reply is None:
        by = sorted(j for j, n in fleet.told_of(vertex).items() if n.up)
        if by:
            return ["heard by " + ", ".join(map(str, by))]
        seen_s = fleet.seen_s(vertex)
        return ["never seen" if seen_s is None else f"seen {in_words(seen_s)} ago"]
    parts = []
    if reply.waits_for and reply.phase not in OVER:
        parts.append("waits for " + ", ".join(map(str, reply.waits_for)))
    names = chosen or [name for name in reply.evaluated or sorted(reply.metrics) if name != _WEIGHT]
    return [*parts, *(f"{n} {reply.metrics[n]:.3g}" for n in names if n in reply.metrics)]


def _rest(fleet: FleetStatus, rest: Sequence[int], needy: set[int], width: int) -> Text:
    """Those that have no line of their own, counted."""
    well = [v for v in rest if v not in needy]
    states = Counter(_WORK.get(s := fleet.state(v), s) for v in well)
    counted = ", ".join(f"{n} {state}" for state, n in states.most_common())
    told = f"{len(rest) - len(well)} more are told of above" if len(rest) > len(well) else ""
    for about in (f" ({counted})", ""):
        parts = [f"{len(well)} more are well{about}" if well else "", told]
        line = f"… {', '.join(filter(None, parts))}: --all shows them"
        if len(line) <= width:
            break
    return Text(line[:width], _DIM)
