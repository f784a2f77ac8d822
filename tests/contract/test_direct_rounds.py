"""Direct rounds give what relayed rounds give, to the bit: models, metrics, bytes, distances.

Nodes, mods and connections are the real ones, in one process; a real deployment of Flower is in
the integration tests.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from safetensors.numpy import load_file
from support.apps import flat, numpy_app, start_arrays
from support.dying import Killed
from support.grid import LocalGrid, TogetherGrid
from support.peer_app.quadratics import app
from support.peers import Mesh
from support.sites import node_configs

import flower_dhb.site.segment
from flower_dhb import (
    Algorithm,
    ConfigError,
    HeavyBall,
    ServerlessStrategy,
    Topology,
    consensus_mod,
    decentralize,
)
from flower_dhb.agent.envelope import is_sealed
from flower_dhb.algorithms import DSGD, MoTEF
from flower_dhb.flower.arrays import named_arrays, start_frame
from flower_dhb.flower.records import Answer, Instruction
from flower_dhb.flower.segment import Segment
from flower_dhb.flower.segments import oldest_state
from flower_dhb.peer.device.daemon import Peer
from flower_dhb.peer.device.flwr_adapter import make_context, make_message, take_identity
from flower_dhb.topology.turns import parse_graph, share_every
from flower_dhb.types import Layout

pytestmark = pytest.mark.thorough

N, D, ROUNDS, RATE = 5, 5, 7, 0.05
IRREGULAR = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4)])
# MoTEF has another first round than the later ones.
RULES = [MoTEF(), HeavyBall(order="combine-then-adapt"), HeavyBall(form="tracking")]


def start(grid, rule: Algorithm, **arguments):
    strategy = ServerlessStrategy(
        IRREGULAR, rule, evaluate_every=3, fraction_evaluate=0.6, collect_models=True, **arguments
    )
    return strategy.start(grid, start_arrays(D)[0], ROUNDS)


def told(result) -> list[dict[str, object]]:
    return [{**record.to_dict(), "seconds": 0, "profile": {}} for record in result.history]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_direct_rounds_are_relayed_rounds(tmp_path, rule: Algorithm) -> None:
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    policies = {1: {"policy-clip": 0.02, "policy-metrics": "num-examples,norm"}}
    bound = {v: {"partition-id": v, **policies.get(v, {})} for v in range(N)}
    relayed = start(LocalGrid(app, N, node_config=lambda v: bound[v]), rule)
    configs = node_configs(tmp_path, N, without_address={2, 4})
    for vertex, policy in policies.items():
        configs[vertex] |= policy
    grid = TogetherGrid(app, N, node_config=lambda v: configs[v])
    direct = start(grid, rule, transport="direct")
    for vertex in range(N):
        assert np.array_equal(flat(direct.models[vertex]), flat(relayed.models[vertex]))
    assert direct.train_metrics_clientapp == relayed.train_metrics_clientapp
    assert direct.evaluate_metrics_clientapp == relayed.evaluate_metrics_clientapp
    assert told(direct) == told(relayed)
    for record in direct.history:  # what leaves a node is its operator's affair here, too
        assert record.policies == {1: "clip 0.02; metrics num-examples, norm"}
        assert set(record.train[1]) == {"num-examples"} < set(record.train[0])
    segments = [message for v, message in grid.messages if v == 0]
    assert len(segments) < ROUNDS


@pytest.mark.parametrize("text", ["int8", "topk:0.2"])
def test_direct_rounds_with_compressed_payloads_are_relayed_rounds(tmp_path, text: str) -> None:
    """To the same bytes; a relayed round in between leaves both ends with the same base."""
    size = 400
    app = numpy_app(N, size, rate=RATE, mods=[consensus_mod])

    def run(grid, transport: str):
        settings = {"evaluate_every": 3, "collect_models": True, "transport": transport}
        strategy = ServerlessStrategy(IRREGULAR, DSGD(), compression=text, **settings)
        return strategy.start(grid, start_arrays(size)[0], ROUNDS)

    relayed = run(LocalGrid(app, N), "relay")
    for name, silent in (("all", set()), ("some", {2, 3})):  # the edge 2-3 goes through the relay
        configs = node_configs(tmp_path / name, N, without_address=silent)
        direct = run(TogetherGrid(app, N, node_config=lambda v, c=configs: c[v]), "direct")
        assert not any(record.missing for record in direct.history)
        if not silent:
            assert told(direct) == told(relayed)
            for vertex in range(N):
                assert np.array_equal(flat(direct.models[vertex]), flat(relayed.models[vertex]))


def test_direct_rounds_of_graphs_in_turn_are_relayed_rounds(tmp_path) -> None:
    """A segment may have rounds without an exchange, and neighbors that are due in none of it."""
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    graphs = share_every(parse_graph("base:5:1"), 2)
    rule = HeavyBall(momentum=0.3, form="tracking")

    def run(grid, transport: str):
        settings = {"evaluate_every": 3, "collect_models": True, "transport": transport}
        return ServerlessStrategy(graphs, rule, **settings).start(grid, start_arrays(D)[0], 13)

    relayed = run(LocalGrid(app, N), "relay")
    configs = node_configs(tmp_path / "all", N)
    grid = TogetherGrid(app, N, node_config=lambda v: configs[v])
    direct = run(grid, "direct")
    for vertex in range(N):
        assert np.array_equal(flat(direct.models[vertex]), flat(relayed.models[vertex]))
    assert told(direct) == told(relayed)
    assert not any(record.events or record.missing for record in direct.history)
    configs = node_configs(tmp_path / "some", N, without_address={1, 3})
    grid = TogetherGrid(app, N, node_config=lambda v: configs[v])
    with pytest.raises(ConfigError, match=r"edges 1-3 of 'base:5:1, shared every 2 rounds' have"):
        run(grid, "direct")


def test_an_edge_without_an_address_counts_in_relayed_rounds(tmp_path) -> None:
    app = decentralize(numpy_app(N, D, rate=RATE))
    configs = node_configs(tmp_path, N, without_address={2, 3})  # the edge 2-3
    grid = TogetherGrid(app, N, node_config=lambda v: configs[v])
    result = start(grid, HeavyBall(), transport="direct")
    assert "edges 2-3 have no end with an address" in " ".join(result.warnings)
    waits = {
        record.round: [v for v, text in record.events if "waits for a relayed round" in text]
        for record in result.history
    }
    assert [k for k, who in waits.items() if who] == [1, 2, 3, 4, 6, 7]
    sent = [record.bytes_sent for record in result.history]
    assert sent[4] == sum(result.history[4].bytes_by_agent.values()) > max(sent[:4])
    assert not any(record.missing for record in result.history)


def test_what_goes_through_the_relay_in_a_direct_run_can_be_sealed(tmp_path) -> None:
    """The edge 2-3 counts in relayed rounds: to the same bits, and the relay reads none."""
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    ends, seen, relayed = {}, {}, {}
    for name in ("none", "neighbors"):
        configs = node_configs(tmp_path / name, N, without_address={2, 3})
        for v, config in enumerate(configs):
            config["model-file"] = str(tmp_path / name / f"model-{v}.safetensors")
        grid = TogetherGrid(app, N, node_config=lambda v, configs=configs: configs[v])
        strategy = ServerlessStrategy(
            IRREGULAR, HeavyBall(), transport="direct", encryption=name, evaluate_every=3
        )
        result = strategy.start(grid, start_arrays(D)[0], ROUNDS)
        assert not any(record.missing for record in result.history)
        files = [load_file(Path(str(config["model-file"]))) for config in configs]
        ends[name] = [[f[key].tolist() for key in sorted(f)] for f in files]
        relayed[name] = [record.round for record in result.history if not record.events]
        payloads = [
            array.data
            for _, reply in grid.replies
            for array in reply.content.array_records.get("flower_dhb.payload", {}).values()
        ]
        seen[name] = [is_sealed(data) for data in payloads]
    assert relayed["neighbors"] == relayed["none"] != []
    assert ends["neighbors"] == ends["none"]
    assert len(seen["none"]) == len(seen["neighbors"]) > 0
    assert not any(seen["none"])
    assert all(seen["neighbors"])


def test_a_payload_that_is_refused_before_a_segment_is_told(tmp_path) -> None:
    """What a relayed round has left open is combined in the message of the next segment."""

    class Tampering(TogetherGrid):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                payloads = message.content.array_records.get("flower_dhb.payloads", {})
                if self.vertex_of[message.metadata.dst_node_id] == 2 and "3" in payloads:
                    data = payloads["3"].data
                    payloads["3"].data = data[:-1] + bytes([data[-1] ^ 1])
            return super().push_messages(messages)

    configs = node_configs(tmp_path, N, without_address={2, 3})
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    grid = Tampering(app, N, node_config=lambda v: configs[v])
    strategy = ServerlessStrategy(
        IRREGULAR, HeavyBall(), transport="direct", encryption="neighbors", evaluate_every=3
    )
    result = strategy.start(grid, start_arrays(D)[0], ROUNDS)
    told = [(v, text) for record in result.history for v, text in record.events]
    refused = [(v, text) for v, text in told if text.startswith("refused a payload")]
    assert [v for v, _ in refused] == [0, 2], "the one array lies in both messages here"
    assert all("round 5, neighbor 3: the sealed payload is not as" in text for _, text in refused)


def test_what_cannot_hold_direct_rounds_is_refused_by_name(tmp_path) -> None:
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    configs = node_configs(tmp_path, N, without_address={0, 4})
    grid = LocalGrid(app, N, node_config=lambda v: configs[v])
    with pytest.raises(ConfigError, match="agent 4 can reach no neighbor"):
        start(grid, HeavyBall(), transport="direct")
    del configs[1]["mesh"], configs[3]["mesh"]
    grid = LocalGrid(app, N, node_config=lambda v: configs[v])
    with pytest.raises(ConfigError, match="agents 1 and 3 have no identity of a mesh"):
        start(grid, HeavyBall(), transport="direct")

    class InMemoryGrid(LocalGrid):
        """Named as Flower's grid of a simulation."""

    with pytest.raises(ConfigError, match="a simulation runs a few at a time"):
        start(InMemoryGrid(app, N), HeavyBall(), transport="direct")

    class Own(ServerlessStrategy):
        def configure_train(self, *arguments):
            return super().configure_train(*arguments)

    with pytest.raises(ConfigError, match="Own has its own configure_train"):
        Own(IRREGULAR, transport="direct")
    with pytest.raises(ConfigError, match="transport"):
        ServerlessStrategy(IRREGULAR, transport="drect")


