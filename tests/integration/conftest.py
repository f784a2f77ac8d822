"""Flower runs that several tests look at: one SuperLink, and two runs of the app at the root."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.flower_runs import DIGITS, ROOT, RULES, command, processes_of, run, write_all_rules

from flower_dhb.flower.progress import VARIABLE
from flower_dhb.runs.superlink import SuperLink, local_superlink


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    """A SuperLink for all runs that need none of their own; they run in the folder of its log."""
    home = tmp_path_factory.mktemp("flwr-home")
    with (
        contextlib.chdir(home),
        local_superlink(home, {VARIABLE: str(home / "progress")}) as link,
    ):
        yield link
    assert processes_of(home) == [], "all that was started must have ended"


@dataclass(frozen=True)
class Commanded:
    """What `flower-dhb run` left: its exit status, its words, its home, the folder of results."""

    status: int
    out: str
    home: Path
    folder: Path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Commanded:
    """One `flower-dhb run` of the app at the repository's root, with nothing changed in it."""
    here = tmp_path_factory.mktemp("digits")
    home, runs = here / "home", here / "runs"
    with command(ROOT, home, {**DIGITS, "runs-dir": str(runs)}) as process:
        out, _ = process.communicate(timeout=200)
    folders = sorted(runs.iterdir()) if runs.exists() else []
    assert len(folders) == 1, out
    return Commanded(process.returncode, out, home, folders[0])


@pytest.fixture(scope="session")
def rules(superlink: SuperLink, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same app once for each of the rules, all in one `flwr run`: `{rule: its folder}`."""
    here = tmp_path_factory.mktemp("rules")
    write_all_rules(here / "app")
    folders = run(superlink, here / "app", 7, here / "runs", **DIGITS)
    found = {name: [f for f in folders if f.name.endswith(f"-{name}")] for name in RULES}
    assert all(len(each) == 1 for each in found.values()), folders
    return {name: each[0] for name, each in found.items()}
