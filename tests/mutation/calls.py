"""Which test calls which function of the package: traced once, kept by the test file's content.

Functions are known by their names, not lines, so most of the record outlives a change of the
package; `--trace` makes it anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from .fork import in_child

MARKS = ["-m", "not slow", "-p", "no:cacheprovider", "-q"]
MARKS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of the plugins imported before
MARKS += ["-p", "no:anyio", "-p", "no:platformdirs"]  # not used here, and slow to import
LIMIT_S = 600.0

# Per test: seconds, whether it passed, and the functions it called as "module.py::qualified.name".
Record = dict[str, dict[str, Any]]


class Tracer:
    """A pytest plugin that notes the functions each test calls; what a shared fixture calls
    counts for all tests of the file."""

    def __init__(self, package: Path) -> None:
        self._prefix = str(package) + "/"
        self._base = len(str(package.parent)) + 1
        self._now: set[CodeType] = set()
        self._shared: set[CodeType] = set()
        self.tests: dict[str, dict[str, Any]] = {}

    def _trace(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if code.co_filename.startswith(self._prefix):
            self._now.add(code)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        before, self._now = self._now, set()
        result = yield
        self._shared |= self._now
        self._now |= before
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._now = set()
        start = time.perf_counter()
        sys.settrace(self._trace)
        threading.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            test = self.tests.setdefault(item.nodeid, {"passed": True})
            test["seconds"] = round(time.perf_counter() - start, 4)
            test["calls"] = self._now

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.tests.setdefault(report.nodeid, {})["passed"] = False

    def record(self) -> Record:
        for test in self.tests.values():
            codes = test.get("calls", set()) | self._shared
            names = {f"{code.co_filename[self._base :]}::{_name(code)}" for code in codes}
            test["calls"] = sorted(names)
            test.setdefault("passed", True)
            test.setdefault("seconds", 0.0)
        return self.tests


def _name(code: CodeType) -> str:
    """The enclosing function's name: a comprehension or a lambda belongs to it."""
    parts = code.co_qualname.split(".<locals>.")
    while len(parts) > 1 and parts[-1].startswith("<"):
        parts.pop()
    return ".<locals>.".join(parts)


def measured(tree: Path, kept: Path, again: bool, tell: Any) -> Record:
    """The record for all fast tests of the tree; only test files that changed are run."""
    files: dict[str, Any] = {}
    if kept.exists() and not again:
        files = json.loads(kept.read_text())
    everything: Record = {}
    for path in sorted((tree / "tests").rglob("test_*.py")):
        name = str(path.relative_to(tree))
        key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if files.get(name, {}).get("key") != key:
            tell(f"tracing {name}")
            found = in_child(tree, lambda path=path: _run(tree, path), LIMIT_S)
            if found is None:
                said = (tree.parent / "said.txt").read_text()[-2000:]
                raise SystemExit(f"{name} did not end, or could not be run:\n{said}")
            files[name] = {"key": key, "tests": found}
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(files))
        everything |= files[name]["tests"]
    return everything


def _run(tree: Path, path: Path) -> Record:
    tracer = Tracer(tree / "flower_dhb")
    pytest.main([str(path), *MARKS], plugins=[tracer])
    return tracer.record()
