"""Every rule in every variant against its paper's own variables, written out in NumPy.

The papers speak of gradients `g`, a step size `a` and their own momenta; the rules of this
package of displacements. Here the papers' recursions run on an irregular graph whose weights
are partly negative and whose edges fail by turns.
"""

from __future__ import annotations

import numpy as np
import pytest

from flower_dhb.agent.mixing import BLOCK, combine
from flower_dhb.algorithms import (
    CDMSGD,
    DSGD,
    Centralized,
    DecentLaM,
    DiLoCo,
    ExactDiffusion,
    GASLoC,
    GlobalUpdateTracking,
    GradientTracking,
    HeavyBall,
    MomentumTracking,
    MoTEF,
    NoLoCo,
    PushSum,
    QuasiGlobal,
)
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic
from flower_dhb.engine.reference import simulate
from flower_dhb.errors import ConfigError
from flower_dhb.topology.directed import DirectedTopology
from flower_dhb.topology.graph import Topology
from flower_dhb.types import State

N, D, ROUNDS, A = 5, 3, 9, 0.07
EDGES = [(0, 1), (0, 2), (0, 3), (1, 2), (3, 4)]
_RNG = np.random.default_rng(8)
TARGET, CURVATURE = _RNG.normal(size=(N, D)), _RNG.uniform(0.3, 1.5, size=(N, D))
START = _RNG.normal(size=(N, D))
MISSING = {2: [(0, 1)], 5: [(3, 4), (0, 2)], 6: [(1, 2)]}


def negative() -> np.ndarray:
    """Symmetric, doubly stochastic, -0.2 on one edge and on one diagonal."""
    w = np.zeros((N, N))
    for (i, j), weight in zip(EDGES, (0.4, 0.45, 0.35, -0.2, 0.5), strict=True):
        w[i, j] = w[j, i] = weight
    return w + np.diag(1 - w.sum(axis=1))


GRAPH = Topology.from_edges(EDGES, negative())


def gradient(x: np.ndarray, k: int) -> np.ndarray:
    """Differs by agent, element and round, and is not linear."""
    return CURVATURE * (x - TARGET) + 0.3 * np.sin(2 * x + k)


def local_step(x: np.ndarray, k: int) -> np.ndarray:
    return x - A * gradient(x, k)


def dsgd(ws, order):
    x = START
    for k, w in enumerate(ws, start=1):
        x = w @ (x - A * gradient(x, k)) if order == "atc" else w @ x - A * gradient(x, k)
        yield x


def tracking(ws, order):
    """y(0) = g(0); y(k) = W y(k-1) + g(k) - g(k-1), mixed by the links of round k - 1."""
    x, y, last, before = START, None, None, np.eye(N)
    for k, w in enumerate(ws, start=1):
        g = gradient(x, k)
        y = g if y is None else before @ y + g - last
        x = w @ (x - A * y) if order == "atc" else w @ x - A * y
        last, before = g, w
        yield x


def quasi_global(ws, b, nesterov):
    x, m_hat = START, np.zeros_like(START)
    for k, w in enumerate(ws, start=1):
        g = gradient(x, k)
        m = b * m_hat + g
        new = w @ (x - A * (g + b * m if nesterov else m))
        m_hat = b * m_hat + (1 - b) * (x - new) / A
        x = new
        yield x


def decentlam(ws, b):
    x, m = START, np.zeros_like(START)
    for k, w in enumerate(ws, start=1):
        m = b * m + (x - w @ (x - A * gradient(x, k))) / A
        x = x - A * m
        yield x


def momentum_tracking(ws, b):
    x, u, c = START, np.zeros_like(START), np.zeros_like(START)
    for k, w in enumerate(ws, start=1):
        u = b * u + gradient(x, k)
        x = w @ (x - A * (u - c))
        c = w @ (c - u) + u
        yield x


