"""The command: mutants of the named modules, and which of them the fast tests catch."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .calls import MARKS, Record, measured
from .fork import changed, copy_of, in_child, preload
from .mutants import Mutant, sample

ROOT = Path(__file__).parents[2]
LOOK_WITHOUT_CALLING = "tests/unit/test_defaults.py"  # at signatures and classes


class Selection:
    """A pytest plugin that runs only the chosen tests, and keeps the name of the first to fail."""

    def __init__(self, chosen: list[str]) -> None:
        self._place = {name: i for i, name in enumerate(chosen)}
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._place]
        items.sort(key=lambda item: self._place[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = f"{report.nodeid} (at import)"


def choose(record: Record, module: str, scope: str, budget_s: float) -> tuple[list[str], float]:
    """Tests that call the function (or else its class, or anything of the module), in order.

    The module's own test files come first, then those with the cheapest tests; dear tests that
    do not fit into the budget are left out.
    """
    usable = {name: test for name, test in record.items() if test["passed"]}
    # Decorators and defaults belong to what they stand at; a class's body runs at import.
    names = [scope.rsplit(".<locals>.", i)[0] for i in range(scope.count(".<locals>.") + 1)]
    inside = [f"{module}::{name}" for name in names if name]
    group = f"{module}::{scope.split('.')[0]}." if scope else f"{module}::"
    found = [name for name, test in usable.items() if set(inside) & set(test["calls"])]
    for prefix in (group, f"{module}::"):
        found = found or _touching(usable, prefix)
    stem = Path(module).stem.removeprefix("__").removesuffix("__")
    # The record may be older than the function's name; the module's own tests run anyway.
    own = [name for name in _touching(usable, f"{module}::") if stem in name.split("::")[0]]
    looking = [name for name in usable if name.startswith(LOOK_WITHOUT_CALLING)]
    found = list(dict.fromkeys([*own, *found, *looking]))
    chosen: list[str] = []
    total = 0.0
    cheap_first = lambda name: (stem not in name.split("::")[0], usable[name]["seconds"])  # noqa: E731
    for name in sorted(found, key=cheap_first):
        if total + usable[name]["seconds"] <= budget_s:
            chosen.append(name)
            total += usable[name]["seconds"]
    # File by file, so that what a file shares is made once.
    files = list(dict.fromkeys(name.split("::")[0] for name in chosen))
    place = {name: k for k, name in enumerate(usable)}
    return sorted(chosen, key=lambda n: (files.index(n.split("::")[0]), place[n])), total


def _touching(usable: Record, prefix: str) -> list[str]:
    return [n for n, test in usable.items() if any(c.startswith(prefix) for c in test["calls"])]


def run(tree: Path, chosen: list[str]) -> dict[str, Any]:
    """Run the chosen tests up to the first failure (in the child)."""
    selection = Selection(chosen)
    files = list(dict.fromkeys(name.split("::")[0] for name in chosen))
    code = pytest.main([*files, *MARKS, "-x"], plugins=[selection])
    return {"code": int(code), "failed": selection.failed}


def try_one(tree: Path, module: str, mutant: Mutant, chosen: list[str], limit_s: float) -> str:
    """The name of the test that caught the mutant, "timeout", or "" if it survived."""
    with changed(tree / module, mutant.source):
        answer = in_child(tree, lambda: run(tree, chosen), limit_s)
    if answer is None:
        return "timeout"
    return (answer["failed"] or f"pytest ended with {answer['code']}") if answer["code"] else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="+", help="as flower_dhb/agent/codec.py, or a folder")
    parser.add_argument("--mutants", type=int, default=30, help="at most so many per module (30)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other mutants (1)")
    parser.add_argument("--budget-s", type=float, default=30.0, help="test time per mutant (30)")
    parser.add_argument("--trace", action="store_true", help="trace all tests again")
    parser.add_argument("--caught", action="store_true", help="show caught mutants, and by whom")
    parser.add_argument("--root", type=Path, default=ROOT, help="another working tree")
    args = parser.parse_args()
    os.nice(10)
    preload()
    root = args.root.resolve()
    with copy_of(root) as tree:
        kept = root / ".mutation" / "calls.json"
        record = measured(tree, kept, args.trace, lambda text: print(text, file=sys.stderr))
        broken = [name for name, test in record.items() if not test["passed"]]
        if broken:
            print(f"left out, as they do not pass by themselves: {', '.join(broken)}")
        caught = total = 0
        for module in _modules(root, args.modules):
            some = _report(tree, module, record, args)
            caught, total = caught + some[0], total + some[1]
        print(f"all: {caught} of {total} caught")
    return 0


def _modules(root: Path, named: list[str]) -> list[str]:
    found = []
    for name in named:
        path = root / name
        if not path.exists():
            raise SystemExit(f"{name} does not exist in {root}; name a module by its path there")
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [str(path.relative_to(root)) for path in found]


def _report(tree: Path, module: str, record: Record, args: Any) -> tuple[int, int]:
    source = (tree / module).read_text()
    chosen = sample(source, args.mutants, args.seed)
    survived, timeouts, start = 0, 0, time.monotonic()
    print(f"{module}")
    for mutant in chosen:
        tests, seconds = choose(record, module, mutant.scope, args.budget_s)
        limit_s = 15.0 + 5.0 * seconds
        by = try_one(tree, module, mutant, tests, limit_s) if tests else ""
        timeouts += by == "timeout"
        survived += not by
        if not by or args.caught:
            verdict = f"caught by {by}" if by else f"survived {len(tests)} tests"
            print(f"  line {mutant.line}, {mutant.what}: {verdict}")
            print("\n".join(f"    {line}" for line in mutant.diff(source).splitlines()), flush=True)
    caught = len(chosen) - survived
    print(
        f"  {len(chosen)} mutants, {caught} caught ({timeouts} by time), {survived} survived; "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    return caught, len(chosen)


if __name__ == "__main__":
    sys.exit(main())
