"""Which rule should a strategy take when none is given: accuracy beside FedAvg's.

Every setting is run with every rule and with FedAvg, on the same batches of the same
seeds. A cell of the table is the largest shortfall against FedAvg over the evaluated
rounds from 15 on, in points of accuracy: of the mean of the agents' own models, and of
the network average. Settings marked as held out were not looked at before the rule was
chosen. Results are kept under runs/default-rule, so a study may be run in parts.

Usage: python benchmarks/default_rule.py [--settings NAME ...] [--rules NAME ...]
       [--seeds 0 1 2] [--quick] [--rounds]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from flower_dhb import Topology
from flower_dhb.algorithms import Algorithm, method
from flower_dhb.engine.batched import Batched
from flower_dhb.engine.engine import Engine, random_failures
from flower_dhb.engine.problem import Agents
from flower_dhb.engine.supervised import Supervised
from flower_dhb.files import write_durably
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import new_model
from flower_dhb.problems.splits import split
from flower_dhb.types import Payload, State, Vector

FOLDER = Path("runs/default-rule")
EVALUATED = (5, 10, 15, 20, 30, 50)
FROM = 15  # the first round that counts
FEDAVG = "fedavg"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An app and a network. `epochs` of the own data, or `steps` if `epochs` is 0."""

    model: str = "mlp"
    data: str = "digits"
    graph: str = "ring:8"
    split: str = "iid"
    optimizer: str = "sgd"
    steps: int = 1
    epochs: int = 0
    rate: float = 0.1
    batch: int = 32
    rounds: int = 50
    noise: float = 0.0  # of the step, relative to the length that it is clipped to
    missing: float = 0.0  # probability that an edge fails
    zero: bool = False  # all parameters start at zero
    double: bool = False
    every: int = 0  # evaluate every so many rounds, too
    held_out: bool = False


