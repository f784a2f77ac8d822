"""Runs with payloads sealed for the neighbors, over a relay that tries to read and to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from safetensors import safe_open
from safetensors.numpy import load_file
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid
from support.meshes import write_key, write_keys

from flower_dhb import (
    ConfigError,
    HeavyBall,
    RoundError,
    ServerlessStrategy,
    Topology,
    consensus_mod,
)
from flower_dhb.agent.envelope import is_sealed, read_envelope
from flower_dhb.flower.arrays import frame_array
from flower_dhb.peer.mesh.certificates import Authority

pytestmark = pytest.mark.thorough

N, D = 5, 4
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4)])  # a star and a tail
PAYLOADS, PAYLOAD = "flower_dhb.payloads", "flower_dhb.payload"


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    return write_keys(Authority.create("m1", 30), tmp_path_factory.mktemp("mesh"), N)


class Switchboard(LocalGrid):
    """A relay that may change what it carries. alter: is shown every message to a vertex."""

    def __init__(self, homes: Any, alter: Callable[[int, Message], None] | None = None, **config):
        self.alter = alter or (lambda _vertex, _message: None)
        super().__init__(
            numpy_app(N, D, mods=[consensus_mod]),
            N,
            node_config=lambda i: {"partition-id": i, "mesh": str(homes[i]), **config},
        )

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            self.alter(self.vertex_of[message.metadata.dst_node_id], message)
        return super().push_messages(messages)


def strategy(encryption="neighbors", **options):
    options.setdefault("algorithm", HeavyBall())
    return ServerlessStrategy(GRAPH, encryption=encryption, **options)


def run(grid, rounds=4, **options):
    return strategy(**options).start(grid, start_arrays(D)[0], rounds)


def document_of(message):
    return json.loads(str(message.content.config_records["flower_dhb"]["json"]))


def write(message, document):
    message.content["flower_dhb"] = ConfigRecord({"json": json.dumps(document)})


def state_of(grid, vertex):
    record = grid.contexts[grid.node_of(vertex)].state["flower_dhb.state"]
    return {name: array.data for name, array in record.items()}


def events(result):
    return [(r.round, v, text) for r in result.history for v, text in r.events]


@pytest.fixture(scope="module")
def plain(homes):
    grid = Switchboard(homes)
    run(grid, encryption="none", average=False)
    return grid


def test_sealed_payloads_give_the_same_bits_and_the_relay_sees_none_of_them(homes, plain):
    grid = Switchboard(homes)
    result = run(grid)
    assert [r.missing for r in result.history] == [[]] * 4
    assert not events(result)
    for vertex in range(N):
        assert state_of(grid, vertex) == state_of(plain, vertex)
    clear = [r.content[PAYLOAD]["payload"].data for _, r in plain.replies if PAYLOAD in r.content]
    secret = {frame[at : at + 8] for frame in clear for at in range(len(frame) - 32, len(frame), 8)}
    seen = b"".join(
        array.data
        for _, message in [*grid.messages, *grid.replies]
        for key, record in message.content.array_records.items()
        for array in record.values()
        if key != "flower_dhb.start"
    )
    assert len(clear) == 4 * N
    assert len(secret) > 4 * 4 * N - 30
    assert not [part for part in secret if part in seen]
    for vertex, reply in grid.replies:
        assert "flower_dhb.parameters" not in reply.content
        if PAYLOAD in reply.content:
            envelope, *_ = read_envelope(reply.content[PAYLOAD]["payload"].data, "it")
            assert sorted(envelope.receivers) == list(GRAPH.neighbors(vertex))
    said = [document_of(r)["announcement"] for _, r in grid.replies]
    assert len([text for text in said if text]) == N, "each agent announces itself once"
    assert result.history[-1].bytes_sent > 0
    assert result.history[-1].evaluate
    with pytest.raises(RoundError, match="encryption"):
        _ = result.arrays


# --- a relay that is not honest ---------------------------------------------------------------


def tampering(changes):
    """Change what 0 has sealed, on its way to 3, in the messages that bring these rounds'."""

    def alter(vertex, message):
        record = message.content.get(PAYLOADS)
        if vertex != 3 or record is None or "0" not in record:
            return
        data = record["0"].data
        change = changes[read_envelope(data, "it")[0].round]
        arrays = {**dict(record.items()), "0": frame_array(change(data))}
        message.content[PAYLOADS] = ArrayRecord(arrays)

    return alter


