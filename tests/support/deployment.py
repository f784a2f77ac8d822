"""A real SuperLink and real SuperNodes for tests, what their runs leave, and a tiny app for them.

`Deployment` starts them; `APP` needs no torch, and takes the arguments of `ServerlessStrategy` as
JSON in its run config. Use it as

    with Deployment(tmp_path) as deployment:
        deployment.start_link()
        deployment.start_nodes(range(3))
        run = Run.submit(deployment, {"rounds": 8}, round_timeout_s=20.0)
        run.wait_for(lambda rows: len(rows) >= 2)
        deployment.kill_node(2)
        rows = run.finish()
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file

from deploy.local import Deployment

__all__ = ["APP", "Deployment", "Row", "Run"]

APP = Path(__file__).resolve().parents[1] / "integration" / "apps" / "deployed"

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of `APP`: its id, and the folder that has its results' folder."""

    deployment: Deployment
    id: str
    runs: Path

    @classmethod
    def submit(
        cls, deployment: Deployment, settings: Mapping[str, Any] | None = None, **arguments: Any
    ) -> Run:
        """Start a run; `settings` is its run config, `arguments` are those of the strategy."""
        number = len(list(deployment.folder.glob("runs-*")))
        runs = deployment.folder / f"runs-{number}"
        runs.mkdir()
        values = {"runs-dir": str(runs), "strategy": json.dumps(arguments), **(settings or {})}
        return cls(deployment, deployment.submit(APP, values), runs)

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return next(self.runs.iterdir())

    def models(self, name: str) -> list[NDArray[Any]]:
        """One array of each agent's final model, by vertex."""
        paths = sorted(self.folder.glob("agent-*.safetensors"))
        return [load_file(path)[name] for path in paths]

    def rows(self) -> list[Row]:
        """The finished rounds, as `history.jsonl` has them."""
        paths = list(self.runs.glob("*/history.jsonl"))
        return [json.loads(line) for line in paths[0].read_text().splitlines()] if paths else []

    def wait_for(self, holds: Callable[[list[Row]], bool], seconds: float = 240.0) -> list[Row]:
        """The rows, once they hold something."""
        end = time.monotonic() + seconds
        while not holds(rows := self.rows()):
            assert time.monotonic() < end, f"waited {seconds:g} s; {rows[-2:]}; {self.text()}"
            time.sleep(0.1)
        return rows

    def finish(self, seconds: float = 400.0) -> list[Row]:
        """The rows, once the run has ended well."""
        status, details = self.end(seconds)
        assert status == "finished:completed", f"{status}, {details}: {self.text()}"
        return self.rows()

    def end(self, seconds: float = 400.0) -> tuple[str, str]:
        """How the run ended: its status and the details of it."""
        found = self.deployment.end_of(self.id, seconds)
        assert found[0].startswith("finished"), f"{found} after {seconds:g} s: {self.text()}"
        return found

    def text(self) -> str:
        """The end of what the SuperLink and its ServerApps have logged."""
        return self.deployment.log("link").read_text(errors="replace")[-3000:]
