"""`flower-dhb compare`: methods beside each other on the same problem, graph and data."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flower_dhb.algorithms import METHODS, method
from flower_dhb.compare.comparison import compare
from flower_dhb.compare.presets import settings_of_preset
from flower_dhb.compare.report import Results
from flower_dhb.compare.settings import SEARCHED, Comparison
from flower_dhb.compare.tasks import TASKS
from flower_dhb.compare.tuning import COORDINATE
from flower_dhb.engine.attacks import ATTACKS
from flower_dhb.engine.engine import check_rule
from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.extras import installed, needs_extra
from flower_dhb.files import write_durably
from flower_dhb.problems.optimizers import OPTIMIZERS, SCHEDULES
from flower_dhb.topology.turns import AnyGraph, parse_graph, share_every

__all__ = ["configure", "execute"]

_USUAL = "dmsgd,dmsgd-gt,dsgd,cdmsgd,qg,decentlam,dsgt,centralized"
_FORMATS = ("pdf", "svg", "png")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--problem", help=f"one of {', '.join(TASKS)} (default digits-mlp); or package.module:make")
    add("--preset", type=Path, metavar="FILE", help="a run config; other options go before it")
    add("--topology", metavar="A,B", help="such as ring:16,one-peer:16 (default ring:16)")
    add("--weights", help="mixing weights of undirected graphs (default metropolis)")
    add("--share-every", type=int, metavar="ROUNDS", help="from one exchange to the next")
    add("--split", metavar="A,B", help="iid, classes:K, dirichlet:A (default classes:2)")
    add(
        "--methods",
        metavar="A,B",
        help=f"of {', '.join(METHODS)}, package.module:Rule; or all that run",
    )
    add("--seeds", type=int, default=3, help="runs per method, seeds 0, 1, … (default 3)")
    add("--rounds", type=int, help="default: the problem's own")
    add("--tune", action="store_true", help="best learning rate of the grid, on validation data")
    add(
        "--search",
        action="append",
        default=[],
        metavar="SETTING[=A,B]",
        help=f"tune it beside the rate: {', '.join(n.replace('_', '-') for n in SEARCHED)}, …",
    )
    add("--how", default=COORDINATE, help="of --search: coordinate, or grid for all combinations")
    add("--learning-rates", metavar="A,B", help="the grid; without --tune, one rate")
    add("--targets", metavar="A,B", help="scores to reach, such as 0.9,0.95")
    add(
        "--evaluate-every", type=int, default=5, metavar="ROUNDS", help="from one score to the next"
    )
    add("--batch-size", type=int, help="examples of a step (default 32)")
    add("--local-steps", metavar="A,B", help="of an agent, in a round (default 1)")
    add("--optimizer", metavar="A,B", help=f"of the local steps: {', '.join(OPTIMIZERS)}")
    add("--schedule", metavar="A,B", help=f"of the learning rate: {', '.join(SCHEDULES)}")
    add("--compression", metavar="A,B", help="of payloads: none, bf16, int8, topk:0.1, …")
    add("--failures", type=float, default=0.0, help="probability that a link fails in a round")
    add("--attack", default="", metavar="KIND", help=f"of the last agents: {', '.join(ATTACKS)}")
    add("--attackers", type=int, default=1, help="how many agents lie (default 1)")
    add("--attack-from", type=int, default=1, metavar="ROUND", help="their first lie")
    add("--jobs", type=int, default=0, help="processes (default: one per processor core)")
    add(
        "--ray", default="", metavar="ADDRESS", help="a Ray cluster instead: auto, local, host:port"
    )
    add("--out", type=Path, default=Path("runs/compare"), help="folder of results and pictures")
    add("--formats", default="pdf,svg", metavar="A,B", help=f"of pictures: {', '.join(_FORMATS)}")
    add("--no-pictures", action="store_true", help="write tables only")
    add("--wide", action="store_true", help="tables with all views, megabytes, consensus distance")
    add("--json", action="store_true", help="print the results as JSON instead of tables")


def execute(arguments: argparse.Namespace) -> int:
    """Compare, print, and write tables, numbers and pictures."""
    comparison = Comparison(**_settings(arguments))
    out: Path = arguments.out
    if arguments.jobs < 0:
        raise ConfigError(f"--jobs must be at least 0, got {arguments.jobs}")
    formats = _words(arguments.formats)
    for name in formats:
        if name not in _FORMATS:
            raise ConfigError(f"--formats: '{name}' is none of {', '.join(_FORMATS)}")
    try:  # before hours are spent
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to '{out}': {error.strerror or error}") from error
    print(f"It takes {comparison.cost().text}", file=sys.stderr)
    with Bar(
        TextColumn("comparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs, left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("runs", total=None)
        results = compare(
            comparison,
            out,
            jobs=arguments.jobs or os.cpu_count() or 1,
            ray=arguments.ray,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    document = json.dumps(results.to_json(), indent=1)
    written = {
        "compare.json": document,
        "compare.md": results.markdown(),
        "compare.csv": results.csv(),
        "curves.csv": results.csv(curves=True),
        "compare.tex": results.latex(arguments.wide),
    }
    for name, text in written.items():
        write_durably(out / name, text.encode())
    pictures = [] if arguments.no_pictures else _draw(results, out / "figures", formats)
    if arguments.json:
        print(document)
        return 0
    print(results.text(arguments.wide))
    shown = f"{len(pictures)} pictures in {out / 'figures'}" if pictures else "no pictures"
    print(f"written: {', '.join(written)} in {out}; {shown}")
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of a comparison: of the preset, and what the command line says instead."""
    found: dict[str, Any] = {
        "problem": "digits-mlp",
        "topologies": ["ring:16"],
        "splits": ["classes:2"],
        "methods": _words(_USUAL),
    }
    if arguments.preset is not None:
        found |= settings_of_preset(arguments.preset, arguments.problem)
    given = {
        "problem": arguments.problem,
        "topologies": _words(arguments.topology),
        "weights": arguments.weights,
        "share_every": arguments.share_every,
        "splits": _words(arguments.split),
        "methods": _words(arguments.methods),
        "rounds": arguments.rounds,
        "grid": _numbers("--learning-rates", arguments.learning_rates),
        "targets": _numbers("--targets", arguments.targets),
        "batch_size": arguments.batch_size,
        "local_steps": _integers("--local-steps", arguments.local_steps),
        "optimizers": _spec_words(arguments.optimizer),
        "schedules": _spec_words(arguments.schedule),
        "compressions": _words(arguments.compression),
    }
    found |= {name: value for name, value in given.items() if value is not None}
    if arguments.methods == "all":
        weights, every = found.get("weights", "metropolis"), found.get("share_every", 1)
        graphs = [share_every(parse_graph(g, weights), every) for g in found["topologies"]]
        found["methods"] = _all_for(graphs)
    names = ("seeds", "how", "evaluate_every", "failures", "attack", "attackers", "attack_from")
    search = dict(_searched(word) for word in arguments.search)
    tune = arguments.tune or bool(search)
    return {**found, **{n: getattr(arguments, n) for n in names}, "search": search, "tune": tune}


