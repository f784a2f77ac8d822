"""Graphs that take turns: what they are, what they are refused for, and who runs them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from flower_dhb.algorithms import HeavyBall, PushSum, method
from flower_dhb.cli import main
from flower_dhb.engine.engine import Engine, random_failures
from flower_dhb.engine.problem import Analytic
from flower_dhb.engine.reference import simulate
from flower_dhb.errors import ConfigError, GraphError
from flower_dhb.flower.arguments import a_topology
from flower_dhb.runs.config import RunConfig
from flower_dhb.topology.finite import base_rounds
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.matchings import matchings_of
from flower_dhb.topology.turns import Turns, count_agents, parse_graph, share_every


def exact_product(turns: Turns, rounds: int) -> list[list[Fraction]]:
    """Product of a period's mixing matrices in exact arithmetic; their weights are halves."""
    n = turns.n_agents
    product = [[Fraction(i == j) for j in range(n)] for i in range(n)]
    for graph in turns.graphs[:rounds]:
        w = [[Fraction(v) for v in row] for row in graph.mixing_matrix.tolist()]
        product = [
            [sum((w[i][k] * product[k][j] for k in range(n)), Fraction(0)) for j in range(n)]
            for i in range(n)
        ]
    return product


@pytest.mark.parametrize("spec", ["one-peer:2", "one-peer:8", "one-peer:16", "directed-one-peer:8"])
def test_one_peer_averages_exactly_after_log2_n_rounds(spec: str) -> None:
    turns = parse_graph(spec)
    assert isinstance(turns, Turns)
    n = turns.n_agents
    assert 2 ** len(turns) == n
    assert exact_product(turns, len(turns)) == [[Fraction(1, n)] * n] * n
    assert exact_product(turns, len(turns) - 1) != [[Fraction(1, n)] * n] * n
    for graph in turns.graphs:
        assert len(graph.edges) == (n if turns.directed else n // 2)
    assert turns.second_eigenvalue == 0.0
    assert turns.spectral_gap == 1.0
    assert simulate_averaging(turns, len(turns)) == pytest.approx(0.0, abs=1e-12)


def simulate_averaging(turns: Turns, rounds: int) -> float:
    start = np.random.default_rng(0).standard_normal((turns.n_agents, 3))
    rule = PushSum() if turns.directed else method("dsgd")
    end = simulate(rule, turns, start, lambda x, _k: x, rounds)[-1]
    return float(np.abs(end - start.mean(axis=0)).max())


def exact_base_product(n: int, most: int) -> list[list[Fraction]]:
    """Product of a period's matrices, in the exact weights; checks degrees and own weights."""
    product = [[Fraction(i == j) for j in range(n)] for i in range(n)]
    for edges in base_rounds(n, most):
        rows: list[dict[int, Fraction]] = [{} for _ in range(n)]
        for a, b, weight in edges:
            assert a != b
            assert b not in rows[a]
            rows[a][b] = rows[b][a] = weight
        assert max(len(row) for row in rows) <= most
        for i, row in enumerate(rows):
            row[i] = 1 - sum(row.values(), Fraction(0))
            assert row[i] > 0
        product = [
            [sum((w * product[j][c] for j, w in row.items()), Fraction(0)) for c in range(n)]
            for row in rows
        ]
    return product


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 20])
def test_base_averages_exactly_with_few_neighbors(most: int) -> None:
    for n in (*range(2, 16), 18, 21, 25, 27):
        assert exact_base_product(n, most) == [[Fraction(1, n)] * n] * n, n
        least = 1 if most >= n - 1 else 2
        longest = 2 * math.log(n) / math.log(most + 1) + 2
        assert least <= len(base_rounds(n, most)) <= longest


def test_base_by_hand() -> None:
    """Five agents in pairs: four average, the fifth gets 4/5 of that, the four average again."""
    half, most = Fraction(1, 2), Fraction(4, 5)
    pairs = [[(0, 1, half), (2, 3, half)], [(0, 2, half), (1, 3, half)]]
    rounds = [sorted(edges) for edges in base_rounds(5, 1)]
    assert rounds == [*pairs, [(0, 4, most)], *pairs]
    assert [len(base_rounds(6, k)) for k in (1, 2, 5)] == [4, 2, 1]  # 2 times 3; 3 times 2; all
    turns = parse_graph("base:5:1")
    assert isinstance(turns, Turns)
    np.testing.assert_allclose(turns.at(3).mixing_matrix[4], [0.8, 0, 0, 0, 0.2])
    np.testing.assert_allclose(turns.mixing_matrix, np.full((5, 5), 0.2), atol=1e-15)
    assert turns.edges == ((0, 1), (0, 2), (0, 4), (1, 3), (2, 3))
    assert turns.neighbors(0) == (1, 2, 4)
    row = [1 - 0.2 - 0.2 - 0.8 / 5, 0.2, 0.2, 0, 0.8 / 5]  # each of its edges is there twice but 4
    np.testing.assert_allclose(turns.together.row(0), row)
    lazy = parse_graph("base:5:1", "lazy")
    np.testing.assert_allclose(lazy.at(3).mixing_matrix[4], [0.4, 0, 0, 0, 0.6])


