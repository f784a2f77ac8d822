"""Compressed payloads: what is sent, what it stands for, and what the network average does."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flower_dhb import Topology
from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header
from flower_dhb.agent.compression import Compression, Compressor, frame
from flower_dhb.agent.compression.values import values_of
from flower_dhb.agent.node import Node
from flower_dhb.algorithms import HeavyBall, method
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic
from flower_dhb.engine.reference import simulate
from flower_dhb.errors import ConfigError, EstimateError, PayloadError
from flower_dhb.types import Layout, Payload

ALL = (
    "bf16",
    "bf16:whole",
    "int8",
    "int8:whole",
    "int4",
    "topk:0.1",
    "topk:0.01",
    "topk:0.5+int4",
    "randk:0.1",
    "lowrank:2",
)
EXACT = ("topk:0.1", "topk:0.01", "randk:0.1", "lowrank:2")  # nothing is drawn for them
FLOAT32 = np.dtype(np.float32)


def model(rng: np.random.Generator, dtype: type = np.float32) -> dict[str, NDArray[Any]]:
    return {
        "weight": rng.normal(size=(30, 20)).astype(dtype),
        "bias": rng.normal(size=30).astype(dtype),
        "kernel": rng.normal(size=(8, 3, 3, 3)).astype(dtype),
    }


# --- the words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["none", *ALL, "int4:whole@0.5", "topk:0.1@0.3", "int4@0.5", "lowrank:3+bf16"]
)
def test_a_compression_is_written_as_it_is_read(text: str) -> None:
    assert str(Compression.parse(text)) == text
    assert Compression.parse(str(Compression.parse(text))) == Compression.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int9", "did you mean 'int8'"),
        ("topk", "topk:SHARE"),
        ("topk:0", r"share must be a number in \(0, 1\)"),
        ("topk:1.5", r"share must be a number in \(0, 1\)"),
        ("topk:nan", "not a number"),
        ("topk:x", "'x' is not a number"),
        ("topk:0.1+int9", "int8"),
        ("bf16+int8", "bf16"),
        ("randk:0.1@0", r"rate must be in \(0, 1\]"),
        ("randk:0.1@2", r"rate must be in \(0, 1\]"),
        ("lowrank:0", "rank must be an integer"),
        ("lowrank:1.5", "rank must be an integer"),
        ("lowrank:1e9", "rank must be an integer"),
        ("none@0.5", "none"),
        ("int8:0.1", "int8:whole"),
        ("none:whole", "none"),
        ("", "unknown compression"),
    ],
)
def test_what_is_no_compression_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Compression.parse(text)


# --- numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("count", [1, 127, 128, 257, 70_001])
def test_numbers_are_near_what_they_were_and_right_on_average(
    name: str, dtype: type, count: int
) -> None:
    rng = np.random.default_rng(3)
    numbers = (rng.normal(size=count) * 10.0 ** rng.integers(-3, 3, count)).astype(dtype)
    values = values_of(name, np.dtype(dtype))
    repeats = 400 if count < 1000 else 3
    total = np.zeros(count)
    for _ in range(repeats):
        data = values.encode(numbers, rng)
        assert data.dtype == np.uint8
        assert data.size == values.size(count)
        found = values.decode(data, count)
        assert found.dtype == dtype
        error = found.astype(np.float64) - numbers
        most = {"bf16": np.abs(numbers) * 2.0**-7, "int8": 0.0, "int4": 0.0}[name]
        if name != "bf16":
            block = {"int8": 256, "int4": 128}[name]
            levels = {"int8": 127, "int4": 7}[name]
            sizes = [np.abs(numbers[i : i + block]).max() for i in range(0, count, block)]
            most = np.repeat(sizes, block)[:count] / levels
        assert (np.abs(error) <= most * (1 + 1e-6)).all()
        total += error
    if repeats > 100:  # an error of up to `most` to either side deviates by half of it at most
        mean = total / repeats
        assert (np.abs(mean) <= 5.0 * most / 2.0 / np.sqrt(repeats) + 1e-6 * most).all()


def test_numbers_at_the_ends_of_float32_stay_finite() -> None:
    ends = np.array([3.4028235e38, -3.4028235e38, 1e-45, -1e-45, 0.0, -0.0], np.float32)
    rng = np.random.default_rng(0)
    for name in ("bf16", "int8", "int4"):
        values = values_of(name, FLOAT32)
        for _ in range(20):
            found = values.decode(values.encode(ends, rng), len(ends))
            assert np.isfinite(found).all()
            assert (np.sign(found[:2]) == np.sign(ends[:2])).all()


# --- vectors ------------------------------------------------------------------------------


def public_of(
    compressor: Compressor, payload: Payload, sent: Payload, round: int = 1, vertex: int = 0
) -> Payload:
    codes = compressor.encode(payload, sent, round, vertex)
    assert codes is not None
    return compressor.decode(codes, sent, round)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", ALL)
def test_bytes_are_as_many_as_they_are_said_to_be(text: str, dtype: type) -> None:
    rng = np.random.default_rng(1)
    layout = Layout.of(model(rng, dtype))
    compressor = Compressor.of(Compression.parse(text), ("folded", "tracker"), layout)
    payload = {n: rng.normal(size=layout.size).astype(dtype) for n in ("folded", "tracker")}
    sent = {n: np.zeros_like(v) for n, v in payload.items()} if compressor.estimates else {}
    codes = compressor.encode(payload, sent, 1, 0)
    assert codes is not None
    assert sum(data.size for data in codes.values()) == compressor.n_bytes
    whole = 2 * layout.size * layout.dtype.itemsize
    assert compressor.n_bytes < whole
    public = compressor.decode(codes, sent, 1)
    assert {v.dtype for v in public.values()} == {np.dtype(dtype)}


def test_a_large_model_takes_the_bytes_that_the_words_promise() -> None:
    layout = Layout.of({"w": np.zeros((1000, 1000), np.float32)})
    least = {"bf16": 2.0, "int8": 3.9, "int4": 7.5, "topk:0.1": 7.5, "topk:0.01": 65.0}
    least |= {"topk:0.5+int4": 10.0, "topk:0.1+int4": 22.0, "randk:0.1": 9.9, "lowrank:2": 240.0}
    for text, times in least.items():
        compressor = Compressor.of(Compression.parse(text), ("parameters",), layout)
        assert 4e6 / compressor.n_bytes >= times, text


def test_top_k_keeps_the_largest_and_random_k_every_number_as_often() -> None:
    layout = Layout.of({"w": np.zeros(1000, np.float32)})
    vector = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    zero = {"w": np.zeros(1000, np.float32)}
    top = Compressor.of(Compression.parse("topk:0.05"), ("w",), layout)
    found = public_of(top, {"w": vector}, zero)["w"]
    largest = np.sort(np.argsort(-np.abs(vector))[:50])
    np.testing.assert_array_equal(np.flatnonzero(found), largest)
    np.testing.assert_array_equal(found[largest], vector[largest])

    random = Compressor.of(Compression.parse("randk:0.05"), ("w",), layout)
    counts = np.zeros(1000)
    for k in range(1, 4001):
        places = random.coder.mixed_at(k)
        assert places is not None
        assert len(set(places.tolist())) == 50
        counts[places] += 1
    # Each is binomial: 4000 draws with probability 0.05, so a standard deviation of 13.8.
    assert np.abs(counts - 200).max() < 5 * 13.8


def test_low_rank_is_the_product_of_the_largest_directions() -> None:
    rng = np.random.default_rng(0)
    thin = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 20))
    arrays = {"w": thin.astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}
    layout = Layout.of(arrays)
    vector, _ = layout.flatten(arrays)
    compressor = Compressor.of(Compression.parse("lowrank:2"), ("w",), layout)
    found = public_of(compressor, {"w": vector}, {"w": np.zeros_like(vector)})["w"]
    np.testing.assert_allclose(found, vector, atol=1e-5)
    with pytest.raises(ConfigError, match="no matrix"):
        Compressor.of(Compression.parse("lowrank:2"), ("w",), Layout.of({"b": arrays["b"]}))


# --- frames -------------------------------------------------------------------------------


def framed(text: str) -> tuple[bytes, Header, Compressor, Payload, Node]:
    rng = np.random.default_rng(5)
    arrays = model(rng)
    arrays["running_mean"] = rng.normal(size=4).astype(np.float32)
    layout = Layout.of(arrays)
    node = Node.start(2, HeavyBall(), {1: 0.5, 2: 0.5}, layout, arrays, Compression.parse(text))
    trained = {n: (a + rng.normal(size=a.shape)).astype(a.dtype) for n, a in arrays.items()}
    payload = node.adapt(1, trained)
    sent = node.frame()
    assert sent is not None
    assert node.compressor is not None
    data = frame.encode(sent, node.compressor, run="r", round=1, vertex=2)
    return data, Header("r", 1, 2, node.vectors), node.compressor, payload, node


@pytest.mark.parametrize("text", ALL)
def test_a_frame_brings_the_public_payload(text: str) -> None:
    data, header, compressor, payload, node = framed(text)
    found = frame.decode(data, header, compressor, node.known(2))
    assert list(found) == list(payload)
    for name, vector in payload.items():
        np.testing.assert_array_equal(found[name], vector)
    whole = codec.encode(payload, run="r", round=1, vertex=2)
    again = frame.decode(whole, header, compressor, None)
    np.testing.assert_array_equal(again["folded"], payload["folded"])


@pytest.mark.parametrize("text", ALL)
def test_a_frame_that_is_not_as_expected_is_refused(text: str) -> None:
    data, header, compressor, _, node = framed(text)
    known = node.known(2)
    other = Compressor.of(Compression.parse("int8@0.5"), compressor.names, node.layout)
    wrong = [
        (data, Header("r", 2, 2, header.vectors), compressor, "round"),
        (data, Header("s", 1, 2, header.vectors), compressor, "run"),
        (data, Header("r", 1, 3, header.vectors), compressor, "vertex"),
        (data, header, None, "compressed"),
        (data, header, other, "compressed by"),
        (data[:-1], header, compressor, "bytes, expected"),
        (data + b"x", header, compressor, "bytes, expected"),
    ]
    for bad, expect, found, said in wrong:
        with pytest.raises(PayloadError, match=said):
            frame.decode(bad, expect, found, known)
    if compressor.estimates:
        for strange in (None, {"folded": np.ones(node.layout.size, np.float32)}):
            with pytest.raises(EstimateError, match="does not hold"):
                frame.decode(data, header, compressor, strange)


@pytest.mark.parametrize("text", ALL)
def test_damaged_and_forged_frames_are_refused_by_name_and_never_crash(text: str) -> None:
    data, header, compressor, payload, node = framed(text)
    known, rng = node.known(2), np.random.default_rng(9)
    for _ in range(150):
        bad = bytearray(data)
        for at in rng.integers(0, len(bad), rng.integers(1, 4)):
            bad[at] ^= 1 << int(rng.integers(0, 8))
        if bytes(bad) != data:
            with pytest.raises(PayloadError):
                frame.decode(bad, header, compressor, known)
    # One that its sender has made so: checksums are right, and what it says is not.
    codes = node.frame()
    assert codes is not None
    for _ in range(60):
        forged = {n: rng.integers(0, 256, c.size).astype(np.uint8) for n, c in codes.codes.items()}
        lie = frame.Frame(forged, payload, codes.known)
        made = frame.encode(lie, compressor, run="r", round=1, vertex=2)
        with pytest.raises(PayloadError):
            frame.decode(made, header, compressor, known)


def test_headers_that_are_nonsense_are_refused() -> None:
    data, header, compressor, _, node = framed("int8:whole")
    start = data.index(b"{")
    end = data.index(b"}") + 1
    document = json.loads(data[start:end])
    for key in document:
        for value in (None, [], -1, "x" * 10, 10**30, {}):
            changed = json.dumps({**document, key: value}).encode()
            prefix = codec.head(b"DHBc", 1, changed, [data[end:]], "it")
            if json.loads(changed) != document:
                with pytest.raises(PayloadError):
                    frame.decode(prefix + data[end:], header, compressor, node.known(2))


# --- the law ------------------------------------------------------------------------------


def rounds_of(
    text: str, rule: Any, *, failing: set[tuple[int, int]] = frozenset(), rounds: int = 6
) -> list[tuple[list[Node], list[Payload], list[Node]]]:
    """Nodes before `combine`, their whole payloads, and nodes after it, round by round."""
    topology = Topology.parse("erdos-renyi:6:0.6:1")
    rng = np.random.default_rng(2)
    arrays, compression = model(rng, np.float64), Compression.parse(text)
    layout = Layout.of(arrays)
    nodes = [
        Node.start(
            v,
            rule,
            {j: float(topology.row(v)[j]) for j in (v, *topology.neighbors(v))},
            layout,
            arrays,
            compression,
        )
        for v in range(6)
    ]
    found = []
    for k in range(1, rounds + 1):
        wholes = []
        for node in nodes:
            drift = {n: rng.normal(size=a.shape) * 0.1 for n, a in arrays.items()}
            trained = {n: a + drift[n] for n, a in node.arrays().items()}
            node.adapt(k, trained)
            pending = node.snapshot.pending
            assert pending is not None
            wholes.append(node._whole(node._state(pending), pending))
        publics = [node.payload() for node in nodes]
        for v, node in enumerate(nodes):
            for j in node.neighbors:
                if k % 2 or not {(v, j), (j, v)} & failing:
                    node.offer(j, k, publics[j])
        before = [node.snapshot for node in nodes]
        for node in nodes:
            node.combine()
        found.append((before, wholes, list(nodes)))
    return found


@pytest.mark.parametrize("text", ALL)
def test_the_network_average_moves_as_without_compression(text: str) -> None:
    """Mixing keeps the sum of payloads exactly: computed in rationals from what was mixed."""
    topology = Topology.parse("erdos-renyi:6:0.6:1")
    layout = Layout.of(model(np.random.default_rng(2), np.float64))
    compressor = Compressor.of(Compression.parse(text), ("parameters",), layout)
    rng = np.random.default_rng(4)
    wholes = [rng.normal(size=layout.size) for _ in range(6)]
    start = rng.normal(size=layout.size)
    sent = {"parameters": start} if compressor.estimates else {}
    publics = [public_of(compressor, {"parameters": w}, sent, 3, v) for v, w in enumerate(wholes)]
    mixed = [compressor.mixed(p, 3)["parameters"] for p in publics]
    # Metropolis weights of small degrees, exactly; rows sum to 1.
    places = rng.integers(0, layout.size, 40)
    degree = [len(topology.neighbors(v)) for v in range(6)]
    for c in places.tolist():
        total = Fraction(0)
        for v in range(6):
            row = {j: Fraction(1, 1 + max(degree[v], degree[j])) for j in topology.neighbors(v)}
            row[v] = 1 - sum(row.values())
            weights = _exact_weights(compressor, row, v)
            total += weights[v] * Fraction(float(wholes[v][c]))
            total += sum(
                w * Fraction(float(mixed[j][c])) for j, w in weights.items() if j >= 0 and j != v
            )
            total += weights[-1] * Fraction(float(mixed[v][c]))
        assert total == sum(Fraction(float(w[c])) for w in wholes)


def _exact_weights(
    compressor: Compressor, row: dict[int, Fraction], vertex: int
) -> dict[int, Fraction]:
    exact = Compressor(
        compressor.compression, compressor.names, compressor.coder, compressor.dtype, 0
    )
    rate = Fraction(exact.rate)
    found = {j: rate * w for j, w in row.items() if j != vertex}
    floats = exact.weights({j: float(w) for j, w in row.items()}, vertex)
    assert set(floats) == {*found, -1, vertex}
    for j, w in found.items():
        assert floats[j] == pytest.approx(float(w))
    assert floats[-1] == pytest.approx(-float(sum(found.values())))
    return {**found, -1: -sum(found.values(), Fraction(0)), vertex: Fraction(1)}


@pytest.mark.parametrize("failing", [frozenset(), frozenset({(0, 1), (2, 4)})])
@pytest.mark.parametrize("text", ALL)
def test_nodes_keep_the_sum_with_lost_edges_too(
    text: str, failing: frozenset[tuple[int, int]]
) -> None:
    """With DSGD what is mixed is the next state, so its sum is that of the whole payloads."""
    for _, wholes, nodes in rounds_of(text, method("dsgd"), failing=set(failing)):
        del nodes
        assert wholes
    history = rounds_of(text, method("dsgd"), failing=set(failing), rounds=5)
    *_, (_, wholes, nodes) = history
    found = sum(node.parameters for node in nodes)
    np.testing.assert_allclose(found, sum(w["parameters"] for w in wholes), atol=1e-12)


@pytest.mark.parametrize("rule", ["dmsgd", "dmsgd-gt", "safeguarded"])
@pytest.mark.parametrize("text", ["bf16", "int8", "int4", "topk:0.5", "randk:0.5"])
@pytest.mark.thorough
def test_nodes_simulation_and_engine_agree(rule: str, text: str) -> None:
    """As long as rounding differs by less than decides what is drawn: a few rounds in float64."""
    topology = Topology.parse("erdos-renyi:6:0.6:1")
    rng = np.random.default_rng(7)
    start = rng.normal(size=120)
    targets = rng.normal(size=(6, 120))

    def gradient(x: NDArray[Any], round: int) -> NDArray[Any]:
        return (x - targets) * (1 + 0.1 * round)

    algorithm = method(rule)
    expected = simulate(
        algorithm,
        topology,
        start,
        lambda x, k: x - 0.05 * gradient(x, k),
        4,
        missing={2: [(0, 1)]},
        compression=text,
    )
    engine = Engine(
        Analytic(start, gradient, 6),
        topology,
        algorithm,
        learning_rate=0.05,
        missing={2: [(0, 1)]},
        compression=text,
    )
    layout = Layout.of({"parameters": start})
    nodes = [
        Node.start(
            v,
            algorithm,
            {j: float(topology.row(v)[j]) for j in (v, *topology.neighbors(v))},
            layout,
            {"parameters": start},
            Compression.parse(text),
        )
        for v in range(6)
    ]
    for k in range(1, 5):
        engine.step()
        x = np.stack([node.parameters for node in nodes])
        trained = x - 0.05 * gradient(x, k)
        publics = [n.adapt(k, {"parameters": z}) for n, z in zip(nodes, trained, strict=True)]
        for v, node in enumerate(nodes):
            for j in node.neighbors:
                if k != 2 or {v, j} != {0, 1}:
                    node.offer(j, k, publics[j])
            node.combine()
        x = np.stack([node.parameters for node in nodes])
        np.testing.assert_allclose(x, expected[k], atol=1e-10)
        np.testing.assert_allclose(engine.parameters.numpy(), expected[k], atol=1e-10)
    plain = simulate(algorithm, topology, start, lambda x, k: x - 0.05 * gradient(x, k), 4)
    assert np.abs(plain[4] - expected[4]).max() > 1e-6  # compression does something


def test_the_engine_counts_the_bytes_that_are_sent() -> None:
    problem = Analytic(np.zeros(10_000, np.float32), lambda x, _k: x - 1.0, 4)
    sizes = {}
    for text in ("none", "bf16", "int8", "topk:0.01"):
        engine = Engine(problem, Topology.ring(4), method("dsgd"), compression=text)
        engine.run(3)
        sizes[text] = engine.bytes_sent
    assert sizes["none"] == 3 * 8 * 40_000
    assert sizes["bf16"] == sizes["none"] // 2
    assert sizes["int8"] == 3 * 8 * (10_000 + 4 * 40)
    assert sizes["topk:0.01"] == 3 * 8 * (100 * 6 + 4)


@pytest.mark.parametrize("name", ["sgp", "centralized"])
def test_rules_without_payloads_for_neighbors_are_refused(name: str) -> None:
    problem = Analytic(np.zeros(4), lambda x, _k: x, 4)
    with pytest.raises(ConfigError, match="compression 'int8' is of payloads for graph neighbors"):
        Engine(problem, Topology.complete(4), method(name), compression="int8")
