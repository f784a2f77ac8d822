"""An app's ClientApp as one agent of a peer: what it finds, what comes of it, what is kept."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_dhb import DSGD, ConfigError, HeavyBall, StateError
from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header, VectorSpec
from flower_dhb.agent.compression import Compression
from flower_dhb.algorithms import Algorithm, GradientTracking
from flower_dhb.peer.device import flwr_adapter
from flower_dhb.peer.device.app import Agent
from flower_dhb.peer.wire.changes import Known
from flower_dhb.types import State

START = {"x": np.arange(4.0), "bn.running_mean": np.array([0.5, 0.25]), "steps": np.array(7)}
PLAIN = {"x": START["x"]}


def app_that(seen, train=None, evaluate=None):
    """An app that adds 1 to all floats, counts in its own state, and remembers what it saw."""
    app = ClientApp()

    @app.train()
    def _train(message, context):
        seen.append((message, context))
        if train is not None:
            return train(message)
        arrays = {n: a.numpy() for n, a in message.content["arrays"].items()}
        count = context.state.get("count", MetricRecord({"n": 0}))["n"]
        context.state["count"] = MetricRecord({"n": count + 1})
        content = {
            "arrays": ArrayRecord({n: Array(np.asarray(a + 1)) for n, a in arrays.items()}),
            "metrics": MetricRecord({"count": count + 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def _evaluate(message, context):
        seen.append((message, context))
        if evaluate is not None:
            return evaluate(message)
        x = message.content["arrays"]["x"].numpy()
        return Message(RecordDict({"m": MetricRecord({"sum": float(x.sum())})}), reply_to=message)

    return app


def agent(seen=None, *, arrays=START, train=None, evaluate=None, **changes):
    kept = {
        "vertex": 2, "run": "r", "algorithm": HeavyBall(momentum=0.5, momentum_mixing=0.0),
        "weights": {2: 0.5, 0: 0.25, 7: 0.25}, "node_config": {}, "run_config": {},
    }  # fmt: skip
    app = app_that([] if seen is None else seen, train, evaluate)
    return Agent.of_device(app, arrays=arrays, **(kept | changes))


def neighbor(j, k, x, run="r", statistics=None):
    vectors = {"parameters": np.asarray(x, float)}
    if statistics is not None:
        vectors["statistics"] = np.asarray(statistics, float)
    return codec.encode(vectors, run=run, round=k, vertex=j)


def vectors(frame):
    return {n: v.tolist() for n, v in codec.decode(frame, codec.read_header(frame)).items()}


# --- what the app finds -------------------------------------------------------------------


def test_what_a_message_and_its_context_hold():
    seen = []
    one = agent(
        seen,
        node_config={"partition-id": 5, "vertex": 9, "data": "/d"},
        run_config={"lr": 0.5},
        train_config={"epochs": 2, "server-round": 99},
        evaluate_config={"full": True},
    )
    one.train(1)
    one.combine(1, {}, evaluate=True)
    one.train(3)
    (first, context), (second, _), (third, _) = seen
    assert dict(context.node_config) == {"partition-id": 5, "vertex": 2, "data": "/d"}
    assert dict(context.run_config) == {"lr": 0.5}
    assert dict(first.content["config"].items()) == {"epochs": 2, "server-round": 1}
    assert dict(second.content["config"].items()) == {"full": True, "server-round": 1}
    assert third.content["config"]["server-round"] == 3
    assert (first.metadata.message_type, second.metadata.message_type) == ("train", "evaluate")
    assert (first.metadata.group_id, third.metadata.group_id) == ("1", "3")
    assert list(first.content["arrays"]) == ["x", "bn.running_mean", "steps"]
    assert first.content["arrays"]["steps"].numpy() == 7
    assert context.node_id == 4
    assert agent(node_config={})._context.node_config == {"partition-id": 2, "vertex": 2}


def test_the_app_does_not_see_the_agents_own_state():
    states = []

    app = ClientApp()

    @app.train()
    def _train(message, context):
        states.append(sorted(context.state))
        x = message.content["arrays"]["x"].numpy()
        return Message(RecordDict({"arrays": ArrayRecord({"x": Array(x)})}), reply_to=message)

    one = Agent.of_device(
        app, vertex=0, run="r", algorithm=DSGD(), weights={0: 0.5, 1: 0.5}, arrays=PLAIN,
        node_config={}, run_config={},
    )  # fmt: skip
    for k in (1, 2):
        one.train(k)
        one.combine(k, {}, evaluate=False)
    assert states == [[], []]


# --- what comes of a round ----------------------------------------------------------------


def test_rounds_as_the_law_says_with_statistics_and_what_stays_local():
    one = agent()
    assert one.vectors == (
        VectorSpec("parameters", "float64", 4),
        VectorSpec("statistics", "float64", 2),
    )
    first = one.train(1)
    x = np.arange(4.0)
    assert vectors(first.frame) == {"parameters": (x + 1).tolist(), "statistics": [1.5, 1.25]}
    header = codec.read_header(first.frame)
    assert (header.run, header.round, header.vertex) == ("r", 1, 2)
    assert (first.failure, first.refused, dict(first.metrics)) == ("", (), {"count": 1})
    heard = {0: neighbor(0, 1, x, statistics=[0, 0]), 7: neighbor(7, 1, x + 2, statistics=[1, 1])}
    combined = one.combine(1, heard, evaluate=True)
    x1 = 0.5 * (x + 1) + 0.25 * x + 0.25 * (x + 2)
    assert dict(combined.metrics) == {"sum": x1.sum()}
    assert (combined.frame, one.round) == (None, 1)
    snapshot = one.snapshot()
    np.testing.assert_allclose(snapshot.state.parameters, x1)
    np.testing.assert_allclose(snapshot.statistics, [1.0, 0.875])
    assert snapshot.local["steps"] == 8
    # The second round, alone: all weight is its own, and its momentum moves it on.
    second = one.train(2)
    assert vectors(second.frame)["parameters"] == (x1 + 1).tolist()
    assert dict(second.metrics) == {"count": 2}  # the app's own state is kept
    one.combine(2, {}, evaluate=False)
    np.testing.assert_allclose(one.snapshot().state.parameters, x1 + 1 + 0.5 * (x1 - x))


def test_before_the_first_round_the_state_is_the_start():
    snapshot = agent().snapshot()
    assert (snapshot.round, snapshot.pending) == (0, None)
    np.testing.assert_array_equal(snapshot.state.parameters, START["x"])
    np.testing.assert_array_equal(snapshot.state.memory["displacement"], np.zeros(4))
    np.testing.assert_array_equal(snapshot.statistics, [0.5, 0.25])
    assert agent(arrays=PLAIN).snapshot().statistics.size == 0


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (neighbor(0, 2, np.zeros(4)), "payload is of round 2, expected 1"),
        (neighbor(7, 1, np.zeros(4)), "payload is of vertex 7, expected 0"),
        (neighbor(0, 1, np.zeros(3)), r"'parameters' is float64\[3\], expected float64\[4\]"),
        (neighbor(0, 1, np.zeros(4), run="q"), "payload is of run 'q', expected 'r'"),
    ],
)
def test_a_payload_that_the_agent_refuses_is_told_and_not_used(frame, text):
    one = agent(arrays=PLAIN)
    one.train(1)
    outcome = one.combine(1, {0: frame, 7: neighbor(7, 1, np.arange(4.0))}, evaluate=False)
    (refused,) = outcome.refused
    assert re.search(text, refused)
    x = np.arange(4.0)
    np.testing.assert_allclose(one.snapshot().state.parameters, 0.75 * (x + 1) + 0.25 * x)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (lambda message: 1 / 0, "ZeroDivisionError: division by zero"),
        (
            lambda message: Message(Error(3, "broken"), reply_to=message),
            "the app answered with an error: broken",
        ),
        (
            lambda message: Message(
                RecordDict({"arrays": ArrayRecord({"x": Array(np.full(4, np.nan))})}),
                reply_to=message,
            ),
            "agent 2: 'x'",
        ),
    ],
)
def test_an_app_that_fails_costs_the_round_and_not_the_state(answer, failure):
    one = agent(arrays=PLAIN, train=answer)
    outcome = one.train(1)
    assert (outcome.frame, outcome.refused) == (None, ())
    assert failure in outcome.failure
    np.testing.assert_array_equal(one.snapshot().state.parameters, np.arange(4.0))
    assert one.snapshot().pending is None


def test_a_round_that_cannot_be_combined_is_an_error_that_says_why():
    one = agent(arrays=PLAIN)
    with pytest.raises(StateError, match="round 1, agent 2: could not combine: "):
        one.combine(1, {}, evaluate=False)


# --- to begin again -----------------------------------------------------------------------


@pytest.mark.parametrize("evaluate", [True, False])
def test_to_begin_again_takes_the_neighbors_average_and_forgets_its_own(evaluate):
    one = agent(arrays=PLAIN)
    one.train(1)
    one.combine(1, {}, evaluate=False)
    x = np.arange(4.0)
    newest = {0: (8, neighbor(0, 8, x)), 7: (9, neighbor(7, 9, x + 2))}
    outcome = one.rejoin(newest, evaluate=evaluate)
    assert outcome.rejoined
    assert one.round == 9
    np.testing.assert_allclose(one.snapshot().state.parameters, x + 1)
    np.testing.assert_array_equal(one.snapshot().state.memory["displacement"], np.zeros(4))
    assert dict(outcome.metrics) == ({"sum": (x + 1).sum()} if evaluate else {})
    assert dict(one.train(10).metrics) == {"count": 2}  # what is the app's stays


def test_to_begin_again_from_nothing_usable_is_an_error():
    with pytest.raises(StateError, match="agent 2: could not rejoin: "):
        agent(arrays=PLAIN).rejoin({0: (8, neighbor(0, 8, np.zeros(3)))}, evaluate=False)


# --- epochs -------------------------------------------------------------------------------


def tracking(**changes):
    return agent(arrays=PLAIN, algorithm=GradientTracking(), **changes)


def of_tracking(j, k, x, y):
    vectors = {"parameters": np.asarray(x, float), "tracker": np.asarray(y, float)}
    return codec.encode(vectors, run="r", round=k, vertex=j)


def correction(one):
    memory = one.snapshot().state.memory
    return (memory["mixed_tracker"] - memory["last_step"]).tolist()


def test_an_agent_joins_a_newer_epoch_when_it_trains_and_keeps_it():
    one, other = tracking(), tracking()
    x = np.arange(4.0)
    one.train(1)
    heard = {0: of_tracking(0, 1, x, 9 * x)}
    assert one.combine(1, heard, evaluate=False).epoch == 0
    assert correction(one) != [0, 0, 0, 0]
    outcome = one.train(2, epoch=3)
    assert outcome.epoch == 3
    assert correction(one) == [0, 0, 0, 0]
    assert vectors(outcome.frame)["tracker"] == [1, 1, 1, 1]  # the step, as in a first round
    assert one.combine(2, {}, evaluate=False).epoch == 3
    other.load(2, *one.save())
    assert other.train(3, epoch=2).epoch == 3  # an older one changes nothing


def test_who_begins_again_opens_the_next_epoch():
    one = tracking()
    newest = {0: (8, of_tracking(0, 8, np.zeros(4), np.ones(4)))}
    assert one.rejoin(newest, evaluate=False, epoch=4).epoch == 5
    assert one.train(9, epoch=4).epoch == 5
    plain = agent(arrays=PLAIN)  # heavy ball has nothing to restart
    assert plain.rejoin({0: (8, neighbor(0, 8, np.zeros(4)))}, evaluate=False).epoch == 0


def test_who_refuses_what_its_neighbor_has_counted_opens_the_next_epoch():
    one = tracking()
    one.train(1, epoch=2)
    heard = {0: of_tracking(0, 1, np.zeros(3), np.zeros(3)), 7: of_tracking(7, 1, *np.eye(4)[:2])}
    outcome = one.combine(1, heard, evaluate=False)
    assert len(outcome.refused) == 1
    assert outcome.epoch == 3
    assert correction(one) == [0, 0, 0, 0]


def test_what_is_shared_early_is_of_the_epoch_that_the_round_will_be_in():
    class Early(GradientTracking):
        # Shares a tracker that does not depend on training.
        shares_before_training = True

    one = tracking()
    one.algorithm = Early()
    one.train(1)
    one.combine(1, {0: of_tracking(0, 1, np.zeros(4), np.full(4, 5.0))}, evaluate=False)
    assert any(vectors(one.early(2).frame)["tracker"])
    assert not any(vectors(one.early(2, epoch=1).frame)["tracker"])
    assert one.snapshot().epoch == 0  # nothing has begun yet


# --- before training ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "arrays", "early"),
    [
        (HeavyBall(order="combine-then-adapt"), PLAIN, True),
        (HeavyBall(order="combine-then-adapt"), START, False),  # statistics come of training
        (HeavyBall(), PLAIN, False),
        (DSGD(order="combine-then-adapt"), PLAIN, True),
    ],
)
def test_what_can_be_shared_before_training(rule, arrays, early):
    one = agent(algorithm=rule, arrays=arrays)
    frame = one.early(1).frame
    assert (frame is not None) is early
    if early:
        header = codec.read_header(frame)
        assert (header.run, header.round, header.vertex) == ("r", 1, 2)
        assert [v.name for v in header.vectors] == list(rule.vectors)
        assert vectors(frame)[rule.vectors[0]] == START["x"].tolist()


@dataclass(frozen=True, kw_only=True)
class Counting(Algorithm):
    """Shares before training, `k` and its length in round `k`: what it shares is measured."""

    vectors = ("parameters",)
    memory = ()
    products = (("parameters", "parameters"),)
    shares_before_training = True

    def measure(self, products):
        return {"length": np.sqrt(products["parameters", "parameters"])}

    def outgoing(self, state, trained):
        return {"parameters": 0 * state.parameters + (state.round + 1) * state.measured["length"]}

    def combine(self, state, trained, mixed):
        return State(mixed["parameters"] + (trained - state.parameters), {})


def test_what_is_shared_before_training_is_what_is_shared_after_it():
    one = agent(algorithm=Counting(), arrays=PLAIN)
    for k in (1, 2, 3):
        early = one.early(k).frame
        x = one.snapshot().state.parameters
        assert vectors(early)["parameters"] == pytest.approx([k * np.linalg.norm(x)] * x.size)
        assert one.train(k).frame == early
        one.combine(k, {}, evaluate=False)


# --- compressed payloads --------------------------------------------------------------------

LONG = {"x": np.linspace(-1.0, 2.0, 400)}
FORMS = ("int8", "topk:0.1", "randk:0.1")


def made_of(change, one, known):
    """What a neighbor makes of a change."""
    there = Known(one.compressor, known)
    expect = Header("r", change.round, 2, one.vectors)
    return there.rebuild(change.data, [(change.round, len(change.data))], there.held, expect)


@pytest.mark.parametrize("text", FORMS)
def test_what_is_sent_in_place_of_a_payload_leads_to_it(text):
    one = agent(algorithm=DSGD(), arrays=LONG, compression=Compression.parse(text))
    known = one.known([0, 7]).get(0)
    assert (known is not None) is one.compressor.estimates
    for k in (1, 2):
        found = one.train(k)
        assert codec.read_header(found.frame).round == found.change.round == k
        assert made_of(found.change, one, known) == found.frame
        assert len(found.change.data) < len(found.frame) / 2
        assert one.change() == found.change  # after a restart, too
        one.combine(k, {}, evaluate=False)
        known = codec.decode(found.frame, codec.read_header(found.frame))


@pytest.mark.parametrize("text", FORMS)
def test_in_a_round_in_which_nobody_is_due_nothing_is_compressed(text):
    """Its payload is there whole, for who begins again; a number of a shared round brings codes."""
    one, plain = (
        agent(algorithm=DSGD(), arrays=LONG, compression=Compression.parse(kind))
        for kind in (text, "none")
    )
    known = one.known([0]).get(0)
    found = one.train(1, sends=False)
    assert (found.change, one.snapshot().pending.codes, one.change()) == (None, None, None)
    assert found.frame == plain.train(1, sends=False).frame
    found = one.relabel(4)
    assert made_of(found.change, one, known) == found.frame


@pytest.mark.parametrize("text", FORMS)
def test_a_round_gets_another_number_and_all_that_depends_on_it(text):
    """An agent that lags takes the round of its neighbors: the same part of it is mixed there."""
    one, other = (
        agent(algorithm=DSGD(), arrays=LONG, compression=Compression.parse(text)) for _ in "ab"
    )
    known = one.known([0]).get(0)
    one.train(1)
    found = one.relabel(5)
    assert one.snapshot().pending.round == 5
    expected = other.train(5)
    assert (found.frame, found.change) == (expected.frame, expected.change)
    assert made_of(found.change, one, known) == found.frame
    payload = codec.decode(found.frame, codec.read_header(found.frame))
    theirs = codec.encode({n: v + 1.0 for n, v in payload.items()}, run="r", round=5, vertex=0)
    for agent_ in (one, other):
        agent_.combine(5, {0: theirs}, evaluate=False)
    state, same = one.snapshot().state.parameters, other.snapshot().state.parameters
    np.testing.assert_array_equal(state, same)


@pytest.mark.parametrize("text", ["int8", "int4"])
def test_what_is_sent_before_training_is_what_would_be_sent_after_it(text):
    rule = DSGD(order="combine-then-adapt")
    one = agent(algorithm=rule, arrays=LONG, compression=Compression.parse(text))
    for k in (1, 2, 3):
        early = one.early(k)
        found = one.train(k)
        assert (early.frame, early.change) == (found.frame, found.change)
        one.combine(k, {}, evaluate=False)


def test_an_agent_that_begins_again_sends_its_payload_whole_once():
    one = agent(algorithm=DSGD(), arrays=LONG, compression=Compression.parse("topk:0.1"))
    near = neighbor(0, 3, LONG["x"])
    one.rejoin({0: (3, near)}, evaluate=False)
    assert one.train(4).change is None
    one.combine(4, {}, evaluate=False)
    assert one.train(5).change is not None


# --- what is kept -------------------------------------------------------------------------


def test_an_agent_goes_on_from_what_it_saved():
    one, other = agent(), agent()
    one.train(1)
    one.combine(1, {}, evaluate=False)
    one._context.state["own"] = ConfigRecord({"b": b"\x00\xff", "l": [1, 2], "t": "x"})
    arrays, document = one.save()
    other.load(1, arrays, json.loads(json.dumps(document)))
    assert other.round == 1
    assert dict(other._context.state["own"].items()) == {"b": b"\x00\xff", "l": [1, 2], "t": "x"}
    here, there = one.train(2), other.train(2)
    assert here.frame == there.frame
    assert dict(there.metrics) == {"count": 2}
    for k in (2, 3):
        one.combine(k, {}, evaluate=False)
        other.combine(k, {}, evaluate=False)
        assert one.train(k + 1).frame == other.train(k + 1).frame


# --- Flower's private parts ---------------------------------------------------------------


def test_a_context_holds_copies():
    node, run = {"a": 1}, {"b": 2}
    context = flwr_adapter.make_context(11, 5, node, run)
    node["a"], run["b"] = 3, 4
    assert (context.run_id, context.node_id) == (11, 5)
    assert (dict(context.node_config), dict(context.run_config)) == ({"a": 1}, {"b": 2})
    assert len(context.state) == 0


def test_a_view_of_a_frame_is_no_copy():
    frame = bytearray(b"abc")
    array = flwr_adapter.frame_view(frame)
    assert (array.dtype, tuple(array.shape), array.stype) == ("uint8", (3,), "flower_dhb.frame")
    frame[0] = ord("x")
    assert bytes(array.data) == b"xbc"


@pytest.mark.parametrize(
    ("code", "reference", "text"),
    [
        ("import nowhere_to_be_found", "app", "cannot load ClientApp '.*:app': No module named"),
        ("x = 1", "app", "cannot load ClientApp '.*:app': module .* has no attribute 'app'"),
        ("app = 3", "app", "':?.*app' is a int, expected a flwr ClientApp"),
    ],
)
def test_what_is_no_client_app(tmp_path, code, reference, text):
    name = f"made_app_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    with pytest.raises(ConfigError, match=text):
        flwr_adapter.load_client_app(tmp_path, f"{name}:{reference}")
