"""Accuracy of apps of Flower's quickstart families: as written, and with two lines changed.

Every app runs with eight clients in this process, under FedAvg and under each rule on a
ring, for several seeds. What is compared is the accuracy on one test set: of FedAvg's
model, of the network average, and of the agents' own models.

    python -m benchmarks.families [--rounds 20] [--seeds 3] [--apps ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import warnings
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KERAS_BACKEND", "torch")

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.families import FAMILIES, Family, copy_of, hunks, run_app  # noqa: E402

from flower_dhb import DSGD, HeavyBall  # noqa: E402

RULES: dict[str, Any] = {
    "FedAvg": None,
    "default": None,
    "D-PSGD": DSGD(),
    "β 0.5": HeavyBall(momentum=0.5),
    "β 0.9": HeavyBall(momentum=0.9),
}
EVERY = 5  # rounds between two evaluations
POINT = 0.01


def measure(family: Family, rule: str, seed: int, rounds: int) -> dict[str, list[float]]:
    """Accuracy by round: `[average, mean agent, worst agent]`, or one for FedAvg."""
    changes = [] if rule == "FedAvg" else hunks(family.heading)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_app(
            family,
            copy_of(family, Path(folder), changes),
            rounds=rounds,
            seed=seed,
            algorithm=RULES[rule],
            evaluate_every=EVERY,
        )
    found = {}
    for k in range(EVERY, rounds + 1, EVERY):
        if k in outcome.average:
            own = outcome.own.get(k)
            rest = [statistics.fmean(own), min(own)] if own else []
            found[str(k)] = [outcome.average[k], *rest]
    return found


def table(runs: dict[str, dict[str, list[float]]], rounds: list[int], seeds: int) -> list[str]:
    """Rows of markdown; a cell that is more than a point below FedAvg's is bold."""

    def mean(name: str, rule: str, k: int, at: int) -> float:
        return statistics.fmean(runs[f"{name}/{rule}/{s}"][str(k)][at] for s in _seeds(seeds))

    def cell(value: float, least: float) -> str:
        text = f"{100 * value:.1f}"
        return text if value >= least else f"**{text}**"

    others = [rule for rule in list(RULES)[2:] if any(f"/{rule}/" in key for key in runs)]
    heads = ["app", "round", "FedAvg", "average", "mean agent", "worst agent", *others]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in FAMILIES:
        measured = [r for r in RULES if all(f"{name}/{r}/{s}" in runs for s in _seeds(seeds))]
        if not {"FedAvg", "default"} <= set(measured):
            continue
        for k in rounds:
            base = mean(name, "FedAvg", k, 0)
            least = base - POINT - 1e-9
            row = [name.replace("_", " "), str(k), f"{100 * base:.1f}"]
            row += [cell(mean(name, "default", k, at), least) for at in (0, 1)]
            row += [f"{100 * mean(name, 'default', k, 2):.1f}"]
            for rule in others:
                pair = [cell(mean(name, rule, k, at), least) for at in (0, 1) if rule in measured]
                row.append(", ".join(pair) or "–")
            lines.append("| " + " | ".join(row) + " |")
    return lines


def _seeds(number: int) -> range:
    return range(1, number + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--apps", nargs="+", default=[n for n in FAMILIES if n != "xgboost_cancer"])
    # The rules beside the default cost as much again, each.
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--out", type=Path, help="file that keeps what has been measured")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    runs: dict[str, dict[str, list[float]]] = {}
    if options.out and options.out.exists():
        runs = json.loads(options.out.read_text(encoding="utf-8"))
    absent = {n: [m for m in FAMILIES[n].needs if find_spec(m) is None] for n in options.apps}
    for name, missing in absent.items():
        if missing:
            print(f"{name}: left out, {missing} not installed", file=sys.stderr)
    for rule, name, seed in product(options.rules, options.apps, _seeds(options.seeds)):
        key = f"{name}/{rule}/{seed}"
        if key in runs or absent[name]:
            continue
        runs[key] = measure(FAMILIES[name], rule, seed, options.rounds)
        print(key, runs[key].get(str(options.rounds)), file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text(json.dumps(runs), encoding="utf-8")
    print("\n".join(table(runs, [15, options.rounds], options.seeds)))


if __name__ == "__main__":
    main()
