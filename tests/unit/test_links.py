"""Links worth adding: each against all choices, and on graphs with too many choices for that."""

from itertools import combinations
from math import comb

import pytest

from flower_dhb import ConfigError, Topology
from flower_dhb.topology import links
from flower_dhb.topology.fastest import fastest_weights
from flower_dhb.topology.links import suggest_links

pytestmark = pytest.mark.thorough


def gap_with(topology, edges, weights="metropolis"):
    return Topology.from_edges([*topology.edges, *edges], weights).spectral_gap


def absent(topology):
    pairs = combinations(range(topology.n_agents), 2)
    return [pair for pair in pairs if not topology.adjacency[pair]]


@pytest.mark.parametrize("weights", ["metropolis", "laplacian", "lazy"])
@pytest.mark.parametrize("spec", ["path:7", "erdos-renyi:9:0.4:3", "bipartite:3x4", "torus:2x4"])
@pytest.mark.parametrize("count", [1, 2])
def test_no_choice_of_as_many_links_is_better(spec, count, weights):
    topology = Topology.parse(spec, weights)
    found = suggest_links(topology, count, weights)
    choices = [s for size in range(1, count + 1) for s in combinations(absent(topology), size)]
    best = max(gap_with(topology, edges, weights) for edges in choices)
    reached = found[-1].spectral_gap if found else topology.spectral_gap
    # Gaps are told to 12 digits.
    assert reached == pytest.approx(max(best, topology.spectral_gap), abs=1e-11)
    for at, link in enumerate(found):
        so_far = [other.edge for other in found[: at + 1]]
        assert link.spectral_gap == pytest.approx(gap_with(topology, so_far, weights), abs=1e-11)


@pytest.mark.parametrize("spec", ["ring:8", "ring:16", "star:8", "hypercube:3", "torus:8x8"])
def test_where_every_link_lowers_the_gap_none_is_suggested(spec):
    topology = Topology.parse(spec)
    sample = absent(topology)[:: max(1, len(absent(topology)) // 30)]
    assert all(gap_with(topology, [e]) <= topology.spectral_gap + 1e-12 for e in sample)
    assert suggest_links(topology, 1) == []


def test_fewer_links_are_suggested_where_more_would_not_help():
    """A fourth edge on a path of 4 makes it a ring; a fifth takes weight from it."""
    path = Topology.path(4)
    found = suggest_links(path, 3)
    assert found[-1].spectral_gap == pytest.approx(1.0)  # the complete graph averages at once
    assert len(found) == 3
    [link] = suggest_links(path, 1)
    assert link.edge == (0, 3)
    assert link.spectral_gap == pytest.approx(2 / 3)  # ring of 4: eigenvalues 1/3, 1/3, -1/3
    assert [found.edge for found in suggest_links(path, 2)] == [(0, 3)]


@pytest.mark.parametrize("n", [40, 150])
def test_links_that_help_only_together_are_found_among_too_many_choices(n):
    """Two diameters at a right angle: one alone leaves the other slow mode as it was."""
    ring = Topology.ring(n)
    assert comb(n * (n - 3) // 2, 2) > 20_000
    asked = []
    found = suggest_links(ring, 2, progress=lambda done, total: asked.append((done, total)))
    assert found[-1].spectral_gap > 2.5 * ring.spectral_gap
    assert gap_with(ring, [link.edge for link in found]) == pytest.approx(found[-1].spectral_gap)
    hops = [abs(link.edge[0] - link.edge[1]) for link in found]
    assert all(0.4 * n < hop < 0.6 * n for hop in hops)
    assert len(asked) < 5_000
    assert [done for done, _ in asked] == sorted(done for done, _ in asked)
    assert asked[-1][0] == asked[-1][1]


@pytest.mark.parametrize("spec", ["erdos-renyi:14:0.35:2", "random-regular:14:3:2", "path:14"])
def test_a_search_of_thirty_graphs_gets_most_of_what_all_choices_give(spec, monkeypatch):
    topology = Topology.parse(spec)
    every = suggest_links(topology, 2)[-1].spectral_gap - topology.spectral_gap
    monkeypatch.setattr(links, "_LEAST", 30)
    monkeypatch.setattr(links, "_MOST", 30)
    some = suggest_links(topology, 2)[-1].spectral_gap - topology.spectral_gap
    assert 0.75 * every <= some <= every + 1e-11


def test_large_graphs_are_searched_with_sparse_matrices(monkeypatch):
    graph = Topology.small_world(30, 4, 0.1, 1)
    expected = suggest_links(graph, 1)
    monkeypatch.setattr(links, "DENSE_UP_TO", 10)
    assert suggest_links(graph, 1) == expected
    assert len(expected) == 1


def test_weights_of_ones_own_are_used():
    path = Topology.path(4, fastest_weights)
    [link] = suggest_links(path, 1, fastest_weights)
    assert link.spectral_gap == pytest.approx(
        gap_with(path, [link.edge], fastest_weights), abs=1e-6
    )
    assert link.spectral_gap > path.spectral_gap + 0.1


@pytest.mark.parametrize(
    ("spec", "count", "message"),
    [
        ("ring:8", 0, "at least 1, got 0"),
        ("ring:8", True, "at least 1, got True"),
        ("ring:8", 1.5, "at least 1, got 1.5"),
        ("complete:4", 1, "'complete:4' lacks 0 links only, cannot add 1"),
        ("path:3", 2, "lacks 1 links only, cannot add 2"),
        ("ring:2001", 1, "at most 2,000 agents; 'ring:2001' has 2,001"),
    ],
)
def test_what_cannot_be_added(spec, count, message):
    with pytest.raises(ConfigError, match=message):
        suggest_links(Topology.parse(spec), count)


def test_links_repeat():
    graph = Topology.small_world(30, 4, 0.1, 1)
    assert suggest_links(graph, 1) == suggest_links(graph, 1)


def test_where_a_negative_eigenvalue_is_the_slow_one_its_opposites_are_left_apart():
    """Two sides that swap values: a link between them makes that worse, one within helps."""
    sides = [(i, j) for i in range(6) for j in range(6, 12) if (i, j) != (0, 6)]
    topology = Topology.from_edges(sides, "uniform")
    assert abs(topology.smallest_eigenvalue) > topology.eigenvalues[-2] + 0.05
    search = links._Search(topology, "uniform", lambda _done, _total: None)
    promising = search._promising([], len(absent(topology)))
    assert promising[-1] == (0, 6)
    assert gap_with(topology, [promising[0]], "uniform") > topology.spectral_gap
    assert gap_with(topology, [(0, 6)], "uniform") < gap_with(topology, [promising[0]], "uniform")
