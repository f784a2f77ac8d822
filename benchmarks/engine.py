"""Speed of the engine beside a per-agent loop and a hand-written batched version.

python benchmarks/engine.py speed     rounds with 5 local steps, three ways, in one process
python benchmarks/engine.py scaling   agent-rounds per second and memory, 8 to 1024 agents
python -m benchmarks.engine networks  16 agents with convolutional networks, and bfloat16
python benchmarks/engine.py steps     ms a round of a small study: optimizers, local steps
python benchmarks/engine.py blocks    which block of agents is fastest
python benchmarks/engine.py mixing    dense against sparse mixing
python benchmarks/engine.py gpu       1024 agents with a CNN, on a GPU

One thread (OMP_NUM_THREADS=1). Times are the best of several interleaved repetitions, so
that what else the machine does counts least; the median is printed beside it.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from flower_dhb import HeavyBall, Topology
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.mixer import Mixer
from flower_dhb.engine.supervised import Supervised
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import batches, split

BATCH, STEPS, RATE, BETA, OMEGA = 32, 5, 0.05, 0.9, 0.5
SMALL = (64, 128, 64, 10)
MILLION = (64, 900, 900, 128, 10)  # 986,018 parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what",
        choices=[
            "speed",
            "scaling",
            "blocks",
            "mixing",
            "gpu",
            "one",
            "networks",
            "steps",
            "network",
        ],
    )
    parser.add_argument("--agents", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--network", default="cnn")
    parser.add_argument("--way", choices=["loop", "engine"], default="engine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what not in ("one", "network"):
        print(f"torch {torch.__version__}, {platform.machine()}, one thread\n")
    {
        "speed": lambda: speed(arguments.repeat),
        "scaling": scaling,
        "blocks": blocks,
        "mixing": mixing,
        "gpu": gpu,
        "one": lambda: one(arguments.agents),
        "networks": lambda: networks(arguments.repeat),
        "network": lambda: network(arguments.network, arguments.way),
        "steps": lambda: local_steps(arguments.repeat),
    }[arguments.what]()


# --- the problem, the same for all ------------------------------------------------------


def module_of(sizes: Sequence[int]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data_of(n_agents: int, size: int) -> tuple[Tensor, Tensor, list[np.ndarray]]:
    generator = torch.Generator().manual_seed(1)
    samples = max(4000, 40 * n_agents)
    x = torch.randn(samples, size, generator=generator)
    y = torch.randint(0, 10, (samples,), generator=generator)
    return x, y, split(y.numpy(), n_agents, "iid", 0)


def draw(parts: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
    return [
        part[batches(len(part), BATCH, STEPS, seed=0, vertex=v, round=k)]
        for v, part in enumerate(parts)
    ]


class Loop:
    """One model and one optimizer per agent; mixing by a loop over neighbors."""

    def __init__(self, sizes: Sequence[int], topology: Topology) -> None:
        self.x, self.y, self.parts = data_of(len(topology), sizes[0])
        self.models = [module_of(sizes) for _ in range(len(topology))]
        self.optimizers = [torch.optim.SGD(m.parameters(), lr=RATE) for m in self.models]
        self.loss = nn.CrossEntropyLoss()
        self.vectors = [self._vector(m) for m in self.models]
        self.displacements = [torch.zeros_like(v) for v in self.vectors]
        self.topology, self.k = topology, 0

    def round(self) -> None:
        """Adapt and combine, all agents."""
        self.k += 1
        for model, optimizer, index in zip(
            self.models, self.optimizers, draw(self.parts, self.k), strict=True
        ):
            for at in torch.from_numpy(index):
                optimizer.zero_grad()
                self.loss(model(self.x[at]), self.y[at]).backward()
                optimizer.step()
        with torch.no_grad():
            payloads = [
                self._vector(m) + BETA * OMEGA * d
                for m, d in zip(self.models, self.displacements, strict=True)
            ]
            for i, model in enumerate(self.models):
                row = self.topology.mixing_matrix[i]
                new = BETA * (1.0 - OMEGA) * self.displacements[i]
                for j in (i, *self.topology.neighbors(i)):
                    new.add_(payloads[j], alpha=float(row[j]))
                self.displacements[i] = new - self.vectors[i]
                self.vectors[i] = new
                nn.utils.vector_to_parameters(new, model.parameters())

    @property
    def parameters(self) -> Tensor:
        """All agents' parameters, (n, d)."""
        return torch.stack(self.vectors)

    @staticmethod
    def _vector(model: nn.Module) -> Tensor:
        return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


