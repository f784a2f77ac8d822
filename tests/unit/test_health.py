"""A run that is not well says so once, and one that is well says nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from flower_dhb import DSGD, HeavyBall, Topology, consensus_distance, simulate
from flower_dhb.flower.health import Health
from flower_dhb.metrics import RoundRecord, distance_from

RING = {v: [(v - 1) % 6, (v + 1) % 6] for v in range(6)}


def told(records: list[RoundRecord], neighbors=RING) -> list[tuple[int, str]]:
    health = Health(neighbors)
    return [(r.round, text) for r in records for text in health.observe(r)]


def measured(ratios: list[float], way: float = 2.0) -> list[RoundRecord]:
    """Rounds in which the consensus distance is so many times the way of the average."""
    return [
        RoundRecord(k, consensus_distance=r * way, distance_from_start=way * math.hypot(1.0, r))
        for k, r in enumerate(ratios, start=1)
    ]


def losses(values: list[float], name: str = "train_loss") -> list[RoundRecord]:
    train = [{0: {name: v, "num-examples": 1}} for v in values]
    return [RoundRecord(k, train=t) for k, t in enumerate(train, start=1)]


def evaluated(rows: list[list[float]], name: str = "accuracy") -> list[RoundRecord]:
    return [
        RoundRecord(k, evaluate={v: {name: x} for v, x in enumerate(row)})
        for k, row in enumerate(rows, start=1)
    ]


# --- apart -------------------------------------------------------------------------------

# Measured on digits: the first three rise in their first rounds, or fall slowly.
HEALTHY = {
    "an epoch, momentum 0.9": "67 54 50 46 38 31 23 17 12 9 8 8 7 6 5 5 4 4 4 4",
    "two classes": "138 155 114 85 64 49 39 38 37 35 29 22 17 13 12 12 11 10 8 7",
    "two classes, D-PSGD": "138 144 122 97 82 71 61 55 48 44 39 35 36 32 29 29 28 25 23 21",
    "one step": "32 24 20 15 12 10 9 8 7 6 5 4 4 4 3 3 2 2 2 2",
    "a complete graph": "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
}


@pytest.mark.parametrize("percents", HEALTHY.values(), ids=HEALTHY)
def test_distances_of_healthy_runs_say_nothing(percents: str) -> None:
    assert told(measured([int(p) / 100 for p in percents.split()])) == []


def test_agents_that_drift_apart_after_they_had_come_together() -> None:
    """Measured: learning rate 0.3 with momentum in the app and in the rule."""
    percents = "68 61 51 41 32 25 19 16 14 12 11 11 12 34 63 66 56 41 25 11"
    ((k, text),) = told(measured([int(p) / 100 for p in percents.split()]))
    assert k == 16  # above 1.5 * 11 % in rounds 14, 15 and 16
    assert "the consensus distance has grown to 1.32, 0.66 of the way" in text
    assert "(2), after 0.11 before" in text
    assert "less momentum (HeavyBall(momentum=0.5))" in text


@pytest.mark.parametrize(("ratio", "k"), [(1.01, 10), (0.99, 14), (0.51, 14), (0.49, None)])
def test_agents_that_do_not_come_together(ratio: float, k: int | None) -> None:
    found = told(measured([ratio] * 30))
    assert [number for number, _ in found] == ([] if k is None else [k])
    assert all("the agents do not come together" in text for _, text in found)


# Measured: a small network with convolutions, an epoch with momentum, ring of 8, 20 rounds.
GROWING = {
    "momentum 0.9": (
        "76 65 53 44 38 34 32 29 27 25 23 22 19 16",
        "1.35 4.13 6.55 8.18 9.47 10.7 12.0 12.7 13.4 14.0 14.8 15.2 14.7 13.4",
        "2.26 1.74 1.24 0.88 1.12 0.93 1.21 1.42 2.01 1.90 2.17 1.81 2.17 2.19",
    ),
    "momentum 0.5": (
        "76 66 51 45 39 36 34 34 33 31 28 27 29 29 30 28",
        "1.35 3.77 4.99 5.73 5.97 6.15 6.43 6.96 7.18 7.12 6.99 6.95 7.78 8.26 8.65 8.42",
        "2.26 1.74 1.17 0.78 0.56 0.46 0.57 0.70 0.62 0.57 0.50 0.48 0.53 0.70 0.72 0.69",
    ),
    "D-PSGD": (
        "76 68 53 44 42 39 35 33 33 29 26 23 21 19 18 16",
        "1.35 3.37 3.87 3.96 4.20 4.28 4.17 4.17 4.28 3.95 3.65 3.29 3.02 2.75 2.66 2.42",
        "2.26 1.74 1.21 0.86 0.58 0.45 0.46 0.33 0.27 0.25 0.22 0.15 0.11 0.06 0.08 0.06",
    ),
    "two classes, momentum 0.9": (
        "134 118 95 70 53 45 40 33 30 28 26 23 20 18 16 14",
        "1.44 2.73 3.48 3.84 3.89 4.19 4.53 4.60 4.87 5.18 5.30 5.21 5.09 4.84 4.53 4.24",
        "1.62 1.28 0.97 0.54 0.32 0.49 0.30 0.24 0.84 0.25 0.32 0.27 0.24 0.24 0.18 0.09",
    ),
}


@pytest.mark.parametrize(
    ("run", "found"),
    [
        ("momentum 0.9", (13, "from 9.47 to 14.7")),
        ("momentum 0.5", (15, "from 6.43 to 8.65")),
        ("D-PSGD", None),
        ("two classes, momentum 0.9", None),
    ],
)
def test_a_distance_that_grows_while_the_loss_does_not_fall(run, found) -> None:
    ratios, distances, loss = ([float(x) for x in row.split()] for row in GROWING[run])
    records = [
        RoundRecord(
            k,
            train={0: {"train_loss": x, "num-examples": 1}},
            consensus_distance=d,
            distance_from_start=math.hypot(d, d / (percent / 100)),
        )
        for k, (percent, d, x) in enumerate(zip(ratios, distances, loss, strict=True), start=1)
    ]
    apart = [(k, text) for k, text in told(records) if "drift apart" in text]
    if found is None:
        assert told(records) == []
        return
    ((k, text),) = apart
    assert k == found[0]
    assert f"the consensus distance has grown {found[1]} in 8 measurements" in text
    for record in records:
        record.train = {}
    assert told(records) == [], "without a loss nobody knows"


def test_what_was_not_measured_says_nothing() -> None:
    nan, none = math.nan, None
    for distance, way in ((nan, nan), (none, 1.0), (1.0, none), (math.inf, math.inf), (0.0, 0.0)):
        records = [
            RoundRecord(k, consensus_distance=distance, distance_from_start=way)
            for k in range(1, 20)
        ]
        assert told(records) == []


# --- loss --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "k"),
    [
        ([2.3, 1.0, 0.5, 0.3, 0.2, 0.1, 0.12, 0.3, 0.2, 0.15, 0.1], None),  # noise
        ([2.3, 1.0, 0.3, 1.35, 1.35, 1.35, 9.0], 6),  # half of what was gained is lost
        ([2.3, 1.0, 0.3, 1.25, 1.25, 1.25, 1.25], None),
        ([2.3, 1.0, 0.3, 1.35, 1.35, 0.3, 1.35, 1.35, 0.3], None),  # not three in a row
        ([2.3, 2.4, 2.5, 3.5, 3.6, 4.0], 6),  # it never fell
        ([2.3, 2.4, 2.5, 2.6, 2.7, 2.8], None),
        ([0.0, 0.0, 0.0, 0.0], None),
        ([-5.0, -8.0, -9.0, -4.0, -4.0, -4.0], 6),
    ],
)
def test_a_training_loss_that_rises(values: list[float], k: int | None) -> None:
    found = told(losses(values))
    assert [number for number, _ in found] == ([] if k is None else [k])
    assert all("the mean of 'train_loss' has risen" in text for _, text in found)


def test_what_is_no_training_loss_may_rise() -> None:
    rising = [0.1, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert told(losses(rising, "accuracy")) == []
    assert told(evaluated([[x] * 6 for x in rising], "eval_loss")) == [], "it may overfit"


# --- not finite --------------------------------------------------------------------------


def test_nan_is_told_at_once_with_all_agents_that_have_it() -> None:
    train = {
        0: {"loss": math.nan},
        1: {"loss": 0.5, "grad": [1.0, math.inf]},
        2: {"loss": math.nan},
        3: {"loss": 0.1},
    }
    ((k, text),) = told([RoundRecord(4, train=train), RoundRecord(5, train=train)])
    assert k == 4
    assert text.startswith("agents 0 to 2: 'grad', 'loss' of the training is NaN or infinite")


# --- one agent ---------------------------------------------------------------------------

ALIKE = [0.90, 0.92, 0.88, 0.91, 0.89]


@pytest.mark.parametrize(
    ("value", "name", "found"),
    [
        (0.5, "accuracy", [3]),
        (0.85, "accuracy", []),
        (1.5, "accuracy", []),  # far above
        (1.5, "loss", [3]),
        (0.5, "loss", []),
    ],
)
def test_an_agent_far_below_the_others(value: float, name: str, found: list[int]) -> None:
    result = told(evaluated([[*ALIKE[:2], value, *ALIKE[2:]]] * 6, name))
    assert [k for k, _ in result] == found
    for _, text in result:
        assert text.startswith(f"agent 2 is far below the others: '{name}' {value:.4g}, median")
        assert "0.9;" in text


def test_agents_that_differ_widely_say_nothing() -> None:
    assert told(evaluated([[0.2, 0.5, 0.6, 0.7, 0.8, 0.9]] * 6)) == []
    assert told(evaluated([[0.5, 0.55, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]] * 6)) == [], "two, not one"
    assert told(evaluated([[0.1, 0.9, 0.9]] * 6)) == [], "too few to say"


def test_which_way_is_better_is_the_strategys() -> None:
    records = [
        RoundRecord(k, evaluate={v: {"age": 9.0 if v == 1 else 1.0 + v / 100} for v in range(6)})
        for k in range(1, 5)
    ]
    assert told(records) == []
    for record in records:
        record.lower_is_better = ("age",)
    assert [k for k, _ in told(records)] == [3]


# --- edges -------------------------------------------------------------------------------


def test_edges_that_never_count() -> None:
    """Agents 0 and 2 are gone; agent 1 sits between them."""
    records = [RoundRecord(k, missing=[0, 2] if k > 1 else []) for k in range(1, 9)]
    found = told(records)
    assert [k for k, _ in found] == [4, 4]
    assert (
        "no edge of agents 0 and 2 has counted for 3 rounds, since they delivered not"
        in found[0][1]
    )
    assert (
        "no edge of agent 1 has counted for 3 rounds, since it had no neighbor that" in found[1][1]
    )
    assert "round_timeout_s" in found[0][1]


def test_edges_that_fail_now_and_then_say_nothing() -> None:
    assert told([RoundRecord(k, missing=[0] if k % 3 else []) for k in range(1, 20)]) == []


def test_each_cause_is_told_once_also_if_it_comes_back() -> None:
    gone = [[5] if 1 <= k <= 3 or 8 <= k <= 12 else [] for k in range(1, 15)]
    found = told([RoundRecord(k, missing=m) for k, m in enumerate(gone, start=1)])
    assert [k for k, _ in found] == [3]


# --- evaluation --------------------------------------------------------------------------


def test_an_app_that_cannot_evaluate() -> None:
    events = [(v, "ValueError: No `evaluate` function registered") for v in range(6)]
    record = RoundRecord(1, events=events, consensus_distance=1.0)
    ((_, text),) = told([record])
    assert text.startswith("no agent could evaluate its model (ValueError: No `evaluate` function")
    assert "evaluate_every=0" in text
    assert told([RoundRecord(1, events=events[:2], consensus_distance=1.0)]) == []


# --- whole runs ----------------------------------------------------------------------------


def softmax_run(rule, topology: Topology, steps: int, momentum: float):
    """Records of softmax regression on digits, learning rate 0.1."""
    inputs, labels = load_digits(return_X_y=True)
    inputs, n = inputs / 16.0, topology.n_agents
    rng = np.random.default_rng(1)
    order = rng.permutation(len(labels))
    parts = np.array_split(order, n)
    targets = np.eye(10)[labels]

    losses: dict[int, list[float]] = {}

    def train(x, k):
        x, velocity, found = x.copy(), np.zeros_like(x), []
        for _ in range(steps):
            picked = np.stack([rng.choice(part, 16) for part in parts])
            weights = x.reshape(n, 64, 10)
            scores = inputs[picked] @ weights
            scores -= scores.max(axis=-1, keepdims=True)
            shares = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
            found.append(-np.log((shares * targets[picked]).sum(-1) + 1e-30).mean(-1))
            slope = np.einsum("nbi,nbj->nij", inputs[picked], shares - targets[picked]) / 16
            velocity = momentum * velocity + slope.reshape(n, -1)
            x -= 0.1 * velocity
        losses[k] = [float(v) for v in np.mean(found, axis=0)]
        return x

    trajectory = simulate(rule, topology, np.zeros(640), train, 20)
    test = order[::7]
    for k, x in enumerate(trajectory[1:], start=1):
        right = (inputs[test] @ x.reshape(n, 64, 10)).argmax(-1) == labels[test]
        yield RoundRecord(
            k,
            train={v: {"train_loss": losses[k][v], "num-examples": 1} for v in range(n)},
            evaluate={v: {"accuracy": float(right[v].mean())} for v in range(n)},
            consensus_distance=consensus_distance(x),
            distance_from_start=distance_from(list(x), trajectory[0][0]),
        )


@pytest.mark.parametrize(
    ("rule", "topology", "steps", "momentum"),
    [
        (HeavyBall(), Topology.ring(8), 10, 0.9),
        (DSGD(), Topology.ring(8), 10, 0.9),
        (HeavyBall(), Topology.star(8), 10, 0.0),
        (HeavyBall(momentum=0.5), Topology.star(8), 1, 0.0),
    ],
    ids=["local epochs", "D-PSGD", "a star", "one step"],
)
def test_real_runs_that_are_well_say_nothing(rule, topology, steps, momentum) -> None:
    records = list(softmax_run(rule, topology, steps, momentum))
    neighbors = {v: topology.neighbors(v) for v in range(8)}
    assert records[-1].evaluate_summary["accuracy"].mean > 0.7
    assert told(records, neighbors) == []
