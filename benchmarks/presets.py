"""The presets' tables: rules beside each other on each graph, size and split, where data are there.

    python -m benchmarks.presets                                  # all presets, on the digits
    python -m benchmarks.presets --workload cifar10 --data-dir ~/data --seeds 3
    python -m benchmarks.presets ring-16-classes --workload digits --rounds 100
    python -m benchmarks.presets ring-5-iid --stand-in --rounds 60 --batch-size 32

`--stand-in` takes scikit-learn's digits, scaled to 28 x 28 and written as MNIST's files, so that
convolutional networks train on images where no image data set is at hand.

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
    parser.add_argument("--batch-size", type=int, default=0, help="default: of the preset")
    parser.add_argument("--stand-in", action="store_true", help="scaled digits as MNIST's files")
    parser.add_argument("--tune", action="store_true", help="each rule its best learning rate")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("results/presets"))
    arguments = parser.parse_args()
    presets = sorted(path.stem for path in (ROOT / "presets").glob("*.toml"))
    setups = [name for name in presets if name.count("-") == 2]  # the others are one rule each
    if unknown := set(arguments.presets) - set(setups):
        parser.error(f"no such presets: {', '.join(sorted(unknown))}; there are {setups}")
    print(
        "Final accuracy in %, average model / mean agent / worst agent: medians over the seeds.\n"
    )
    print("| preset | " + " | ".join(RULES) + " |\n|---|" + "---|" * len(RULES))
    missing: dict[str, list[str]] = {}
    for name in arguments.presets or setups:
        try:
            print(f"| {name} | {' | '.join(cells(name, arguments))} |", flush=True)
        except FlowerDhbError as error:
            missing.setdefault(str(error), []).append(name)
    for why, names in missing.items():
        print(f"\nNot run ({', '.join(names)}): {why}")


def cells(name: str, arguments: argparse.Namespace) -> list[str]:
    """A cell for each rule on one preset. Raises ConfigError where data are missing."""
    values = run_config(name, arguments)
    results = compare(comparison(values, arguments), arguments.out / arguments.workload / name)
    given, found = float(values["learning-rate"]), []
    for outcome in results.outcomes:
        final = results.summary(outcome)["final"]
        shares = [final[view].median for view in VIEWS]
        cell = "/".join(f"{100 * share:.1f}" if share > 0.0 else "–" for share in shares)
        rate = outcome.learning_rate
        found.append(cell if rate == given else f"{cell} (rate {rate:g})")
    return found


VIEWS = ("average", "mean", "worst")


def run_config(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The app's run config with the preset's, with what the workload needs."""
    app = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    values = app["tool"]["flwr"]["app"]["config"]
    values |= tomllib.loads((ROOT / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
    values |= {"workload": arguments.workload, "data-dir": arguments.data_dir}
    values |= ELSEWHERE.get(arguments.workload, {})
    given = {"rounds": arguments.rounds, "batch-size": arguments.batch_size}
    return values | {key: value for key, value in given.items() if value}


def stand_in(out: Path) -> Path:
    """A folder with scaled digits in MNIST's format."""
    from tests.support.originals import scaled_digits, write_mnist

    folder = out / "scaled-digits"
    if not folder.exists():
        write_mnist(folder / "MNIST" / "raw", *scaled_digits(28), packed=True)
    return folder


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