class Handwritten:
    """The same network for all agents by batched products, its gradient written by hand."""

    def __init__(self, sizes: Sequence[int], topology: Topology) -> None:
        n = len(topology)
        self.x, self.y, parts = data_of(n, sizes[0])
        self.parts = parts
        start = [p.detach() for p in module_of(sizes).parameters()]
        self.arrays = [p.expand(n, *p.shape).clone() for p in start]
        self.displacements = [torch.zeros_like(p) for p in self.arrays]
        self.weights = torch.tensor(topology.mixing_matrix.copy(), dtype=torch.float32)
        self.k = 0

    @torch.no_grad()
    def round(self) -> None:
        """Adapt and combine, all agents."""
        self.k += 1
        before = [p.clone() for p in self.arrays]
        index = torch.from_numpy(np.stack(draw(self.parts, self.k)))
        for step in range(STEPS):
            self._step(self.x[index[:, step]], self.y[index[:, step]])
        for p, d, x in zip(self.arrays, self.displacements, before, strict=True):
            flat = (p + BETA * OMEGA * d).flatten(1)
            new = (self.weights @ flat).view_as(p) + BETA * (1.0 - OMEGA) * d
            d.copy_(new - x)
            p.copy_(new)

    def _step(self, x: Tensor, y: Tensor) -> None:
        weights, biases = self.arrays[0::2], self.arrays[1::2]
        inputs = [x]
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(torch.baddbmm(b.unsqueeze(1), inputs[-1], w.transpose(1, 2)).relu_())
        scores = torch.baddbmm(biases[-1].unsqueeze(1), inputs[-1], weights[-1].transpose(1, 2))
        error = torch.softmax(scores, 2)
        error.scatter_add_(2, y.unsqueeze(2), torch.full((*y.shape, 1), -1.0))
        error /= BATCH
        for layer in reversed(range(len(weights))):
            gradient = error.transpose(1, 2) @ inputs[layer]
            bias = error.sum(1)
            if layer:
                error = (error @ weights[layer]).mul_(inputs[layer] > 0)
            weights[layer].sub_(gradient, alpha=RATE)
            biases[layer].sub_(bias, alpha=RATE)

    @property
    def parameters(self) -> Tensor:
        """All agents' parameters, (n, d)."""
        return torch.cat([p.flatten(1) for p in self.arrays], dim=1)


def engine_of(sizes: Sequence[int], topology: Topology, block: int | None = None) -> Engine:
    x, y, parts = data_of(len(topology), sizes[0])
    problem = Supervised(
        module_of(sizes), x, y, parts, batch_size=BATCH, local_steps=STEPS, block=block
    )
    return Engine(problem, topology, HeavyBall(), learning_rate=RATE)


# --- measurements -----------------------------------------------------------------------


def seconds(actions: Sequence[Callable[[], object]], repeat: int, rounds: int) -> list[list[float]]:
    """Seconds per round of each action, repetitions interleaved."""
    found: list[list[float]] = [[] for _ in actions]
    for action in actions:
        action()
    for _ in range(repeat):
        for action, times in zip(actions, found, strict=True):
            began = time.perf_counter()
            for _ in range(rounds):
                action()
            times.append((time.perf_counter() - began) / rounds)
    return found


