"""Nodes and relays that send anything: an event that names the agent, never the end of a run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid
from support.mutate import mutated

from flower_dhb import (
    DSGD,
    FlowerDhbError,
    HeavyBall,
    PayloadError,
    ServerlessStrategy,
    Topology,
    consensus_mod,
)
from flower_dhb.flower.records import Answer, Instruction, Question, read_request
from flower_dhb.metrics import RoundRecord

pytestmark = pytest.mark.thorough

N, D = 5, 4
GRAPH = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4)])
VICTIM = 3


def recorded_run() -> tuple[LocalGrid, list[RecordDict], list[RecordDict]]:
    """A short run: its grid, the contents of its messages, and of the replies."""
    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    rule = HeavyBall(payload="separate")
    ServerlessStrategy(GRAPH, rule).start(grid, start_arrays(D)[0], 2)
    sent = [message.content for _, message in grid.messages]
    return grid, sent, [reply.content for _, reply in grid.replies]


def test_whatever_is_read_raises_nothing_but_our_own_errors() -> None:
    _, sent, replies = recorded_run()
    rng = np.random.default_rng(1)
    refused = []
    for read, originals in ((read_request, sent), (Answer.from_records, replies)):
        for _ in range(1000):
            content = originals[int(rng.integers(len(originals)))]
            for _ in range(int(rng.integers(1, 3))):
                content = mutated(content, rng)
            try:
                found = read(content)
            except FlowerDhbError as error:
                refused.append(str(error))
            else:
                assert found is None or isinstance(found, Answer | Instruction | Question)
    assert len(refused) > 800, "the mutations must reach what is checked"
    assert max(map(len, refused)) < 1000


def test_a_malformed_instruction_is_answered_and_the_state_is_kept() -> None:
    app = numpy_app(N, D, mods=[consensus_mod])
    grid = LocalGrid(app, N)
    strategy = ServerlessStrategy(GRAPH, HeavyBall())
    strategy.start(grid, start_arrays(D)[0], 2)
    rng = np.random.default_rng(2)
    ours = [(v, m) for v, m in grid.messages if m.metadata.message_type == "train"]
    told = 0
    for _ in range(300):
        vertex, message = ours[int(rng.integers(len(ours)))]
        context: Context = copy.deepcopy(grid.contexts[grid.node_of(vertex)])
        sent = Message(mutated(message.content, rng), 1, "train")
        record = sent.content.get("flower_dhb")
        if not isinstance(record, ConfigRecord) or "json" not in record:
            continue  # nothing says that it is ours: it goes to the app
        before = dict(context.state["flower_dhb.state"].items())
        answer = Answer.from_records(app(sent, context).content)
        assert answer is not None
        if answer.ask == "vertex" and answer.failure:
            told += 1
            assert dict(context.state["flower_dhb.state"].items()) == before
    assert told > 50


@pytest.mark.parametrize("seed", range(2))
def test_an_agent_that_answers_anything_never_ends_the_run(seed: int) -> None:
    app = numpy_app(N, D, mods=[consensus_mod])
    rng = np.random.default_rng(seed)

    class Broken(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = app(message, context)
            if message.metadata.group_id:
                reply.content = mutated(reply.content, rng)
            return reply

    broken = Broken()
    grid = LocalGrid(lambda vertex: broken if vertex == VICTIM else app, N)
    result = ServerlessStrategy(GRAPH, HeavyBall()).start(grid, start_arrays(D)[0], 20)
    assert len(result.history) == 20
    assert any(r.missing for r in result.history)
    assert all(r.missing in ([], [VICTIM]) for r in result.history), "it harms itself alone"
    assert all(vertex == VICTIM for r in result.history for vertex, _ in r.events)
    for record in result.history:
        assert sorted(set(range(N)) - set(record.evaluate)) in ([], [VICTIM])


def answers(change: Callable[[dict[str, Any]], None]) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        document = json.loads(str(content["flower_dhb"]["json"]))
        change(document)
        content["flower_dhb"] = ConfigRecord({"json": json.dumps(document)})
        return content

    return apply


def no_json(content: RecordDict) -> RecordDict:
    content["flower_dhb"] = ConfigRecord({"json": "not JSON"})
    return content


def other_stype(content: RecordDict) -> RecordDict:
    array = content.array_records["flower_dhb.payload"]["payload"]
    content["flower_dhb.payload"] = ArrayRecord(
        {"payload": Array(array.dtype, array.shape, "numpy.ndarray", array.data)}
    )
    return content


def huge_metric(content: RecordDict) -> RecordDict:
    content["metrics"] = MetricRecord({"num-examples": 2**2000})
    return content


def wrong_record(content: RecordDict) -> RecordDict:
    content["flower_dhb"] = MetricRecord({"json": 1})
    return content


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (answers(lambda d: d.update(version=2)), "protocol version 2, expected 7"),
        (answers(lambda d: d.update(epoch=1)), "it is in epoch 1, expected 0 at most"),
        (no_json, "unreadable message: Expecting value"),
        (answers(lambda d: d.update(vertex="3")), "'vertex' is of type str, expected an integer"),
        (answers(lambda d: d.update(vertex=True)), "'vertex' is True, expected an integer"),
        (answers(lambda d: d.update(vertex=2**70)), f"'vertex' is {2**70}, expected an integer"),
        (
            answers(lambda d: d.update(vertex=2)),
            "as vertex 2, asked was 'train' of round 2, vertex",
        ),
        (answers(lambda d: d.update(round=9)), "answers 'train' of round 9 as vertex 3, asked was"),
        (answers(lambda d: d.update(round=float("nan"))), "NaN is no number"),
        (answers(lambda d: d.update(state_round=2)), "its state is of round 2, expected 1 at most"),
        (answers(lambda d: d.update(state_round=7)), "its state is of round 7, expected 1 at most"),
        (answers(lambda d: d.pop("round")), "lacks 'round'"),
        (answers(lambda d: d.update(refused=5)), "'refused' is of type int, expected at most"),
        (other_stype, "payload refused: a payload is serialized as 'numpy.ndarray', expected"),
        (huge_metric, "metric 'num-examples' is beyond 64 bits"),
        (wrong_record, "did not answer as an agent; consensus_mod must be the first"),
    ],
)
def test_an_answer_that_cannot_be_is_an_event_of_its_round_and_costs_the_agent_that_round(
    change: Callable[[RecordDict], RecordDict], told: str
) -> None:
    app = numpy_app(N, D, mods=[consensus_mod])

    class Broken(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = app(message, context)
            if (message.metadata.group_id, message.metadata.message_type) == ("2", "train"):
                reply.content = change(reply.content)
            return reply

    broken = Broken()
    grid = LocalGrid(lambda vertex: broken if vertex == VICTIM else app, N)
    result = ServerlessStrategy(GRAPH, DSGD()).start(grid, start_arrays(D)[0], 3)
    assert [r.missing for r in result.history] == [[], [VICTIM], []]
    assert [len(r.events) for r in result.history] == [0, 1, 0]
    ((vertex, text),) = result.history[1].events
    assert vertex == VICTIM
    assert told in text


def test_no_round_is_believed_of_which_the_rejoining_agent_has_no_payload() -> None:
    _, sent, _ = recorded_run()
    content = copy.deepcopy(next(c for c in sent if "flower_dhb.common" in c))
    content = answers(lambda d: d.update(rejoin_rounds=[[1, 4]]))(content)
    with pytest.raises(PayloadError, match=r"payloads of vertices \[\] to rejoin from, rounds of"):
        read_request(content)


JUNK = 99  # in place of a vertex, of a node that comes in mid-run
KINDS: dict[str, Callable[[RecordDict, np.random.Generator], RecordDict]] = {
    "mutated": lambda content, rng: mutated(content, rng),
    "an older version": lambda content, _: answers(lambda d: d.update(version=4))(content),
    "a newer version": lambda content, _: answers(
        lambda d: (d.clear(), d.update(version=9, who="x"))
    )(content),
    "not even JSON": lambda content, _: no_json(content),
    "nothing": lambda content, _: RecordDict(),
    "another app": lambda content, _: RecordDict({"metrics": MetricRecord({"loss": 1.0})}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("free", [False, True], ids=["seat taken", "seat free"])
def test_a_node_that_joins_in_mid_run_and_answers_junk_is_its_own_failure(
    kind: str, free: bool
) -> None:
    app, rng = numpy_app(N, D, mods=[consensus_mod]), np.random.default_rng(5)

    class Junk(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = app(message, context)
            reply.content = KINDS[kind](reply.content, rng)
            return reply

    junk = Junk()
    grid = LocalGrid(
        lambda vertex: junk if vertex == JUNK else app,
        N,
        node_config=lambda v: {"partition-id": VICTIM if v == JUNK else v},
    )

    def joins(record: RoundRecord) -> None:
        if record.round == 2:
            grid.add_node(JUNK, 4242)
            if free:
                grid.remove_node(grid.node_of(VICTIM))
        if record.round == 12 and free:  # and the agent itself returns, under a new id
            grid.remove_node(4242)
            grid.add_node(VICTIM, 4243)

    strategy = ServerlessStrategy(GRAPH, HeavyBall(), on_round=joins, collect_models=True)
    result = strategy.start(grid, start_arrays(D)[0], 20, timeout=5.0)
    assert len(result.history) == 20
    assert len(result.models) == N
    told = {vertex for record in result.history for vertex, _ in record.events}
    assert told <= {-1, VICTIM}
    missing = {v for record in result.history for v in record.missing}
    if free:
        assert missing == {VICTIM}
        assert result.history[-1].missing == []
    else:
        assert missing == set(), "nobody takes the seat of an agent that is well"