def test_a_long_name_is_the_same_graph() -> None:
    assert parse_graph("one-peer-exponential:8").digest == Turns.one_peer(8).digest


@pytest.mark.parametrize("spec", ["star:4", "base:5:1", "directed-one-peer:5"])
def test_sharing_every_third_round_is_the_same_law_with_w_of_one_between(spec: str) -> None:
    graph = parse_graph(spec)
    rare = share_every(graph, 3)
    assert isinstance(rare, Turns)
    assert len(rare) == 3 * len(graph.graphs)
    for k in range(1, 13):
        if k % 3:
            assert not rare.at(k).edges
            np.testing.assert_array_equal(rare.at(k).mixing_matrix, np.eye(graph.n_agents))
        else:
            assert rare.at(k) is graph.at(k // 3)
    assert share_every(graph, 1) is graph
    assert rare.directed == graph.directed
    if not graph.directed:
        assert rare.neighbors(0) == graph.together.neighbors(0)
    # Momentum goes on in the rounds between, and the third one mixes what all have trained.
    if spec == "star:4":
        start = np.array([[4.0], [0.0], [0.0], [0.0]])
        rule = HeavyBall(momentum=0.5, momentum_mixing=0.0)
        found = simulate(rule, rare, start, lambda x, _k: x - 1.0, 3)[:, 0, 0]
        # From 0, all would be at -4.25 in round 3; the middle keeps a quarter of its 4.
        np.testing.assert_allclose(found, [4.0, 3.0, 1.5, -3.25])


def test_pairs_of_one_peer_by_hand() -> None:
    turns = Turns.one_peer(4)
    assert [graph.edges for graph in turns.graphs] == [((0, 1), (2, 3)), ((0, 2), (1, 3))]
    np.testing.assert_array_equal(
        turns.at(1).mixing_matrix,
        [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]],
    )
    assert turns.at(3) is turns.at(1) is turns.graphs[0]
    assert turns.at(2) is turns.graphs[1]
    single = Topology.ring(4)
    assert single.at(7) is single
    directed = Turns.directed_one_peer(5)
    assert directed.graphs[1].edges == ((0, 2), (1, 3), (2, 4), (3, 0), (4, 1))


@pytest.mark.parametrize(
    ("spec", "rounds"),
    [
        *(("ring:8", 2), ("ring:9", 3), ("torus:4x4", 4), ("star:5", 4), ("hypercube:3", 3)),
        *(("bipartite:3x5", 5), ("complete:8", 7), ("complete:7", 7), ("exponential:16", 8)),
    ],
)
def test_matchings_hold_each_edge_once_and_no_agent_twice_a_round(spec: str, rounds: int) -> None:
    topology = Topology.parse(spec)
    turns = parse_graph(f"matchings:{spec}")
    assert len(turns.graphs) == rounds
    assert sorted(edge for graph in turns.graphs for edge in graph.edges) == list(topology.edges)
    for graph in turns.graphs:
        ends = [end for edge in graph.edges for end in edge]
        assert len(ends) == len(set(ends))
    assert 0.0 <= turns.second_eigenvalue < 1.0


def test_colours_of_random_graphs_are_at_most_one_more_than_the_degree() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        n = int(rng.integers(2, 12))
        share = rng.random()
        edges = [edge for edge in combinations(range(n), 2) if rng.random() < share]
        found = matchings_of(edges, n)
        assert sorted(edge for matching in found for edge in matching) == edges
        most = max((sum(v in edge for edge in edges) for v in range(n)), default=0)
        assert most <= len(found) <= most + 1 or not edges
        for matching in found:
            assert len({end for edge in matching for end in edge}) == 2 * len(matching)


