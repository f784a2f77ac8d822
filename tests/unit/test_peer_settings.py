"""A device's file: each key arrives where it belongs, and what cannot be meant is refused."""

import dataclasses
from pathlib import Path

import pytest
import tomli_w

from flower_dhb import ConfigError, HeavyBall
from flower_dhb.agent.policy import Policy
from flower_dhb.algorithms import algorithm_from_config
from flower_dhb.algorithms.gradient_tracking import GradientTracking
from flower_dhb.peer.device.settings import PeerSettings, check_loopback
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.settings import Config, Timing
from flower_dhb.peer.wire.identity import Identity
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.transport import Limits

HEAVY_BALL = HeavyBall(momentum=0.7).to_config()


def document(**changes):
    """What `mesh create` would write for vertex 1 of a path, shortest; None drops a key."""
    base = {
        "mesh": "m",
        "run": "run-m",
        "vertex": 1,
        "rounds": 5,
        "graph": "digest",
        "app": "../app",
        "client-app": "module:app",
        "start": "start.safetensors",
        "state-dir": "state",
        "own-weight": 0.5,
        "neighbors": [
            {"vertex": 2, "weight": 0.3, "address": "127.0.0.1:2"},
            {"vertex": 0, "weight": 0.2},
        ],
        "listen": "127.0.0.1:1",
        "plaintext": True,
        "algorithm": HEAVY_BALL,
    }
    return {k: v for k, v in (base | changes).items() if v is not None}


def load(tmp_path, **changes):
    path = tmp_path / "peer.toml"
    path.write_text(tomli_w.dumps(document(**changes)))
    return PeerSettings.load(path)


def test_the_least_that_a_file_must_say(tmp_path):
    found = load(tmp_path)
    home = tmp_path.resolve()
    assert found == PeerSettings(
        mesh="m",
        run="run-m",
        vertex=1,
        rounds=5,
        weights={0: 0.2, 1: 0.5, 2: 0.3},
        algorithm=algorithm_from_config(HEAVY_BALL),
        graph="digest",
        app=home / "../app",
        client_app="module:app",
        start=home / "start.safetensors",
        state_dir=home / "state",
        listen="127.0.0.1:1",
        dial={2: "127.0.0.1:2"},
        bulletins=home / "bulletins",
    )
    assert found.algorithm == HeavyBall(momentum=0.7)
    assert found.neighbors == (0, 2)
    # What holds where the file says nothing (docs/peers.md).
    assert (found.evaluate_every, found.checkpoint_every, found.away_rounds) == (1, 1, 10)
    assert (found.start_timeout_s, found.linger_s) == (120.0, 10.0)
    assert (found.record, found.metrics_port, found.log) == ("off", 0, "text")
    assert (found.timing, found.limits, found.tls) == (Timing(), Limits(), None)


def test_the_limits_that_hold_where_nothing_is_said():
    assert Timing() == Timing(
        ceiling_s=60.0, least_s=1.0, factor=3.0, reconnect_s=2.0, resume_s=10.0
    )
    assert Limits() == Limits(
        heartbeat_s=2.0,
        dead_after_s=8.0,
        hello_s=5.0,
        transfer_s=60.0,
        retry_s=0.2,
        retry_max_s=5.0,
        streams=(8.0, 0.5),
        refusals=(32.0, 1.0),
        frames=(2000.0, 500.0),
    )


def test_all_that_a_file_can_say(tmp_path):
    tables = {
        "node-config": {"partition-id": 1, "vertex": 1, "data": "/d", "lidar": True, "rate": 0.5},
        "run-config": {"a": 1},
        "train-config": {"b": "x"},
        "evaluate-config": {"c": False},
    }
    found = load(
        tmp_path,
        **tables,
        **{
            "evaluate-every": 0,
            "checkpoint-every": 3,
            "away-rounds": 4,
            "start-timeout-s": 2,
            "linger-s": 0.0,
            "record": "payloads",
            "metrics-port": 9,
            "log": "json",
            "timing": {
                "ceiling-s": 9,
                "least-s": 0.5,
                "factor": 2.0,
                "reconnect-s": 7.0,
                "resume-s": 8,
            },
            "limits": {"heartbeat-s": 3, "streams": [4, 0.25]},
            "policy": {"clip": 2, "metrics": ["loss"]},
            "plaintext": None,
            "listen": "0.0.0.0:1",
            "tls": {"key": "k", "certificate": "c", "authority": "a"},
        },
    )
    assert dict(found.node_config) == tables["node-config"]
    assert dict(found.run_config) == {"a": 1}
    assert dict(found.train_config) == {"b": "x"}
    assert dict(found.evaluate_config) == {"c": False}
    assert (found.evaluate_every, found.checkpoint_every, found.away_rounds) == (0, 3, 4)
    assert (found.start_timeout_s, found.linger_s) == (2, 0.0)
    assert (found.record, found.metrics_port, found.log) == ("payloads", 9, "json")
    timing = Timing(ceiling_s=9.0, least_s=0.5, factor=2.0, reconnect_s=7.0, resume_s=8.0)
    assert found.timing == timing
    editions = (Edition(1, 1, found.rounds, found.neighbors),)
    assert found.protocol(editions, early=True) == Config(
        vertex=1,
        editions=editions,
        timing=dataclasses.replace(timing, start_s=2, linger_s=0.0),
        away_rounds=4,
        early=True,
    )
    exact = dataclasses.replace(found, algorithm=GradientTracking()).protocol(editions, early=False)
    assert (exact.conserves, exact.early) == (True, False)
    quick = Limits(hello_s=1.0, dead_after_s=2.0, transfer_s=3.0)
    timing = dataclasses.replace(found, limits=quick).all_timing
    assert (timing.hello_s, timing.dead_after_s, timing.transfer_s) == (1.0, 2.0, 3.0)
    assert found.limits == dataclasses.replace(Limits(), heartbeat_s=3.0, streams=(4, 0.25))
    assert found.policy == Policy(clip=2, metrics=("loss",))
    home = tmp_path.resolve()
    assert found.tls == TlsFiles(Identity("m", 1), home / "k", home / "c", home / "a")