def consensus_momentum(ws, b, nesterov):
    x, v = START, np.zeros_like(START)
    for k, w in enumerate(ws, start=1):
        g = gradient(x, k)
        v = b * v - A * g
        x = w @ x + (b * v - A * g if nesterov else v)
        yield x


def exact_diffusion(ws, b, lazy):
    x, v, psi = START, np.zeros_like(START), None
    for k, w in enumerate(ws, start=1):
        v = b * v - A * gradient(x, k)
        new = x + v
        phi = new if psi is None else new + x - psi
        x, psi = ((np.eye(N) + w) / 2 if lazy else w) @ phi, new
        yield x


def gossip_nesterov(ws, a, b, omega):
    """GASLoC: pseudo-gradients, a Laplacian L = I - W, momentum on what was shared."""
    x, before = START, START
    for k, w in enumerate(ws, start=1):
        pseudo = -A * gradient(x, k)
        shared = x + a * pseudo
        laplacian, mixing = np.eye(N) - w, (1 - omega) * np.eye(N) + omega * w
        x = x + a * pseudo - laplacian @ shared + b * mixing @ (shared - before)
        before = shared
        yield x


def gossip_outer(ws, a, b, c):
    """NoLoCo: slow weights phi, outer gradients of the mean, a pull to the mean of phi."""
    phi, delta = START, np.zeros_like(START)
    for k, w in enumerate(ws, start=1):
        outer = A * gradient(phi, k)
        delta = b * delta - a * w @ outer - c * (phi - w @ phi)
        phi = phi + delta
        yield phi


def update_tracking(ws, t):
    """GUT: gradients at what an agent and its neighbors have on average, and

    y = g + (x - W x) / A + t (W y - g_previous), by which x moves; W y is the way of W x.
    """
    x, at, before, g_before = None, START, None, None
    for k, w in enumerate(ws, start=1):
        g = gradient(at, k)
        if x is None:  # nobody has averaged, moved or trained yet
            x, y = START, g
        else:
            y = g + (x - at) / A + t * ((before - at) / A - g_before)
        x, g_before, before = x - A * y, g, at
        at = w @ x
        yield at


def smoothed_tracking(ws, b, c):
    """MoTEF without compression: V follows M, M smooths the gradients, X moves by V."""
    x, m, v = START, None, None
    for k, w in enumerate(ws, start=1):
        g = gradient(x, k)
        new = g if m is None else b * m + (1 - b) * g
        v = new if m is None else v + new - m
        mix = np.eye(N) + c * (w - np.eye(N))
        x, v, m = mix @ x - A * v, mix @ v, new
        yield x


def outer_nesterov(ws, a, b):
    """DiLoCo: the outer gradient of a server, by Nesterov's momentum as PyTorch writes it."""
    x, v = START.mean(axis=0), np.zeros(D)
    for k, _ in enumerate(ws, start=1):
        outer = (A * gradient(np.tile(x, (N, 1)), k)).mean(axis=0)
        v = b * v + outer
        x = x - a * (outer + b * v)
        yield np.tile(x, (N, 1))


def with_local_control(ws):
    """K-GT with one local step: control variates c in the step, which sum to zero."""
    x, c = START, None
    for k, w in enumerate(ws, start=1):
        g = gradient(x, k)
        z = g if c is None else g + c
        c = (np.zeros_like(z) if c is None else c) - z + w @ z
        x = w @ (x - A * z)
        yield x


def proximal_skip(ws):
    """Decentralized ProxSkip that never skips: a dual variable that its own step pays."""
    x, dual = START, np.zeros_like(START)
    for k, w in enumerate(ws, start=1):
        z = x - A * gradient(x, k) - dual
        x = (np.eye(N) + w) @ z / 2
        dual = dual + (z - x)
        yield x


def server(ws, b):
    x, d = np.broadcast_to(START.mean(axis=0), START.shape), np.zeros(D)
    for k, _ in enumerate(ws, start=1):
        new = (x - A * gradient(x, k)).mean(axis=0) + b * d
        d, x = new - x[0], np.broadcast_to(new, x.shape)
        yield x