TEMPLATE = {"optimizer": "momentum", "epochs": 1, "split": "uneven"}
HELD = {"held_out": True}
SETTINGS = {
    # One small step a round.
    "mlp, 1 step": Setting(every=2),
    "mlp, 1 step of 0.4": Setting(rate=0.4),
    "cnn, 1 step": Setting(model="cnn", every=2),
    # Local training.
    "mlp, 5 steps": Setting(steps=5),
    "mlp, 20 steps": Setting(steps=20),
    "mlp, 100 steps": Setting(steps=100, rounds=30),
    "mlp, epoch": Setting(**TEMPLATE),
    "mlp, epoch of Adam": Setting(optimizer="adam", epochs=1, rate=0.003),
    "cnn, epoch": Setting(model="cnn", **TEMPLATE),
    "deeper cnn, epoch": Setting(model="cnn2", **TEMPLATE, rounds=30),
    "cnn of the PyTorch quickstart, epoch": Setting(model="cnn3", **TEMPLATE, rounds=30, **HELD),
    "cnn on standardized images, epoch": Setting(
        model="cnn4", data="standardized digits", batch=16, rounds=30, **TEMPLATE
    ),
    "mlp, 5 steps, noise": Setting(steps=5, noise=2.0),
    # Different data.
    "mlp, 1 step of 0.4, 2 classes": Setting(split="classes:2", rate=0.4),
    "mlp, 10 steps, 2 classes": Setting(split="classes:2", steps=10),
    "mlp, 1 step of 0.4, 2 classes, torus": Setting(split="classes:2", rate=0.4, graph="torus:4x4"),
    "mlp, 10 steps, 2 classes, exponential": Setting(
        split="classes:2", steps=10, graph="exponential:16"
    ),
    "mlp, 5 steps, Dirichlet 0.3, ring:16": Setting(
        split="dirichlet:0.3", steps=5, graph="ring:16"
    ),
    # Not looked at before the choice.
    "mlp with batch norm, epoch": Setting(model="mlp-bn", **TEMPLATE, **HELD),
    "cnn with batch norm, 5 steps": Setting(model="cnn-bn", steps=5, rounds=30, **HELD),
    "cancer logistic, 1 step": Setting(data="cancer", model="logistic", **HELD),
    "cancer logistic, 10 steps, float64": Setting(
        data="cancer", model="logistic", steps=10, double=True, **HELD
    ),
    "cancer mlp, epoch": Setting(data="cancer", batch=16, **TEMPLATE, **HELD),
    "cancer mlp, 5 steps, Dirichlet 0.3": Setting(
        data="cancer", steps=5, split="dirichlet:0.3", **HELD
    ),
    "wine logistic, 5 steps, float64": Setting(
        data="wine", model="logistic", steps=5, batch=8, double=True, **HELD
    ),
    "wine mlp, epoch of Adam": Setting(
        data="wine", optimizer="adam", epochs=1, rate=0.01, batch=8, **HELD
    ),
    "mlp of 20 thousand, epoch": Setting(model="mlp-20k", **TEMPLATE, **HELD),
    "mlp of 20 thousand, 1 step": Setting(model="mlp-20k", **HELD),
    "mlp of a million, 5 steps": Setting(model="mlp-1m", steps=5, rounds=20, **HELD),
    "adapters, 10 steps of 0.02": Setting(model="lora", steps=10, rate=0.02, **HELD),
    "adapters, epoch of Adam, 2 classes": Setting(
        model="lora", optimizer="adam", epochs=1, rate=0.003, split="classes:2", **HELD
    ),
    "logistic from zero, 5 steps": Setting(model="logistic", steps=5, zero=True, **HELD),
    "mlp, epoch, a fifth missing": Setting(**TEMPLATE, missing=0.2, **HELD),
    "mlp, 10 steps, 2 classes, torus, a fifth missing": Setting(
        split="classes:2", steps=10, graph="torus:4x4", missing=0.2, **HELD
    ),
    "cnn, 10 steps, 2 classes": Setting(
        model="cnn", split="classes:2", steps=10, rounds=30, **HELD
    ),
    "mlp, epoch, ring:16": Setting(**TEMPLATE, batch=16, graph="ring:16", **HELD),
    "mlp, 10 steps, 2 classes, star": Setting(split="classes:2", steps=10, graph="star:8", **HELD),
    "mlp, 10 steps, 2 classes, complete": Setting(
        split="classes:2", steps=10, graph="complete:8", **HELD
    ),
}
# These take long: the first seed alone.
ONE_SEED = (
    "mlp, 100 steps",
    "deeper cnn, epoch",
    "cnn with batch norm, 5 steps",
    "cnn, 10 steps, 2 classes",
    "mlp of a million, 5 steps",
)
QUICK = ("mlp, 1 step", "mlp, 20 steps", "mlp, epoch", "mlp, 10 steps, 2 classes")