def speed(repeat: int) -> None:
    print("| model | agents | loop, ms | hand-written, ms | engine, ms | engine / loop |")
    print("|---|---|---|---|---|---|")
    for sizes, agents in ((SMALL, 8), (SMALL, 64), (MILLION, 8), (MILLION, 16)):
        topology = Topology.ring(agents)
        ways = [Loop(sizes, topology), Handwritten(sizes, topology)]
        engine = engine_of(sizes, topology)
        actions = [ways[0].round, ways[1].round, engine.step]
        for _ in range(2):  # all three compute the same: float32, rounded in another order
            for action in actions:
                action()
        for way in ways:
            assert torch.allclose(way.parameters, engine.parameters, atol=1e-4)
        times = seconds(actions, repeat, 10 if sizes is SMALL else 1)
        loop, hand, ours = (f"{1e3 * min(t):.1f} ({1e3 * statistics.median(t):.1f})" for t in times)
        best = [min(t) for t in times]
        name = "-".join(map(str, sizes))
        print(
            f"| {name} | {agents} | {loop} | {hand} | {ours} "
            f"| {best[0] / best[2]:.2f} times; {best[1] / best[2]:.2f} of hand-written |",
            flush=True,
        )


def scaling() -> None:
    print("| agents | agent-rounds per second | peak memory of the process, MiB |")
    print("|---|---|---|")
    for agents in (8, 64, 256, 1024):
        run = [sys.executable, __file__, "one", "--agents", str(agents)]
        print(subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip())


