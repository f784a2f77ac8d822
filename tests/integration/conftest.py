"""Flower runs that several tests look at: one SuperLink, and two runs of the app at the root."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from support.flower_runs import DIGITS, ROOT, RULES, command, processes_of, run, write_all_rules

from flower_dhb.flower.progress import VARIABLE
from flower_dhb.runs.superlink import SuperLink, local_superlink
from tests.support.peers import DIGITS as DIGITS_NEED
from tests.support.programs import Programs, quick


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Flower's programs as forks of one process that has loaded them."""
    with quick(tmp_path_factory.mktemp("programs") / "environment") as programs:
        yield programs


@pytest.fixture(scope="module")
def quick_programs(programs: Programs) -> Iterator[None]:
    """What a module starts of Flower starts at once."""
    with programs.used():
        yield


@dataclass(frozen=True)
class Quick(SuperLink):
    """A SuperLink that is asked by quick programs."""

    programs: Programs

    @contextlib.contextmanager
    def log(self, run_id: str) -> Iterator[IO[str]]:
        with self.programs.used(), super().log(run_id) as lines:
            yield lines

    def ask(self, words: Sequence[str]) -> dict[str, Any]:
        with self.programs.used():
            return super().ask(words)


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    """A SuperLink for all runs that need none of their own; they run in the folder of its log."""
    here = tmp_path_factory.mktemp("flwr")
    home = here / "home"
    home.mkdir()
    with (
        quick(here / "environment", DIGITS_NEED) as programs,
        contextlib.chdir(home),
        contextlib.ExitStack() as stack,
    ):
        with programs.used():
            starting = local_superlink(home, {VARIABLE: str(home / "progress")})
            link = stack.enter_context(starting)
        yield Quick(link.environment, link.log_path, programs)
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
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A `data-dir`, and what torchvision must know of it."""
    from tests.support.eight import write_images

    folder = tmp_path_factory.mktemp("images")
    return folder, write_images(folder)


@pytest.fixture(scope="session")
def eight(
    superlink: SuperLink,
    images: tuple[Path, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Runs of the same app with eight agents, all in one `flwr run`: `{name: its folder}`."""
    from tests.support.eight import run_all

    return run_all(superlink, tmp_path_factory.mktemp("eight"), *images)


@pytest.fixture(scope="session")
def rules(superlink: SuperLink, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same app once for each of the rules, all in one `flwr run`: `{rule: its folder}`."""
    here = tmp_path_factory.mktemp("rules")
    write_all_rules(here / "app")
    folders = run(superlink, here / "app", 7, here / "runs", **DIGITS)
    found = {name: [f for f in folders if f.name.endswith(f"-{name}")] for name in RULES}
    assert all(len(each) == 1 for each in found.values()), folders
    return {name: each[0] for name, each in found.items()}
