"""What a run leaves behind: a folder with its history, its config, its pictures, its models."""

from __future__ import annotations

import json
import math
import platform
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from flower_dhb import __version__
from flower_dhb.errors import ConfigError
from flower_dhb.extras import installed
from flower_dhb.figures.splits import count_classes, draw_split
from flower_dhb.figures.topologies import draw
from flower_dhb.files import sync, write_durably
from flower_dhb.flower.checkpoint import read_records
from flower_dhb.flower.progress import round_facts, tell, watched
from flower_dhb.metrics import RoundRecord, Summary, finite, grouped
from flower_dhb.runs.resuming import KEY, folder_to_resume
from flower_dhb.runs.table import Row, table
from flower_dhb.topology.turns import Graphs
from flower_dhb.types import NDArrays

__all__ = ["RunFolder", "history_row", "toml_text"]

_ALWAYS = ("accuracy", "loss")  # metrics whose keys are there even if an app lacks them
_NOTHING = Summary(float("nan"))
_EDGES_LISTED = 20_000  # more are not written out; the name of the graph is
_RESUME = "resume.toml"  # for `flwr run --run-config`, to go on


class RunFolder:
    """Folder `<time>-<name>` of one run, written as the run goes on.

    `history.jsonl` gets one line a round, forced to the disk at once, so whatever ends the
    run, the finished rounds are there. Pass `append` as a strategy's `on_round`, and
    `checkpoint` as its `checkpoint`, so that the run can go on after its ServerApp has died.
    """

    def __init__(
        self, parent: str | Path, name: str, topology: Graphs, config: Mapping[str, Any]
    ) -> None:
        if not name or any(mark in name for mark in "/\\") or name.startswith("."):
            raise ConfigError(f"a run's name becomes part of a folder name, got {name!r}")
        self._take(_fresh(Path(parent), f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"), topology)
        self._history.touch()
        write_durably(self.path / "config.toml", toml_text(config).encode())
        again = {**config, KEY: str(self.path.resolve())}
        write_durably(self.path / _RESUME, toml_text(again).encode())
        about = {"topology": _described(topology), "versions": _versions()}
        write_durably(self.path / "run.json", json.dumps(about).encode())
        if installed("matplotlib"):
            draw(topology).savefig(self.path / "topology.png", dpi=150)

    @classmethod
    def resume(cls, path: str | Path, topology: Graphs) -> RunFolder:
        """The folder of a run that goes on, with the rounds that were finished.

        Raises ConfigError if that run is over, StateError if its rounds are damaged.
        """
        folder = cls.__new__(cls)
        folder._take(folder_to_resume(str(path)), topology)
        for record in read_records(folder.checkpoint):
            folder._keep(record)
        text = "".join(json.dumps(row) + "\n" for row in folder.rows)
        write_durably(folder._history, text.encode())
        return folder

    def _take(self, path: Path, topology: Graphs) -> None:
        self.path, self.topology = path, topology
        tell("folder", path=str(path.resolve()))
        self.rows: list[dict[str, Any]] = []
        self._shown: list[Row] = []
        self._history = path / "history.jsonl"

    def draw_split(self, labels: NDArray[np.integer], parts: Sequence[NDArray[np.integer]]) -> None:
        """Write which classes each agent has, as `split.json`, and draw it, as `split.png`.

        labels: (m,), the class of each sample. parts: the samples of each agent.
        """
        counts = count_classes(labels, parts)
        write_durably(self.path / "split.json", json.dumps({"counts": counts.tolist()}).encode())
        if installed("matplotlib"):
            draw_split(labels, parts).savefig(self.path / "split.png", dpi=150)

    @property
    def checkpoint(self) -> Path:
        """Folder for what the run needs to go on; it is gone when the run is over."""
        return self.path / "checkpoint"

    def _keep(self, record: RoundRecord) -> dict[str, Any]:
        row = history_row(record, self.topology.n_agents)
        self.rows.append(row)
        self._shown.append(Row(**round_facts(record)))
        return row

    def append(self, record: RoundRecord) -> None:
        """Write one finished round."""
        row = self._keep(record)
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            sync(file)

    def finish(self, models: Mapping[int, NDArrays], title: str = "") -> None:
        """Draw how the run converged and save each agent's final model as safetensors."""
        (self.path / _RESUME).unlink(missing_ok=True)
        for vertex, arrays in models.items():
            contiguous = {name: np.asarray(a, order="C") for name, a in arrays.items()}
            write_durably(self.path / f"agent-{vertex:03d}.safetensors", save(contiguous))
        if installed("matplotlib"):
            from flower_dhb.figures.runs import convergence_figure

            figure = convergence_figure(self.rows, title)
            figure.savefig(self.path / "convergence.png", dpi=150)

    def table(self) -> list[str]:
        """Short plain table: the first, the best and the last evaluated round.

        Empty where `flower-dhb run` watches, which shows a table of its own.
        """
        if watched():
            return []
        titles, lines = table(self._shown)
        return ["".join(f"{cell:>16}" for cell in cells) for cells in [titles, *lines] if cells]


def history_row(record: RoundRecord, n_agents: int) -> dict[str, Any]:
    """One line of `history.jsonl`: plain values, None for what was not measured.

    For each metric of the app's evaluation: `NAME_mean` (weighted as the strategy weights),
    `NAME_worst`, `NAME_best`, and `NAME`, a list with one value per agent.
    """
    row: dict[str, Any] = {"round": record.round}
    summary = record.evaluate_summary
    for name in sorted(summary.keys() | set(_ALWAYS)):
        key, found = name.replace("-", "_"), summary.get(name, _NOTHING)
        row[f"{key}_mean"] = finite(found.mean)
        row[f"{key}_worst"] = finite(found.worst)
        row[f"{key}_best"] = finite(found.best)
        row[key] = [finite(value) for value in record.values(name, range(n_agents))]
    observed = record.average_model
    for name in sorted({"accuracy", *observed}):
        row[f"{name.replace('-', '_')}_average_model"] = finite(observed.get(name))
    return row | {
        "consensus_distance": finite(record.consensus_distance),
        "bytes_sent": record.bytes_sent,
        "bytes_sent_by_agent": [record.bytes_by_agent.get(v, 0) for v in range(n_agents)],
        "distance_from_start": finite(record.distance_from_start),
        "warnings": record.warnings,
        "missing": record.missing,
        "rejoined": record.rejoined,
        "events": [{"agent": vertex, "what": what} for vertex, what in record.events],
        "seconds": round(record.seconds, 6),
        "policies": [
            {"agents": vertices, "policy": policy}
            for vertices, policy in grouped([*record.policies.items()])
        ],
        "profile": {name: round(seconds, 6) for name, seconds in record.profile.items()},
    }


def _described(topology: Graphs) -> dict[str, Any]:
    """The graph as it was in this run, whatever becomes of the file that it was read from.

    Of graphs that take turns, all edges with their mean weights.
    """
    whole = topology.together
    edges = whole.edges if len(whole.edges) <= _EDGES_LISTED else ()
    row = lru_cache(maxsize=1)(whole.row)  # the whole matrix is much larger than the edges
    return {
        "name": topology.name,
        "agents": topology.n_agents,
        "turns": _turns(topology),
        "labels": [str(label) for label in whole.labels],
        "edges": [[a, b, float(row(a)[b])] for a, b in edges],
    }


def _turns(topology: Graphs) -> list[list[list[int]]]:
    """The edges of each round of a period; empty where all are due in every round."""
    graphs = topology.graphs
    listed = sum(len(graph.edges) for graph in graphs) <= _EDGES_LISTED
    return [[list(edge) for edge in g.edges] for g in graphs] if len(graphs) > 1 and listed else []


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "flower-dhb": __version__}
    for name in ("flwr", "numpy", "torch"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _fresh(parent: Path, name: str) -> Path:
    """A folder that did not exist, even if two runs begin in the same second."""
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        path = parent / f"{name}{suffix}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise ConfigError(f"{parent / name} and 998 like it exist already")


def toml_text(config: Mapping[str, Any]) -> str:
    """A run config as TOML."""
    return "".join(
        f"{key if _BARE_KEY.fullmatch(key) else _toml_value(key)} = {_toml_value(value)}\n"
        for key, value in sorted(config.items())
    )


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def _toml_value(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan, inf and -inf are TOML, but no JSON
    # Run configs are flat. A JSON text, number or boolean is also a TOML one, but for
    # the control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