def one(agents: int) -> None:
    engine = engine_of(SMALL, Topology.ring(agents))
    rounds = max(1, 640 // agents)
    times = seconds([engine.step], 5, rounds)[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {agents} | {agents / min(times):.0f} | {peak:.0f} |")


def blocks() -> None:
    print("| model | agents | ms per agent and round for blocks of 1, 2, 4, … | chosen |")
    print("|---|---|---|---|")
    for sizes, agents in (((64, 32, 10), 64), (SMALL, 64), ((64, 300, 256, 10), 16), (MILLION, 8)):
        engine = engine_of(sizes, Topology.ring(agents))
        problem = engine.problem
        assert isinstance(problem, Supervised)
        chosen = problem.block
        sizes_of = [2**k for k in range(agents.bit_length())]
        cost = [1e3 * problem._time_block(engine.agents, size) for size in sizes_of]
        line = ", ".join(f"{c:.2f}" for c in cost)
        print(f"| {'-'.join(map(str, sizes))} | {agents} | {line} | {chosen} |", flush=True)


def mixing() -> None:
    print("| graph | parameters | dense, ms | sparse, ms | chosen |")
    print("|---|---|---|---|---|")
    for n in (16, 64, 128, 256, 1024):
        for topology in (Topology.ring(n), Topology.exponential(n)):
            size = 2**21 // n
            vectors = torch.randn(n, size)
            mixers = [
                Mixer(topology.mixing_matrix, torch.float32, torch.device("cpu"), kind)
                for kind in ("dense", "sparse", "auto")
            ]
            actions = [partial(mixer, vectors) for mixer in mixers[:2]]
            dense, sparse = (1e3 * min(t) for t in seconds(actions, 5, 2))
            print(f"| {topology.name} | {size} | {dense:.1f} | {sparse:.1f} | {mixers[2].kind} |")


# Images, their number in a batch, and the network; each agent has its own.
NETWORKS: dict[str, tuple[tuple[int, ...], int, Callable[[], nn.Module]]] = {
    "cnn": ((64,), 32, lambda: make_model("cnn", 0)),
    "lenet5": ((1, 28, 28), 32, lambda: image_network("lenet5", (1, 28, 28))),
}


def image_network(name: str, shape: tuple[int, int, int]) -> nn.Module:
    from clients import networks as images  # of the app beside this folder

    return images.NETWORKS[name](shape, 10)


class NetworkLoop:
    """A module and an optimizer for each agent, in a plain loop: one local step of all."""

    def __init__(self, name: str, agents: int) -> None:
        shape, self.batch, make = NETWORKS[name]
        self.x, self.y = torch.randn(400, *shape), torch.arange(400) % 10
        self.models = [make() for _ in range(agents)]
        self.optimizers = [torch.optim.SGD(m.parameters(), lr=RATE) for m in self.models]

    def step(self) -> None:
        """One step of every agent."""
        at = torch.arange(self.batch)
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(self.x[at]), self.y[at]).backward()
            optimizer.step()


def network_engine(name: str, agents: int, precision: str = "float32") -> Callable[[], object]:
    """One local step of all agents in the engine; mixing is not in it, as in the loop."""
    shape, batch, make = NETWORKS[name]
    x, y = torch.randn(400, *shape), torch.arange(400) % 10
    parts = split(y.numpy(), agents, "iid", 0)
    problem = Supervised(make(), x, y, parts, batch_size=batch, precision=precision)
    start = problem.start(torch.device("cpu"))
    trained = torch.empty_like(start.parameters)

    @torch.no_grad()
    def step() -> None:
        problem.adapt(start, 1, RATE, trained)

    return step


def networks(repeat: int) -> None:
    print("| network | parameters | loop, ms | engine, ms | loop / engine | bfloat16, ms | MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, (_, _, make) in NETWORKS.items():
        actions = [NetworkLoop(name, 16).step, network_engine(name, 16)]
        actions.append(network_engine(name, 16, "bfloat16"))
        loop, ours, half = (1e3 * min(t) for t in seconds(actions, repeat, 1))
        memory = []
        for way in ("loop", "engine"):
            run = [sys.executable, "-m", "benchmarks.engine", "network"]
            run += ["--network", name, "--way", way]
            found = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            memory.append(found.strip())
        size = sum(p.numel() for p in make().parameters())
        print(
            f"| {name} | {size} | {loop:.1f} | {ours:.1f} | {loop / ours:.2f} | {half:.1f} "
            f"| {memory[0]} loop, {memory[1]} engine |",
            flush=True,
        )


def network(name: str, way: str) -> None:
    step = NetworkLoop(name, 16).step if way == "loop" else network_engine(name, 16)
    for _ in range(3):
        step()
    # Since this program began, which getrusage is not.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    print(f"{int(peak[1]) / 1024:.0f}")


def local_steps(repeat: int) -> None:
    """A cell of benchmarks/local_steps.py: digits, an MLP, a ring of 16."""
    print("| optimizer | local steps | engine, ms a round | loop, ms a round | loop / engine |")
    print("|---|---|---|---|---|")
    data = load_digits()
    parts = split(data.train_y.numpy(), 16, "classes:2", 0)
    for optimizer in ("sgd", "momentum:0.9", "adamw"):
        for steps in (1, 10):
            engines = [
                Engine(
                    Supervised(
                        make_model("mlp", 0),
                        data.train_x,
                        data.train_y,
                        parts,
                        local_steps=steps,
                        optimizer=optimizer,
                        backend=backend,
                    ),
                    Topology.ring(16),
                    HeavyBall(),
                    learning_rate=RATE,
                )
                for backend in ("batched", "loop")
            ]
            ours, loop = (1e3 * min(t) for t in seconds([e.step for e in engines], repeat, 2))
            line = f"{ours:.1f} | {loop:.1f} | {loop / ours:.1f} |"
            print(f"| {optimizer} | {steps} | {line}", flush=True)


def gpu() -> None:
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    agents = 1024
    topology = Topology.ring(agents)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    x, y, parts = data_of(agents, 64)
    for device in ("cpu", "cuda"):
        problem = Supervised(
            copy.deepcopy(module), x, y, parts, batch_size=BATCH, local_steps=STEPS
        )
        engine = Engine(problem, topology, HeavyBall(), learning_rate=RATE, device=device)

        def step(engine: Engine = engine, device: str = device) -> None:
            engine.step()
            if device == "cuda":
                torch.cuda.synchronize()

        best = min(seconds([step], 3, 1)[0])
        print(f"{device}: {agents / best:.0f} agent-rounds per second, CNN, {agents} agents")


if __name__ == "__main__":
    main()
