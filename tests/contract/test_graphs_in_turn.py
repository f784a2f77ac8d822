"""Graphs that take turns give the same numbers in every runtime, and nothing else is sent.

The reference goes from agent to agent with `Node`, as every runtime does, and sums in the same
order: numbers are equal to the bit. `simulate` multiplies matrices, so it is equal to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import load_file
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.dying import Killed
from support.grid import LocalGrid
from support.meshes import write_keys

from flower_dhb import (
    Algorithm,
    HeavyBall,
    Node,
    RunFolder,
    SafeguardedHeavyBall,
    ServerlessStrategy,
    Topology,
    consensus_mod,
    simulate,
)
from flower_dhb.flower.arrays import named_arrays
from flower_dhb.metrics import RoundRecord
from flower_dhb.pages.reading import read_run
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.topology.turns import Graphs, parse_graphs, share_every
from flower_dhb.types import Layout

pytestmark = pytest.mark.thorough

N, D, ROUNDS, RATE = 7, 5, 9, 0.05
IRREGULAR = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (0, 6), (2, 6)]
GENTLE = HeavyBall(momentum=0.3)  # more goes on for too long between two exchanges

GRAPHS: dict[str, Graphs] = {
    "base": parse_graphs("base:7:1"),
    "matchings": parse_graphs("random-pairs:7:5:3"),  # one agent is left out in each round
    "rare": share_every(Topology.from_edges(IRREGULAR), 3),  # type: ignore[dict-item]
    "both": share_every(parse_graphs("base:7:2"), 2),  # type: ignore[dict-item]
}
RULES = [GENTLE, HeavyBall(momentum=0.3, form="tracking"), SafeguardedHeavyBall()]


def node_by_node(graphs: Graphs, rule: Algorithm, rounds: int) -> NDArray[np.float64]:
    """The agents' final parameters, one agent after the other."""
    curvature, center = quadratic(N, D)
    initial = named_arrays(start_arrays(D)[0])
    layout = Layout.of(initial)
    snapshots = {}
    for k in range(1, rounds + 1):
        graph, nodes, payloads = graphs.at(k), {}, {}
        for v in range(N):
            row = graph.row(v)
            weights = {j: float(row[j]) for j in sorted((v, *graph.neighbors(v)))}
            node = Node.start(v, rule, weights, layout, initial)
            if v in snapshots:
                node = Node(v, rule, weights, layout, snapshots[v])
            x = np.concatenate([array.ravel() for array in node.arrays().values()])
            z = quadratic_step(x, curvature[v], center[v], RATE)
            names = list(initial)
            trained = {names[0]: z[:2].reshape(1, 2), names[1]: z[2:]}
            nodes[v], payloads[v] = node, node.adapt(k, trained)
        for v, node in nodes.items():
            for j in node.neighbors:
                node.offer(j, k, payloads[j])
            node.combine()
            snapshots[v] = node.snapshot
    return np.stack([snapshots[v].state.parameters for v in range(N)])


def run(graphs: Graphs, rule: Algorithm = GENTLE, rounds: int = ROUNDS, **grid: object):
    """A run of the relay."""
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    found = LocalGrid(app, N, **grid)  # type: ignore[arg-type]
    strategy = ServerlessStrategy(graphs, rule, evaluate_every=4, collect_models=True)
    return found, strategy.start(found, start_arrays(D)[0], rounds)


def models(result) -> NDArray[np.float64]:
    return np.stack([flat(result.models[v]) for v in range(N)])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name + str(rule.vectors))
@pytest.mark.parametrize("name", GRAPHS)
def test_the_relay_has_the_numbers_of_node_by_node_and_of_simulate(
    name: str, rule: Algorithm
) -> None:
    _, result = run(GRAPHS[name], rule)
    np.testing.assert_array_equal(models(result), node_by_node(GRAPHS[name], rule, ROUNDS))
    if not rule.products:
        curvature, center = quadratic(N, D)
        step: Callable[..., NDArray[np.float64]] = lambda x, _: quadratic_step(  # noqa: E731
            x, curvature, center, RATE
        )
        expected = simulate(rule, GRAPHS[name], start_arrays(D)[1], step, ROUNDS)[-1]
        np.testing.assert_allclose(models(result), expected, rtol=0, atol=1e-13)
    assert not result.warnings
    assert not any(record.events or record.missing for record in result.history)