def test_random_pairs_repeat_and_leave_one_out_of_an_odd_number() -> None:
    turns = Turns.random_pairs(7, 20, 3)
    assert turns.digest == Turns.random_pairs(7, 20, 3).digest
    assert turns.digest != Turns.random_pairs(7, 20, 4).digest
    assert all(len(graph.edges) == 3 for graph in turns.graphs)
    assert len({graph.edges for graph in turns.graphs}) > 10


def test_the_engine_and_simulate_take_turns_alike() -> None:
    turns = parse_graph("turns:star:6+path:6+matchings:ring:6")
    assert len(turns.graphs) == 4
    rng = np.random.default_rng(0)
    start, goal = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    missing = random_failures(turns, 0.3, seed=2)
    problem = Analytic(start, lambda x, _k: x - goal)
    engine = Engine(problem, turns, HeavyBall(momentum=0.5), learning_rate=0.1, missing=missing)
    engine.run(9)
    rule = HeavyBall(momentum=0.5)
    step = lambda x, _k: x - 0.1 * (x - goal)  # noqa: E731
    expected = simulate(rule, turns, start, step, 9, missing)[-1]
    np.testing.assert_allclose(engine.parameters.numpy(), expected, rtol=0, atol=1e-13)
    whole = [2 * len(turns.at(k).edges) for k in range(1, 10)]
    failed = [2 * len(missing(k)) for k in range(1, 10)]  # type: ignore[operator, arg-type]
    assert engine.bytes_sent == (sum(whole) - sum(failed)) * 5 * 8


def test_tracking_is_exact_although_no_graph_is_connected() -> None:
    turns = Turns.matchings(Topology.ring(6))
    goal = np.random.default_rng(1).standard_normal((6, 3))
    step = lambda x, _k: x - 0.1 * (x - goal)  # noqa: E731
    ends = {
        name: simulate(method(name), turns, np.zeros(3), step, 600)[-1] for name in ("dsgt", "dsgd")
    }
    best = np.broadcast_to(goal.mean(axis=0), (6, 3))
    np.testing.assert_allclose(ends["dsgt"], best, atol=1e-9)
    assert np.abs(ends["dsgd"] - best).max() > 0.05


