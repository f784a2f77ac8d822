"""The relay's books: who is due what, from which round, over which edges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header
from flower_dhb.agent.node import Node, parameter_vectors
from flower_dhb.algorithms import GradientTracking, HeavyBall
from flower_dhb.errors import PayloadError
from flower_dhb.flower.arrays import frame_array, frame_of
from flower_dhb.flower.ledger import Ledger
from flower_dhb.flower.records import Answer
from flower_dhb.topology.graph import Topology
from flower_dhb.types import Layout

# Edges 0-1, 0-2, 0-3, 2-3: vertex 1 has one neighbor, the others two or three.
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (2, 3)])
ARRAYS = {
    "w": np.array([1.0, 2.0], np.float32),
    "running_var": np.array([3.0], np.float32),
    "count": np.array(7),
}
LAYOUT, RULE = Layout.of(ARRAYS), HeavyBall()


def ledger() -> Ledger:
    return Ledger(
        GRAPH, RULE, LAYOUT, ARRAYS, run="r", arrays_key="my-arrays", config_key="my-config"
    )


def frame(vertex: int, round: int, run: str = "r"):
    vectors = {
        "folded": np.full(2, 10 * round + vertex, np.float32),
        "statistics": np.full(1, vertex, np.float32),
    }
    return frame_array(codec.encode(vectors, run=run, round=round, vertex=vertex))


def frames(round: int, *vertices: int):
    return {v: frame(v, round) for v in vertices}


def trained(vertex: int, round: int) -> Answer:
    return Answer(
        ask="train", vertex=vertex, round=round, state_round=round - 1, payload=frame(vertex, round)
    )


def due(books: Ledger, vertex: int, round: int = 9):
    """(round of its parameters once combined, payloads by sender and their round, rejoin)."""
    asked = books.instruction(vertex, "train", round, report=False)

    def of(array, number):
        specs = Node.vectors_of(RULE, LAYOUT)
        for sender in range(4):
            try:
                codec.decode(frame_of(array), Header("r", number, sender, specs))
            except PayloadError:
                continue
            return sender
        return None

    payloads = {j: of(array, asked.state_round) for j, array in asked.payloads.items()}
    assert all(sender == j for j, sender in payloads.items())
    rejoin = {j: number for j, (number, array) in asked.rejoin.items() if of(array, number) == j}
    assert len(rejoin) == len(asked.rejoin)
    return asked.state_round, sorted(payloads), rejoin


def test_the_first_instruction_holds_the_start_and_what_is_common_to_all() -> None:
    books = ledger()
    asked = books.instruction(2, "train", 1, report=True)
    assert (asked.ask, asked.run, asked.round, asked.vertex) == ("train", "r", 1, 2)
    assert (asked.state_round, asked.report) == (0, True)
    assert asked.weights == {j: GRAPH.mixing_matrix[2, j] for j in (0, 2, 3)}
    assert list(asked.weights) == [0, 2, 3]
    assert (asked.arrays_key, asked.config_key) == ("my-arrays", "my-config")
    assert (asked.algorithm, asked.layout) == (RULE, LAYOUT)
    assert asked.start is not None
    start = codec.decode(frame_of(asked.start), Header("r", 0, -1, parameter_vectors(LAYOUT)))
    assert start["parameters"].tolist() == [1.0, 2.0]
    assert start["statistics"].tolist() == [3.0]
    assert {name: int(array.numpy()) for name, array in asked.local.items()} == {"count": 7}
    assert asked.payloads == asked.rejoin == {}
    assert books.instruction(2, "evaluate", 1, report=False).report is False


def test_payloads_go_to_graph_neighbors_that_delivered_too() -> None:
    books = ledger()
    sent = books.deliver(1, frames(1, 0, 1, 3))  # 2 is late
    size = len(frame_of(frame(0, 1)))
    assert sent == {0: 2 * size, 1: size, 3: size}
    assert due(books, 0) == (1, [1, 3], {})
    assert due(books, 1) == (1, [0], {})
    assert due(books, 2) == (0, [], {})
    assert due(books, 3) == (1, [0], {})
    assert books.instruction(1, "train", 2, report=False).start is None
    assert books.instruction(2, "train", 2, report=False).start is not None


def test_what_is_due_stays_due_until_it_is_answered() -> None:
    books = ledger()
    books.deliver(1, frames(1, 0, 1, 2, 3))
    before = due(books, 0)
    assert before == due(books, 0) == (1, [1, 2, 3], {})
    # An answer that has combined round 1 and trained nothing: nothing is due any more.
    books.acknowledge(Answer(ask="evaluate", vertex=0, round=1, state_round=1))
    assert due(books, 0) == (1, [], {})
    assert due(books, 1) == (1, [0], {})
    # One that has trained round 2, which nobody got: its parameters are of round 2 then.
    books.acknowledge(trained(1, 2))
    assert due(books, 1) == (2, [], {})
    books.deliver(2, frames(2, 0, 1))
    assert due(books, 0) == (2, [1], {})
    assert due(books, 2) == (1, [0, 3], {})  # still of round 1


def test_an_agent_in_doubt_may_rejoin_from_its_neighbors_newest_payloads() -> None:
    books = ledger()
    books.doubt(0)
    assert due(books, 0) == (0, [], {})  # nothing is lost before the first round
    books.deliver(1, frames(1, 0, 1, 2, 3))
    assert due(books, 0) == (1, [1, 2, 3], {})  # delivered: it is known to be there
    books.deliver(2, frames(2, 1, 2))
    books.doubt(0)
    assert due(books, 0) == (1, [1, 2, 3], {1: 2, 2: 2, 3: 1})
    assert due(books, 3) == (1, [0, 2], {})  # not in doubt
    books.acknowledge(Answer(ask="train", vertex=3, round=3, state_round=-1))
    assert due(books, 3) == (1, [0, 2], {0: 1, 2: 2})
    books.acknowledge(Answer(ask="train", vertex=3, round=3, state_round=0))
    assert due(books, 3) == (0, [], {})


def test_a_frame_is_the_senders_own_of_this_round_and_run() -> None:
    books = ledger()
    books.check(1, 3, frame(1, 3))
    for vertex, k, other in (
        (2, 3, frame(1, 3)),
        (1, 4, frame(1, 3)),
        (1, 3, frame(1, 3, "s")),
    ):
        with pytest.raises(PayloadError):
            books.check(vertex, k, other)
    vectors = {"folded": np.zeros(3, np.float32), "statistics": np.zeros(1, np.float32)}
    longer = frame_array(codec.encode(vectors, run="r", round=3, vertex=1))
    with pytest.raises(PayloadError, match="folded"):
        books.check(1, 3, longer)


def test_reported_parameters_are_of_the_answers_round_and_vertex() -> None:
    vectors = {"parameters": np.ones(2, np.float32), "statistics": np.full(1, 4, np.float32)}
    report = frame_array(codec.encode(vectors, run="r", round=5, vertex=2))

    def answer(vertex: int, state_round: int, parameters=report) -> Answer:
        return Answer(
            ask="report", vertex=vertex, round=5, state_round=state_round, parameters=parameters
        )

    found = ledger().parameters(answer(2, 5))
    assert {name: v.tolist() for name, v in found.items()} == {
        "parameters": [1.0, 1.0],
        "statistics": [4.0],
    }
    assert ledger().parameters(answer(2, 5, None)) == {}
    for vertex, state_round in ((1, 5), (2, 4)):
        with pytest.raises(PayloadError):
            ledger().parameters(answer(vertex, state_round))


# --- epochs -------------------------------------------------------------------------


def tracking() -> Ledger:
    return Ledger(
        GRAPH, GradientTracking(), LAYOUT, ARRAYS, run="r", arrays_key="a", config_key="c"
    )


def of_epoch(vertex: int, round: int, epoch: int, **changes: object) -> Answer:
    return dataclasses.replace(trained(vertex, round), epoch=epoch, **changes)  # type: ignore[arg-type]


def partners(books: Ledger, vertex: int) -> list[int]:
    return sorted(books.instruction(vertex, "train", 9, report=False).payloads)


def test_an_edge_counts_within_one_epoch_only_and_at_both_ends() -> None:
    books = tracking()
    for vertex, epoch in ((0, 0), (1, 0), (2, 1), (3, 1)):
        books.acknowledge(of_epoch(vertex, 1, epoch))
    size = len(frame_of(frame(0, 1)))
    assert books.deliver(1, frames(1, 0, 1, 2, 3)) == {0: size, 1: size, 2: size, 3: size}
    assert [partners(books, v) for v in range(4)] == [[1], [0], [3], [2]]
    # In the next round all are in the new epoch.
    for vertex in range(4):
        assert books.instruction(vertex, "train", 2, report=False).epoch == 1
        books.acknowledge(of_epoch(vertex, 2, 1))
    books.deliver(2, frames(2, 0, 1, 2, 3))
    assert [partners(books, v) for v in range(4)] == [[1, 2, 3], [0], [0, 3], [0, 2]]


def test_the_newest_epoch_that_was_told_is_the_one_to_join() -> None:
    books = tracking()
    assert books.instruction(0, "train", 1, report=False).epoch == books.epoch == 0
    books.acknowledge(of_epoch(2, 1, 1))
    books.acknowledge(of_epoch(3, 1, 1))  # two losses, one epoch
    books.acknowledge(of_epoch(0, 1, 0))  # who has not heard of it does not take it back
    assert books.instruction(0, "train", 2, report=False).epoch == books.epoch == 1
    # What an agent could not keep is no epoch: it would open another one each time.
    books.acknowledge(of_epoch(1, 2, 2, payload=None, state_round=-1))
    assert books.epoch == 1


def test_an_agent_cannot_be_further_than_the_next_epoch() -> None:
    books = tracking()
    books.check_epoch(of_epoch(2, 1, 1))
    with pytest.raises(PayloadError, match="it is in epoch 2, expected 1 at most"):
        books.check_epoch(of_epoch(2, 1, 2))
    books.acknowledge(of_epoch(2, 1, 1))
    books.check_epoch(of_epoch(2, 1, 2))
    with pytest.raises(PayloadError, match="it is in epoch 1, expected 0 at most"):
        ledger().check_epoch(of_epoch(2, 1, 1))  # heavy ball has one epoch only


def test_an_edge_in_quarantine_counts_at_neither_end():
    """Agent 3 has 2 in quarantine: neither gets the other's payload, until 3 says otherwise."""
    books = ledger()
    for vertex in range(4):
        books.acknowledge(trained(vertex, 1))
    books.acknowledge(dataclasses.replace(trained(3, 1), quarantined=(2,)))
    books.deliver(1, frames(1, 0, 1, 2, 3))
    heard = [set(books.instruction(v, "train", 2, report=False).payloads) for v in range(4)]
    assert heard == [{1, 2, 3}, {0}, {0}, {0}]
    for vertex in range(4):
        books.acknowledge(trained(vertex, 2))
    books.deliver(2, frames(2, 0, 1, 2, 3))
    assert set(books.instruction(2, "train", 3, report=False).payloads) == {0, 3}
