"""`flower-dhb report`: what runs came to, as one HTML page that opens from the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["configure", "execute"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder that a run or a comparison left, folder of a mesh, or what 'mesh fetch' "
        "brought; up to 8 runs",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write the rounds as a table, one row a round, and no page",
    )
    parser.add_argument(
        "--parquet", type=Path, metavar="FILE", help="the same table as a Parquet file"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Returns 0."""
    from flower_dhb.cli.lines import folded
    from flower_dhb.files import write_durably
    from flower_dhb.pages.reading import read_runs
    from flower_dhb.pages.report import library, report
    from flower_dhb.pages.rows import as_csv, as_parquet
    from flower_dhb.pages.verdict import verdict

    if arguments.csv is not None or arguments.parquet is not None:
        runs = [run for path in arguments.runs for run in read_runs(path)]
        rounds = f"{sum(len(run.rounds) for run in runs):,} rounds"
        if arguments.csv is not None:
            write_durably(arguments.csv, as_csv(runs).encode("utf-8", "replace"))
            print(f"written: {arguments.csv} ({rounds})")
        if arguments.parquet is not None:
            write_durably(arguments.parquet, as_parquet(runs))
            print(f"written: {arguments.parquet} ({rounds})")
        return 0
    drawing = library()  # first: where the extra is missing, nothing else needs to be done
    runs = [run for path in arguments.runs for run in read_runs(path)]
    page = report(runs, drawing).encode()
    write_durably(arguments.out, page)
    for run in runs:
        print(folded(f"{run.name}: {verdict(run).sentence}"))
    print(f"written: {arguments.out} ({len(page) / 1e6:.1f} MB)")
    return 0
