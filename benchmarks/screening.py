"""How far honest payloads are from the bound of screening, and what agents that lie can do.

`python benchmarks/screening.py alarms` runs honest agents, in the engine and as nodes that start
late, come back without their state or change their learning rate, and prints the smallest
ratio of bound to distance: below 1, screening would have raised a false alarm.

`python benchmarks/screening.py attacks` prints the table of attacks against what holds them up.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from flower_dhb.agent.node import Node
from flower_dhb.algorithms import METHODS, method
from flower_dhb.compare.tasks import make_task
from flower_dhb.engine.attacks import ATTACKS, CUT_OUT, Attack
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.guards import Guards, Measured
from flower_dhb.engine.problem import Agents
from flower_dhb.topology.directed import parse_topology
from flower_dhb.topology.graph import Topology
from flower_dhb.types import Layout, Payload

GRAPHS = ("ring:16", "star:16", "torus:4x4", "erdos-renyi:16:0.3:1", "complete:16")
PROBLEMS = (  # name, learning rates, splits
    ("digits-mlp", (0.05, 0.4), ("classes:2", "iid")),
    ("digits-logistic", (0.4,), ("classes:2", "dirichlet:0.1")),
    ("quadratic", (0.1, 0.4), ("",)),
    ("logistic", (0.2, 0.8), ("",)),
    ("breast-cancer", (0.4,), ("iid",)),
    ("averaging", (1.0,), ("",)),
)
# The learning rate of a round, as a share of the full one.
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda _k: 1.0,
    "warm-up": lambda k: min(1.0, k / 20) ** 3,
    "restarts": lambda k: 1.0 if k % 20 in (1, 2) else 1e-3,
    "decay": lambda k: 0.9**k,
    "late burst": lambda k: 1e-4 if k < 40 else 1.0,
}
VARIED = ("dmsgd", "dmsgd-gt", "safeguarded", "dsgd", "exact-diffusion")
RULES = [name for name in METHODS if method(name).screening_factor is not None]


class Watching(Guards):
    """Screens nobody, and keeps the smallest ratio of bound to distance."""

    least = (np.inf, 0)

    def screen(self, round: int, found: Measured) -> set[tuple[int, int]]:
        """Nobody is refused."""
        limit = self.limits(round, found)
        if np.isfinite(limit).all():
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = np.minimum(*(limit[found.edges.T] / found.distances))
            self.least = min(self.least, (float(np.nanmin(ratios)), round))
        return set()


def watch(
    problem: str, rule: str, graph: str, split: str, rate: float, schedule: str, seed: int
) -> tuple[float, int]:
    """Smallest ratio of an honest run in the engine, and its round."""
    topology = parse_topology(graph, "metropolis")
    source = make_task(problem).problem(topology.n_agents, split, seed)
    engine = Engine(source, topology, method(rule), learning_rate=rate)
    guards = engine._guards
    assert guards is not None
    engine._guards = watching = Watching(guards.factor, guards.start, guards.common)
    for k in range(1, 61):
        engine.learning_rate = rate * SCHEDULES[schedule](k)
        engine.step()
        if not engine.finite:
            return watching.least[0], -watching.least[1]  # it diverges
    return watching.least


def settings(seeds: int) -> Iterator[tuple[str, str, str, str, float, str, int]]:
    """All honest runs of the engine."""
    for problem, rates, splits in PROBLEMS:
        for rate, split, graph, rule, seed in itertools.product(
            rates, splits, GRAPHS, RULES, range(seeds)
        ):
            yield problem, rule, graph, split, rate, "constant", seed
        if problem in ("digits-mlp", "quadratic"):
            for rate, graph, rule in itertools.product(rates, ("ring:16", GRAPHS[3]), VARIED):
                for schedule in list(SCHEDULES)[1:]:
                    yield problem, rule, graph, splits[0], rate, schedule, 0


# --- nodes -------------------------------------------------------------------------------


def nodes(event: str, rule: str, graph: str, problem: str, rate: float, when: int) -> float:
    """Smallest ratio where one agent starts late, begins again, or is away for a while."""
    topology = Topology.parse(graph)
    algorithm = method(rule)
    n, late = topology.n_agents, topology.n_agents - 1
    source = make_task(problem).problem(n, "classes:2" if problem.startswith("digits") else "", 0)
    agents = source.start(torch.device("cpu"))
    layout = Layout.of({"w": agents.parameters[0].numpy()})
    row = {i: {j: float(topology.row(i)[j]) for j in (i, *topology.neighbors(i))} for i in range(n)}

    def fresh(i: int) -> Node:
        return Node.start(i, algorithm, row[i], layout, {"w": agents.parameters[i].numpy()})

    found = [fresh(i) for i in range(n)]
    payloads: dict[int, Payload] = {}
    least = np.inf
    back = when + 15
    for k in range(1, 60):
        absent = {late} if event == "late" and k < when else set()
        if event == "away" and when <= k < back:
            absent = {late}
        if event in ("rejoin", "from the start") and k == when:
            if event == "rejoin":
                given = {j: payloads[j] for j in topology.neighbors(late)}
                found[late] = Node.rejoin(late, algorithm, row[late], layout, {}, k - 1, given)
            else:
                found[late] = fresh(late)
        x = torch.from_numpy(np.stack([node.arrays()["w"] for node in found]))
        trained = torch.empty_like(x)
        source.adapt(Agents(x, x.new_zeros(n, 0)), k, rate, trained)
        payloads = {
            i: node.adapt(k, {"w": trained[i].numpy()})
            for i, node in enumerate(found)
            if i not in absent
        }
        for i in payloads:
            node = found[i]
            for j in topology.neighbors(i):
                if j in payloads:
                    node.offer(j, k, payloads[j])
            least = min(least, margin(node, k))
            node.combine(screen=False)
    return least


def margin(node: Node, round: int) -> float:
    """Smallest ratio of bound to distance of what has arrived at a node."""
    memory = node.snapshot.screen.begun(node.parameters)
    own = node._own(node._require_pending())
    factor = node.algorithm.screening_factor
    assert factor is not None
    limit = memory.limit(factor, round, own)
    away = max((own.distance(p) for p in node._arrived.values()), default=0.0)
    return limit / away if away else np.inf


def alarms(seeds: int) -> None:
    """Print the smallest ratios, all runs together and the nearest ones."""
    begin, rows = time.monotonic(), []
    for setting in settings(seeds):
        try:
            rows.append((*watch(*setting), setting))
        except Exception as error:  # a rule that a graph refuses
            print("left out:", setting[:3], str(error)[:60], file=sys.stderr)
    print(f"{len(rows)} honest runs of the engine, {time.monotonic() - begin:.0f} s")
    rows.sort(key=lambda row: row[0])
    for row in rows[:12]:
        print(f"  {row[0]:7.2f} in round {row[1]:3d}: {row[2]}")
    near = []
    for event, rule, graph, when in itertools.product(
        ("late", "away", "rejoin", "from the start"), VARIED, ("ring:8", "complete:8"), (3, 11, 40)
    ):
        for problem, rate in (("digits-mlp", 0.2), ("quadratic", 0.2)):
            least = nodes(event, rule, graph, problem, rate, when)
            near.append((least, event, rule, graph, problem, when))
    near.sort()
    print(f"{len(near)} runs in which one agent is late, away, rejoins, or begins again")
    for each in near[:12]:
        print(f"  {each[0]:7.2f}", *each[1:])


# --- attacks -----------------------------------------------------------------------------

GUARDS = {
    "nothing": ":screening=off",
    "screening": "",
    "clipping": ":screening=off:clipping=on",
    "both": ":clipping=on",
}


def attacked(
    kind: str, rule: str, graph: str, split: str, rate: float, rounds: int, since: int, seed: int
) -> tuple[float, float]:
    """Mean and worst accuracy of the honest agents at the end."""
    task = make_task("digits-mlp")
    topology = parse_topology(graph, "metropolis")
    n = topology.n_agents
    attack = Attack(kind=kind, vertices=(n - 1,), since=since, seed=seed) if kind else None
    engine = Engine(
        task.problem(n, split, seed), topology, method(rule), learning_rate=rate, attack=attack
    )
    engine.run(rounds)
    agents = task.scores(engine, "test").agents[engine.honest]
    return float(agents.mean()), float(agents.min())


def attacks(arguments: argparse.Namespace) -> None:
    """Print mean and worst accuracy of the honest agents, in percent."""
    a = arguments
    print(f"{a.rule} on {a.graph}, {a.split}, rate {a.rate}, {a.rounds} rounds, ", end="")
    print(f"one agent of the graph from round {a.since} on, mean of {a.seeds} seeds\n")
    print(f"| attack | {' | '.join(GUARDS)} |\n|{'---|' * (len(GUARDS) + 1)}")
    for kind in ("", CUT_OUT, *(k for k in ATTACKS if k != CUT_OUT)):
        cells = []
        for guard in GUARDS.values():
            runs = [
                attacked(kind, a.rule + guard, a.graph, a.split, a.rate, a.rounds, a.since, seed)
                for seed in range(a.seeds)
            ]
            mean, worst = (100.0 * np.mean(each) for each in zip(*runs, strict=True))
            cells.append(f"{mean:.1f} / {worst:.1f}")
        print(f"| {kind or 'none: all are honest'} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("alarms", "attacks"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rule", default="dmsgd")
    parser.add_argument("--graph", default="random-regular:16:4:1")
    parser.add_argument("--split", default="classes:2")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--since", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "alarms":
        alarms(arguments.seeds)
    else:
        attacks(arguments)


if __name__ == "__main__":
    main()