def test_a_serverapp_that_dies_in_a_direct_run_is_followed_by_another(tmp_path) -> None:
    """The agents' last models are those of the undisturbed run: they have lost nothing."""

    def die(record) -> None:
        if record.round == 4:  # the last one of the first segment
            raise Killed

    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    configs = node_configs(tmp_path, N)
    for v in range(N):
        configs[v]["state-dir"] = str(tmp_path / "states")
    settings = {"transport": "direct", "checkpoint": tmp_path / "run"}
    grid = TogetherGrid(app, N, node_config=lambda v: configs[v])
    with pytest.raises(Killed):
        start(grid, HeavyBall(form="tracking"), on_round=die, **settings)
    grid = TogetherGrid(app, N, node_config=lambda v: configs[v])
    resumed = start(grid, HeavyBall(form="tracking"), **settings)
    relayed = start(LocalGrid(app, N), HeavyBall(form="tracking"))
    for vertex in range(N):
        assert np.array_equal(flat(resumed.models[vertex]), flat(relayed.models[vertex]))
    assert told(resumed) == told(relayed)


def test_direct_rounds_are_the_peers_rounds(tmp_path) -> None:
    n, size, rounds = 3, 4, 6
    timing = {"ceiling-s": 60.0, "least-s": 60.0}
    shape = {"topology": "star:3", "rounds": rounds, "size": size, "rate": 0.25, "momentum": 0.8}
    mesh = Mesh(tmp_path / "mesh", n=n, plaintext=True, peer={"timing": timing}, **shape)
    settings = [mesh.settings(v) for v in range(n)]
    threads = [threading.Thread(target=Peer(one).run) for one in settings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    configs = node_configs(tmp_path / "nodes", n)
    for v in range(n):
        configs[v] |= {"vertex": v}
    run_config = dict(settings[0].run_config)
    grid = TogetherGrid(app, n, node_config=lambda v: configs[v], run_config=run_config)
    strategy = ServerlessStrategy(
        "star:3", settings[0].algorithm, transport="direct", collect_models=True
    )
    arrays = ArrayRecord({"x": Array(load_file(settings[0].start)["x"])})
    result = strategy.start(grid, arrays, rounds)
    for v, one in enumerate(settings):
        model = load_file(one.state_dir / "model.safetensors")["x"]
        assert np.array_equal(result.models[v]["x"].numpy(), model)


@pytest.mark.parametrize(
    ("graphs", "first", "oldest"),
    [
        (Topology.star(3), 12, 1),
        (Topology.star(3), 11, 0),
        (share_every(Topology.star(3), 12), 17, 0),  # one exchange, in sixteen rounds
        (share_every(Topology.star(3), 12), 133, 12),  # eleven: 12, 24, … 132
        (share_every(Topology.star(3), 12), 132, 0),
        (parse_graph("matchings:star:3"), 23, 1),  # every other round is a leaf's
    ],
    ids=str,
)
def test_an_agent_may_miss_ten_exchanges_and_not_ten_rounds(graphs, first, oldest) -> None:
    vertex = max(v for v in range(1, 3) if graphs.due(v, oldest or 12) or not oldest)
    assert oldest_state(graphs, vertex, first) == oldest


def test_who_is_left_behind_in_a_segment_ends_when_it_hears_of_a_later_one(
    tmp_path, monkeypatch
) -> None:
    """Its neighbor is in the next one: without that word it would wait until its time is up."""
    monkeypatch.setattr(
        flower_dhb.site.segment, "_GRACE_S", 0.5
    )  # of the round that nobody is there for
    configs = node_configs(tmp_path, 2)
    app = numpy_app(2, D, rate=RATE, mods=[consensus_mod])
    arrays = named_arrays(start_arrays(D)[0])
    layout = Layout.of(arrays)
    take_identity(77, 1)

    def hold(vertex: int, number: int) -> Answer:
        part = Segment(
            number=number,
            first=1,
            last=4,
            oldest=0,
            limit_s=200.0,
            start_s=200.0,
            wait_s=200.0,
            neighbors=(1 - vertex,),
            dials={1: str(configs[1]["address"])} if vertex == 0 else {},
        )
        instruction = Instruction(
            ask="segment",
            run="run",
            round=4,
            vertex=vertex,
            state_round=0,
            weights={0: 0.5, 1: 0.5},
            algorithm=HeavyBall(),
            layout=layout,
            start=start_frame(layout, arrays, "run"),
            segment=part,
        )
        context = make_context(77, vertex + 2, configs[vertex], {})
        message = make_message(instruction.to_records(ConfigRecord()), "train", 4, vertex + 2)
        answer = Answer.from_records(app(message, context).content)
        assert answer is not None
        return answer

    with ThreadPoolExecutor(2) as pool:
        ahead = pool.submit(hold, 1, 2)
        assert hold(0, 1).lines == ()
        assert not ahead.done()
        assert [line.missing for line in hold(0, 2).lines] == [()] * 4
        assert [line.missing for line in ahead.result(60.0).lines] == [()] * 4
