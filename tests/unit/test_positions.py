"""Where vertices are drawn: the shape of each named graph, by its geometry."""

from __future__ import annotations

import numpy as np
import pytest

from flower_dhb.figures.positions import _clearance, on_circle, places, wrapped_edges
from flower_dhb.topology import forms
from flower_dhb.topology.graph import Topology


def distance(p: np.ndarray, a: int, b: int) -> float:
    return float(np.linalg.norm(p[a] - p[b]))


FORMS = [
    *("ring:5", "complete:6", "exponential:9", "star:7", "path:4", "path:12", "torus:3x4"),
    *("torus:2x5", "bipartite:2x3", "bipartite:1x4", "hypercube:1", "hypercube:3", "hypercube:5"),
    *("small-world:8:4:0.1:1", "random-regular:8:3:1", "erdos-renyi:12:0.3:3", "path:1"),
]


@pytest.mark.parametrize("form", FORMS)
def test_a_drawing_is_centered_and_fills_the_square(form):
    p = places(Topology.parse(form))
    low, high = p.min(axis=0), p.max(axis=0)
    np.testing.assert_allclose(low + high, 0.0, atol=1e-12)
    if len(p) > 1:
        assert (high - low).max() == pytest.approx(2.0)


@pytest.mark.parametrize(
    "form",
    ["ring:5", "ring:8", "complete:6", "exponential:9", "small-world:8:4:0.1:1"],
)
def test_a_circle_begins_at_the_top_and_goes_clockwise(form):
    topology = Topology.parse(form)
    n = topology.n_agents
    p = places(topology)
    turn = np.exp(-2j * np.pi * np.arange(n) / n) * 1j  # the top, then to the right
    points = p[:, 0] + 1j * p[:, 1]
    scale = distance(p, 0, 1) / abs(turn[0] - turn[1])
    np.testing.assert_allclose(points - points.mean(), scale * (turn - turn.mean()), atol=1e-12)
    assert on_circle(topology)


def test_what_is_no_circle():
    for form in ("star:5", "path:4", "torus:3x3", "erdos-renyi:9:0.5:1"):
        assert not on_circle(Topology.parse(form))
    assert not on_circle(Topology.from_edges([(0, 1)], name="ring"))


def test_a_star_has_its_hub_in_the_middle_of_the_others():
    p = places(Topology.star(7))
    spokes = [distance(p, 0, leaf) for leaf in range(1, 7)]
    np.testing.assert_allclose(spokes, spokes[0])
    np.testing.assert_allclose([distance(p, k, k + 1) for k in range(1, 6)], spokes[0])  # hexagon
    assert p[1, 1] == p[:, 1].max()


def test_short_paths_are_straight_and_long_ones_turn():
    ten = places(Topology.path(10))
    np.testing.assert_allclose(ten[:, 1], 0.0, atol=1e-12)
    np.testing.assert_allclose(ten[:, 0], np.linspace(-1, 1, 10))
    # Twelve: rows of four, to and fro, so that neighbors always stand side by side.
    twelve = places(Topology.path(12))
    steps = np.diff(twelve, axis=0)
    right, left, down = [1, 0], [-1, 0], [0, -1]
    expected = [right] * 3 + [down] + [left] * 3 + [down] + [right] * 3
    np.testing.assert_allclose(steps / np.abs(steps).max(), expected, atol=1e-12)
    eleven = places(Topology.path(11))
    assert len(np.unique(eleven[:, 1].round(9))) == 3


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (4, 3), (2, 5), (11, 12)])
def test_a_torus_is_read_row_by_row_from_the_top(rows, columns):
    topology = Topology.torus(rows, columns)
    p = places(topology).reshape(rows, columns, 2)
    unit = 2.0 / (max(rows, columns) - 1)
    np.testing.assert_allclose(np.diff(p[..., 0], axis=1), unit)
    np.testing.assert_allclose(np.diff(p[..., 1], axis=0), -unit)
    np.testing.assert_allclose(np.diff(p[..., 0], axis=0), 0.0, atol=1e-12)
    wrapped = wrapped_edges(topology)
    expected = {}
    if columns > 2:
        for row in range(rows):
            expected[row * columns, row * columns + columns - 1] = (-1, 0)
    if rows > 2:
        for column in range(columns):
            expected[column, (rows - 1) * columns + column] = (0, 1)
    assert wrapped == expected


