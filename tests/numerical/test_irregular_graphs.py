"""Every form against an independent implementation, on graphs of unequal degrees."""

import numpy as np
import pytest
from naive import FORMS, law, pull

from flower_dhb import HeavyBall, Topology, simulate

GRAPHS = {
    "star": Topology.star(7),
    "random": Topology.erdos_renyi(8, 0.4, seed=3),
    # best constant weights: the hub's own weight is negative
    "star, negative weight": Topology.star(5, "laplacian"),
}

# The same sums in another order, over 40 rounds of a contracting recursion of numbers near 1.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def start_of(topology, d=3):
    return np.random.default_rng(7).normal(size=(topology.n_agents, d))


def payloads_of(form):
    return ["separate"] if form == "buffer" else ["folded", "separate"]


CASES = [
    pytest.param(form, order, payload, id=f"{form}, {order}, {payload}")
    for form, order in FORMS
    for payload in payloads_of(form)
]


@pytest.mark.parametrize("omega", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("form", "order", "payload"), CASES)
def test_simulate_is_the_law(form, order, payload, graph, omega):
    topology = GRAPHS[graph]
    algorithm = HeavyBall(
        momentum=0.8, momentum_mixing=omega, form=form, order=order, payload=payload
    )
    start, local_step = start_of(topology), pull(topology.n_agents, 3)
    expected = law(
        form,
        order,
        beta=0.8,
        omega=omega,
        matrices=[np.array(topology.mixing_matrix)] * 40,
        start=start,
        local_step=local_step,
    )
    found = simulate(algorithm, topology, start, local_step, rounds=40)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("omega", [0.3, 1.0])
@pytest.mark.parametrize(("form", "order", "payload"), CASES)
def test_simulate_is_the_law_while_edges_fail(form, order, payload, omega):
    topology = GRAPHS["random"]
    failed = {2: [(0, 1)], 3: [(6, 5), (4, 1)], 5: [(2, 5), (5, 6)]}
    matrices = []
    for k in range(1, 11):
        matrix = np.array(topology.mixing_matrix)
        for i, j in failed.get(k, []):
            for vertex in (i, j):
                matrix[vertex, vertex] += matrix[i, j]
            matrix[i, j] = matrix[j, i] = 0.0
        matrices.append(matrix)
    algorithm = HeavyBall(
        momentum=0.8, momentum_mixing=omega, form=form, order=order, payload=payload
    )
    start, local_step = start_of(topology), pull(topology.n_agents, 3)
    expected = law(
        form,
        order,
        beta=0.8,
        omega=omega,
        matrices=matrices,
        start=start,
        local_step=local_step,
    )
    found = simulate(algorithm, topology, start, local_step, rounds=10, missing=failed)
    np.testing.assert_allclose(found, expected, **CLOSE)