LAWS = [
    (DSGD(), lambda ws: dsgd(ws, "atc")),
    (DSGD(order="combine-then-adapt"), lambda ws: dsgd(ws, "cta")),
    (GradientTracking(), lambda ws: tracking(ws, "atc")),
    (GradientTracking(order="combine-then-adapt"), lambda ws: tracking(ws, "cta")),
    (QuasiGlobal(momentum=0.8), lambda ws: quasi_global(ws, 0.8, False)),
    (QuasiGlobal(momentum=0.8, nesterov=True), lambda ws: quasi_global(ws, 0.8, True)),
    (QuasiGlobal(momentum=0.0, nesterov=True), lambda ws: quasi_global(ws, 0.0, True)),
    (DecentLaM(momentum=0.7), lambda ws: decentlam(ws, 0.7)),
    (HeavyBall(momentum=0.7, momentum_mixing=0.0), lambda ws: decentlam(ws, 0.7)),
    (MomentumTracking(momentum=0.6), lambda ws: momentum_tracking(ws, 0.6)),
    (CDMSGD(momentum=0.8), lambda ws: consensus_momentum(ws, 0.8, False)),
    (CDMSGD(momentum=0.8, nesterov=True), lambda ws: consensus_momentum(ws, 0.8, True)),
    (ExactDiffusion(), lambda ws: exact_diffusion(ws, 0.0, True)),
    (ExactDiffusion(momentum=0.6), lambda ws: exact_diffusion(ws, 0.6, True)),
    (ExactDiffusion(momentum=0.6, lazy=False), lambda ws: exact_diffusion(ws, 0.6, False)),
    (ExactDiffusion(lazy=False), lambda ws: exact_diffusion(ws, 0.0, False)),
    (GASLoC(outer_rate=0.8, momentum=0.6), lambda ws: gossip_nesterov(ws, 0.8, 0.6, 0.0)),
    (GASLoC(momentum_mixing=0.4), lambda ws: gossip_nesterov(ws, 0.7, 0.9, 0.4)),
    (GASLoC(momentum=0.5, momentum_mixing=1.0), lambda ws: gossip_nesterov(ws, 0.7, 0.5, 1.0)),
    (NoLoCo(), lambda ws: gossip_outer(ws, 0.7, 0.5, 0.7)),
    (NoLoCo(momentum=0.8, consensus_rate=0.9), lambda ws: gossip_outer(ws, 0.7, 0.8, 0.9)),
    (NoLoCo(outer_rate=1, momentum=0.7, consensus_rate=1), lambda ws: decentlam(ws, 0.7)),
    (GlobalUpdateTracking(), lambda ws: update_tracking(ws, 0.9)),
    (GlobalUpdateTracking(tracking=0.3), lambda ws: update_tracking(ws, 0.3)),
    (GlobalUpdateTracking(tracking=0.0), lambda ws: dsgd(ws, "atc")),
    (MoTEF(), lambda ws: smoothed_tracking(ws, 0.9, 1.0)),
    (MoTEF(momentum=0.6, consensus_rate=0.3), lambda ws: smoothed_tracking(ws, 0.6, 0.3)),
    # Where their local steps are one, these two are rules that are here already.
    (GradientTracking(), with_local_control),
    (ExactDiffusion(), proximal_skip),
]