def test_a_payload_that_is_changed_or_replayed_is_a_missing_neighbor_by_name(homes, plain):
    kept: dict[int, bytes] = {}

    def remember(vertex, message):
        record = message.content.get(PAYLOADS)
        if vertex == 3 and record is not None and "0" in record:
            kept[read_envelope(record["0"].data, "it")[0].round] = record["0"].data

    run(Switchboard(homes, remember), rounds=3)
    changes = {
        1: lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        2: lambda data: kept[2],  # of the run before
        3: lambda data: data[:40],
        4: lambda data: b"",
    }
    grid = Switchboard(homes, tampering(changes))
    result = run(grid)
    whys = ["not as vertex 0 has signed it", "sealed payload is of run", "not fit", "is not sealed"]
    for (number, vertex, text), (k, why) in zip(events(result), enumerate(whys, 1), strict=True):
        assert vertex == 3
        assert number in (k, k + 1)
        assert why in text
        assert f"refused a payload: round {k}, neighbor 0" in text
    assert [r.missing for r in result.history] == [[]] * 4
    assert state_of(grid, 3) != state_of(plain, 3), "it has gone on without the payloads"


def test_a_replay_of_an_earlier_round_in_the_same_run_is_refused(homes):
    kept: dict[str, Any] = {}

    def alter(vertex, message):
        record = message.content.get(PAYLOADS)
        if vertex != 3 or record is None or "0" not in record:
            return
        kept.setdefault("first", record["0"])
        if read_envelope(record["0"].data, "it")[0].round == 2:
            message.content[PAYLOADS] = ArrayRecord({**dict(record.items()), "0": kept["first"]})

    (event,) = events(run(Switchboard(homes, alter)))
    assert event[1] == 3
    assert "sealed payload is of round 1, expected 2" in event[2]


def test_swapped_receivers_are_refused(homes):
    """What 0 has sent goes to 3 under the name of 4, and the other way round."""

    def alter(vertex, message):
        record = message.content.get(PAYLOADS)
        if vertex == 3 and record is not None and {"0", "4"} <= set(record):
            swapped = {"0": record["4"], "4": record["0"]}
            message.content[PAYLOADS] = ArrayRecord(swapped)

    found = events(run(Switchboard(homes, alter), rounds=2))
    assert {v for _, v, _ in found} == {3}
    texts = [text for *_, text in found]
    assert any("of vertex 4, expected 0" in text for text in texts)
    assert any("of vertex 0, expected 4" in text for text in texts)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_relay_that_swaps_keys_learns_nothing_and_is_named(homes, tmp_path, foreign):
    """It puts its own key in 3's place: of an authority of its own, or with 4's certificate."""
    from flower_dhb.site.keys import MeshKeys, sealing_key

    keys = MeshKeys.load(write_key(Authority.create("m1", 30), tmp_path, 3), 3)
    if not foreign:
        keys = MeshKeys.load(homes[4], 4)

    def alter(vertex, message):
        document = document_of(message)
        if vertex == 0 and document.get("announcements"):
            own = sealing_key(b"r" * 32, keys.identity, document["run"]).public_key()
            forged = keys.announce(document["run"], own)
            document["announcements"] = [
                [j, forged if j == 3 else text] for j, text in document["announcements"]
            ]
            write(message, document)

    grid = Switchboard(homes, alter)
    result = run(grid, rounds=3)
    for vertex, reply in grid.replies:
        if vertex == 0 and PAYLOAD in reply.content:
            envelope, *_ = read_envelope(reply.content[PAYLOAD]["payload"].data, "it")
            assert sorted(envelope.receivers) == [1, 2]
    assert not [m for v, m in grid.messages if v == 3 and "0" in m.content.get(PAYLOADS, {})]
    assert not [m for v, m in grid.messages if v == 0 and "3" in m.content.get(PAYLOADS, {})]
    told = [(k, v, text) for k, v, text in events(result) if "is not sealed for" in text]
    assert [(k, v) for k, v, _ in told] == [(1, 0), (2, 0), (3, 0)]
    why = "an authority that is not believed" if foreign else "shows the certificate of vertex 4"
    assert all("vertex 3" in text and why in text for *_, text in told)
    assert "refused a payload" not in str(events(result)), "the edge counts at neither end"