def test_files_of_rounds(tmp_path: Path) -> None:
    text = tmp_path / "field.edges"
    text.write_text("0 1  # first\n2,3\n---\n\n1 2\n---\n")
    turns = parse_graph(f"turns:{text}")
    assert [graph.edges for graph in turns.graphs] == [((0, 1), (2, 3)), ((1, 2),), ()]
    np.testing.assert_array_equal(turns.at(3).mixing_matrix, np.eye(4))
    other = tmp_path / "field.json"
    other.write_text("[[[0, 1], [2, 3]], [[1, 2]], []]")
    assert parse_graph(f"turns:{other}").digest == turns.digest
    other.write_text("[[[0, 1], [2, 3]], [[1, 2]]]")
    assert parse_graph(f"turns:{other}").digest != turns.digest
    for content, message in (
        ("0 1\n2\n", "line 2: expected two vertices"),
        ("0 1\n---\n2 3\n", "2 parts that never hear"),
        ("0 1\n1 1\n", "joins two of the vertices"),
        ("", "needs at least 2, got 0"),
    ):
        text.write_text(content)
        with pytest.raises(GraphError, match=message) as caught:
            parse_graph(f"turns:{text}")
        assert str(text) in str(caught.value)
    other.write_text('{"a": 1}')
    with pytest.raises(GraphError, match="expected a list of rounds"):
        parse_graph(f"turns:{other}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "one-peer:12",
            "power of 2 agents, such as 8 or 16; for 12 take base:12:1, which averages",
        ),
        ("one-peer:x", "not of the form one-peer:N"),
        ("one-peer:1", "at least 2"),
        ("base:8", "not of the form base:N:K"),
        ("base:8:0", "K neighbors are the most in a round, needs at least 1, got 0"),
        ("base:1:1", "at least 2"),
        ("base:20000:300", "at most"),
        ("one-per:16", "did you mean 'one-peer'"),
        ("matchings:", "not of the form matchings:GRAPH"),
        ("matchings:rng:8", "did you mean 'ring'"),
        ("random-pairs:4:1:0", "choose a longer period"),
        ("random-pairs:4:1", "not of the form random-pairs:N:PERIOD:SEED"),
        ("turns:", "not of the form turns:"),
        ("turns:nowhere.edges", "no such file"),
        ("turns:ring:8+ring:9", r"the first has 8, graph 2 \('ring:9'\) has 9"),
        ("turns:ring:8+directed-ring:8", "another kind than the first"),
    ],
)
def test_what_is_no_sequence_is_refused(spec: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        parse_graph(spec)


def test_sequences_that_cannot_be() -> None:
    with pytest.raises(GraphError, match="is empty"):
        Turns([])
    with pytest.raises(GraphError, match="are topologies, got 3"):
        Turns([3])  # type: ignore[list-item]
    with pytest.raises(GraphError, match="need no connected graph; got 'laplacian'"):
        Turns.one_peer(4, "laplacian")
    with pytest.raises(GraphError, match="fastest-mixing"):
        parse_graph("one-peer:4", "fdla")
    with pytest.raises(GraphError, match="disconnected"):
        Topology.from_edges([(0, 1), (2, 3)])  # on its own it must be connected
    with pytest.raises(ConfigError, match="'dmsgd' needs an undirected graph"):
        simulate(HeavyBall(), Turns.directed_one_peer(4), np.zeros(2), lambda x, _k: x, 1)
    with pytest.raises(GraphError, match=r"base:6:2 has weights of its own.*got 'uniform'"):
        parse_graph("base:6:2", "uniform")
    with pytest.raises(GraphError, match="share-every needs at least 1, got 0"):
        share_every(Topology.ring(4), 0)
    with pytest.raises(GraphError, match=r"at most 10,000 graphs take turns"):
        share_every(Turns.one_peer(4), 5001)
    with pytest.raises(GraphError, match="one-way links"):
        _ = Turns.directed_one_peer(4).together
    lazy = Turns.one_peer(4, "lazy")
    np.testing.assert_array_equal(lazy.at(1).mixing_matrix[0], [0.75, 0.25, 0, 0])


@pytest.mark.parametrize(
    "spec",
    ["one-peer:8", "base:8:2", "matchings:ring:8", "random-pairs:8:9:0", "turns:ring:8+star:8"],
)
def test_runs_take_them_by_name(spec: str) -> None:
    rule = {"algorithm": "dsgd", "rounds": 3}
    config = RunConfig.of({"topology": spec, **rule})
    assert isinstance(config.topology, Turns)
    assert config.topology.digest == parse_graph(spec).digest == a_topology(spec).digest
    rare = RunConfig.of({"topology": spec, "share-every": 4, **rule})
    assert rare.topology.digest == share_every(config.topology, 4).digest
    assert a_topology(config.topology, 4).digest == rare.topology.digest
    assert count_agents(spec) == 8
    with pytest.raises(GraphError, match="here one graph is needed"):
        Topology.parse(spec)


def test_what_runs_refuse(tmp_path: Path) -> None:
    for spec in ("directed-one-peer:8", "turns:directed-ring:8+directed-exponential:8"):
        with pytest.raises(GraphError, match="has one-way links, which push-sum"):
            RunConfig.of({"topology": spec})
    with pytest.raises(ConfigError, match="has one-way links"):
        a_topology(Turns.directed_one_peer(4))
    with pytest.raises(ConfigError, match="'share-every' must be at least 1, got 0"):
        RunConfig.of({"share-every": 0})
    with pytest.raises(ConfigError, match="share_every must be"):
        a_topology("ring:8", 0)
    with pytest.raises(ConfigError, match="diverges on 'one-peer:16'"):
        RunConfig.of({"topology": "one-peer:16", "algorithm": "dmsgd"})
    file = tmp_path / "two.turns"
    file.write_text("0 1\n---\n1 2\n")
    assert count_agents(f"turns:{file}") == count_agents("matchings:path:3") == 3
    with pytest.raises(GraphError, match="not of the form"):
        count_agents("base:8")


def test_the_command_shows_what_a_period_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "matchings:ring:8"]) == 0
    printed = capsys.readouterr().out
    assert "graphs in turn: 2" in printed
    assert "disagreement left after a period: 0.5" in printed
    assert main(["topology", "show", "one-peer:16", "--share-every", "3"]) == 0
    printed = capsys.readouterr().out
    assert "graphs in turn: 12\nrounds without an exchange: 8\n" in printed
    assert "payloads that an agent sends in a round: 1\n" in printed
    assert "disagreement left after a period: 0\n" in printed
    assert main(["topology", "suggest", "one-peer:8"]) == 2
    assert "is a sequence of graphs" in capsys.readouterr().err
