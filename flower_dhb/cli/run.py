"""`flower-dhb run`: one command from an app to its results, with a live line while it runs."""

from __future__ import annotations

import argparse
import json
import queue
import re
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click
from flwr.common.config import flatten_dict, parse_config_args
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flower_dhb.errors import ConfigError, RoundError, unknown
from flower_dhb.graph import Topology
from flower_dhb.superlink import SuperLink, local_superlink

__all__ = ["configure", "execute"]

_FOLDER = re.compile(r"leaves its results in (?P<path>/.*|[A-Za-z]:.*)$")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"^(INFO|WARNING|ERROR|DEBUG)\s*:\s*")
_ROUND = re.compile(r"^round \d+/\d+ ")
_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")  # as Flower reads them
_POLL_S = 0.25


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("app", nargs="?", default=".", help="folder of the Flower App (default: .)")
    parser.add_argument(
        "-c",
        "--run-config",
        action="append",
        default=[],
        metavar="KEY=VALUE|FILE",
        help="as for flwr run: settings, or a TOML file of settings",
    )
    parser.add_argument(
        "--agents", type=int, help="number of agents (default: the size of the topology)"
    )
    parser.add_argument(
        "--home", type=Path, help="where Flower keeps its state (default: .flwr in the app)"
    )
    parser.add_argument("--verbose", action="store_true", help="print all that the run prints")


def execute(arguments: argparse.Namespace) -> int:
    """Run the app in simulation on a SuperLink of its own."""
    console = Console()
    app = Path(arguments.app).resolve()
    defaults, overrides = _app_config(app), _overrides(arguments.run_config)
    for key in overrides:
        if key not in defaults:
            raise ConfigError(unknown("run-config key", key, sorted(defaults)))
    overrides |= _paths_in(app, {**defaults, **overrides})
    n_agents = arguments.agents
    if n_agents is None:
        n_agents = _agents_of({**defaults, **overrides})
    if not n_agents >= 1:
        raise ConfigError(f"--agents must be at least 1, got {n_agents}")
    home = (arguments.home or app / ".flwr").resolve()
    console.print(f"Starting {n_agents} agents; no server averages anything.", highlight=False)
    with local_superlink(home) as superlink:
        run_id = superlink.submit(app, n_agents, overrides)
        folder = _follow(superlink, run_id, console, verbose=arguments.verbose)
        status, details = _final_status(superlink, run_id)
    if status != "finished:completed":
        raise RoundError(f"the run ended as {status}: {details}; see {superlink.log_path}")
    if folder is not None:
        _print_table(folder, console)
    return 0


def _follow(superlink: SuperLink, run_id: str, console: Console, *, verbose: bool) -> Path | None:
    """Show a run until it ends. Returns the folder of its results, if it told one."""
    with superlink.log(run_id) as lines:
        arriving: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(lines, arriving), daemon=True).start()
        view = _Live(console) if console.is_terminal and not verbose else _Plain(console, verbose)
        with view:
            folder = None
            for line in _until_end(arriving):
                if line and (match := _FOLDER.search(line)):
                    folder = Path(match["path"].strip())
                view.show(line, folder)
        return folder


def _pump(lines: IO[str], arriving: queue.Queue[str | None]) -> None:
    for line in lines:
        arriving.put(_ANSI.sub("", line).rstrip())
    arriving.put(None)


def _until_end(arriving: queue.Queue[str | None]) -> Iterator[str]:
    """Lines as they come, and an empty one from time to time."""
    while True:
        try:
            line = arriving.get(timeout=_POLL_S)
        except queue.Empty:
            line = ""
        if line is None:
            return
        yield _LEVEL.sub("", line).strip()