@pytest.mark.parametrize(
    ("rule", "law"), LAWS, ids=[f"{rule} {i}" for i, (rule, _) in enumerate(LAWS)]
)
@pytest.mark.parametrize("missing", [{}, MISSING], ids=["all edges", "missing edges"])
def test_a_rule_is_its_papers_law(rule, law, missing):
    graph = GRAPH
    try:
        rule.check(graph)
    except ConfigError:  # D2, for one: lazy weights keep the negative one on its edge
        graph = Topology.from_edges(EDGES, (np.eye(N) + negative()) / 2)
    ws = [graph.with_missing(missing.get(k, ())) for k in range(1, ROUNDS + 1)]
    expected = np.array(list(law(ws)))
    found = simulate(rule, graph, START, local_step, ROUNDS, missing=missing)
    # float64: nine rounds of numbers of a few units, summed in another order.
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-12)
    engine = Engine(Analytic(START, gradient), graph, rule, learning_rate=A, missing=missing)
    for k in range(ROUNDS):
        engine.step()
        np.testing.assert_allclose(engine.parameters.numpy(), expected[k], rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_diloco_is_one_model_for_all_and_gossip_on_a_complete_graph_is_diloco(momentum):
    start, complete = START.mean(axis=0), Topology.complete(N, "uniform")
    expected = np.array(list(outer_nesterov(range(ROUNDS), 0.7, momentum)))
    for rule in (DiLoCo(momentum=momentum), GASLoC(momentum=momentum, momentum_mixing=1.0)):
        found = simulate(rule, complete, start, local_step, ROUNDS)
        np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-12)
    # The paper's agents keep their momentum, so they differ; where their data do not, neither
    # do they.
    same = lambda x, k: x - A * gradient(np.tile(x[:1], (N, 1)), k)[:1]  # noqa: E731
    alike = [simulate(r, complete, start, same, ROUNDS) for r in (DiLoCo(), GASLoC())]
    np.testing.assert_allclose(*alike, rtol=0, atol=1e-12)
    # Whatever the graph, the average moves as DiLoCo does with the average step.
    steps: list[np.ndarray] = []
    watched = lambda x, k: steps.append((local_step(x, k) - x).mean(0)) or local_step(x, k)  # noqa: E731
    found = simulate(GASLoC(momentum=momentum), GRAPH, START, watched, ROUNDS).mean(axis=1)
    replayed = lambda x, k: x + steps[k - 1]  # noqa: E731
    alone = simulate(DiLoCo(momentum=momentum), Topology.complete(1), start, replayed, ROUNDS)
    np.testing.assert_allclose(found, alone[:, 0], rtol=0, atol=1e-12)


# Halves, quarters and small integers: nothing is rounded in a few rounds, so equal is equal.
EVERYONE = Topology.complete(4, "uniform")
FOUR = Topology.from_edges(
    [(0, 1), (0, 2), (2, 3)],
    np.array([[0.25, 0.5, 0.25, 0], [0.5, 0.5, 0, 0], [0.25, 0, 0.25, 0.5], [0, 0, 0.5, 0.5]]),
)
WHOLE = np.array([[3.0, -1.0], [0.0, 2.0], [-5.0, 1.0], [2.0, 6.0]])
PULLS = np.array([[0.5], [1.0], [0.25], [0.5]])


def exact_step(x, k):
    return x - PULLS * (x - WHOLE) - 0.25 * k


def gasloc(b, **more):
    return GASLoC(outer_rate=0.5, momentum=b, **more)


SAME = {  # two rules, and a graph
    "gossip on a complete graph is DiLoCo": (
        gasloc(0.5, momentum_mixing=1.0),
        DiLoCo(outer_rate=0.5, momentum=0.5),
        EVERYONE,
    ),
    "gossip without momentum and at full rate is D-PSGD": (
        GASLoC(outer_rate=1, momentum=0.0),
        DSGD(),
        FOUR,
    ),
    "NoLoCo at full rates is DecentLaM": (
        NoLoCo(outer_rate=1, momentum=0.5),
        DecentLaM(momentum=0.5),
        FOUR,
    ),
    "DecentLaM is the law without mixed momentum": (
        DecentLaM(momentum=0.5),
        HeavyBall(momentum=0.5, momentum_mixing=0.0),
        FOUR,
    ),
    "DiLoCo at full rate and without momentum averages": (
        DiLoCo(outer_rate=1, momentum=0.0),
        Centralized(momentum=0.0),
        EVERYONE,
    ),
    "MoTEF without momentum is gradient tracking": (
        MoTEF(momentum=0.0),
        GradientTracking(order="combine-then-adapt"),
        FOUR,
    ),
    "GUT that tracks nothing is D-PSGD": (
        GlobalUpdateTracking(tracking=0.0),
        DSGD(),
        FOUR,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_two_papers_have_one_rule_to_the_last_bit(name):
    one, other, graph = SAME[name]
    found = [simulate(rule, graph, WHOLE[0], exact_step, 5) for rule in (one, other)]
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0][-1] - found[0][-2]).max() > 0.01


