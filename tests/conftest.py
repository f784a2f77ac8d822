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
    marks = [m for m in ("slow", "alone") if re.search(rf"(?<!not ){m}\b", wanted)]
    return True if any(f"mark.{mark}" not in text for mark in marks) else None


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