class _Plain:
    """Lines for a file or a pipe: one a round, and whatever went wrong."""

    def __init__(self, console: Console, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, line: str, folder: Path | None) -> None:  # noqa: ARG002
        if line and (self._verbose or _ROUND.match(line) or _tells_of_failure(line)):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Live:
    """One line that moves: round, mean and worst accuracy, consensus distance."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, state="starting the agents")

    def __enter__(self) -> _Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, line: str, folder: Path | None) -> None:
        if _tells_of_failure(line):
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
        row = _last_row(folder)
        if row is not None:
            self._progress.update(
                self._task, completed=row["round"], total=_rounds(folder), state=_state(row)
            )


def _tells_of_failure(line: str) -> bool:
    return "Error" in line and not _ROUND.match(line)


def _state(row: dict[str, Any]) -> str:
    parts = []
    for title, key, form in (
        ("accuracy", "accuracy_mean", "{:.3f}"),
        ("worst", "accuracy_worst", "{:.3f}"),
        ("distance", "consensus_distance", "{:.3g}"),
    ):
        if row.get(key) is not None:
            parts.append(f"{title} {form.format(row[key])}")
    if row["missing"]:
        parts.append(f"missing {row['missing']}")
    return "  ".join(parts)


def _print_table(folder: Path, console: Console) -> None:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row.get("accuracy_mean") is not None]
    if measured:
        table = Table(title=f"{len(rows)} rounds, {sum(r['seconds'] for r in rows):.0f} s")
        for title in ("", "round", "mean over agents", "worst agent", "average model", "distance"):
            table.add_column(title, justify="right")
        best = max(measured, key=lambda row: float(row["accuracy_worst"] or 0.0))
        for name, row in (("first", measured[0]), ("best", best), ("last", measured[-1])):
            keys = ("accuracy_mean", "accuracy_worst", "accuracy_average_model")
            cells = [f"{row[k]:.1%}" if row.get(k) is not None else "-" for k in keys]
            distance = row.get("consensus_distance")
            cells.append(f"{distance:.3g}" if distance is not None else "-")
            table.add_row(name, str(row["round"]), *cells)
        console.print(table)
    console.print(f"Results: {folder}", highlight=False, soft_wrap=True)


def _last_row(folder: Path | None) -> dict[str, Any] | None:
    if folder is None or not (folder / "history.jsonl").exists():
        return None
    lines = (folder / "history.jsonl").read_text().splitlines()
    try:
        return dict(json.loads(lines[-1])) if lines else None
    except ValueError:  # the line is being written at this moment
        return None


def _rounds(folder: Path | None) -> int | None:
    if folder is None:
        return None
    found = re.search(r"^rounds = (\d+)$", (folder / "config.toml").read_text(), re.MULTILINE)
    return int(found[1]) if found else None


def _final_status(superlink: SuperLink, run_id: str) -> tuple[str, str]:
    # The log ends a moment before the run's status is final.
    for _ in range(50):
        status, details = superlink.status(run_id)
        if status.startswith("finished"):
            break
        time.sleep(0.2)
    return status, details


def _app_config(app: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
        return flatten_dict(document["tool"]["flwr"]["app"].get("config", {}))
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{app} is not a Flower App: {error!r}") from None


def _overrides(settings: list[str]) -> dict[str, Any]:
    """All `--run-config` values as one mapping, later ones first in rank."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        try:
            if not setting.endswith(".toml") and (left := _PAIR.sub("", setting).strip()):
                raise ValueError(f"{left!r} is neither KEY=VALUE nor a .toml file")
            overrides |= parse_config_args([setting])
        except (OSError, ValueError, click.ClickException) as error:
            raise ConfigError(f"--run-config {setting!r}: {error}") from None
    return overrides


def _paths_in(app: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Absolute paths of the settings that are paths, which are relative to the app.

    The app runs from a copy of itself, in which they would point to nowhere.
    """
    paths = {key: str(app / str(config[key])) for key in ("runs-dir", "data-dir") if key in config}
    if "topology" in config and (app / str(config["topology"])).is_file():
        paths["topology"] = str(app / str(config["topology"]))
    return paths


def _agents_of(config: Mapping[str, Any]) -> int:
    """Size of the topology that a run config names."""
    if "topology" not in config:
        raise ConfigError("the app's config names no topology; say how many agents: --agents N")
    return Topology.parse(str(config["topology"])).n_agents
