"""The report of runs: one HTML file that answers before it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flower_dhb import __version__
from flower_dhb.errors import ConfigError
from flower_dhb.extras import load
from flower_dhb.metrics import size_text
from flower_dhb.pages.charts import (
    COLORS,
    DASHES,
    LINKS,
    LINKS_HEAD,
    Picture,
    consensus_picture,
    graph_picture,
    link_rows,
    metric_pictures,
    part_picture,
    split_picture,
)
from flower_dhb.pages.html import data, document, escape, table
from flower_dhb.pages.model import MISSING, UNKNOWN, Run
from flower_dhb.pages.verdict import QUESTIONS, verdict
from flower_dhb.pages.words import count, names_text, ranges, score

__all__ = ["library", "report"]

_MOODS = {"good": "✓ It worked.", "mixed": "! It worked in part.", "bad": "✗ It did not work."}
_AGENTS, _EVENTS, _WARNINGS, _SETTINGS = 400, 30, 50, 200  # rows of tables


def library() -> str:
    """JavaScript that draws the pictures: Vega, Vega-Lite and Vega-Embed, as `vegaEmbed`.

    Raises ConfigError that names the extra `report` where it is not installed.
    """
    found = load("vl_convert", "a report").javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return str(found)


def report(runs: Sequence[Run], library: str) -> str:
    """A page of some runs, side by side. library: as the function of that name has it.

    Raises ConfigError if there are none, or more than can be told apart.
    """
    if not 0 < len(runs) <= COLORS:
        raise ConfigError(f"a report has 1 to {COLORS} runs, got {len(runs)}")
    names = _names(runs)
    title = f"Report of {names[0]}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    parts = [
        '<a class="skip" href="#verdict">To the verdict</a>',
        f"<header><h1>{escape(title)}</h1></header><main>",
        '<section id="verdict" aria-labelledby="verdict-title">'
        f'<h2 id="verdict-title">Verdict</h2>{_verdicts(runs, names)}</section>',
        _curves(runs, names),
    ]
    share = len(runs)
    for at, (run, name) in enumerate(zip(runs, names, strict=True)):
        same = next((n for r, n in zip(runs[:at], names, strict=False) if _alike(r, run)), "")
        parts.append(_one(run, name if share > 1 else "", at, share, same))
    parts.append(f"</main><footer><p>Made by flower-dhb {escape(__version__)}. This page fetches "
                 "nothing and needs no server.</p></footer>")  # fmt: skip
    parts.append("<noscript><p>The pictures need JavaScript; all their numbers are in the tables."
                 "</p></noscript>")  # fmt: skip
    return document(title, "\n".join(part for part in parts if part), library)


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for each run, no two alike."""
    found = [run.name[:60] for run in runs]
    if len(set(found)) == len(found):
        return found
    return [f"{at}: {name}" for at, name in enumerate(found, 1)]


def _verdicts(runs: Sequence[Run], names: Sequence[str]) -> str:
    parts = []
    for run, name in zip(runs, names, strict=True):
        found = verdict(run)
        several = len(runs) > 1
        head = f"<h3>{escape(name)}</h3>" if several else ""
        parts.append(
            f'{head}<p class="verdict {found.mood}"><span class="mood">{_MOODS[found.mood]}</span> '
            f"{escape(found.sentence)}</p>"
        )
        answers = "".join(
            f"<div><dt>{question}</dt><dd>{escape(answer)}</dd></div>"
            for question, answer in zip(QUESTIONS, found.answers, strict=True)
        )
        details = f'<dl class="answers">{answers}</dl>'
        parts.append(f"<details><summary>What that means for {escape(name)}</summary>{details}"
                     "</details>" if several else details)  # fmt: skip
        parts.append(_listed("Warnings of the run", [
            f"Round {k:,}: {text}" for k, text in run.warnings
        ], _WARNINGS, several))  # fmt: skip
        parts.append(_listed("What could not be read", list(run.notes), _WARNINGS, several))
    if len(runs) > 1:
        parts.append(_side_by_side(runs, names))
    return "".join(parts)


def _listed(title: str, texts: Sequence[str], most: int, several: bool) -> str:
    if not texts:
        return ""
    level = "h4" if several else "h3"
    items = "".join(f"<li>{escape(text)}</li>" for text in texts[:most])
    if len(texts) > most:
        items += f"<li>and {len(texts) - most:,} more</li>"
    return f"<{level}>{escape(title)}</{level}><ul>{items}</ul>"


