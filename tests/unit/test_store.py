"""An agent's state between two messages: all of it comes back, and no other state is taken."""

import dataclasses
import json
import os

import numpy as np
import pytest
import safetensors
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file, save_file

from flower_dhb import DSGD, HeavyBall, StateError, consensus_mod
from flower_dhb.agent.codec import Header, decode, encode
from flower_dhb.agent.node import Node, Pending, Snapshot
from flower_dhb.agent.screening import Lengths
from flower_dhb.algorithms.safeguarded import SafeguardedHeavyBall
from flower_dhb.flower.arrays import frame_array, start_frame
from flower_dhb.flower.records import Answer, Instruction
from flower_dhb.flower.store import load_snapshot, open_store, snapshot_vectors
from flower_dhb.peer.device.flwr_adapter import make_message, take_identity
from flower_dhb.types import Layout, State

RUN = "0123456789abcdef"
ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn.running_mean": np.array([0.5, 0.25]),
    "steps": np.array(7),
    "mask": np.array([[True], [False]]),
}
LAYOUT = Layout.of(ARRAYS)
RULE = HeavyBall(momentum=0.5)


def snapshot(pending=True):
    x = np.arange(6, dtype=np.float32)
    made = Snapshot(
        round=4,
        state=State(x, {"displacement": x + 10}),
        statistics=np.array([1.5, 2.5]),
        local={"steps": np.array(7), "mask": np.array([[True], [False]])},
        epoch=3,
    )
    if not pending:
        return made
    lengths = Lengths(0.1, 1 / 3, 2e-40)
    return dataclasses.replace(
        made, pending=Pending(5, x + 20, np.array([3.5, 4.5]), lengths=lengths)
    )


def context(folder=None):
    config = (
        {"partition-id": 3} if folder is None else {"partition-id": 3, "state-dir": str(folder)}
    )
    return Context(run_id=1, node_id=2, node_config=config, state=RecordDict(), run_config={})


@pytest.fixture(params=["context", "file"])
def where(request, tmp_path):
    return context(tmp_path / "a" / "states" if request.param == "file" else None)


def same(found, want):
    """Whether two snapshots are equal, part by part and to the bit."""
    assert (found.round, found.epoch) == (want.round, want.epoch)
    vectors = [(found.state.parameters, want.state.parameters), (found.statistics, want.statistics)]
    assert list(found.state.memory) == list(want.state.memory)
    vectors += [(found.state.memory[n], want.state.memory[n]) for n in want.state.memory]
    assert set(found.local) == set(want.local)
    vectors += [(found.local[n], want.local[n]) for n in want.local]
    assert (found.pending is None) == (want.pending is None)
    if want.pending is not None:
        assert found.pending.round == want.pending.round
        vectors.append((found.pending.trained, want.pending.trained))
        vectors.append((found.pending.statistics, want.pending.statistics))
        assert found.pending.measured == want.pending.measured
        assert found.pending.lengths == want.pending.lengths
    for one, other in vectors:
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pending", [True, False])
def test_all_of_a_state_comes_back(where, pending):
    store = open_store(where, RUN, 3)
    assert store.load(RULE, LAYOUT) is None
    store.save(snapshot(pending), RULE)
    same(open_store(where, RUN, 3).load(RULE, LAYOUT), snapshot(pending))


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "a release that did not keep it"])
def test_what_was_measured_of_a_pending_round_is_not_measured_again(kept):
    rule = SafeguardedHeavyBall()
    node = Node.start(0, rule, {0: 0.5, 1: 0.5}, LAYOUT, ARRAYS)
    for k in (1, 2):
        node.adapt(k, {**ARRAYS, "w": ARRAYS["w"] + k})
        if k == 1:
            node.combine()
    want = node.snapshot
    assert want.pending.lengths.path > 0.0
    assert want.pending.measured["momentum"] > 0.0
    document, arrays = snapshot_vectors(want, rule, RUN)
    document = json.loads(json.dumps(document))
    if kept:
        document["measured"]["momentum"] = 0.25
    else:
        del document["measured"], document["lengths"]
    found = load_snapshot(document, arrays, algorithm=rule, layout=LAYOUT, run=RUN)
    if kept:
        assert found.pending.measured == {**want.pending.measured, "momentum": 0.25}
        assert found.pending.lengths == want.pending.lengths
        return
    assert found.pending.measured == want.pending.measured
    again = Node(0, rule, node.weights, LAYOUT, found)
    for one in (node, again):
        one.combine()
    same(again.snapshot, node.snapshot)
    assert again.snapshot.screen == node.snapshot.screen