def test_gut_is_d2_with_a_part_of_its_correction_and_its_average_neither_leads_nor_lags():
    t, w = 0.5, FOUR.mixing_matrix
    found = simulate(GlobalUpdateTracking(tracking=t), FOUR, WHOLE[0], exact_step, 5)
    x, correction = np.tile(WHOLE[0], (4, 1)), np.zeros((4, 2))
    for k in range(1, 6):
        z = exact_step(x, k)
        new = w @ (z + t * correction)
        np.testing.assert_array_equal(new.mean(axis=0), z.mean(axis=0))
        correction, x = new - z, new
        np.testing.assert_array_equal(found[k], x)
    # Two rounds of D2, whose correction is whole.
    whole = simulate(ExactDiffusion(lazy=False), FOUR, WHOLE[0], exact_step, 2)
    parts = [
        simulate(GlobalUpdateTracking(tracking=t), FOUR, WHOLE[0], exact_step, 2)
        for t in (0.25, 0.5, 0.75)
    ]
    np.testing.assert_array_equal(whole[1], parts[0][1])
    np.testing.assert_array_equal(
        whole[2] - parts[2][2], parts[2][2] - parts[1][2]
    )  # t = 1 is next


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_centralized_rule_is_one_heavy_ball_for_all(momentum):
    start = np.broadcast_to(START.mean(axis=0), START.shape)
    expected = np.array(list(server(range(ROUNDS), momentum)))
    rule = Centralized(momentum=momentum)
    found = simulate(rule, Topology.complete(N, "uniform"), start, local_step, ROUNDS)
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("missing", [{}, {2: [(2, 3)], 3: [(0, 1), (3, 4)]}])
def test_push_sum_trains_as_in_its_paper(missing):
    """n+ = P (n - a g(x)), w+ = P w, x = n / w: gradients are taken at the unbiased x."""
    graph = DirectedTopology([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 0), (1, 4)])
    engine = Engine(Analytic(START, gradient), graph, PushSum(), learning_rate=A, missing=missing)
    simulated = simulate(PushSum(), graph, START, local_step, ROUNDS, missing=missing)
    numerator, w, x = START, np.ones((N, 1)), START
    for k in range(1, ROUNDS + 1):
        p = graph.with_missing(missing.get(k, ()))
        numerator, w = p @ (numerator - A * gradient(x, k)), p @ w
        x = numerator / w
        engine.step()
        np.testing.assert_allclose(engine.parameters.numpy(), x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(engine.memory["push_weight"].numpy(), w, atol=1e-13)
        np.testing.assert_allclose(simulated[k], x, rtol=0, atol=1e-12)
    assert w.min() < 0.7 < 1.3 < w.max()  # rows of P do not sum to 1: the weights matter


# --- the kernel on every magnitude of momentum -------------------------------------------------

MOMENTA = [0.0, 1e-3, 0.5, 0.99, 0.999, 0.999_999]
BUILD = {
    "heavy ball": lambda b: HeavyBall(momentum=b),
    "mixing 0.1": lambda b: HeavyBall(momentum=b, momentum_mixing=0.1),
    "mixing 1": lambda b: HeavyBall(momentum=b, momentum_mixing=1.0),
    "separate": lambda b: HeavyBall(momentum=b, payload="separate"),
    "combine first": lambda b: HeavyBall(momentum=b, order="combine-then-adapt"),
    "buffer": lambda b: HeavyBall(momentum=b, form="buffer", momentum_mixing=0.3),
    "buffer, combine first": lambda b: HeavyBall(
        momentum=b, form="buffer", order="combine-then-adapt"
    ),
    "tracking": lambda b: HeavyBall(momentum=b, form="tracking"),
    "quasi-global": lambda b: QuasiGlobal(momentum=b, nesterov=True),
    "momentum tracking": lambda b: MomentumTracking(momentum=b),
    "exact diffusion": lambda b: ExactDiffusion(momentum=b),
    "D2": lambda b: ExactDiffusion(momentum=b, lazy=False),
    "gossip": lambda b: GASLoC(momentum=b, momentum_mixing=0.3),
    "gossip, outer": lambda b: NoLoCo(momentum=b, consensus_rate=0.4),
    "update tracking": lambda b: GlobalUpdateTracking(tracking=b),
    "smoothed tracking": lambda b: MoTEF(momentum=b, consensus_rate=0.6),
    "consensus": lambda b: CDMSGD(momentum=b, nesterov=True),
    "tracking, plain": lambda b: GradientTracking(order="combine-then-adapt"),
}


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("name", BUILD)
def test_the_kernel_computes_what_the_rule_says(name, momentum):
    """Into new vectors and in place; with an own weight of 1/3, of nothing, and below it."""
    rule = BUILD[name](momentum)
    rng = np.random.default_rng(5)
    for size, own in ((7, 1 / 3), (7, -0.25), (7, 0.0), (7, 1.0)):
        weights = {4: own, 1: 0.4, 9: 0.6 - own} if own != 1.0 else {4: 1.0}
        state = State(rng.normal(size=size), {m: rng.normal(size=size) for m in rule.memory})
        trained = rng.normal(size=size)
        near = [j for j in weights if j != 4]
        payloads = {j: {v: rng.normal(size=size) for v in rule.vectors} for j in near}
        sent = rule.outgoing(state, trained)
        mixed = {
            v: weights[4] * sent[v] + sum(weights[j] * payloads[j][v] for j in near)
            for v in rule.vectors
        }
        expected = rule.combine(state, trained, mixed)
        fresh = combine(rule, state, trained, 4, weights, payloads)
        kept = trained.copy()
        inplace = combine(rule, state, trained, 4, weights, payloads, out=state)
        assert inplace is state
        np.testing.assert_array_equal(trained, kept)
        for found in (fresh, inplace):
            # Coefficients near 1e-12 and below count as rounding.
            np.testing.assert_allclose(found.parameters, expected.parameters, rtol=0, atol=1e-11)
            for m in rule.memory:
                np.testing.assert_allclose(found.memory[m], expected.memory[m], rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_blocks_meet_at_their_ends(size):
    rule = HeavyBall(form="tracking", momentum=0.7)
    ramp = np.arange(size, dtype=np.float64)
    memory = {m: ramp * c for c, m in enumerate(rule.memory, start=2)}
    state, trained = State(ramp, memory), ramp * 3 + 1
    payloads = {0: {"folded": ramp * 5, "tracker": ramp * 7}}
    sent = rule.outgoing(state, trained)
    mixed = {v: 0.25 * sent[v] + 0.75 * payloads[0][v] for v in rule.vectors}
    expected = rule.combine(state, trained, mixed)
    found = combine(rule, state, trained, 1, {1: 0.25, 0: 0.75}, payloads)
    # Numbers up to a few million.
    np.testing.assert_allclose(found.parameters, expected.parameters, rtol=1e-13, atol=1e-8)
    for m in rule.memory:
        np.testing.assert_allclose(found.memory[m], expected.memory[m], rtol=1e-13, atol=1e-8)
