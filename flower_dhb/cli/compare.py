"""`flower-dhb compare`: methods beside each other on the same problem, graph and data."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from flower_dhb.algorithms import METHODS
from flower_dhb.compare.comparison import Outcome, compare
from flower_dhb.compare.report import markdown, rows, to_json
from flower_dhb.compare.runs import Store
from flower_dhb.compare.settings import Comparison
from flower_dhb.compare.tasks import TASKS
from flower_dhb.engine.attacks import ATTACKS
from flower_dhb.errors import ConfigError
from flower_dhb.extras import installed, needs_extra
from flower_dhb.files import write_durably

__all__ = ["configure", "execute"]

_USUAL = "dmsgd,dmsgd-gt,dsgd,cdmsgd,qg,decentlam,dsgt,centralized"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--problem", default="digits-mlp", help=f"one of {', '.join(TASKS)}")
    add("--topology", default="ring:16", metavar="A,B", help="such as ring:16,torus:4x4")
    add("--weights", default="metropolis", help="mixing weights of undirected graphs")
    add("--split", default="classes:2", metavar="A,B", help="iid, classes:K, dirichlet:A")
    add("--methods", default=_USUAL, metavar="A,B", help=f"of {', '.join(METHODS)}; or all")
    add("--seeds", type=int, default=3, help="runs per method, seeds 0, 1, … (default 3)")
    add("--rounds", type=int, default=0, help="default: the problem's own")
    add("--tune", action="store_true", help="best learning rate of the grid, on validation data")
    add("--learning-rates", default="", metavar="A,B", help="the grid; without --tune, one rate")
    add("--targets", default="", metavar="A,B", help="scores to reach, such as 0.9,0.95")
    add(
        "--evaluate-every", type=int, default=5, metavar="ROUNDS", help="from one score to the next"
    )
    add("--batch-size", type=int, default=32, help="examples of a step")
    add("--local-steps", type=int, default=1, help="of an agent, in a round")
    add("--failures", type=float, default=0.0, help="probability that a link fails in a round")
    add("--attack", default="", metavar="KIND", help=f"of the last agents: {', '.join(ATTACKS)}")
    add("--attackers", type=int, default=1, help="how many agents lie (default 1)")
    add("--attack-from", type=int, default=1, metavar="ROUND", help="their first lie")
    add("--jobs", type=int, default=0, help="processes (default: one per processor core)")
    add("--out", type=Path, default=Path("runs/compare"), help="folder of results and pictures")
    add("--no-pictures", action="store_true", help="write tables only")
    add("--json", action="store_true", help="print the results as JSON instead of tables")


def execute(arguments: argparse.Namespace) -> int:
    """Compare, print, and write `compare.json`, `compare.md` and a picture per table."""
    comparison = Comparison(
        problem=arguments.problem,
        topologies=_words(arguments.topology),
        splits=_words(arguments.split),
        methods=list(METHODS) if arguments.methods == "all" else _words(arguments.methods),
        seeds=arguments.seeds,
        rounds=arguments.rounds,
        tune=arguments.tune,
        grid=_numbers("--learning-rates", arguments.learning_rates),
        targets=_numbers("--targets", arguments.targets),
        evaluate_every=arguments.evaluate_every,
        batch_size=arguments.batch_size,
        local_steps=arguments.local_steps,
        weights=arguments.weights,
        failures=arguments.failures,
        attack=arguments.attack,
        attackers=arguments.attackers,
        attack_from=arguments.attack_from,
    )
    out: Path = arguments.out
    if arguments.jobs < 0:
        raise ConfigError(f"--jobs must be at least 0, got {arguments.jobs}")
    jobs = arguments.jobs or os.cpu_count() or 1
    try:  # before hours are spent
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to '{out}': {error.strerror or error}") from error
    with Bar(
        TextColumn("comparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs, left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("runs", total=None)
        outcomes = compare(
            comparison,
            Store(out / "runs"),
            jobs=jobs,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    document = json.dumps(to_json(outcomes, comparison), indent=1)
    write_durably(out / "compare.json", document.encode())
    write_durably(out / "compare.md", markdown(outcomes, comparison).encode())
    pictures = [] if arguments.no_pictures else _draw(outcomes, comparison, out)
    if arguments.json:
        print(document)
        return 0
    _print(outcomes, comparison)
    print(f"written: {', '.join(str(p) for p in [out / 'compare.json', *pictures])}")
    return 0


def _print(outcomes: Sequence[Outcome], comparison: Comparison) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    for case in comparison.cases:
        header, *body = rows(outcomes, comparison, case)
        table = Table(title=f"{comparison.problem}, {case.name}", title_justify="left")
        for position, name in enumerate(header):
            table.add_column(
                name, justify="left" if position == 0 else "right", no_wrap=position == 0
            )
        for row in body:
            table.add_row(*row)
        console.print(table)
    seeds = f"median (range) over {comparison.seeds} seeds" if comparison.seeds > 1 else "one seed"
    tuned = "tuned learning rates" if comparison.tune else "one learning rate"
    source = (
        "tuned on validation data, scores are on test data"
        if comparison.task.rising
        else "the optimum is known, so there is nothing to hold out"
    )
    console.print(f"{seeds}; {tuned}; {source}.", highlight=False)
    if comparison.attack:
        who = "agent" if comparison.attackers == 1 else f"{comparison.attackers} agents"
        console.print(
            f"The last {who} of each graph: '{comparison.attack}' from round "
            f"{comparison.attack_from} on; all scores are of the others.",
            highlight=False,
        )


def _draw(outcomes: Sequence[Outcome], comparison: Comparison, out: Path) -> list[Path]:
    if not installed("matplotlib"):
        print(f"no pictures: {needs_extra('a picture', 'plot')}", file=sys.stderr)
        return []
    from flower_dhb.figures.comparisons import case_figure

    paths = []
    for case in comparison.cases:
        name = case.name.replace(":", "-").replace(" ", "_").replace("/", "-")
        path = out / f"{name}.png"
        case_figure(outcomes, comparison, case).savefig(path, dpi=120)
        paths.append(path)
    return paths


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(f"{option} takes numbers separated by commas, got '{text}'") from None
