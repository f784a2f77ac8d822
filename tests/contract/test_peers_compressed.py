"""Peers whose payloads are compressed give the numbers of nodes that exchange them, to the bit."""

import threading

import numpy as np
import pytest

from flower_dhb import Topology
from flower_dhb.agent.compression import Compression
from flower_dhb.agent.node import Node
from flower_dhb.algorithms import algorithm_from_config
from flower_dhb.peer.device.daemon import Peer
from flower_dhb.types import Layout
from tests.support.events import Events
from tests.support.peer_app import quadratics
from tests.support.peers import Mesh

EDGES = [(0, 1), (0, 2), (0, 3), (1, 2)]  # degrees 1 to 3
ROUNDS, SIZE, RATE = 5, 600, 0.2
CASES = [
    ("dmsgd", "none"),
    ("dmsgd", "bf16"),
    ("tracking", "int8"),
    ("safeguarded", "int4"),
    ("safeguarded", "topk:0.05"),
    ("dsgd", "topk:0.3+int8"),
    ("dsgd", "randk:0.1"),
    ("early", "int4"),
]
RULES = {
    "tracking": {"algorithm": "dmsgd", "form": "tracking"},
    "early": {"algorithm": "dmsgd", "order": "combine-then-adapt"},
}


@pytest.fixture
def events():
    with Events() as heard:
        yield heard


def by_nodes(algorithm, text):
    """Every node's parameters after the last round, without any peer."""
    topology = Topology.from_edges(EDGES)
    arrays = quadratics.start({"seed": 0, "size": SIZE, "dtype": "float32"})
    layout = Layout.of(arrays)
    nodes = []
    for v in range(4):
        row = topology.row(v)
        weights = {j: float(row[j]) for j in (v, *topology.neighbors(v))}
        compression = Compression.parse(text)
        nodes.append(Node.start(v, algorithm, weights, layout, arrays, compression))
    for k in range(1, ROUNDS + 1):
        payloads = []
        for v, node in enumerate(nodes):
            z = quadratics.local_step(node.arrays()["x"], v, RATE)
            payloads.append(node.adapt(k, {"x": z}))
        for node in nodes:
            for j in node.neighbors:
                node.offer(j, k, payloads[j])
            node.combine()
    return np.stack([node.parameters for node in nodes])


@pytest.mark.parametrize(("rule", "text"), CASES)
def test_peers_give_the_numbers_of_nodes(rule, text, tmp_path, events):
    graph = tmp_path / "irregular.edges"
    graph.write_text("\n".join(f"{a} {b}" for a, b in EDGES))
    peer = {"linger-s": 5.0, "record": "payloads", "timing": {"least-s": 10.0}}
    mesh = Mesh(
        tmp_path / "mesh",
        n=4,
        plaintext=True,
        topology=str(graph),
        rounds=ROUNDS,
        size=SIZE,
        rate=RATE,
        dtype="float32",
        peer=peer,
        compression=text,
        **RULES.get(rule, {"algorithm": rule}),
    )
    settings = [mesh.settings(v) for v in range(4)]
    peers = [Peer(one) for one in settings]
    threads = [threading.Thread(target=peer.run, daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not events.named("refused")
    expected = by_nodes(algorithm_from_config(settings[0].algorithm.to_config()), text)
    np.testing.assert_array_equal(mesh.parameters(), expected)
    assert mesh.replay().rounds_computed == 4 * ROUNDS
    compressor = peers[0].app.compressor
    size = 4 * SIZE if compressor is None else compressor.n_bytes
    for vertex, edges in ((0, 3), (3, 1)):  # every payload went in its short form, with a header
        for line in mesh.history(vertex):
            assert edges * size < line["bytes"] < edges * (size + 300)