@dataclass(frozen=True, kw_only=True)
class ByLength(Algorithm):
    """The rule that came before the chosen one: momentum by the length of the parameters.

    With `s` the local step, `s'` the last one, `r = 0.9 |d| / |x|`,
    `L = clip((r - 0.025) / 0.05)`, `f = L clip(cos(s, s') / 0.2) + (1 - L)
    clip((cos(s, s') + cos(s, d) + 0.05) / 0.1)`: `m = (0.5 + 0.4 f) (d + 0.3 L (s - s'))`,
    no longer than 0.15 `|x|`.
    """

    name: ClassVar[str] = "by-length"

    vectors = ("folded",)
    memory = ("displacement", "last_step")
    products = tuple(
        (a, b)
        for at, a in enumerate(("step", "memory/displacement", "memory/last_step", "parameters"))
        for b in ("step", "memory/displacement", "memory/last_step", "parameters")[at:]
    )

    def measure(self, products: Mapping[tuple[str, str], Any]) -> dict[str, Any]:  # noqa: D102
        s, d, p = "step", "memory/displacement", "memory/last_step"
        x = np.maximum(np.sqrt(products["parameters", "parameters"]), 1e-300)

        def cosine(a: str, b: str) -> Any:
            lengths = np.sqrt(products[a, a] * products[b, b])
            return products[a, b] / np.maximum(lengths, 1e-300)

        large = np.clip((0.9 * np.sqrt(products[d, d]) / x - 0.025) / 0.05, 0, 1)
        again = cosine(s, p)
        trust = large * np.clip(again / 0.2, 0, 1)
        trust += (1 - large) * np.clip((again + cosine(s, d) + 0.05) / 0.1, 0, 1)
        e = 0.3 * large
        length = products[d, d] + e**2 * (products[s, s] - 2 * products[s, p] + products[p, p])
        length = np.sqrt(length + 2 * e * (products[s, d] - products[d, p]))
        gain = np.minimum(0.5 + 0.4 * trust, 0.15 * x / np.maximum(length, 1e-300))
        gain = np.where(products[d, d] > 0, gain, 0.0)  # the first round
        return {"momentum": gain, "extra": gain * e}

    def outgoing(self, state: State, trained: Vector) -> Payload:  # noqa: D102
        return {"folded": trained + 0.5 * self._added(state, trained)}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: D102
        x = mixed["folded"] + 0.5 * self._added(state, trained)
        step = trained - state.parameters
        return State(x, {"displacement": x - state.parameters, "last_step": step})

    def _added(self, state: State, trained: Vector) -> Vector:
        change = trained - state.parameters - state.memory["last_step"]
        momentum = state.measured["momentum"] * state.memory["displacement"]
        return momentum + state.measured["extra"] * change


RULES: dict[str, Algorithm] = {
    "D-PSGD": method("dsgd"),
    "momentum 0.5": method("dmsgd:momentum=0.5"),
    "momentum 0.9": method("dmsgd"),
    "DecentLaM": method("decentlam"),
    "tracking": method("dmsgd-gt"),
    "by length": ByLength(),
    "safeguarded": method("safeguarded"),
}


# --- models and data ----------------------------------------------------------------------


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter that starts at zero (LoRA)."""

    def __init__(self, width: int, out: int, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(width, out).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(width, rank) / width**0.5)
        self.b = nn.Parameter(torch.zeros(rank, out))

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its adapter."""
        return self.base(x) + 4.0 * (x @ self.a) @ self.b


def build(name: str, width: int, classes: int) -> nn.Module:
    """A model for vectors of `width` features."""
    image, head = nn.Unflatten(1, (1, 8, 8)), nn.Linear(256, classes)
    c1, c2 = (lambda: nn.Conv2d(1, 8, 3, padding=1)), (lambda: nn.Conv2d(8, 16, 3, padding=1))
    if name == "cnn" and width == 64:
        return new_model("cnn")
    if name == "cnn-bn":
        norm = (nn.BatchNorm2d(8), nn.BatchNorm2d(16))
        first = (image, c1(), norm[0], nn.ReLU(), nn.MaxPool2d(2))
        return nn.Sequential(*first, c2(), norm[1], nn.ReLU(), nn.Flatten(), head)
    if name == "cnn2":
        first = (image, nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        return nn.Sequential(*first, *second, nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes))
    if name == "cnn3":  # two convolutions, three linear layers
        first = (image, nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        third = (nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
        return nn.Sequential(*first, *second, *third, nn.Linear(84, classes))
    if name == "cnn4":
        first = (image, c1(), nn.ReLU(), nn.MaxPool2d(2), c2(), nn.ReLU(), nn.MaxPool2d(2))
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    if name == "logistic":
        return nn.Linear(width, classes)
    if name == "lora":
        return nn.Sequential(Adapted(width, 64), nn.ReLU(), Adapted(64, classes))
    hidden = {"mlp": (32,), "mlp-bn": (32,), "mlp-20k": (256,), "mlp-1m": (960, 960)}[name]
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), *([nn.BatchNorm1d(size)] if "bn" in name else [])]
        layers.append(nn.ReLU())
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


