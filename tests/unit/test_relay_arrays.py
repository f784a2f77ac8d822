"""Arrays of every kind through the relay: handled by value, or refused by name at the door."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from support.grid import LocalGrid

from flower_dhb import (
    DSGD,
    Algorithm,
    ConfigError,
    FlowerDhbError,
    HeavyBall,
    PayloadError,
    ServerlessStrategy,
    Topology,
    consensus_mod,
)
from flower_dhb.agent.mixing import convex
from flower_dhb.flower.arrays import carried, frame_array, named_arrays

N, ROUNDS = 7, 5
EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (0, 6), (2, 6)]
IRREGULAR = Topology.from_edges(EDGES)
Names = dict[str, np.ndarray]


def app_of(step: Callable[[Names, int], Names], seen: list[Names] | None = None) -> ClientApp:
    """An app whose local training is `step(arrays, vertex)`."""
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {k: a.numpy() for k, a in message.content.array_records["arrays"].items()}
        if seen is not None:
            seen.append(arrays)
        new = step(arrays, int(context.node_config["partition-id"]))
        record = ArrayRecord({k: Array(np.asanyarray(a)) for k, a in new.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays = {k: a.numpy() for k, a in message.content.array_records["arrays"].items()}
        total = float(sum(np.abs(a.astype(np.float64)).sum() for a in arrays.values()))
        metrics = MetricRecord({"total": total, "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(
    app: ClientApp,
    initial: Names,
    *,
    topology: Topology = IRREGULAR,
    rule: Algorithm | None = None,
    grid: LocalGrid | None = None,
    rounds: int = ROUNDS,
    **options: object,
):
    grid = grid or LocalGrid(app, topology.n_agents)
    strategy = ServerlessStrategy(topology, rule or DSGD(), collect_models=True, **options)  # type: ignore[arg-type]
    record = ArrayRecord({k: Array(np.asanyarray(a)) for k, a in initial.items()})
    return strategy.start(grid, record, rounds)


def models(result) -> list[Names]:
    return [{k: a.numpy() for k, a in result.models[i].items()} for i in range(len(result.models))]


# --- statistics and negative weights ------------------------------------------------


def negative() -> Topology:
    """Mixing weights as fastest mixing may choose them: one edge's and one agent's are negative."""
    weights = np.array(IRREGULAR.mixing_matrix)
    for (a, b), change in {(0, 6): -0.25, (1, 2): 0.35, (2, 6): 0.3}.items():
        for i, j in ((a, b), (b, a)):
            weights[i, j] += change
            weights[i, i] -= change
    return Topology.from_edges(EDGES, weights)


@pytest.mark.parametrize(
    ("topology", "evaluate_every", "rule"),
    [
        (IRREGULAR, 1, HeavyBall()),
        (negative(), 0, HeavyBall()),
        (negative(), 1, HeavyBall(form="tracking")),
        (negative(), 4, DSGD()),
    ],
    ids=["metropolis", "negative", "negative, tracking", "negative, no momentum"],
)
def test_parameters_and_statistics_are_those_of_the_law_with_an_agent_out_in_one_round(
    topology: Topology, evaluate_every: int, rule: Algorithm
) -> None:
    initial = {
        "w": np.linspace(-1, 1, 5),
        "bn.running_var": np.ones(2),
        "bn.running_mean": np.zeros(2),
    }
    pull = np.random.default_rng(3).normal(size=(N, 5))
    rate = 0.1

    def step(a: Names, i: int) -> Names:
        w = a["w"] - rate * (a["w"] - pull[i])
        return {
            "w": w,
            "bn.running_var": 0.9 * a["bn.running_var"] + 0.1 * (1 + i) ** 2,
            "bn.running_mean": 0.9 * a["bn.running_mean"] + 0.1 * w[:2],
        }

    grid = LocalGrid(app_of(step), N)
    out, out_round = 2, 3
    grid.refuse = lambda v, m: (
        (v, m.metadata.group_id, m.metadata.message_type)
        == (
            out,
            str(out_round),
            "train",
        )
    )
    result = start(
        app_of(step),
        initial,
        topology=topology,
        rule=rule,
        grid=grid,
        evaluate_every=evaluate_every,
    )

    state = rule.start(np.tile(initial["w"], (N, 1)))
    variance, mean = np.tile(np.ones(2), (N, 1)), np.zeros((N, 2))
    for k in range(1, ROUNDS + 1):
        away = [out] if k == out_round else []
        weights = topology.with_missing([e for e in topology.edges if set(away) & set(e)])
        z = []
        for i in range(N):
            arrays = {"w": state.parameters[i], "bn.running_var": variance[i]}
            z.append(step(arrays | {"bn.running_mean": mean[i]}, i))
        trained = np.stack([a["w"] for a in z])
        mixed = {n: weights @ v for n, v in rule.outgoing(state, trained).items()}
        new = rule.combine(state, trained, mixed)
        # By the definition: absolute shares where a weight is negative, for those who take part.
        shares = np.stack(
            [[convex(dict(enumerate(row))).get(j, 0.0) for j in range(N)] for row in weights]
        )
        new_variance = shares @ np.stack([a["bn.running_var"] for a in z])
        new_mean = shares @ np.stack([a["bn.running_mean"] for a in z])
        for i in away:
            new.parameters[i], new_variance[i], new_mean[i] = (
                state.parameters[i],
                variance[i],
                mean[i],
            )
            for name, vector in new.memory.items():
                vector[i] = state.memory[name][i]
        state, variance, mean = new, new_variance, new_mean

    assert (topology.mixing_matrix.min() < -0.01) == (topology is not IRREGULAR)
    for i, model in enumerate(models(result)):
        np.testing.assert_allclose(model["w"], state.parameters[i], rtol=0, atol=1e-13)
        np.testing.assert_allclose(model["bn.running_var"], variance[i], rtol=1e-13)
        np.testing.assert_allclose(model["bn.running_mean"], mean[i], rtol=0, atol=1e-13)
        assert model["bn.running_var"].min() > 0.0
    assert [r.round for r in result.history if r.missing] == [out_round]
    if evaluate_every:
        totals = [sum(np.abs(a).sum() for a in model.values()) for model in models(result)]
        reported = [result.history[-1].evaluate[i]["total"] for i in range(N)]
        np.testing.assert_allclose(reported, totals, rtol=1e-12)


def test_only_the_last_evaluation_carries_parameters_and_all_carry_their_projection() -> None:
    """Else every round's traffic would be twice what the payloads take."""
    grid = LocalGrid(app_of(lambda a, _: {k: 0.9 * v for k, v in a.items()}), N)
    start(app_of(lambda a, _: a), {"w": np.ones(3)}, grid=grid, evaluate_every=2)
    carried: dict[tuple[str, str], set[bool]] = {}
    for _, reply in grid.replies:
        kind = (reply.metadata.message_type, reply.metadata.group_id)
        if kind[1]:
            carried.setdefault(kind, set()).add("flower_dhb.parameters" in reply.content)
            assert ("sketch" in reply.content["flower_dhb"]) == (kind[0] == "evaluate")
        assert not ({"flower_dhb.parameters", "flower_dhb.payload"} <= set(reply.content))
    rounds = sorted({int(k) for what, k in carried if what == "evaluate"})
    assert {key for key, found in carried.items() if True in found} == {
        ("evaluate", str(rounds[-1]))
    }
    assert len(rounds) > 1


