"""Compressed payloads through the relay: the same numbers, faults, restart, and the bytes sent."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from numpy.typing import NDArray
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.dying import Killed
from support.grid import LocalGrid
from support.meshes import write_keys

from flower_dhb import ConfigError, HeavyBall, ServerlessStrategy, Topology, consensus_mod
from flower_dhb.agent.compression import Compression
from flower_dhb.agent.node import Node
from flower_dhb.algorithms import Algorithm, method
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.types import Layout

pytestmark = pytest.mark.thorough

N, D, ROUNDS, RATE = 6, 40, 6, 0.02
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (5, 0)])
VICTIM = 3
ALL = ("bf16", "int8", "int8:whole", "int4", "topk:0.5", "topk:0.5+int4", "randk:0.5")


def strategy(compression: str, rule: Algorithm | None = None, **options: object):
    return ServerlessStrategy(
        GRAPH,
        rule or HeavyBall(),
        compression=compression,
        **{"collect_models": True, "evaluate_every": 0, **options},  # type: ignore[arg-type]
    )


def app(*more: object):
    return numpy_app(N, D, rate=RATE, mods=[consensus_mod, *more])


def models(result) -> NDArray[np.float64]:
    return np.stack([flat(result.models[v]) for v in range(N)])


def nodes_of(compression: str, rule: Algorithm) -> list[Node]:
    start = start_arrays(D)[0].to_numpy_ndarrays()
    arrays = {str(i): a for i, a in enumerate(start)}
    return [
        Node.start(
            v,
            rule,
            {j: float(GRAPH.row(v)[j]) for j in (v, *GRAPH.neighbors(v))},
            Layout.of(arrays),
            arrays,
            Compression.parse(compression),
        )
        for v in range(N)
    ]


def by_nodes(compression: str, rule: Algorithm) -> NDArray[np.float64]:
    """The law, node by node, with no messages between; `(n, d)`."""
    curvature, center = quadratic(N, D)
    nodes = nodes_of(compression, rule)
    for k in range(1, ROUNDS + 1):
        publics = []
        for v, node in enumerate(nodes):
            x = np.concatenate([a.ravel() for a in node.arrays().values()])
            z = quadratic_step(x, curvature[v], center[v], RATE)
            shapes = node.arrays()
            publics.append(node.adapt(k, {"0": z[:2].reshape(shapes["0"].shape), "1": z[2:]}))
        for node in nodes:
            for j in node.neighbors:
                node.offer(j, k, publics[j])
            node.combine()
    return np.stack([np.concatenate([a.ravel() for a in n.arrays().values()]) for n in nodes])


@pytest.mark.parametrize("rule", ["dmsgd", "dmsgd-gt", "safeguarded"])
@pytest.mark.parametrize("compression", ALL)
def test_the_relay_gives_the_same_bits_as_nodes(compression: str, rule: str) -> None:
    result = strategy(compression, method(rule)).start(
        LocalGrid(app(), N), start_arrays(D)[0], ROUNDS
    )
    assert [r.missing for r in result.history] == [[]] * ROUNDS
    assert not [e for r in result.history for e in r.events]
    np.testing.assert_array_equal(models(result), by_nodes(compression, method(rule)))


def test_the_history_counts_the_bytes_that_were_sent() -> None:
    sizes = {}
    for compression in ("none", "bf16", "int8", "topk:0.1"):
        wide = np.zeros(20_000, np.float32)
        grid = LocalGrid(_still(), N)
        made = strategy(compression, method("dsgd"), collect_models=False, average=False)
        result = made.start(grid, ArrayRecord([wide]), 3)
        sizes[compression] = result.history[-1].bytes_sent
        sent = [
            len(message.content.array_records["flower_dhb.payload"]["payload"].data)
            for vertex, message in grid.replies
            if "flower_dhb.payload" in message.content and message.metadata.group_id == "3"
            for _ in GRAPH.neighbors(vertex)
        ]
        assert sizes[compression] == sum(sent)
    assert sizes["none"] > 12 * 80_000
    assert sizes["none"] / sizes["bf16"] > 1.98
    assert sizes["none"] / sizes["int8"] > 3.8
    assert sizes["none"] / sizes["topk:0.1"] > 7.0


def _still():
    from flwr.app import Context, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    still = ClientApp(mods=[consensus_mod])

    @still.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"].to_numpy_ndarrays()
        moved = [a + np.random.default_rng(1).normal(size=a.shape).astype(a.dtype) for a in arrays]
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    return still


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["int8:whole", "int4", "topk:0.5", "randk:0.5"])
def test_an_agent_that_is_away_for_some_rounds_is_back_a_round_later(compression: str) -> None:
    """It has missed payloads, so changes of them say nothing to it until one comes whole."""

    def intercept(vertex: int, message: Message) -> Exception | None:
        away = vertex == VICTIM and message.metadata.group_id in ("3", "4")
        return MemoryError("out of reach") if away else None

    grid = LocalGrid(app(), N, intercept=intercept)
    result = strategy(compression).start(grid, start_arrays(D)[0], 12)
    assert [r.round for r in result.history if r.missing] == [3, 4]
    refused = [t for r in result.history for _, t in r.events if "refused" in t]
    assert not refused
    held = _deliveries(grid)
    if Compression.parse(compression).estimates:
        assert held[5] == set(), "its edges count again once payloads have come whole"
    assert held[6] == held[2] == {0, 4}
    _average_is_kept(compression, result, grid)


@pytest.mark.parametrize("compression", ["bf16:whole", "int4", "topk:0.5"])
def test_an_agent_that_has_lost_its_state_begins_again_from_whole_payloads(
    compression: str,
) -> None:
    grid = LocalGrid(app(), N)
    count = 0

    def lose(vertex: int, message: Message) -> Exception | None:
        nonlocal count
        if vertex == VICTIM and message.metadata.group_id == "4" and not count:
            count += 1
            grid.lose_state(VICTIM)
        return None

    grid.intercept = lose
    result = strategy(compression).start(grid, start_arrays(D)[0], 12)
    rejoined = [r.round for r in result.history if VICTIM in r.rejoined]
    missed = [r.round for r in result.history if r.missing]
    estimates = Compression.parse(compression).estimates
    assert rejoined == ([6] if estimates else [4])
    assert missed == ([4, 5] if estimates else [])
    held = _deliveries(grid)
    assert held[8] == {0, 4}, "its edges count again"
    assert np.ptp(models(result), axis=0).max() < 5.0


def _deliveries(grid: LocalGrid) -> dict[int, set[int]]:
    """Whose payloads of a round the victim was given, with the message of the next one."""
    found: dict[int, set[int]] = {}
    for vertex, message in grid.messages:
        if vertex == VICTIM and message.metadata.message_type == "train":
            payloads = message.content.array_records.get("flower_dhb.payloads", {})
            group = message.metadata.group_id
            if group.isdecimal():
                found[int(group) - 1] = {int(j) for j in payloads}
    return found


def _average_is_kept(compression: str, result, grid: LocalGrid) -> None:
    """Final parameters of a run in which an agent was away sum to what the payloads sum to."""
    again = LocalGrid(app(), N, intercept=grid.intercept)
    shorter = strategy(compression, DSGD_RULE).start(again, start_arrays(D)[0], 7)
    curvature, center = quadratic(N, D)
    longer = strategy(compression, DSGD_RULE).start(
        LocalGrid(app(), N, intercept=grid.intercept), start_arrays(D)[0], 8
    )
    z = quadratic_step(models(shorter), curvature, center, RATE)
    np.testing.assert_allclose(models(longer).sum(0), z.sum(0), atol=1e-12)
    assert result.history


DSGD_RULE = method("dsgd")


@pytest.mark.parametrize("compression", ["int8", "topk:0.5"])
def test_a_run_that_is_taken_up_again_goes_on_as_it_would_have(
    compression: str, tmp_path: Path
) -> None:
    def config(folder: str):
        where = tmp_path / folder
        where.mkdir()
        return lambda i: {"partition-id": i, "state-dir": str(where)}

    def made(folder: str, on_round=None):
        return strategy(compression, checkpoint=tmp_path / folder, on_round=on_round)

    def dies(record) -> None:
        if record.round == 3:
            raise Killed

    one, two = config("a"), config("b")
    whole = made("whole").start(LocalGrid(app(), N, node_config=one), start_arrays(D)[0], ROUNDS)
    first = LocalGrid(app(), N, node_config=two)
    with pytest.raises(Killed):
        made("parts", dies).start(first, start_arrays(D)[0], ROUNDS)
    second = LocalGrid(app(), N, node_config=two)
    result = made("parts").start(second, start_arrays(D)[0], ROUNDS)
    np.testing.assert_array_equal(models(result), models(whole))


def test_a_run_is_not_taken_up_again_with_another_compression(tmp_path: Path) -> None:
    def dies(_record) -> None:
        raise Killed

    made = strategy("int8", checkpoint=tmp_path, on_round=dies)
    with pytest.raises(Killed):
        made.start(LocalGrid(app(), N), start_arrays(D)[0], ROUNDS)
    other = strategy("bf16", checkpoint=tmp_path)
    with pytest.raises(ConfigError, match="has compression 'int8', the strategy 'bf16'"):
        other.start(LocalGrid(app(), N), start_arrays(D)[0], ROUNDS)


@pytest.mark.parametrize("compression", ["int8", "topk:0.5"])
def test_sealed_and_compressed_payloads_give_the_same_bits(
    compression: str, tmp_path: Path
) -> None:
    homes = write_keys(Authority.create("m1", 30), tmp_path, N)
    found = {}
    for encryption in ("none", "neighbors"):
        grid = LocalGrid(app(), N, node_config=lambda i: {"partition-id": i, "mesh": str(homes[i])})
        options = {"collect_models": False, "average": False, "evaluate_every": 1}
        made = strategy(compression, encryption=encryption, **options)
        result = made.start(grid, start_arrays(D)[0], 4)
        assert [r.missing for r in result.history] == [[]] * 4
        found[encryption] = [
            {
                name: array.data
                for name, array in grid.contexts[grid.node_of(v)].state["flower_dhb.state"].items()
            }
            for v in range(N)
        ]
    assert found["none"] == found["neighbors"]


def test_a_payload_of_another_compression_is_that_agents_failure() -> None:
    def other(message: Message, context, call_next):
        document = message.content.config_records.get("flower_dhb.common")
        if document and int(context.node_config["partition-id"]) == VICTIM:
            text = str(document["json"]).replace('"int8"', '"bf16"')
            message.content["flower_dhb.common"] = ConfigRecord({"json": text})
        return call_next(message, context)

    grid = LocalGrid(numpy_app(N, D, rate=RATE, mods=[other, consensus_mod]), N)
    result = strategy("int8").start(grid, start_arrays(D)[0], 3)
    assert result.history[0].missing == [VICTIM]
    assert "compressed by 'bf16', expected 'int8'" in result.history[0].events[0][1]


# --- what does not go -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "rule", "compression", "said"),
    [
        (Topology.ring(8), "dmsgd", "topk:0.1@1", "diverges on 'ring:8' with compression"),
        (Topology.ring(8), "dmsgd", "randk:0.1", "momentum overshoots"),
        (Topology.ring(8), "dmsgd", "int5", "unknown compression 'int5'"),
    ],
)
def test_what_cannot_be_compressed_so_is_refused_where_it_is_made(
    graph: Topology, rule: str, compression: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        ServerlessStrategy(graph, method(rule), compression=compression)


def test_a_refusal_names_a_rate_that_goes() -> None:
    with pytest.raises(ConfigError, match="diverges on") as caught:
        ServerlessStrategy(Topology.torus(4, 4), HeavyBall(), compression="topk:0.25@1")
    (good,) = re.findall(r"Remedies: '(.*?)' \(neighbors are followed less\)", str(caught.value))
    assert Compression.parse(good).rate < 1.0
    ServerlessStrategy(Topology.torus(4, 4), HeavyBall(), compression=good)
