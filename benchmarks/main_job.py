"""The main job under `flwr run`: rounds until the agents agree on a good model.

Ring of 16 agents with two classes of digits each; one row per preset and seed, then the
medians. Usage: python benchmarks/main_job.py [--presets dmsgd cdmsgd] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from flower_dhb.runs.superlink import SuperLink, local_superlink

ROOT = Path(__file__).parents[1]
AVERAGE_TARGET, WORST_TARGET = 0.95, 0.93


def first(rows: list[dict[str, Any]], key: str, target: float) -> float:
    """First round in which a value reaches its target; infinite if none does."""
    return next((row["round"] for row in rows if row[key] >= target), float("inf"))


def run(superlink: SuperLink, preset: str, seed: int, rounds: int, runs: Path) -> dict[str, float]:
    settings = tomllib.loads((ROOT / "strategies" / f"{preset}.toml").read_text())
    settings |= {"seed": seed, "rounds": rounds, "observe-average": True, "runs-dir": str(runs)}
    begin = time.monotonic()
    run_id = superlink.submit(ROOT, 16, settings)
    with superlink.log(run_id) as lines:
        text = lines.read()
    folders = sorted(runs.glob("*")) if runs.exists() else []
    if not folders:
        raise SystemExit(text[-3000:])
    rows = [json.loads(line) for line in (folders[-1] / "history.jsonl").read_text().splitlines()]
    return {
        "average": first(rows, "accuracy_average_model", AVERAGE_TARGET),
        "worst": first(rows, "accuracy_worst", WORST_TARGET),
        "at_100": rows[min(99, len(rows) - 1)]["accuracy_worst"],
        "round_s": statistics.median(row["seconds"] for row in rows),
        "total_s": time.monotonic() - begin,
    }


def text_of(value: float) -> str:
    return "not reached" if value == float("inf") else f"{value:.0f}"


def line(preset: str, seed: str, result: dict[str, float]) -> str:
    return (
        f"{preset:<12}{seed:>7}{text_of(result['average']):>22}{text_of(result['worst']):>20}"
        f"{result['at_100']:>22.1%}{result['round_s']:>9.2f}{result['total_s']:>9.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["dmsgd", "cdmsgd"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    print(
        f"{'preset':<12}{'seed':>7}{'average model 95%':>22}{'worst agent 93%':>20}"
        f"{'worst at round 100':>22}{'s/round':>9}{'s in all':>9}"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        local_superlink(Path(folder) / "home") as superlink,
    ):
        for preset in arguments.presets:
            results = []
            for seed in arguments.seeds:
                runs = Path(folder) / f"{preset}-{seed}"
                results.append(run(superlink, preset, seed, arguments.rounds, runs))
                print(line(preset, str(seed), results[-1]), flush=True)
            medians = {key: statistics.median(r[key] for r in results) for key in results[0]}
            print(line(preset, "median", medians), flush=True)


if __name__ == "__main__":
    main()
