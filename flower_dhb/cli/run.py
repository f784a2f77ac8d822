"""`flower-dhb run`: one command from any Flower App to its results, watched while it runs."""

from __future__ import annotations

import argparse
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console

from flower_dhb.cli.run_app import AppFolder
from flower_dhb.cli.run_log import Line, Round, RunLog, without_colors
from flower_dhb.cli.run_view import Live, Plain, View, print_profile, print_table
from flower_dhb.cli.values import read_settings
from flower_dhb.errors import RoundError
from flower_dhb.extras import installed, needs_extra
from flower_dhb.flower.progress import VARIABLE, Progress
from flower_dhb.runs.resuming import KEY
from flower_dhb.runs.superlink import SuperLink, local_superlink
from flower_dhb.runs.table import Row

__all__ = ["configure", "execute"]

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
        "--agents", type=int, help="number of agents (default: the size of the app's topology)"
    )
    parser.add_argument(
        "--home",
        type=Path,
        metavar="FOLDER",
        help="keep Flower's state and the whole log there (default: a temporary folder)",
    )
    parser.add_argument(
        "--profile", action="store_true", help="print where the time of a round went"
    )
    parser.add_argument("--verbose", action="store_true", help="print all that the run prints")


def execute(arguments: argparse.Namespace) -> int:
    """Run the app in simulation on a SuperLink of its own."""
    if not installed("psutil", "ray"):
        raise needs_extra("running an app on this machine", "simulation")
    console = Console()
    path = Path(arguments.app).expanduser().resolve()
    app = AppFolder.read(path)
    n_agents, settings = app.settings(read_settings(arguments.run_config), arguments.agents)
    console.print(f"Starting {n_agents} agents.", highlight=False)
    with _home(arguments.home) as home:
        progress = home / "progress.jsonl"
        with local_superlink(home, {VARIABLE: str(progress)}) as superlink:
            run_id = superlink.submit(path, n_agents, settings)
            watch = Watch(superlink, Progress(progress), home / "run.log")
            try:
                watch.follow(run_id, console, verbose=arguments.verbose)
            finally:
                watch.print_results(console)
                if arguments.profile:
                    print_profile(watch.rows, console)
    watch.check()
    return 0


@contextmanager
def _home(wanted: Path | None) -> Iterator[Path]:
    """A folder for Flower's state: temporary and kept if the run fails, or where it is wanted."""
    if wanted is not None:
        wanted = wanted.expanduser().resolve()
        wanted.mkdir(parents=True, exist_ok=True)
        # Each run has its own, so that two may go on at once.
        prefix = time.strftime("run-%Y%m%d-%H%M%S-")
        yield Path(tempfile.mkdtemp(prefix=prefix, dir=wanted))
        return
    home = Path(tempfile.mkdtemp(prefix="flower-dhb-"))
    try:
        yield home
    except RoundError:
        raise
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    else:
        shutil.rmtree(home, ignore_errors=True)


@dataclass
class Watch:
    """Follows one run: its log, and what it tells of its rounds and folders.

    rows: the rounds of the last strategy that the app started. folders: of results. incomplete:
    which agents the last strategy's result lacks, in a sentence.
    """

    superlink: SuperLink
    progress: Progress
    log_path: Path
    rows: list[Row] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    incomplete: str = ""
    _rounds: int = 0

    def follow(self, run_id: str, console: Console, *, verbose: bool = False) -> None:
        """Show a run until it ends. Raises RoundError if it fails."""
        log = RunLog()
        view: View = Live(console) if console.is_terminal and not verbose else Plain(console)
        with view, self.superlink.log(run_id) as lines:
            arriving: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=self._pump, args=(lines, arriving), daemon=True).start()
            for line in _until_end(arriving):
                if verbose and line.strip():
                    view.line(Line(text=without_colors(line)))
                for event in log.feed(line):
                    self._show(event, view, verbose=verbose)
                self._read_progress(view)
            for event in log.end():
                self._show(event, view, verbose=verbose)
            self._read_progress(view)
        status, details = _final_status(self.superlink, run_id)
        if status != "finished:completed":
            how = "failed" if status == "finished:failed" else f"ended as {status}"
            raise RoundError(
                f"the run {how}: {log.failure or details}\nAll of its log: {self.log_path}"
                f"{self._way_on()}"
            )
        if log.failure is not None and not verbose:
            console.print(f"The app logged an error: {log.failure}", markup=False, soft_wrap=True)

    def check(self) -> None:
        """Raise RoundError if the run has completed, and its result lacks agents."""
        if self.incomplete:
            raise RoundError(self.incomplete)

    def _way_on(self) -> str:
        """How a run that failed can go on, if it can."""
        if not self.folders or not (self.folders[-1] / "checkpoint").is_dir():
            return ""
        return f"\nIt goes on with: -c \"{KEY}='{self.folders[-1]}'\""

    def print_results(self, console: Console) -> None:
        """Print the table and where the results are."""
        print_table(self.rows, console)
        for folder in self.folders:
            console.print(f"Results: {folder}", highlight=False, markup=False, soft_wrap=True)

    def _show(self, event: Line | Round, view: View, *, verbose: bool) -> None:
        if isinstance(event, Round):
            row = Row(round=event.number, rounds=event.total, metrics=event.metrics, told=verbose)
            self._append(row, view)
        elif not verbose:
            view.line(event)

    def _append(self, row: Row, view: View) -> None:
        if self.rows and row.round <= self.rows[-1].round:
            self.rows.clear()  # another strategy has begun
        self.rows.append(row)
        view.row(row)

    def _read_progress(self, view: View) -> None:
        for told in self.progress.news():
            what = told.pop("what")
            if what == "start":
                self._rounds = told["rounds"]
                self.rows.clear()
                self.incomplete = ""
            elif what == "end":
                self.incomplete = told["incomplete"]
            elif what == "folder":
                self.folders.append(Path(told["path"]))
            elif what == "round":
                self._append(Row(rounds=self._rounds, told=True, **told), view)

    def _pump(self, lines: IO[str], arriving: queue.Queue[str | None]) -> None:
        """Hand lines on, and keep the whole log."""
        try:
            with self.log_path.open("a", encoding="utf-8") as log:
                for line in lines:
                    arriving.put(line)
                    log.write(line)
                    log.flush()
        except OSError as error:  # a full disk is no reason to stop watching
            arriving.put(f"WARNING : this log is not kept: {self.log_path}: {error.strerror}\n")
            for line in lines:
                arriving.put(line)
        finally:
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
        yield line


def _final_status(superlink: SuperLink, run_id: str) -> tuple[str, str]:
    # The log ends a moment before the run's status is final.
    for _ in range(50):
        status, details = superlink.status(run_id)
        if status.startswith("finished"):
            break
        time.sleep(0.2)
    return status, details
