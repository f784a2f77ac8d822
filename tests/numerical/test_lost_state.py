"""Agents of the relay that lose their state: exact rules end as exact as if nothing had been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from support.grid import LocalGrid

from flower_dhb import ServerlessStrategy, Topology, consensus_mod
from flower_dhb.algorithms import METHODS, method
from flower_dhb.engine.reference import simulate
from flower_dhb.flower import relay

pytestmark = pytest.mark.thorough

N, D = 5, 3
RING = Topology.ring(N)
IRREGULAR = Topology.from_edges([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 4), (3, 4)])

# The exact rules, each with a step size and as many rounds as it needs to come to rest.
EXACT = {
    "dmsgd-gt:momentum=0.3": (0.3, 52),
    "dsgt": (0.3, 62),
    "dsgt:order=combine-then-adapt": (0.2, 84),
    "momentum-tracking:momentum=0.3": (0.25, 64),
    "exact-diffusion": (0.35, 62),
    "exact-diffusion:momentum=0.3": (0.3, 52),
}
FORGETFUL = sorted(
    name
    for name in METHODS
    if type(method(name)).__module__.startswith("flower_dhb.")
    and method(name).relayed
    and not method(name).conserved
)
# Below this, an error is at rest: it has fallen by six digits since the last fault. A sum that is
# broken makes an error of 0.1 or more here.
REST = 1e-6

_rng = np.random.default_rng(0)
_roots = _rng.normal(size=(N, D, D))
CURVATURE = 0.9 * np.eye(D) + 0.01 * np.einsum("nij,nkj->nik", _roots, _roots)
CENTER = 3.0 * _rng.normal(size=(N, D))
OPTIMUM = np.linalg.solve(CURVATURE.sum(0), np.einsum("nij,nj->i", CURVATURE, CENTER))


def error(models: np.ndarray) -> float:
    return float(np.abs(models - OPTIMUM).max())


def quadratics(rate: float) -> ClientApp:
    """One gradient step on the agent's own quadratic."""
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        (x,) = message.content["arrays"].to_numpy_ndarrays()
        z = x - rate * CURVATURE[i] @ (x - CENTER[i])
        content = {"arrays": ArrayRecord([z]), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        content = {"metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return app


@dataclass(frozen=True)
class Fault:
    """What befalls the agents.

    lost: by round, who loses its state before it trains. evaluating: the same, before it evaluates.
    busy: by agent, the round whose message it keeps, and the one after which it answers.
    unheard: by agent, the round of which the answer is lost. garbled: by agent, the round in
    which a payload that it is to combine reaches it damaged. epochs: how many begin.
    """

    lost: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    evaluating: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    busy: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    unheard: Mapping[int, int] = field(default_factory=dict)
    garbled: Mapping[int, int] = field(default_factory=dict)
    epochs: int = 1


FAULTS = {
    "in the second round, and another later": Fault({2: (3,), 12: (1,)}, epochs=2),
    "twice the same": Fault({4: (0,), 12: (0,)}, epochs=2),
    "two neighbors at once": Fault({12: (1, 2)}),
    "while others are busy": Fault({8: (1,)}, busy={4: (9, 11), 2: (8, 9)}),
    "and nobody hears of it at first": Fault({8: (1,)}, unheard={1: 8}),
    "two, one of which is not heard": Fault({8: (1, 2)}, unheard={2: 8}),
    "when it evaluates": Fault(evaluating={8: (3,)}),
    "a payload that is damaged on its way": Fault(garbled={3: 8}),
}


def run(name: str, graph: Topology, fault: Fault, rate: float, rounds: int):
    """Models `(n, d)` of a run in the relay, and its history."""
    grid: LocalGrid
    left = {("train", k, v) for k, vertices in fault.lost.items() for v in vertices}
    left |= {("evaluate", k, v) for k, vertices in fault.evaluating.items() for v in vertices}
    left |= {("garbled", k, v) for v, k in fault.garbled.items()}

    def befalls(vertex: int, message: Message) -> None:
        kind, number = message.metadata.message_type, int(message.metadata.group_id or 0)
        if (kind, number, vertex) in left:
            left.discard((kind, number, vertex))
            grid.lose_state(vertex)
        if kind == "train" and ("garbled", number, vertex) in left:
            left.discard(("garbled", number, vertex))
            payloads = message.content.array_records["flower_dhb.payloads"]
            array = next(iter(payloads.values()))
            array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])

    def held(vertex: int, message: Message) -> int:
        first, _ = fault.busy.get(vertex, (-1, -1))
        return LocalGrid.LATE if message.metadata.group_id == str(first) else 0

    def unheard(vertex: int, message: Message) -> bool:
        return message.metadata.group_id == str(fault.unheard.get(vertex, -1))

    def release(record) -> None:
        for vertex, (_, last) in fault.busy.items():
            if record.round == last:
                grid.release(vertex)

    grid = LocalGrid(quadratics(rate), N, intercept=befalls, hold=held, lose=unheard)
    strategy = ServerlessStrategy(
        graph, method(name), collect_models=True, on_round=release,
        evaluate_every=8 if fault.evaluating else 0,
        round_timeout_s=0.05 if fault.busy or fault.unheard else None,
    )  # fmt: skip
    result = strategy.start(grid, ArrayRecord([np.zeros(D)]), rounds)
    assert not left, "all of it has happened"
    return np.stack([result.models[v].to_numpy_ndarrays()[0] for v in range(N)]), result.history


def epochs(history) -> list[int]:
    """The rounds in which an epoch began."""
    return [r.round for r in history for _, text in r.events if text.startswith("epoch ")]


@pytest.fixture(autouse=True)
def _patience_is_counted_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of this grid pass in milliseconds."""
    monkeypatch.setattr(relay, "_PATIENCE_LIMITS", 0.0)


# Every fault and every rule in the fast suite, every pair of them in the slow one.
PAIRS = [
    pytest.param(name, fault, marks=[pytest.mark.slow] if (i + j) % 6 else [])
    for i, name in enumerate(EXACT)
    for j, fault in enumerate(FAULTS)
]


@pytest.mark.parametrize(("name", "fault"), PAIRS)
def test_an_exact_rule_stays_exact(name: str, fault: str) -> None:
    rate, rounds = EXACT[name]
    graph = RING if (list(FAULTS).index(fault) + list(EXACT).index(name)) % 2 else IRREGULAR

    def step(x: np.ndarray, _: int) -> np.ndarray:
        return x - rate * np.einsum("nij,nj->ni", CURVATURE, x - CENTER)

    undisturbed = error(simulate(method(name), graph, np.zeros(D), step, rounds)[-1])
    models, history = run(name, graph, FAULTS[fault], rate, rounds)
    assert error(models) <= 2.0 * max(undisturbed, REST)
    assert len(epochs(history)) == FAULTS[fault].epochs


@pytest.mark.parametrize("fault", [Fault({3: (0, 1)}), Fault(garbled={3: 3})], ids=["lost", "bad"])
@pytest.mark.parametrize("name", FORGETFUL)
def test_a_rule_that_forgets_needs_no_epoch(name: str, fault: Fault) -> None:
    """Nobody restarts, and every edge counts in the round of the loss as well."""
    _, history = run(name, IRREGULAR, fault, 0.1, 5)
    assert [r.round for r in history if r.events] == [3], "what happened is told"
    assert epochs(history) == []
    assert len({r.bytes_sent for r in history}) == 1
