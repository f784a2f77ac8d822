"""Peers whose payloads are compressed give the numbers of nodes that exchange them, to the bit."""

import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flower_dhb import Topology
from flower_dhb.agent.compression import Compression
from flower_dhb.agent.node import Node
from flower_dhb.algorithms import algorithm_from_config
from flower_dhb.peer.device.daemon import Peer
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.watch.replay import of_mesh
from flower_dhb.topology.turns import share_every
from flower_dhb.types import Layout
from tests.support.events import Events
from tests.support.peer_app import quadratics
from tests.support.peers import Mesh

pytestmark = pytest.mark.thorough

EDGES = [(0, 1), (0, 2), (0, 3), (1, 2)]  # degrees 1 to 3
ROUNDS, SIZE, RATE = 5, 600, 0.2
CASES = [
    ("dmsgd", "none"),
    ("dmsgd", "bf16:whole"),
    ("dmsgd", "bf16"),
    ("tracking", "int8"),
    ("seldom", "int8"),
    ("safeguarded", "int4"),
    ("safeguarded", "topk:0.05"),
    ("dsgd", "topk:0.3+int8"),
    ("dsgd", "randk:0.1"),
    ("early", "int4"),
    ("early and seldom", "topk:0.1"),
]
RULES = {
    "seldom": {"algorithm": "dsgd", "share_every": 2},
    "tracking": {"algorithm": "dmsgd", "form": "tracking"},
    "early and seldom": {
        "algorithm": "dmsgd",
        "order": "combine-then-adapt",
        "momentum": 0.1,
        "share_every": 2,
    },
    "early": {"algorithm": "dmsgd", "order": "combine-then-adapt"},
}


@pytest.fixture
def events():
    with Events() as heard:
        yield heard


def by_nodes(algorithm, text, every):
    """Every node's parameters after the last round, without any peer."""
    graphs = share_every(Topology.from_edges(EDGES), every)
    arrays = quadratics.start({"seed": 0, "size": SIZE, "dtype": "float32"})
    layout = Layout.of(arrays)
    kind = Compression.parse(text)
    nodes = [Node.start(v, algorithm, {v: 1.0}, layout, arrays, kind) for v in range(4)]
    for k in range(1, ROUNDS + 1):
        graph = graphs.shared(k)
        for v, node in enumerate(nodes):
            node.weights = {j: float(graph.row(v)[j]) for j in (v, *graph.neighbors(v))}
        payloads = [
            node.adapt(k, {"x": quadratics.local_step(node.arrays()["x"], v, RATE)})
            for v, node in enumerate(nodes)
        ]
        for node in nodes:
            for j in node.neighbors:
                node.offer(j, k, payloads[j])
            node.combine()
    return np.stack([node.parameters for node in nodes])


def run(mesh, n):
    """Run the peers of a mesh in this process, until all have ended."""
    peers = [Peer(mesh.settings(v)) for v in range(n)]
    threads = [threading.Thread(target=peer.run, daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return peers


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
    peers = run(mesh, 4)
    settings = [peer.settings for peer in peers]
    assert not events.named("refused")
    every = RULES.get(rule, {}).get("share_every", 1)
    algorithm = algorithm_from_config(settings[0].algorithm.to_config())
    expected = by_nodes(algorithm, text, every)
    np.testing.assert_array_equal(mesh.parameters(), expected)
    assert mesh.replay().rounds_computed == 4 * ROUNDS
    compressor = peers[0].app.compressor
    size = 4 * SIZE if compressor is None else compressor.n_bytes
    for vertex, edges in ((0, 3), (3, 1)):  # every payload went in its short form, with a header
        for line in mesh.history(vertex)[every - 1 :: every]:
            assert edges * size < line["bytes"] < edges * (size + 300)


def test_where_neighbors_take_turns_numbers_take_the_place_of_changes(tmp_path):
    mesh = Mesh(tmp_path / "m", n=4, topology="one-peer:4", plaintext=True, compression="int8")
    assert str(mesh.settings(0).compression) == "int8:whole"


@pytest.mark.parametrize("what", ["sent", "codes", "known"])
def test_replay_finds_what_is_no_compression_of_a_rules_payload(what, tmp_path, events):
    settings = {"rounds": 3, "size": SIZE, "algorithm": "dsgd", "compression": "topk:0.1"}
    peer = {"linger-s": 5.0, "record": "payloads", "timing": {"least-s": 10.0}}
    mesh = Mesh(tmp_path / "m", n=2, topology="path:2", plaintext=True, peer=peer, **settings)
    run(mesh, 2)
    assert mesh.replay().rounds_computed == 6
    path = tmp_path / "m" / "vertex-1" / "state" / "record" / "round-2-shared.safetensors"
    arrays = load_file(path)
    name = f"{what}/parameters"
    changed = arrays[name].copy()
    changed[-1] += 1
    save_file({**arrays, name: changed}, path)
    replay = of_mesh(read_overview(tmp_path / "m"), tmp_path / "m")
    (found,) = [f for f in replay.findings() if f.text.startswith("sent something else")]
    assert (found.vertex, found.round) == (1, 2)