@pytest.mark.parametrize("name", GRAPHS)
def test_only_what_is_due_is_uploaded_and_carried(name: str) -> None:
    grid, result = run(GRAPHS[name])
    graphs, uploaded, size = GRAPHS[name], {}, 0
    for vertex, reply in grid.replies:
        payload = reply.content.array_records.get("flower_dhb.payload")
        if payload is not None:
            size = len(payload["payload"].data)
            uploaded.setdefault(int(reply.metadata.group_id), set()).add(vertex)
    carried = {}
    for vertex, message in grid.messages:
        payloads = message.content.array_records.get("flower_dhb.payloads")
        if message.metadata.message_type == "train" and message.metadata.group_id:
            held = () if payloads is None else payloads
            carried[int(message.metadata.group_id), vertex] = {int(j) for j in held}
        assert "flower_dhb.rejoin" not in message.content
    for record in result.history:
        k, graph = record.round, graphs.at(record.round)
        due = {v: graph.neighbors(v) for v in range(N) if graph.neighbors(v)}
        assert uploaded.get(k, set()) == set(due)
        assert record.bytes_by_agent == {v: size * len(due.get(v, ())) for v in range(N)}
        assert record.bytes_sent == 2 * size * len(graph.edges)
        later = [number for number, _ in carried if number > k]
        # The evaluation of a round with a message of its own has combined them.
        if later and (graph.edges and k % 4):
            assert {v: carried[min(later), v] for v in range(N)} == {
                v: set(due.get(v, ())) for v in range(N)
            }
    with_edges = {k for k in range(1, ROUNDS + 1) if graphs.at(k).edges}
    assert {number for number, _ in carried} == with_edges | {ROUNDS}


def test_a_page_of_the_run_counts_each_link_in_its_turns(tmp_path: Path) -> None:
    graphs = GRAPHS["both"]

    def intercept(vertex: int, message: Message) -> Exception | None:
        lost = vertex == 0 and message.metadata.group_id in ("2", "3")
        return RuntimeError("broken") if lost and message.metadata.message_type == "train" else None

    _, result = run(graphs, intercept=intercept)
    folder = RunFolder(tmp_path, "run", graphs, {"rounds": ROUNDS})
    for record in result.history:
        folder.append(record)
    found = read_run(folder.path)
    assert found.graph == "base:7:2, shared every 2 rounds"
    size = 0
    for record in result.history:
        size = max([size, *record.bytes_by_agent.values()])
    size //= max(len(g.neighbors(v)) for g in graphs.graphs for v in range(N))
    assert {(link.a, link.b) for link in found.links} == set(graphs.edges)
    for link in found.links:
        due = [k for k in range(1, ROUNDS + 1) if link.b in graphs.due(link.a, k)]
        failed = [k for k in due if k in (2, 3) and link.a == 0]
        assert link.failed == len(failed)
        assert link.bytes == 2 * size * (len(due) - len(failed))


def test_an_agent_that_misses_a_round_is_missing_to_those_that_it_was_due_to() -> None:
    """A lost answer costs the edges of its round, and no other; the mean is kept."""

    def intercept(vertex: int, message: Message) -> Exception | None:
        lost = vertex == 0 and message.metadata.group_id == "4"
        return RuntimeError("broken") if lost and message.metadata.message_type == "train" else None

    _, result = run(GRAPHS["base"], intercept=intercept)
    missing = {record.round: record.missing for record in result.history if record.missing}
    assert missing == {4: [0]}
    assert result.history[3].bytes_by_agent.keys() == set(range(1, N))