def test_a_peer_that_dials_all_its_neighbors_needs_no_address(tmp_path):
    neighbors = [{"vertex": j, "weight": 0.25, "address": f"127.0.0.1:{7 + j}"} for j in (0, 2)]
    found = load(tmp_path, listen=None, neighbors=neighbors)
    assert (found.listen, dict(found.dial)) == (None, {0: "127.0.0.1:7", 2: "127.0.0.1:9"})


TLS = {"key": "k", "certificate": "c", "authority": "a"}
DIALED = [{"vertex": 0, "weight": 0.5, "address": "10.0.0.1:1"}]
BAD = {
    "no neighbor": ({"neighbors": []}, "vertex 1: needs its own weight and one neighbor"),
    "nobody could reach it": ({"listen": None}, r"neighbors \[0\] dial it, but it has no 'listen'"),
    "rounds": ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
    "checkpoint": (
        {"checkpoint-every": 0},
        "checkpoint_every must be an integer of at least 1, got 0",
    ),
    "away": ({"away-rounds": 0}, "away_rounds must be an integer of at least 1, got 0"),
    "away NaN": (
        {"away-rounds": float("nan")},
        "away_rounds must be an integer of at least 1, got nan",
    ),
    "evaluate": ({"evaluate-every": -1}, "evaluate_every must be an integer of at least 0, got -1"),
    "evaluate NaN": (
        {"evaluate-every": float("nan")},
        "evaluate_every must be an integer of at least 0",
    ),
    "half a round": ({"rounds": 1.5}, "rounds must be an integer of at least 1, got 1.5"),
    "rounds in words": ({"rounds": "5"}, "rounds must be an integer of at least 1, got '5'"),
    "true rounds": ({"rounds": True}, "rounds must be an integer of at least 1, got True"),
    "vertex in words": ({"vertex": "1"}, "vertex must be an integer of at least 0, got '1'"),
    "negative vertex": ({"vertex": -1}, "vertex must be an integer of at least 0, got -1"),
    "listen": ({"listen": 9000}, "listen must be a text, got 9000"),
    "app": ({"app": ["a"]}, r"app must be a text, got \['a'\]"),
    "client-app": ({"client-app": 1}, "client-app must be a text, got 1"),
    "port": ({"metrics-port": -1}, "metrics_port must be an integer of at least 0, got -1"),
    "linger": ({"linger-s": -0.5}, "linger_s must be seconds, 0 or more, got -0.5"),
    "linger NaN": ({"linger-s": float("nan")}, "linger_s must be seconds, 0 or more, got nan"),
    "for ever": ({"linger-s": float("inf")}, "linger_s must be seconds, 0 or more, got inf"),
    "timeout": ({"start-timeout-s": "1"}, "start_timeout_s must be seconds, 0 or more, got '1'"),
    "timeout true": ({"start-timeout-s": True}, "start_timeout_s must be seconds"),
    "record": ({"record": "payload"}, "record.*'payload'.*payloads"),
    "log": ({"log": "xml"}, "log.*'xml'.*json"),
    "unknown key": ({"round": 3}, "unknown key 'round'"),
    "unknown limit": ({"limits": {"stream": 1}}, r"unknown key of \[limits\] 'stream'"),
    "of limits": ({"timing": {"hello-s": 1.0}}, r"unknown key of \[timing\] 'hello-s'"),
    "of the top": ({"timing": {"linger-s": 1.0}}, r"unknown key of \[timing\] 'linger-s'"),
    "zero": ({"timing": {"factor": 0}}, r"\[timing\] factor must be above 0, got 0"),
    "NaN": ({"timing": {"factor": float("nan")}}, r"\[timing\] factor must be above 0, got nan"),
    "true": ({"timing": {"factor": True}}, r"\[timing\] factor must be above 0, got True"),
    "text": ({"timing": {"factor": "3"}}, r"\[timing\] factor must be above 0, got '3'"),
    "pair": ({"limits": {"streams": [1, -1]}}, r"\[limits\] streams must be above 0, got \[1, -1"),
    "one of a pair": ({"limits": {"streams": [1]}}, r"\[limits\] streams must be above 0"),
    "three": ({"limits": {"streams": [1, 2, 3]}}, r"\[limits\] streams must be above 0"),
    "tls and plaintext": ({"tls": TLS}, r"needs a \[tls\] table, or 'plaintext = true'"),
    "neither": ({"plaintext": None}, r"needs a \[tls\] table, or 'plaintext = true'"),
    "plaintext is no truth": ({"plaintext": 1}, r"needs a \[tls\] table, or 'plaintext = true'"),
    "plaintext off loopback": ({"listen": "0.0.0.0:1"}, "plaintext on 0.0.0.0:1: allowed on loop"),
    "dialed off loopback": ({"neighbors": DIALED}, "plaintext on 10.0.0.1:1: allowed on loopback"),
    "tls file": ({"plaintext": None, "tls": TLS | {"chain": "x"}}, "chain"),
    "algorithm": ({"algorithm": {"name": "heavy-bal"}}, "heavy-bal"),
    "node config": ({"node-config": {"x": [1]}}, r"\[node-config\] x must be a number, a text"),
    "train config": ({"train-config": {"x": {}}}, r"\[train-config\] x must be a number, a text"),
    "evaluate config": ({"evaluate-config": {"x": [1]}}, r"\[evaluate-config\] x must be a number"),
    "no table": ({"train-config": 3}, "train-config must be a table, got 3"),
    "other partition": (
        {"node-config": {"partition-id": 2}},
        "partition-id is 2, this is vertex 1",
    ),
    "other vertex": ({"node-config": {"vertex": 0}}, "vertex is 0, this is vertex 1"),
    "state-dir": ({"node-config": {"state-dir": "x"}}, "a peer keeps its state where the key"),
    "policy": ({"policy": {"noise": 1.0}}, "policy: noise is measured in units of clip"),
    "policy of a SuperNode": (
        {"node-config": {"policy-clip": 1.0}},
        r"policy is the table \[policy",
    ),
    "weight": ({"own-weight": "much"}, "peer.toml: could not convert"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path, case):
    changes, text = BAD[case]
    with pytest.raises(ConfigError, match=text):
        load(tmp_path, **changes)


@pytest.mark.parametrize(
    "key",
    [
        "mesh",
        "run",
        "vertex",
        "rounds",
        "neighbors",
        "own-weight",
        "algorithm",
        "graph",
        "app",
        "client-app",
        "start",
        "state-dir",
    ],
)
def test_a_key_that_is_missing_is_named_with_its_file(tmp_path, key):
    with pytest.raises(ConfigError, match=f"peer.toml: lacks '{key}'"):
        load(tmp_path, **{key: None})


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: No such file.*'flower-dhb mesh create'"):
        PeerSettings.load(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_text("[timing")
    with pytest.raises(ConfigError, match=r"x.toml: not readable as TOML"):
        PeerSettings.load(str(tmp_path / "x.toml"))


def test_settings_made_in_python_are_checked_too():
    made = load_kept()
    with pytest.raises(ConfigError, match=r"dials \[2\], its neighbors are \[0\]"):
        dataclasses.replace(made, weights={0: 0.5, 1: 0.5}, dial={2: "127.0.0.1:2"})
    with pytest.raises(ConfigError, match="needs its own weight"):
        dataclasses.replace(made, weights={0: 0.5, 2: 0.5})
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rounds = 3


def load_kept():
    return PeerSettings(
        mesh="m", run="r", vertex=1, rounds=5, weights={0: 0.25, 1: 0.5, 2: 0.25},
        algorithm=HeavyBall(), graph="g", app=Path("a"), client_app="m:a", start=Path("s"),
        state_dir=Path("d"), listen="127.0.0.1:1",
    )  # fmt: skip


@pytest.mark.parametrize("address", ["", ":1", "127.0.0.1", "localhost.example:1", "[::2]:1"])
def test_what_is_not_loopback(address):
    with pytest.raises(ConfigError, match=r"allowed on loopback addresses only; configure \[tls"):
        check_loopback(address)
