"""Finished runs in a folder, one file each: an interrupted comparison goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from flower_dhb.compare.runs import Curves, Run
from flower_dhb.files import write_durably

__all__ = ["Store"]


class Store:
    """Finished runs in a folder; a file is named by the digest of all that a run depends on."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, run: Run) -> Curves | None:
        """Curves of a finished run; None if it is not there or not readable."""
        try:
            values = json.loads((self.folder / f"{run.key}.json").read_text(encoding="utf-8"))
            return Curves.of(values["curves"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, run: Run, curves: Curves) -> None:
        """Write the curves, whole or not at all."""
        text = json.dumps({"run": asdict(run), "curves": asdict(curves)})
        write_durably(self.folder / f"{run.key}.json", text.encode())