# --- dtypes and forms ---------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        np.float32,
        np.float64,
        np.float16,
        np.dtype(">f4"),
        np.dtype(">f8"),
        np.dtype(">f2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [3, 5 * 16_384 + 1], ids=["small", "above 256 KiB"])
def test_real_numbers_of_every_size_and_byte_order_keep_their_values(form, size: int) -> None:
    """One round on a path of two: both end at the mean of what they trained."""
    values = (np.arange(size) % 512 / 256).astype(form)
    seen: list[Names] = []
    app = app_of(lambda a, i: {"w": a["w"] + a["w"].dtype.type(i)}, seen)
    result = start(app, {"w": values}, topology=Topology.path(2), rounds=1)
    assert all(r.events == [] for r in result.history)
    native = np.dtype(form).newbyteorder("=")
    np.testing.assert_array_equal(seen[0]["w"], values)
    for model in models(result):
        assert model["w"].dtype == native
        np.testing.assert_array_equal(model["w"], values.astype(native) + native.type(0.5))


@pytest.mark.parametrize("shape", [(3, 5), (300, 400)], ids=["small", "above 256 KiB"])
@pytest.mark.parametrize(
    "inner", [np.asfortranarray, np.ascontiguousarray, lambda a: a[::-1, ::-1]]
)
def test_arrays_in_any_order_of_memory_keep_their_values(shape, inner) -> None:
    values = np.random.default_rng(4).normal(size=shape)
    shift = np.random.default_rng(5).normal(size=shape)
    reversed_twice = lambda a: inner(inner(a)) if inner(a).base is not None else inner(a)  # noqa: E731
    app = app_of(lambda a, i: {"w": reversed_twice(a["w"] + i * shift)})
    result = start(app, {"w": np.asfortranarray(values)}, topology=Topology.path(2), rounds=1)
    assert all(r.events == [] for r in result.history)
    for model in models(result):
        np.testing.assert_allclose(model["w"], values + 0.5 * shift, rtol=0, atol=1e-15)


def test_scalars_empty_arrays_and_those_that_stay_local_keep_their_shape() -> None:
    initial = {
        "scale": np.array(2.0),
        "none": np.zeros((0, 3), np.float32),
        "w": np.ones((2, 1, 2), np.float32),
        "count": np.array(7),
        "mask": np.array([True, False]),
        "big": np.array([1, 2], np.dtype(">i4")),
    }
    seen: list[Names] = []

    def step(a: Names, i: int) -> Names:
        return {**a, "scale": np.asarray(a["scale"] + i), "count": np.asarray(a["count"] + 1)}

    result = start(app_of(step, seen), initial, topology=Topology.path(2), rounds=2)
    assert all(r.events == [] for r in result.history)
    assert sorted(int(a["count"]) for a in seen) == [7, 7, 8, 8]
    for model in models(result):
        assert {k: a.shape for k, a in model.items()} == {k: a.shape for k, a in initial.items()}
        assert float(model["scale"]) == 3.0
        np.testing.assert_array_equal(model["w"], initial["w"])
        np.testing.assert_array_equal(model["big"], [1, 2])
    assert all(a["mask"].tolist() == [True, False] for a in seen)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (np.ones(2, np.complex64), "complex64"),
        (np.ones(2, np.longdouble), str(np.dtype(np.longdouble))),
        (np.array(["a"]), "<U1"),
        (np.array([b"a"]), "S1"),
        (np.array(["2026-01-01"], "datetime64[D]"), "datetime64"),
        (np.zeros(2, [("a", "f4")]), "'a'"),
    ],
)
def test_what_no_agent_can_average_is_refused_by_name_before_the_run(bad, kind: str) -> None:
    grid = LocalGrid(app_of(lambda a, _: a), 2)
    initial = {"w": np.ones(2), "odd": bad}
    with pytest.raises(ConfigError) as e:
        start(app_of(lambda a, _: a), initial, topology=Topology.path(2), grid=grid)
    assert "'odd'" in str(e.value)
    assert kind in str(e.value)
    assert grid.messages == []


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (np.ones(2, np.complex128), "'w' is complex128[2], expected float64[2]"),
        (np.ones(2, np.float32), "'w' is float32[2], expected float64[2]"),
        (np.ones((2, 1)), "'w' is float64[2, 1], expected float64[2]"),
        (np.array(["a", "b"]), "'w' is <U1[2], expected float64[2]"),
    ],
)
def test_what_an_app_returns_of_another_kind_is_refused_by_name(returned, told: str) -> None:
    app = app_of(lambda a, i: {"w": returned if i == 1 else a["w"]})
    result = start(app, {"w": np.ones(2)}, topology=Topology.path(3), rounds=1)
    ((vertex, text),) = result.history[0].events
    assert vertex == 1
    assert told in text
    assert result.history[0].missing == [1]


