"""Shared fixtures."""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads of small products only wait for each other: five times slower on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long a SuperLink lets a run wait before it starts it; Flower's default is a second.
os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.25")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file that has none of the tests that `-m` asks for need not be loaded."""
    wanted = str(config.getoption("markexpr"))
    if collection_path.suffix != ".py" or " or " in wanted:
        return None
    text = collection_path.read_text(encoding="utf-8")
    if "not thorough" in wanted and re.search(r"^pytestmark = [^\]]*mark\.thorough", text, re.M):
        return True
    marks = [m for m in ("slow", "alone") if re.search(rf"(?<!not ){m}\b", wanted)]
    return True if any(f"mark.{mark}" not in text for mark in marks) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that may take longest begin first, so that none is left over at the end."""
    long = {item.path for item in items if item.get_closest_marker("thorough")}

    def limit_s(item: pytest.Item) -> tuple[float, bool]:
        mark = item.get_closest_marker("timeout") if item.get_closest_marker("slow") else None
        return float(mark.args[0]) if mark else 0.0, item.path in long

    items.sort(key=limit_s, reverse=True)


def pytest_collection_finish() -> None:
    """Thousands of tests and all libraries stay to the end: no use in walking them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet_flower() -> Iterator[None]:
    """Flower logs every message; a failing test's output should show the test's own."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture
def unforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process dies here, and no machine: what was written is there, forced to the disk or not."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _handle: None)


@pytest.fixture
def quiet_peers() -> Iterator[None]:
    """What peers log of thousands of frames would take longer than the frames."""
    from flower_dhb.peer.monitor import LOGGER

    LOGGER.disabled = True
    yield
    LOGGER.disabled = False