def _side_by_side(runs: Sequence[Run], names: Sequence[str]) -> str:
    metrics = list(dict.fromkeys(name for run in runs for name in run.bands))[:4]
    heads = ["Run", "Rounds", "Agents", "Graph"]
    heads += [f"{metric}, {which}" for metric in metrics for which in ("mean", "worst")]
    heads += ["Distance", "Seconds", "Bytes", "Missing"]
    rows = []
    for run, name in zip(runs, names, strict=True):
        row = [name, f"{run.last_round:,}", f"{run.n_agents:,}", run.graph or "–"]
        for metric in metrics:
            row += [score(metric, value) for value in _final(run, metric)]
        known = run.consensus[np.isfinite(run.consensus)]
        row += [
            f"{known[-1]:.3g}" if len(known) else "–",
            _seconds(run.seconds[-1]) if len(run.rounds) else "–",
            size_text(run.bytes[-1]) if len(run.rounds) else "–",
            f"{run.missed.sum():,}",
        ]
        rows.append(row)
    return f"<h3>Side by side</h3>{table(heads, rows, 'Runs side by side, after their last round')}"


def _final(run: Run, metric: str) -> list[float]:
    band = run.bands.get(metric)
    if band is None:
        return [float("nan")] * 2
    last = np.flatnonzero(np.isfinite(band[:, 0]))[-1]
    return [float(band[last, 0]), float(band[last, 1])]


def _seconds(value: float) -> str:
    return f"{value:,.4g}" if np.isfinite(value) else "–"


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    pictures = metric_pictures(runs, names)
    distance = consensus_picture(runs, names)
    pictures += [distance] if distance is not None else []
    head = '<section aria-labelledby="curves"><h2 id="curves">How it went</h2>'
    if not pictures:
        return f"{head}<p>Neither a metric nor a distance was recorded.</p></section>"
    choices = [("r", "rounds")]
    if all(np.isfinite(run.seconds).all() for run in runs):
        choices.append(("s", "seconds"))
    if all(np.isfinite(run.bytes).all() for run in runs):
        choices.append(("m", "bytes"))
    radios = "".join(
        f'<label><input type="radio" name="against" value="{value}"'
        f"{' checked' if value == 'r' else ''}>{label}</label>"
        for value, label in choices
    )
    legend = _legend(names) if len(names) > 1 else ""
    form = f"<fieldset><legend>Curves over</legend>{radios}</fieldset>" if choices[1:] else ""
    return f'{head}{form}{legend}<div class="pictures">{_figures(pictures, 3)}</div></section>'


def _legend(names: Sequence[str]) -> str:
    """Which line is whose: by color and dashes, as in the pictures."""
    items = []
    for at, name in enumerate(names):
        dashes = " ".join(str(length) for length in DASHES[at] if DASHES[at][-1])
        line = (
            f'<svg class="swatch run-{at}" viewBox="0 0 36 10" width="36" height="10" '
            f'aria-hidden="true"><line x1="0" y1="5" x2="36" y2="5" stroke-dasharray="{dashes}"/>'
            "</svg>"
        )
        items.append(f"<li>{line}{escape(name)}</li>")
    return f'<ul class="legend" aria-label="Runs">{"".join(items)}</ul>'


def _figures(pictures: Iterable[Picture], level: int) -> str:
    return "".join(_figure(picture, level) for picture in pictures)


def _figure(picture: Picture, level: int) -> str:
    slider = ""
    if picture.cursor:
        last = len(picture.cursor) - 1
        slider = (
            f'<label for="{picture.id}-at">Measurement to read</label>'
            f'<input type="range" id="{picture.id}-at" min="0" max="{last}" value="{last}">'
        )
    content = {"spec": picture.spec, "cursor": picture.cursor}
    note = f"<p>{escape(picture.note)}</p>" if picture.note else ""
    live = ' aria-live="polite"' if not picture.cursor else ""
    return (
        f'<figure data-picture="{picture.id}"><figcaption><h{level}>{escape(picture.title)}'
        f"</h{level}><p>{escape(picture.key)}</p></figcaption>"
        f'<div class="chart" role="img" aria-label="{escape(picture.alt)}"><div></div></div>'
        f'{slider}<p class="now"{live}></p>{note}'
        f"<details><summary>The numbers of this picture</summary>"
        f"{table(picture.head, picture.rows, picture.title)}</details>{data(content)}</figure>"
    )


def _alike(one: Run, other: Run) -> bool:
    """Whether two pictures of their graphs would be the same."""
    return bool(one.links) and one.graph == other.graph and list(one.links) == list(other.links)