def test_a_relay_that_asks_for_parameters_or_for_clear_payloads_gets_none(homes):
    def alter(vertex, message):
        document = document_of(message)
        if document["ask"] == "evaluate":
            document["report"] = True
            write(message, document)
        if document["ask"] == "train" and document["round"] == 2:
            document["encryption"] = "none"
            write(message, document)

    grid = Switchboard(homes, alter, encryption="neighbors")
    result = run(grid, rounds=3)
    for _, reply in grid.replies:
        assert "flower_dhb.parameters" not in reply.content
        record = reply.content.get(PAYLOAD, {})
        assert all(is_sealed(array.data) for array in record.values())
    texts = " ".join(text for *_, text in events(result))
    assert "parameters are asked for, and they leave this node only sealed" in texts
    assert "this node's config says encryption='neighbors'" in texts


# --- agents that fail and come back -------------------------------------------------------------


def test_an_agent_that_has_lost_its_keys_announces_new_ones_and_rejoins(homes):
    grid = Switchboard(homes)
    lost = []

    def intercept(vertex, message):
        if vertex == 3 and document_of(message).get("round") == 3 and not lost:
            lost.append(grid.lose_state(3))
        return

    grid.intercept = intercept
    result = run(grid, rounds=7, evaluate_every=0)
    texts = [text for _, v, text in events(result) if v == 3]
    assert any("a key that vertex 3 does not have" in text for text in texts), texts
    assert [r.round for r in result.history if 3 in r.rejoined] in ([4], [5])
    assert [r.missing for r in result.history][5:] == [[], []]


def test_an_agent_that_keeps_its_state_in_a_file_keeps_its_key_beside_it(homes, tmp_path):
    grid = Switchboard(homes, **{"state-dir": str(tmp_path)})
    kept = []

    def intercept(vertex, message):
        if vertex == 3 and document_of(message).get("round") == 3:
            grid.lose_state(3)  # as when its SuperNode restarts
            kept.extend(sorted(path.suffix for path in tmp_path.glob("*-vertex-3.*")))
        return

    grid.intercept = intercept
    result = run(grid, rounds=5)
    assert not events(result)
    assert kept[:2] == [".safetensors", ".secret"]
    assert not list(tmp_path.iterdir()), "both go when the run is over"


# --- what does not go together --------------------------------------------------------------------


def test_what_needs_parameters_is_refused_by_name(homes):
    for name in ("average", "measure_consensus", "collect_models"):
        with pytest.raises(ConfigError, match=f"{name}=True needs the agents' parameters"):
            strategy(**{name: True})
    with pytest.raises(ConfigError, match="evaluate_fn needs the agents' parameters"):
        strategy().start(Switchboard(homes), start_arrays(D)[0], 1, evaluate_fn=lambda *_: None)
    with pytest.raises(ConfigError, match="encryption must be one of"):
        strategy(encryption="some")


def test_nodes_without_keys_or_with_others_are_refused_before_the_run(homes):
    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    with pytest.raises(ConfigError, match=r"vertices \[0, 1, 2, 3, 4\] have announced no keys"):
        run(grid)
    swapped = [homes[1], homes[0], *homes[2:]]
    with pytest.raises(ConfigError, match=r"this node is vertex ., but the certificate in"):
        run(Switchboard(swapped), encryption="none")
    with pytest.raises(ConfigError, match="'encryption' must be 'none' or 'neighbors', got 'yes'"):
        run(Switchboard(homes, encryption="yes"))
    without = LocalGrid(
        numpy_app(N, D, mods=[consensus_mod]), N,
        node_config=lambda i: {"partition-id": i, "encryption": "neighbors"},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="encryption='neighbors' needs mesh='…'"):
        run(without, encryption="none")


def test_each_node_keeps_its_own_final_model_where_its_config_says(homes, tmp_path, plain):
    """Also where nobody evaluates: the last round is combined all the same."""
    path = tmp_path / "models" / "mine.safetensors"
    grid = Switchboard(homes, **{"model-file": str(path)})
    grid.contexts[grid.node_of(3)].node_config["model-file"] = str(tmp_path / "of-3.safetensors")
    run(grid, evaluate_every=0)
    kept = np.concatenate([a.ravel() for a in load_file(tmp_path / "of-3.safetensors").values()])
    assert kept.tobytes() == state_of(plain, 3)["parameters"]
    with safe_open(tmp_path / "of-3.safetensors", framework="numpy") as file:
        assert {"vertex": "3", "round": "4"}.items() <= file.metadata().items()
    assert path.exists()