@pytest.mark.parametrize("numbers", [{}, [], {"momentum": "x"}, 3])
def test_numbers_that_no_rule_has_measured_are_a_damaged_state(numbers):
    rule = SafeguardedHeavyBall()
    node = Node.start(0, rule, {0: 0.5, 1: 0.5}, LAYOUT, ARRAYS)
    node.adapt(1, {**ARRAYS, "w": ARRAYS["w"] + 1})
    document, arrays = snapshot_vectors(node.snapshot, rule, RUN)
    document["measured"] = numbers
    with pytest.raises(StateError, match="damaged state"):
        load_snapshot(document, arrays, algorithm=rule, layout=LAYOUT, run=RUN)


def test_a_later_state_takes_the_place_of_an_earlier_one(where):
    store = open_store(where, RUN, 3)
    store.save(snapshot(), RULE)
    later = dataclasses.replace(snapshot(pending=False), round=5)
    store.save(later, RULE)
    same(store.load(RULE, LAYOUT), later)
    store.save(snapshot(), RULE)
    same(store.load(RULE, LAYOUT), snapshot())


def test_a_model_of_parameters_alone(where):
    arrays = {"w": np.arange(3.0)}
    layout = Layout.of(arrays)
    none = layout.empty_statistics()
    made = Snapshot(0, State(np.arange(3.0), {}), none, {}, Pending(1, np.ones(3), none))
    store = open_store(where, RUN, 3)
    store.save(made, DSGD())
    same(store.load(DSGD(), layout), made)


def test_vectors_in_any_order_of_memory(where):
    x = np.arange(12, dtype=np.float32)[::2]
    local = {"steps": np.array(7), "mask": np.asfortranarray(np.array([[True], [False]]))}
    made = dataclasses.replace(snapshot(), state=State(x, {"displacement": x[::-1]}), local=local)
    store = open_store(where, RUN, 3)
    store.save(made, RULE)
    same(store.load(RULE, LAYOUT), made)


def test_a_state_that_was_discarded_is_gone(where):
    store = open_store(where, RUN, 3)
    store.discard()  # there is none
    store.save(snapshot(), RULE)
    store.discard()
    assert store.load(RULE, LAYOUT) is None
    assert list(where.state) == []


def test_what_an_app_keeps_in_its_context_is_left_alone(where):
    where.state["mine"] = ConfigRecord({"x": 1})
    store = open_store(where, RUN, 3)
    store.save(snapshot(), RULE)
    assert where.state["mine"]["x"] == 1
    store.discard()
    assert list(where.state) == ["mine"]


# --- another's state ----------------------------------------------------------------------


def other_layout(**changes):
    return Layout.of({**ARRAYS, **changes})


ANOTHER = {
    "run": ("fedcba9876543210", RULE, LAYOUT, f"state is of run {RUN}, expected fedcba9876543210"),
    "rule": (RUN, DSGD(), LAYOUT, "state is of rule .*dmsgd.*, expected DSGD"),
    "setting of the rule": (RUN, HeavyBall(momentum=0.25), LAYOUT, "state is of rule .*0.5.*0.25"),
    "size": (
        RUN,
        RULE,
        other_layout(w=np.zeros((2, 2), np.float32)),
        r"another model: 'memory/displacement' is float32\[6\], expected float32\[4\]",
    ),
    "dtype": (RUN, RULE, other_layout(w=np.zeros((2, 3))), r"is float32\[6\], expected float64\[6"),
    "statistics": (
        RUN,
        RULE,
        other_layout(**{"bn.running_mean": np.zeros(3)}),
        r"'statistics' is float64\[2\], expected float64\[3\]",
    ),
    "local": (
        RUN,
        RULE,
        other_layout(steps=np.zeros(2, int)),
        r"'steps' is int64\[\], expected int",
    ),
    "more local arrays": (RUN, RULE, other_layout(seen=np.array(1)), "state lacks 'local/seen'"),
}