@pytest.mark.parametrize(("a", "b"), [(2, 3), (3, 2), (1, 4), (4, 1)])
def test_two_sides_face_each_other(a, b):
    p = places(Topology.bipartite(a, b))
    np.testing.assert_allclose(p[:a, 0], -1.0)
    np.testing.assert_allclose(p[a:, 0], 1.0)
    for side in (p[:a, 1], p[a:, 1]):
        expected = np.linspace(1, -1, len(side)) if len(side) > 1 else [0.0]
        np.testing.assert_allclose(side, expected, atol=1e-12)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 5])
def test_edges_of_a_cube_that_change_the_same_digit_are_parallel(dimension):
    topology = Topology.hypercube(dimension)
    p = places(topology)
    for digit in range(dimension):
        moves = [p[v | 1 << digit] - p[v] for v in range(2**dimension) if not v >> digit & 1]
        np.testing.assert_allclose(moves, np.broadcast_to(moves[0], (len(moves), 2)), atol=1e-12)
        # The highest digit goes right, the others are turned downwards from it.
        assert moves[0][1] <= 1e-12
    top = p[1 << (dimension - 1)] - p[0]
    assert top[0] > 0
    assert top[1] == pytest.approx(0.0, abs=1e-12)
    apart = np.linalg.norm(p[:, None] - p[None], axis=2)[np.triu_indices(2**dimension, 1)]
    assert apart.min() > 0.02


PENTAGON = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2)]


@pytest.fixture(scope="module")
def pentagon():
    return places(Topology.from_edges(PENTAGON))


@pytest.mark.parametrize(
    "name",
    ["torus:2x2", "torus:5", "hypercube:3", "bipartite:1x2", "grid:5"],
)
def test_a_name_that_does_not_fit_is_laid_out_freely(name, pentagon):
    named = Topology.from_edges(PENTAGON, name=name)
    np.testing.assert_array_equal(places(named), pentagon)
    assert wrapped_edges(named) == {}


def test_two_and_very_many_agents_of_no_kind():
    two = places(Topology.from_edges([(0, 1)]))
    assert distance(two, 0, 1) == pytest.approx(2.0, abs=0.9)
    many = Topology.from_edges([(i, i + 1) for i in range(81)] + [(0, 81)])
    found = places(many)
    assert found.shape == (82, 2)
    np.testing.assert_array_equal(found, places(many))
    assert len(np.unique(found.round(6), axis=0)) == 82


def clearance_again(p, edges):
    """Every pair and every triple, one after the other."""
    best = min(
        (float(np.linalg.norm(p[i] - p[j])), {i, j}) for i in range(len(p)) for j in range(i)
    )
    for a, b in edges:
        for v in set(range(len(p))) - {a, b}:
            t = np.linspace(0, 1, 20001)[:, None]
            away = 2 * float(np.linalg.norm(p[a] + t * (p[b] - p[a]) - p[v], axis=1).min())
            if away < best[0]:
                best = away, {v, a, b}
    return best


@pytest.mark.parametrize("seed", range(12))
def test_clearance_is_the_smallest_distance_of_what_should_be_apart(seed):
    rng = np.random.default_rng(seed)
    p = rng.normal(size=(6, 2))
    edges = ((0, 1), (1, 2), (2, 5), (3, 4), (0, 5))[: 1 + seed % 5]
    found, who = _clearance(p, edges)
    expected, members = clearance_again(p, edges)
    assert found == pytest.approx(expected, abs=2e-4)
    assert set(who) == members


def test_loosening_a_drawing_makes_room():
    topology = Topology.parse("erdos-renyi:12:0.3:3")
    import networkx as nx

    from flower_dhb.figures.positions import _fitted

    layout = nx.kamada_kawai_layout(nx.Graph(topology.edges))
    before = _fitted(np.array([layout[v] for v in range(12)]))
    assert (
        _clearance(places(topology), topology.edges)[0]
        > 1.5 * _clearance(before, topology.edges)[0]
    )


def test_a_graph_is_drawn_by_what_it_is_not_by_its_name():
    torus = Topology.torus(3, 4)
    renamed = Topology(forms.torus(3, 4), name="ring:12")
    assert renamed.digest == torus.digest
    np.testing.assert_array_equal(places(renamed), places(torus))
    assert wrapped_edges(renamed) == wrapped_edges(torus) != {}
    assert not on_circle(renamed)
