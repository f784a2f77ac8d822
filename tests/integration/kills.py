"""Kill peers of real meshes at random moments, and hold what they recorded against each other.

`python -m tests.integration.kills --kills 200` prints a table: kills by kind, edges of a round
that counted at one end only and are known to have (counted), and those that nobody knows of
(uncounted), which must be none. Each kind of kill has meshes of its own:

- single: one peer;
- both ends: two neighbors at the same moment;
- a third: a third of the mesh at the same moment.

The app's local step is never the same twice and evaluation takes a third of a round, so a round
that is trained again differs, and a kill falls into every part of a round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.watch.replay import of_mesh
from tests.support.peers import Mesh

KINDS = {"single": ("ring:4", 4), "both ends": ("ring:4", 4), "a third": ("ring:6", 6)}
TIMING = {"least-s": 0.3, "reconnect-s": 0.4, "ceiling-s": 5.0, "resume-s": 3.0}


@dataclass
class Outcome:
    """What one mesh went through: kills, checked rounds, and differences between two ends."""

    kind: str
    kills: int
    rounds: int
    counted: int
    unseen: int
    uncounted: list[str]


def victims(kind: str, n: int, rng: np.random.Generator) -> list[int]:
    """Whom to kill at the same moment."""
    if kind == "single":
        return [int(rng.integers(n))]
    if kind == "both ends":
        first = int(rng.integers(n))
        return [first, (first + 1) % n]
    return [int(v) for v in rng.choice(n, n // 3, replace=False)]


def furthest(mesh: Mesh) -> int:
    """The last round that any peer has finished."""
    return max((e["round"] for v in mesh.processes for e in mesh.named(v, "round")), default=0)


def run(
    kind: str, kills: int, folder: Path, seed: int, rounds: int = 300, compression: str = "none"
) -> Outcome:
    """One mesh: peers are killed and restarted after a while, and the run is finished.

    kills: at most so many; fewer, if the run comes near its end before. compression: of payloads;
    where there is one, they are long enough for it, and the record holds them.
    """
    record, size = ("checksums", {}) if compression == "none" else ("payloads", {"size": 2000})
    topology, n = KINDS[kind]
    rng = np.random.default_rng(seed)
    done = 0
    with Mesh(
        folder, n=n, topology=topology, rounds=rounds, step_s=0.05, evaluate_s=0.03,
        noise=0.1, algorithm="dsgd", evaluate_every=1, compression=compression, **size,
        peer={"timing": TIMING, "record": record, "linger-s": 20.0},
    ) as mesh:  # fmt: skip
        mesh.start()
        for v in range(n):
            mesh.wait_round(v, 2)
        while done < kills and furthest(mesh) < rounds - 30:
            time.sleep(float(rng.uniform(0.0, 0.5)))  # any moment of a round
            chosen = victims(kind, n, rng)
            for v in chosen:
                mesh.kill(v)
            done += len(chosen)
            time.sleep(float(rng.choice([0.0, 0.3, 1.5])))
            mesh.start(*chosen)
            for v in chosen:
                mesh.wait_event(v, "round")
        mesh.finish(300)
        replay = of_mesh(read_overview(folder), folder)
        uncounted = [str(found) for found in (*replay.findings(), *replay.gaps)]
    return Outcome(kind, done, replay.rounds_checked, replay.one_sided, replay.unseen, uncounted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compression", default="none", help="of payloads, such as topk:0.05")
    arguments = parser.parse_args()
    wrong = 0
    print("| kind | kills | rounds of peers | counted at one end, known | not known |")
    print("|---|---|---|---|---|")
    for i, kind in enumerate(KINDS):
        share = arguments.kills // len(KINDS) + (i < arguments.kills % len(KINDS))
        kills = rounds = counted = uncounted = 0
        while kills < share:
            with tempfile.TemporaryDirectory() as folder:
                seed = arguments.seed + 1000 * i + kills
                out = Path(folder) / "mesh"
                found = run(kind, share - kills, out, seed, compression=arguments.compression)
            kills, rounds = kills + found.kills, rounds + found.rounds
            counted, uncounted = counted + found.counted, uncounted + len(found.uncounted)
            for text in found.uncounted:
                print(f"{kind}, seed {seed}: {text}", file=sys.stderr)
        print(f"| {kind} | {kills} | {rounds} | {counted} | {uncounted} |", flush=True)
        wrong += uncounted
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