@pytest.mark.parametrize("what", ANOTHER)
def test_the_state_of_another_run_rule_or_model_is_refused(where, what):
    run, rule, layout, text = ANOTHER[what]
    open_store(where, RUN, 3).save(snapshot(), RULE)
    document, arrays = snapshot_vectors(snapshot(), RULE, RUN)
    with pytest.raises(StateError, match=text):
        load_snapshot(document, arrays, algorithm=rule, layout=layout, run=run)
    if what != "run":
        with pytest.raises(StateError, match=text):
            open_store(where, run, 3).load(rule, layout)


def test_each_vertex_and_each_run_has_its_own_file(tmp_path):
    first, second = (open_store(context(tmp_path), RUN, v) for v in (3, 4))
    third = open_store(context(tmp_path), "fedcba9876543210", 3)
    first.save(snapshot(), RULE)
    second.save(snapshot(pending=False), RULE)
    assert third.load(RULE, LAYOUT) is None
    assert first.load(RULE, LAYOUT).pending.round == 5
    assert second.load(RULE, LAYOUT).pending is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"run-{RUN}-vertex-3.safetensors",
        f"run-{RUN}-vertex-4.safetensors",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "parameters",
        "memory/displacement",
        "statistics",
        "local/steps",
        "trained",
        "trained_statistics",
    ],
)
@pytest.mark.parametrize("how", ["missing", "longer", "other dtype"])
def test_a_part_that_is_missing_or_another_is_named(name, how):
    document, arrays = snapshot_vectors(snapshot(), RULE, RUN)
    if how == "missing":
        del arrays[name]
        text = f"state lacks '{name}'"
    else:
        array = np.atleast_1d(arrays[name])
        arrays[name] = np.append(array, array[:1]) if how == "longer" else array.astype(np.float16)
        text = f"state is of another model: '{name.removeprefix('local/')}' is "
    with pytest.raises(StateError, match=text):
        load_snapshot(document, arrays, algorithm=RULE, layout=LAYOUT, run=RUN)


@pytest.mark.parametrize("key", ["round", "pending_round", "epoch"])
@pytest.mark.parametrize("value", [-1, 1.0, True, "4"])
def test_a_round_that_is_none(key, value):
    document, arrays = snapshot_vectors(snapshot(), RULE, RUN)
    document[key] = value
    text = f"damaged state: its {key.replace('_', ' ')} is {value!r}"
    with pytest.raises(StateError, match=text):
        load_snapshot(document, arrays, algorithm=RULE, layout=LAYOUT, run=RUN)


@pytest.mark.parametrize("key", ["run", "round", "pending_round", "algorithm"])
def test_a_document_that_lacks_something(key):
    document, arrays = snapshot_vectors(snapshot(), RULE, RUN)
    del document[key]
    with pytest.raises(StateError, match=f"state lacks '{key}'"):
        load_snapshot(document, arrays, algorithm=RULE, layout=LAYOUT, run=RUN)
    with pytest.raises(StateError, match="damaged state"):
        load_snapshot([], arrays, algorithm=RULE, layout=LAYOUT, run=RUN)


# --- damage -------------------------------------------------------------------------------


def test_records_of_an_app_under_our_names():
    where = context()
    store = open_store(where, RUN, 3)
    store.save(snapshot(), RULE)
    names = list(where.state)
    saved = {name: where.state[name] for name in names}
    for name in names:
        where.state[name] = ConfigRecord({"x": 1}) if name == names[0] else ArrayRecord()
        assert store.load(RULE, LAYOUT) is None
        where.state[name] = saved[name]
        del where.state[name]
        assert store.load(RULE, LAYOUT) is None
        where.state[name] = saved[name]
    where.state[names[1]] = ConfigRecord({"json": "{"})
    with pytest.raises(StateError, match="damaged state"):
        store.load(RULE, LAYOUT)
    where.state[names[1]] = ConfigRecord({"other": "{"})
    with pytest.raises(StateError, match="damaged state: 'json'"):
        store.load(RULE, LAYOUT)
    where.state[names[1]] = saved[names[1]]
    where.state[names[0]] = ArrayRecord({"parameters": Array(np.zeros(6, np.float32))})
    with pytest.raises(StateError, match=r"has serialization 'numpy.ndarray', expected"):
        store.load(RULE, LAYOUT)


