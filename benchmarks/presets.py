"""The presets' tables: rules beside each other on each graph, size and split, where data are there.

    python -m benchmarks.presets                                  # all presets, on the digits
    python -m benchmarks.presets --workload cifar10 --data-dir ~/data --seeds 3
    python -m benchmarks.presets ring-16-classes --workload digits --rounds 100

Writes one Markdown table to standard output. What cannot be run is said there, with the files
that are missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from flower_dhb.compare.comparison import compare
from flower_dhb.compare.settings import Comparison
from flower_dhb.errors import ConfigError, FlowerDhbError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RULES = ("dmsgd", "dmsgd-gt", "cdsgd", "cdmsgd", "sgp", "centralized")
# What the presets say for CIFAR-10 is too slow or too small for other data.
ELSEWHERE: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "mlp",
        "normalization": "auto",
        "batch-size": 32,
        "rounds": 200,
        "learning-rate": 0.1,
        "schedule": "constant",
    },
    "mnist": {"rounds": 500},
    "fashion-mnist": {"rounds": 500},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="*", help="names of files in presets/; default: all")
    parser.add_argument("--workload", default="digits", help="in place of the presets' CIFAR-10")
    parser.add_argument("--data-dir", default="~/data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=0, help="default: of preset and workload")
    parser.add_argument("--tune", action="store_true", help="each rule its best learning rate")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("results/presets"))
    arguments = parser.parse_args()
    presets = sorted(path.stem for path in (ROOT / "presets").glob("*.toml"))
    setups = [name for name in presets if name.count("-") == 2]  # the others are one rule each
    if unknown := set(arguments.presets) - set(setups):
        parser.error(f"no such presets: {', '.join(sorted(unknown))}; there are {setups}")
    print("| preset | rule | rate | average % | mean % | worst % |\n|---|---|---|---|---|---|")
    missing: dict[str, list[str]] = {}
    for name in arguments.presets or setups:
        try:
            for line in rows(name, arguments):
                print(f"| {name} | {line} |", flush=True)
        except FlowerDhbError as error:
            missing.setdefault(str(error), []).append(name)
    for why, names in missing.items():
        print(f"\nNot run ({', '.join(names)}): {why}")


def rows(name: str, arguments: argparse.Namespace) -> list[str]:
    """Cells of each rule's line for one preset. Raises ConfigError where data are missing."""
    values = run_config(name, arguments)
    results = compare(comparison(values, arguments), arguments.out / arguments.workload / name)
    lines = []
    for outcome in results.outcomes:
        found = results.summary(outcome)["final"]
        shares = " | ".join(f"{100 * found[view].median:.1f}" for view in VIEWS)
        lines.append(f"{outcome.method} | {outcome.learning_rate:g} | {shares}")
    return lines


VIEWS = ("average", "mean", "worst")


def run_config(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The app's run config with the preset's, with what the workload needs."""
    app = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    values = app["tool"]["flwr"]["app"]["config"]
    values |= tomllib.loads((ROOT / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
    values |= {"workload": arguments.workload, "data-dir": arguments.data_dir}
    values |= ELSEWHERE.get(arguments.workload, {})
    return values | ({"rounds": arguments.rounds} if arguments.rounds else {})


def comparison(values: dict[str, Any], arguments: argparse.Namespace) -> Comparison:
    """All rules on one preset."""
    from clients.compared import task

    rate = float(values["learning-rate"])
    return Comparison(
        problem=task(values),
        topologies=[values["topology"]],
        splits=[values["split"]],
        methods=RULES,
        seeds=arguments.seeds,
        rounds=values["rounds"],
        tune=arguments.tune,
        grid=[rate * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)] if arguments.tune else [rate],
        evaluate_every=values["evaluate-every"],
        batch_size=values["batch-size"],
        local_steps=[values["local-steps"]],
        optimizers=[values["optimizer"]],
        schedules=[values["schedule"]],
    )


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(f"presets: {error}") from None
