"""The pictures of the docs: `python -m tests.pictures` draws all; `--demo` runs the demo first.

- `topology.png` and `convergence.png`, of the demo's rounds in `demo.jsonl`. Their pixels depend on
  versions of libraries and fonts; what they show is kept as digests in `shown.json`.
- `runtimes-*.svg`, by `docs/images/runtimes.py`.
- `diagrams/*.svg`, of the diagrams in the pages, by Mermaid in Chromium (`--mermaid FILE`, its
  `mermaid.min.js`).

`stale()` says which of them are not those of their sources.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flower_dhb import Topology, draw
from flower_dhb.figures.runs import convergence_figure

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
DEMO = IMAGES / "demo.jsonl"
SHOWN = IMAGES / "shown.json"
_GRAPH = "ring:16"
_KEPT = ("round", "accuracy_mean", "accuracy_worst", "accuracy_best", "accuracy_average_model",
         "consensus_distance", "missing")  # fmt: skip
_DPI = {"topology.png": 150, "convergence.png": 150}
_THEMES = {"light": "default", "dark": "dark"}
_PAGE = """<!doctype html><meta charset="utf-8"><body></body><script src="{library}"></script>
<script>
const shown = async (text, theme) => {{
  mermaid.initialize({{
    startOnLoad: false, theme, htmlLabels: false, flowchart: {{ htmlLabels: false }},
    fontFamily: "system-ui, sans-serif", deterministicIds: true,
  }});
  return (await mermaid.render("diagram", text)).svg;
}};
</script>"""


# --- what there is to draw --------------------------------------------------------------------


def module(name: str) -> ModuleType:
    """A module beside the pictures."""
    spec = importlib.util.spec_from_file_location(f"docs_images_{name}", IMAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def figures() -> dict[str, Figure]:
    """Pictures that Matplotlib draws, by name."""
    rows = [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]
    return {
        "topology.png": draw(Topology.ring(16)),
        "convergence.png": convergence_figure(rows, "Sixteen agents on a ring"),
    }


def drawings() -> dict[str, str]:
    """Pictures that are text, by name."""
    runtimes = module("runtimes")
    return {f"runtimes-{scheme}.svg": runtimes.picture(scheme) for scheme in ("light", "dark")}


def diagrams() -> dict[Path, tuple[str, str]]:
    """By the path of its picture, the text of each diagram and its scheme."""
    found, hook = {}, module("diagrams")
    for page in sorted(DOCS.rglob("*.md")):
        for block in hook.BLOCK.finditer(page.read_text(encoding="utf-8")):
            for scheme in hook.SCHEMES:
                found[hook.path_of(block[1], scheme)] = (block[1], scheme)
    return found


def digest(figure: Figure) -> str:
    """Of what a figure shows: its texts, and its lines, areas and points in units of the data.

    Ticks are left out: versions of Matplotlib choose them differently.
    """
    return hashlib.sha256(json.dumps([*_shown(figure)]).encode()).hexdigest()


def _shown(figure: Figure) -> Iterator[Any]:
    yield figure.get_suptitle()
    yield [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        titles = (axes.get_title(where) for where in ("left", "center", "right"))
        yield [*titles, axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()]
        yield [text.get_text() for text in axes.texts]
        legend = axes.get_legend()
        yield [text.get_text() for text in legend.get_texts()] if legend else []
        for line in axes.lines:
            yield ["line", line.get_color(), line.get_linewidth(), *map(_rounded, line.get_data())]
        for points in axes.collections:
            paths = [_rounded(path.vertices) for path in points.get_paths()]
            yield ["points", _rounded(points.get_offsets()), paths]
        for area in axes.patches:
            yield ["area", _rounded(area.get_path().vertices)]


def _rounded(values: Any) -> list[str]:
    flat = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan).ravel()
    return [f"{value:.5g}" for value in flat]


# --- whether it is drawn ----------------------------------------------------------------------


def stale() -> list[str]:
    """Pictures that are not those of their sources, or that nothing shows any more."""
    known = json.loads(SHOWN.read_text(encoding="utf-8")) if SHOWN.exists() else {}
    found = [
        name
        for name, figure in figures().items()
        if known.get(name) != digest(figure) or not (IMAGES / name).exists()
    ]
    found += [
        name
        for name, text in drawings().items()
        if not (IMAGES / name).exists() or (IMAGES / name).read_text(encoding="utf-8") != text
    ]
    wanted = diagrams()
    found += [str(path.relative_to(IMAGES)) for path in wanted if not path.exists()]
    drawn = (IMAGES / "diagrams").glob("*.svg")
    return found + [str(path.relative_to(IMAGES)) for path in drawn if path not in wanted]


# --- drawing ----------------------------------------------------------------------------------


def run_demo() -> None:
    """Run what `make demo` runs, and keep of its rounds what is drawn."""
    with tempfile.TemporaryDirectory() as folder:
        settings = f'topology="{_GRAPH}" observe-average=true name="demo" runs-dir="{folder}"'
        words = [sys.executable, "-m", "flower_dhb.cli", "run", ".", "--run-config", settings]
        subprocess.run(words, cwd=ROOT, check=True)
        (history,) = Path(folder).glob("*/history.jsonl")
        keep(history)


def keep(history: Path) -> None:
    """Take what is drawn from a run's rounds."""
    rows = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    kept = [{key: _short(row[key]) for key in _KEPT if row.get(key)} for row in rows]
    DEMO.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def draw_all(library: Path | None) -> None:
    """Draw what is stale. library: Mermaid's, where diagrams are among it."""
    known = {}
    for name, figure in figures().items():
        known[name] = digest(figure)
        figure.savefig(IMAGES / name, dpi=_DPI[name])
    SHOWN.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    for name, text in drawings().items():
        (IMAGES / name).write_text(text, encoding="utf-8")
    wanted = diagrams()
    folder = IMAGES / "diagrams"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.svg"):
        if path not in wanted:
            path.unlink()
    missing = {path: found for path, found in wanted.items() if not path.exists()}
    if missing and library is None:
        raise SystemExit(f"{len(missing)} diagrams are not drawn: name Mermaid's library")
    if missing:
        _draw_diagrams(missing, library)