def damaged(path, how):
    data = path.read_bytes()
    with safetensors.safe_open(path, framework="numpy") as file:
        about = file.metadata()["about"]
    if how == "cut":
        path.write_bytes(data[:-4])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no metadata":
        save_file(load_file(path), path)
    elif how == "no document":
        save_file(load_file(path), path, {"other": about})
    elif how == "not JSON":
        save_file(load_file(path), path, {"about": about[:-1]})
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "how", ["cut", "empty", "no metadata", "no document", "not JSON", "a directory"]
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, how):
    store = open_store(context(tmp_path), RUN, 3)
    store.save(snapshot(), RULE)
    path = tmp_path / f"run-{RUN}-vertex-3.safetensors"
    damaged(path, how)
    with pytest.raises(StateError, match=f"{path}: damaged state file: "):
        store.load(RULE, LAYOUT)


# --- files of other runs ------------------------------------------------------------------


def test_what_crashed_runs_left_goes_when_another_begins(tmp_path):
    day = 24 * 3600.0
    store = open_store(context(tmp_path), RUN, 3)

    def left(name, age):
        (tmp_path / name).write_bytes(b"old")
        moment = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (moment, moment))

    run = "fedcba9876543210"
    left(f"run-{run}-vertex-3.safetensors", day + 60)
    left(f"run-{run}.2-vertex-3.safetensors", day + 60)
    kept = {
        f"run-{run}0-vertex-3.safetensors": day - 60,  # it may go on
        f"run-{run}-vertex-33.safetensors": 2 * day,
        f"run-{run}-vertex-4.safetensors": 2 * day,
        "run-mine-vertex-3.safetensors": 2 * day,
        f"run-{run}-vertex-3.safetensors.bak": 2 * day,
    }
    for name, age in kept.items():
        left(name, age)
    store.save(snapshot(), RULE)
    own = f"run-{RUN}-vertex-3.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([own, *kept])
    left(f"run-{run}-vertex-3.safetensors", 2 * day)
    store.save(snapshot(), RULE)  # not in every round
    assert (tmp_path / f"run-{run}-vertex-3.safetensors").exists()


# --- as the mod uses it -------------------------------------------------------------------


def agent():
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message, context):
        x = message.content["arrays"]["w"].numpy()
        return Message(RecordDict({"arrays": ArrayRecord({"w": Array(x + 1)})}), reply_to=message)

    return app


def ask(app, where, k, *, state_round, start=None, rejoin=None):
    arrays = {"w": np.zeros(2)}
    layout = Layout.of(arrays)
    instruction = Instruction(
        ask="train", run=RUN, round=k, vertex=3, state_round=state_round,
        weights={3: 0.5, 4: 0.5}, algorithm=DSGD(), layout=layout,
        start=start_frame(layout, arrays, RUN) if start else None, rejoin=rejoin or {},
    )  # fmt: skip
    take_identity(1, 2)
    message = make_message(instruction.to_records(), "train", k, 2)
    answer = Answer.from_records(app(message, where).content)
    vectors = {}
    if answer.payload is not None:
        expect = Header.of({"parameters": np.zeros(2)}, run=RUN, round=k, vertex=3)
        vectors = decode(answer.payload.data, expect)
    return answer, {name: list(v) for name, v in vectors.items()}


def test_a_state_that_is_older_than_the_relay_knows_of_is_not_gone_on_with(where):
    """As after a node was set back to an old copy: it rejoins, and does not say nothing."""
    app = agent()
    answer, sent = ask(app, where, 1, state_round=0, start=True)
    assert (answer.failure, sent) == ("", {"parameters": [1.0, 1.0]})
    answer, sent = ask(app, where, 2, state_round=1)
    assert (answer.failure, answer.rejoined, sent) == ("", False, {"parameters": [2.0, 2.0]})
    # The relay has this agent's payload of round 4: a state of round 2 cannot be right.
    answer, sent = ask(app, where, 5, state_round=4)
    assert (answer.rejoined, sent) == (False, {})
    assert "state is lost and no neighbor's payload is here" in answer.failure
    assert answer.state_round == -1
    theirs = encode({"parameters": np.array([5.0, 6.0])}, run=RUN, round=4, vertex=4)
    answer, sent = ask(app, where, 5, state_round=4, rejoin={4: (4, frame_array(theirs))})
    assert (answer.failure, answer.rejoined, answer.state_round) == ("", True, 4)
    assert sent == {"parameters": [6.0, 7.0]}