@cache
def load(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardized training data and all held-out data."""
    if name.endswith("digits"):
        d = load_digits()
        x, y = torch.cat([d.validation_x, d.test_x]), torch.cat([d.validation_y, d.test_y])
        if name == "digits":
            return d.train_x, d.train_y, x, y
        mean, deviation = d.train_x.mean(), d.train_x.std()
        return (d.train_x - mean) / deviation, d.train_y, (x - mean) / deviation, y
    from sklearn import datasets

    source = {"cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[name]
    features, labels = source(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(labels))
    features, labels = features[order], labels[order]
    cut = int(0.7 * len(labels))
    features = (features - features[:cut].mean(0)) / features[:cut].std(0)
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    return x[:cut], y[:cut], x[cut:], y[cut:]


def uneven(m: int, n: int, seed: int) -> list[np.ndarray]:
    """Random parts of 0.4 to 1.6 times the mean size."""
    ends = np.cumsum(np.linspace(0.4, 1.6, n) / n)[:-1]
    order = np.random.default_rng([seed, n]).permutation(m)
    return [np.sort(part) for part in np.split(order, np.round(ends * m).astype(int))]


class LocalTraining(Supervised):
    """All agents train at once, each as long as its own epoch, with an optimizer of its own."""

    def __init__(self, setting: Setting, seed: int) -> None:
        x, y, _, _ = load(setting.data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build(setting.model, x.shape[1], int(y.max()) + 1)
        if setting.zero:
            nn.utils.vector_to_parameters(
                torch.zeros(sum(p.numel() for p in module.parameters())), module.parameters()
            )
        if setting.double:
            module, x = module.double(), x.double()
        n = Topology.parse(setting.graph).n_agents
        parts = (
            uneven(len(y), n, seed)
            if setting.split == "uneven"
            else split(y.numpy(), n, setting.split, seed)
        )
        super().__init__(
            module, x, y, parts, batch_size=setting.batch, seed=seed, model=Batched(module), block=n
        )
        self.setting = setting
        per_epoch = [-(-len(part) // setting.batch) for part in parts]
        counts = [setting.epochs * c for c in per_epoch] if setting.epochs else [setting.steps] * n
        self.counts = torch.tensor(counts)
        self._drawn: dict[int, Tensor] = {}

    def positions(self, round: int) -> Tensor:
        """Samples of every step: epochs without replacement, `(n, steps, batch)`."""
        if round in self._drawn:
            return self._drawn[round]
        steps, size = int(self.counts.max()), self.batch_size
        drawn = torch.empty(self.n_agents, steps, size, dtype=torch.int64)
        for vertex, part in enumerate(self.parts):
            rng = np.random.default_rng([self.seed, vertex, round])
            whole = len(part) if not self.setting.epochs else -(-len(part) // size) * size
            passes = [
                np.resize(rng.permutation(len(part)), whole)
                for _ in range(-(-steps * size // whole))
            ]
            chosen = np.concatenate(passes)[: steps * size]
            drawn[vertex] = part[torch.from_numpy(chosen)].view(steps, size)
        if drawn.numel() < 10**5:
            self._drawn[round] = drawn
        return drawn

    def adapt(self, agents: Agents, round: int, learning_rate: float, trained: Tensor) -> None:
        """Local training; agents that have done their epoch wait for the others."""
        everyone = slice(0, self.n_agents)
        stack = self._load(agents, everyone)
        moving = stack[: len(self.model.trainable)]
        optimizer = Optimizer(self.setting.optimizer, learning_rate)
        positions = self.positions(round)
        for step in range(positions.shape[1]):
            index = positions[:, step]
            before = [tensor.clone() for tensor in stack]
            self.model.step(stack, self.inputs[index], self.targets[index], optimizer.scale)
            optimizer.apply(moving, before)
            busy = step < self.counts
            if not busy.all():
                for tensor, old in zip(stack, before, strict=True):
                    mask = busy.view(-1, *[1] * (tensor.ndim - 1))
                    tensor.copy_(torch.where(mask, tensor, old))
        self._store(stack, agents, trained, everyone)
        if self.setting.noise:
            self._add_noise(agents, round, trained)

    def _add_noise(self, agents: Agents, round: int, trained: Tensor) -> None:
        """As differential privacy does: clip the step to 0.5 and add noise of that order."""
        step = trained - agents.parameters
        step *= torch.clamp(0.5 / step.norm(dim=1, keepdim=True), max=1.0)
        generator = torch.Generator().manual_seed(10**5 * self.seed + round)
        noise = torch.randn(step.shape, generator=generator, dtype=step.dtype)
        noise *= 0.5 * self.setting.noise / step.shape[1] ** 0.5
        trained.copy_(agents.parameters + step + noise)


class Optimizer:
    """Momentum and Adam for a stack of agents, from what a plain SGD step did."""

    def __init__(self, kind: str, rate: float) -> None:
        self.kind, self.rate, self.count = kind, rate, 0
        self.scale = 1.0 if kind == "adam" else rate
        self.first: list[Tensor] = []
        self.second: list[Tensor] = []

    def apply(self, arrays: list[Tensor], before: list[Tensor]) -> None:
        """Replace the plain step from `before` by the optimizer's."""
        if self.kind == "sgd":
            return
        self.count += 1
        moves = [new - old for new, old in zip(arrays, before, strict=False)]
        if not self.first:
            self.first = [torch.zeros_like(move) for move in moves]
            self.second = [torch.zeros_like(move) for move in moves]
        for array, old, move, m, v in zip(
            arrays, before, moves, self.first, self.second, strict=False
        ):
            if self.kind == "momentum":
                array.copy_(old + m.mul_(0.9).add_(move))
                continue
            m.mul_(0.9).add_(move, alpha=0.1)
            v.mul_(0.999).add_(move.square(), alpha=0.001)
            scale = (v / (1 - 0.999**self.count)).sqrt() + 1e-8
            array.copy_(old + self.rate * (m / (1 - 0.9**self.count)) / scale)


# --- runs ---------------------------------------------------------------------------------


@lru_cache(maxsize=3)  # the seeds of a setting
def problem_of(setting: Setting, seed: int) -> LocalTraining:
    return LocalTraining(setting, seed)


def run(setting: Setting, rule: Algorithm | None, seed: int) -> dict[int, dict[str, float]]:
    """Accuracy by round: own models' mean and worst, and the average's. None is FedAvg."""
    problem = problem_of(setting, seed)
    topology = Topology.parse(setting.graph)
    missing = random_failures(topology, setting.missing, seed) if setting.missing else None
    engine = Engine(
        problem,
        topology,
        rule or RULES["D-PSGD"],
        learning_rate=setting.rate,
        missing=missing,
    )
    found: dict[int, dict[str, float]] = {}
    for k in range(1, setting.rounds + 1):
        if rule is None:
            _fedavg(engine, k)
        else:
            engine.step()
        if k in EVALUATED or (setting.every and k % setting.every == 0):
            found[k] = _scores(engine)
    return found


@torch.no_grad()
def _fedavg(engine: Engine, k: int) -> None:
    """A round of FedAvg: clients are averaged by their numbers of samples."""
    problem, agents = engine.problem, engine.agents
    assert isinstance(problem, LocalTraining)
    trained = torch.empty_like(agents.parameters)
    problem.adapt(agents, k, engine.learning_rate, trained)
    share = torch.tensor([float(len(part)) for part in problem.parts], dtype=trained.dtype)
    share /= share.sum()
    agents.parameters.copy_((share @ trained).expand_as(trained))
    agents.statistics.copy_((share @ agents.statistics).expand_as(agents.statistics))


def _scores(engine: Engine) -> dict[str, float]:
    problem = engine.problem
    assert isinstance(problem, LocalTraining)
    _, _, x, y = load(problem.setting.data)
    x = x.to(engine.parameters.dtype)

    def accuracy(agents: Agents) -> Tensor:
        outputs = torch.cat([o for _, o in problem.outputs(agents, x)])
        return (outputs.argmax(-1) == y).double().mean(-1)

    own = accuracy(engine.agents)
    average = float(accuracy(engine.average())[0])
    return {"mean": float(own.mean()), "worst": float(own.min()), "average": average}


def result(name: str, rule: str, seed: int) -> dict[int, dict[str, float]]:
    """A run's result, from the folder if it is there."""
    setting = SETTINGS[name]
    key = "".join(c if c.isalnum() else "-" for c in f"{name} {rule} {seed}")
    path = FOLDER / f"{key}.json"
    described = {**asdict(setting), "rule": rule}
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["setting"] == described:
            return {int(k): v for k, v in kept["rounds"].items()}
    found = run(setting, None if rule == FEDAVG else RULES[rule], seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps({"setting": described, "rounds": found}).encode())
    return found


# --- tables -------------------------------------------------------------------------------


def shortfall(name: str, rule: str, seeds: list[int], what: str, k: int | None = None) -> float:
    """Mean over seeds of (rule - FedAvg) in points, at round k or at the worst from FROM on."""
    gaps = {}
    for at in (r for r in EVALUATED if r <= SETTINGS[name].rounds):
        pairs = [(result(name, rule, s)[at], result(name, FEDAVG, s)[at]) for s in seeds]
        gaps[at] = 100 * float(np.mean([own[what] - server["mean"] for own, server in pairs]))
    return gaps[k] if k else min(gap for at, gap in gaps.items() if at >= FROM)


def rounds_to(name: str, rule: str, seeds: list[int], target: float) -> str:
    """Rounds until the mean of the own models has reached a target, mean over seeds."""
    reached = []
    for seed in seeds:
        curve = result(name, rule, seed)
        reached.append(next((k for k in sorted(curve) if curve[k]["mean"] >= target), None))
    return "–" if None in reached else f"{np.mean([r for r in reached if r]):.0f}"


def table(names: list[str], rules: list[str], seeds: list[int], rounds: bool) -> None:
    """Print a row as soon as it is there."""
    print(f"| setting | FedAvg, round 20 | {' | '.join(rules)} |")
    print("|---" * (len(rules) + 2) + "|")
    for name in names:
        used = seeds[:1] if name in ONE_SEED else seeds
        server = np.mean([result(name, FEDAVG, s)[20]["mean"] for s in used])
        cells = [
            f"{shortfall(name, rule, used, 'mean'):+.1f} / "
            f"{shortfall(name, rule, used, 'average'):+.1f}"
            for rule in rules
        ]
        mark = ("*" if SETTINGS[name].held_out else "") + ("¹" if name in ONE_SEED else "")
        print(f"| {name}{mark} | {100 * server:.1f} | {' | '.join(cells)} |", flush=True)
        if rounds:
            for rule in rules:
                at = [k for k in EVALUATED if k <= SETTINGS[name].rounds]
                own = " ".join(f"{shortfall(name, rule, used, 'mean', k):+.1f}" for k in at)
                low = " ".join(f"{shortfall(name, rule, used, 'worst', k):+.1f}" for k in at)
                print(f"    {rule}: mean {own}; worst {low}")
    for name in (n for n in names if SETTINGS[n].every):
        for rule in (FEDAVG, *rules):
            to = ", ".join(f"{t:.0%} {rounds_to(name, rule, seeds, t)}" for t in (0.8, 0.85, 0.9))
            print(f"rounds, {name}, {rule}: {to}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="four settings, one seed")
    parser.add_argument("--rounds", action="store_true", help="every evaluated round, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, seeds = arguments.settings, arguments.seeds
    if arguments.quick:
        names, seeds = [n for n in QUICK if n in names], seeds[:1]
    table(names, arguments.rules, seeds, arguments.rounds)


if __name__ == "__main__":
    main()