def test_bytes_that_are_no_array_raise_nothing_but_our_own_error() -> None:
    good = Array(np.arange(6.0).reshape(2, 3))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(700):
        data = bytearray(good.data)
        for _ in range(int(rng.integers(1, 4))):
            how, at = int(rng.integers(3)), int(rng.integers(min(len(data), 100)))
            if how == 0:
                data[at] = int(rng.integers(256))
            elif how == 1:
                del data[at:]
                data += b"\x00" * 10
            else:
                data[at:at] = bytes(rng.choice(list(b"([{'\",:-9}])"), 3).tolist())
        try:
            found = named_arrays({"w": Array("float64", (2, 3), good.stype, bytes(data))})
        except FlowerDhbError as error:
            refused += 1
            named = "'w'" in str(error)
        else:
            named = found["w"].dtype != object
        assert named
    assert refused > 350


def test_pickled_objects_are_never_read(tmp_path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PayloadError, match="'w' is not a readable array"):
        named_arrays({"w": Array("object", (1,), "numpy.ndarray", path.read_bytes())})


# --- between the simulation's processes ---------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 10**6])
def test_payloads_and_states_move_between_processes_apart_from_the_stream(size: int) -> None:
    """Their bytes lie outside of what pickle writes, and to Flower they are plain arrays."""
    values = np.arange(size, dtype=np.float32).tobytes()
    array = carried("float32", (size,), "raw", values)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(array, 5, buffer_callback=buffers.append)
    assert len(stream) < 300
    assert sum(memoryview(buffer).nbytes for buffer in buffers) == len(values)
    plain = Array("float32", (size,), "raw", values)
    for again in (
        pickle.loads(stream, buffers=buffers),  # noqa: S301
        pickle.loads(pickle.dumps(array, 5)),  # noqa: S301
        pickle.loads(pickle.dumps(array, 4)),  # noqa: S301
        copy.deepcopy(array),
    ):
        assert vars(again)["data"] == values
        assert (again.object_id, again.deflate()) == (plain.object_id, plain.deflate())
        assert pickle.dumps(again, 5, buffer_callback=lambda _: None) == stream, "as cheap again"
    assert isinstance(frame_array(values), type(array))