def _all_for(graphs: list[AnyGraph]) -> list[str]:
    """All methods that run on these graphs; says which do not."""
    found = []
    for name in METHODS:
        try:
            for graph in graphs:
                check_rule(method(name), graph)
            found.append(name)
        except FlowerDhbError as error:
            print(f"without '{name}': {error}", file=sys.stderr)
    return found


def _draw(results: Results, folder: Path, formats: list[str]) -> list[Path]:
    if not installed("matplotlib"):
        print(f"no pictures: {needs_extra('a picture', 'plot')}", file=sys.stderr)
        return []
    from flower_dhb.figures.comparisons import save

    return save(results, folder, formats)


def _searched(word: str) -> tuple[str, list[float]]:
    name, equals, values = word.partition("=")
    setting = name.strip().replace("-", "_")
    if equals:
        return setting, _numbers("--search", values) or []
    if setting not in SEARCHED:
        raise ConfigError(
            f"--search: say which values of '{name}' to try, as {name}=A,B; known are those of "
            f"{', '.join(n.replace('_', '-') for n in SEARCHED)}"
        )
    return setting, list(SEARCHED[setting])


def _words(text: str | None) -> Any:
    if text is None:
        return None
    return [word.strip() for word in text.split(",") if word.strip()]


def _spec_words(text: str | None) -> Any:
    """Words of optimizers and schedules, which begin with a letter: `step:0.1@10,20,cosine`."""
    return None if text is None else [w.strip() for w in re.split(r",(?=\s*[a-z])", text)]


def _numbers(option: str, text: str | None) -> Any:
    try:
        return None if text is None else [float(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(f"{option} takes numbers separated by commas, got '{text}'") from None


def _integers(option: str, text: str | None) -> Any:
    try:
        return None if text is None else [int(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(f"{option} takes integers separated by commas, got '{text}'") from None