@pytest.mark.parametrize(
    ("name", "at", "joins"),
    [("base", 5, None), ("rare", 5, False), ("rare", 2, False), ("rare", 6, None)],
)
def test_a_state_that_is_lost_is_begun_again_from_neighbors_of_other_rounds(
    name: str, at: int, joins: bool | None
) -> None:
    """Or from the start, while nobody has sent anything yet (round 2 of a graph of every third)."""
    _, whole = run(GRAPHS[name])
    grids: list[LocalGrid] = []

    def intercept(vertex: int, message: Message) -> Exception | None:
        if vertex == 4 and message.metadata.group_id == str(at):
            for context in grids[0].contexts.values():
                if int(context.node_config["partition-id"]) == 4:
                    context.state = RecordDict()
        return None

    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    grids.append(LocalGrid(app, N, intercept=intercept))
    strategy = ServerlessStrategy(GRAPHS[name], GENTLE, collect_models=True, join_evaluation=joins)
    result = strategy.start(grids[0], start_arrays(D)[0], ROUNDS)
    rejoined = [record.round for record in result.history if record.rejoined]
    assert rejoined, [record.events for record in result.history]
    assert rejoined[0] <= at + 1
    assert not result.history[-1].missing
    apart = np.abs(models(result) - models(whole)).max()
    assert 0.0 < apart < np.abs(models(whole) - start_arrays(D)[1]).max()


def test_sealed_payloads_are_for_all_that_may_need_them_and_give_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Who begins again opens payloads of rounds in which it was not due."""
    folder = tmp_path_factory.mktemp("mesh")
    homes = write_keys(Authority.create("m1", 30), folder, N)
    models_at = [folder / f"model-{v}.safetensors" for v in range(N)]
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])

    def end(lost_at: int | None) -> tuple[NDArray[np.float64], list[int]]:
        def node(v: int) -> dict[str, object]:
            return {"partition-id": v, "mesh": str(homes[v]), "model-file": str(models_at[v])}

        def intercept(vertex: int, message: Message) -> Exception | None:
            if vertex == 4 and message.metadata.group_id == str(lost_at):
                for context in grid.contexts.values():
                    if context.node_config["partition-id"] == 4:
                        context.state.pop("flower_dhb.state", None)  # and not its keys
            return None

        grid = LocalGrid(app, N, node_config=node, intercept=intercept)
        strategy = ServerlessStrategy(GRAPHS["base"], GENTLE, encryption="neighbors")
        result = strategy.start(grid, start_arrays(D)[0], ROUNDS)
        files = [load_file(path) for path in models_at]
        found = np.stack([np.concatenate([f[n].ravel() for n in sorted(f)]) for f in files])
        assert not any("refused" in text for r in result.history for _, text in r.events)
        return found, [r.round for r in result.history if r.rejoined]

    sealed, _ = end(None)
    np.testing.assert_array_equal(sealed, node_by_node(GRAPHS["base"], GENTLE, ROUNDS))
    _, rejoined = end(4)
    assert rejoined


def test_a_run_whose_serverapp_has_died_goes_on_in_the_turn_that_it_was_in(tmp_path: Path) -> None:
    def die(record: RoundRecord) -> None:
        if record.round == 4:
            raise Killed

    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    where = {"state-dir": str(tmp_path / "states")}

    def part(on_round: Callable[[RoundRecord], None] | None):
        grid = LocalGrid(app, N, node_config=lambda v: {"partition-id": v, **where})
        strategy = ServerlessStrategy(
            GRAPHS["both"],
            GENTLE,
            collect_models=True,
            checkpoint=tmp_path / "run",
            on_round=on_round,
        )
        return strategy.start(grid, start_arrays(D)[0], ROUNDS)

    with pytest.raises(Killed):
        part(die)
    result = part(None)
    np.testing.assert_array_equal(models(result), node_by_node(GRAPHS["both"], GENTLE, ROUNDS))
    assert [record.round for record in result.history] == list(range(1, ROUNDS + 1))
    assert not any(record.missing or record.rejoined for record in result.history)
