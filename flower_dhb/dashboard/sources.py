"""Where a dashboard looks: folders of runs that grow, and meshes whose devices answer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flower_dhb.dashboard.views import View, chart_of, view_of_mesh, view_of_run
from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.metrics import summarize
from flower_dhb.pages.graphs import Graph
from flower_dhb.pages.meshes import WEIGHT
from flower_dhb.pages.reading import read_run
from flower_dhb.runs.table import main_metric

if TYPE_CHECKING:
    from flower_dhb.peer.mesh.status import FleetStatus

__all__ = ["MeshSource", "RunsSource", "Source", "source_of"]

_HISTORY = "history.jsonl"
_NEWEST = 4  # runs of a folder that are shown
_SPARING = 10.0  # of the time between two looks, one part in so many goes into reading
_SKETCH = 1  # what is not shown need not be sent
_POINTS = 2_000  # measurements of a mesh that are remembered


class Source(Protocol):
    """Something to look at again and again. pause_s: until the next look."""

    pause_s: float

    def look(self) -> list[View]:
        """How everything is now."""

    def close(self) -> None:
        """Let go of connections."""


def source_of(path: Path) -> Source:
    """What is at a path: a mesh, a run, or a folder in which runs are or will be.

    Raises ConfigError if it is none of these.
    """
    if (path / "mesh.toml").is_file():
        return MeshSource(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: is no folder; name that of a run, of runs or of a mesh")
    return RunsSource(path)


class RunsSource:
    """A run, or the newest of a folder of runs, by their files. Nothing is written.

    A file is read again when it has changed, and ever more seldom the longer that takes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pause_s = 0.5
        self._known: dict[Path, tuple[tuple[float, int], View]] = {}

    def look(self) -> list[View]:
        """The newest run first."""
        began = time.monotonic()
        found = [view for folder in self._folders() if (view := self._view(folder)) is not None]
        self.pause_s = max(0.5, _SPARING * (time.monotonic() - began))
        if found:
            return found
        return [View(name=self.path.resolve().name, sentence="no round is finished yet")]

    def _folders(self) -> list[Path]:
        own = self.path / _HISTORY
        if own.exists():
            return [self.path]
        there = sorted(self.path.glob(f"*/{_HISTORY}"), key=_stamp, reverse=True)
        return [file.parent for file in there[:_NEWEST]]

    def _view(self, folder: Path) -> View | None:
        stamp = _stamp(folder / _HISTORY)
        if folder not in self._known or self._known[folder][0] != stamp:
            try:
                self._known[folder] = stamp, view_of_run(read_run(folder))
            except FlowerDhbError:
                return None  # it is being removed, or begun
        return self._known[folder][1]

    def close(self) -> None:
        """Nothing is held."""


class MeshSource:
    """A mesh by what its devices answer to the operator; scores are remembered from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pause_s = 1.0
        self._metric = ""
        self._rows: dict[int, list[float]] = {}
        self._read()

    def _read(self) -> None:
        """Read what the mesh is: an operator may have changed it. Raises ConfigError."""
        from flower_dhb.peer.mesh.fleet import Fleet

        self._stamp = _stamp(self.path / "mesh.toml")
        self._fleet = Fleet(self.path)
        vertices = sorted(self._fleet.hosts)
        at = {v: i for i, v in enumerate(vertices)}
        weights = {(at[a], at[b]): None for a, b in self._fleet.edges if a in at and b in at}
        name = str(self._fleet.document["topology"])
        graph = Graph(name=name, agents=[str(v) for v in vertices], weights=weights)
        self._places = graph.places()

    def look(self) -> list[View]:
        """Ask all devices. Whoever does not answer within a second is one that does not answer."""
        from flower_dhb.peer.mesh.findings import findings

        began = time.monotonic()
        if self._stamp != _stamp(self.path / "mesh.toml"):
            self._fleet.close()
            self._read()
        status = self._fleet.status(timeout_s=1.0, sketch=_SKETCH)
        self._remember(status)
        table = np.array([self._rows[k] for k in sorted(self._rows)], np.float64).reshape(-1, 4)
        chart = chart_of(self._metric, table)
        found = sorted(findings(status), key=lambda finding: not finding.needs)
        places = self._places if len(status.vertices) == len(self._fleet.hosts) else None
        warnings = [finding.text for finding in found]
        self.pause_s = max(1.0, time.monotonic() - began)
        return [view_of_mesh(self.path.resolve().name, status, warnings, places, chart)]

    def _remember(self, status: FleetStatus) -> None:
        """Mean, worst and best agent, by the round that the middle device is in."""
        told = {
            v: {name: reply.metrics[name] for name in reply.evaluated if name in reply.metrics}
            for v, reply in status.replies.items()
        }
        weights = {v: metrics.pop(WEIGHT, 1.0) for v, metrics in told.items()}
        told = {v: metrics for v, metrics in told.items() if metrics}
        summary = summarize(told, weights)
        name = main_metric([n for n, found in summary.items() if isinstance(found.mean, float)])
        if name is None:
            return
        if name != self._metric:
            self._metric, self._rows = name, {}
        found = summary[name]
        k = int(np.median([status.replies[v].round for v in told]))
        values = (k, found.mean, found.worst, found.best)
        self._rows[k] = [float("nan") if v is None else float(v) for v in values]  # type: ignore[arg-type]
        while len(self._rows) > _POINTS:
            del self._rows[sorted(self._rows)[1]]

    def close(self) -> None:
        """Close the operator's connections."""
        self._fleet.close()


def _stamp(file: Path) -> tuple[float, int]:
    """What changes with a file."""
    try:
        found = file.stat()
    except OSError:
        return 0.0, 0
    return found.st_mtime, found.st_size