def _draw_diagrams(missing: dict[Path, tuple[str, str]], library: Path | None) -> None:
    from tests.support.browser import Browser  # of systems that have pipes of their kind

    assert library is not None
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        page = Path(folder) / "page.html"
        page.write_text(_PAGE.format(library=library.resolve().as_uri()), encoding="utf-8")
        browser.open(page)
        browser.wait("typeof mermaid === 'object'")
        for path, (text, scheme) in missing.items():
            call = f"shown({json.dumps(text)}, {json.dumps(_THEMES[scheme])})"
            path.write_text(_tidy(browser.run(call)), encoding="utf-8")


def _tidy(svg: str) -> str:
    """A picture that has a size of its own, not that of its page."""
    _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    svg = re.sub(
        r'(<svg[^>]*?) width="100%"', rf'\1 width="{width:.0f}" height="{height:.0f}"', svg
    )
    return svg.strip() + "\n"


def main() -> None:
    """Draw, and say what was drawn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", action="store_true", help="run the demo first")
    parser.add_argument("--mermaid", type=Path, metavar="FILE", help="Mermaid's mermaid.min.js")
    parser.add_argument("--check", action="store_true", help="say only what is out of date")
    arguments = parser.parse_args()
    if arguments.check:
        found = stale()
        print("\n".join(found) or "all pictures are those of their sources")
        sys.exit(bool(found))
    if arguments.demo:
        run_demo()
    draw_all(arguments.mermaid)
    print("\n".join(str(p.relative_to(ROOT)) for p in sorted(IMAGES.rglob("*.[ps][nv]g"))))


if __name__ == "__main__":
    main()