def _one(run: Run, name: str, at: int, share: int, same: str = "") -> str:
    """All that is of one run alone.

    name: empty if it is the only one. same: name of a run before it with the very same graph.
    """
    level = 3
    pictures = [
        part_picture(run, f"part-{at}", share),
        (graph := None if same else graph_picture(run, f"graph-{at}", share)),
        split_picture(run, f"split-{at}"),
    ]
    shown = [picture for picture in pictures if picture is not None]
    figures = f'<div class="pictures">{_figures(shown, level)}</div>' if shown else ""
    title = f"The run {name}" if name else "Agents and links"
    links = f"<p>Its graph is that of {escape(same)}.</p>" if same else ""
    links = links or (_links(run, share) if graph is None else "")
    tables = f"{links}{_agents(run, share)}{_events(run)}{_settings(run)}"
    head = f'<h2 id="run-{at}">{escape(title)}</h2>'
    return f'<section aria-labelledby="run-{at}">{head}{figures}{tables}</section>'


def _links(run: Run, share: int) -> str:
    """The links of a graph that is too large to be drawn."""
    rows = link_rows(run, LINKS // share)
    if not rows:
        return ""
    caption = f"{len(rows):,} of {count(len(run.links), 'link')}, those first that failed most"
    return (
        "<h3>Links</h3><p>This graph is too large to be drawn.</p><details><summary>Links"
        f"</summary>{table(LINKS_HEAD, rows, caption)}</details>"
    )


def _agents(run: Run, share: int) -> str:
    if not run.n_agents:
        return ""
    metrics = list(run.last)[:6]
    missed = run.missed
    told = (run.part != UNKNOWN).sum(axis=0) if len(run.rounds) else np.zeros(run.n_agents, int)
    most = _AGENTS // share
    chosen = sorted(np.argsort(-missed, kind="stable")[:most].tolist())
    degrees = np.zeros(run.n_agents, np.int64)
    for link in run.links:
        degrees[[link.a, link.b]] += 1
    rows = []
    for i in chosen:
        absent = run.rounds[np.flatnonzero(run.part[:, i] == MISSING)].tolist()
        rows.append(
            [
                run.agents[i],
                f"{degrees[i]:,}" if run.links else "–",
                *(score(metric, float(run.last[metric][i])) for metric in metrics),
                f"{missed[i]:,} of {told[i]:,}" if told[i] else "–",
                size_text(float(run.agent_bytes[i])),
                ranges(absent) or "–",
            ]
        )
    head = ["Agent", "Neighbors", *metrics, "Rounds missed", "Bytes", "Missing in round"]
    few = f"{len(rows):,} of {run.n_agents:,} agents, those that missed most"
    caption = few if len(rows) < run.n_agents else "Agents after their last round"
    return f"<h3>Agents</h3>{table(head, rows, caption, words=[len(head) - 1])}"


def _events(run: Run) -> str:
    if not run.events:
        return ""
    rows = []
    for event in run.events[:_EVENTS]:
        when = f"{event.first:,}" if event.first == event.last else (
            f"{event.first:,} to {event.last:,}")  # fmt: skip
        names = [run.agents[i] for i in event.agents]
        rows.append([f"{event.times:,}", when, names_text(names) if names else "–", event.what])
    kinds = f"{len(rows)} of {len(run.events)} kinds" if len(rows) < len(run.events) else "All"
    caption = f"{kinds} of events, the most frequent first"
    head = ["Times", "In rounds", "Agents", "What"]
    return f"<h3>What went wrong</h3>{table(head, rows, caption, words=[2, 3])}"


def _settings(run: Run) -> str:
    again = (
        f"<p>The command that repeats it, in the app's folder:</p><pre><code>{escape(run.again)}"
        "</code></pre>"
        if run.again
        else "<p>The command that repeats this run is not recorded.</p>"
    )
    where = f"It ran in {escape(run.runtime)}. Read from <code>{escape(run.path)}</code>."
    parts = [f"<h3>Configuration</h3><p>{where}</p>{again}"]
    if run.config:
        rows = [[str(k)[:200], str(v)[:500]] for k, v in [*run.config.items()][:_SETTINGS]]
        inner = table(["Setting", "Value"], rows, "Settings of the run", words=[1])
        parts.append(f"<details><summary>Settings</summary>{inner}</details>")
    if run.versions:
        shown = [[name, each] for name, each in [*run.versions.items()][:_SETTINGS]]
        inner = table(["Software", "Version"], shown, "Versions with which it ran", words=[1])
        parts.append(f"<details><summary>Versions</summary>{inner}</details>")
    else:
        parts.append("<p>The versions with which it ran are not recorded.</p>")
    return "".join(parts)
