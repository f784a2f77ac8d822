"""Who may sit on a vertex: nodes that come, go and come back, and those that claim a seat."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Message
from flwr.proto.node_pb2 import NodeInfo
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import ConfigError, ServerlessStrategy, Topology, consensus_mod

N, D, VICTIM, OTHER = 4, 4, 2, 4242
GRAPH = Topology.from_edges([(0, 1), (0, 2), (2, 3)])


class Keyed(LocalGrid):
    """Nodes with registered keys. before: is called with the number of each round that begins."""

    def __init__(self, before: Callable[[Keyed, int], None], keys: bool = True) -> None:
        self.keys = {}
        super().__init__(numpy_app(N, D, mods=[consensus_mod]), N)
        if keys:
            self.keys = {node: f"key of {v}".encode() for node, v in self.vertex_of.items()}
        self._before, self._round = before, 0

    def get_nodes(self):
        return [NodeInfo(node_id=i, public_key=self.keys.get(i, b"")) for i in self.get_node_ids()]

    def leave(self, node: int) -> None:
        self.away = (node, self.vertex_of.pop(node), self.contexts.pop(node))

    def come_back(self) -> None:
        node, self.vertex_of[node], self.contexts[node] = (self.away[0], *self.away[1:])


def run(grid: Keyed, rounds: int, **options):
    strategy = ServerlessStrategy(
        GRAPH, evaluate_every=0, average=False, on_round=lambda r: grid._before(grid, r.round + 1),
        **options,
    )  # fmt: skip
    return strategy.start(grid, start_arrays(D)[0], rounds)


def events(result):
    return [(r.round, v, text) for r in result.history for v, text in r.events]


def test_a_node_that_was_away_takes_its_vertex_again_when_the_seat_falls_free() -> None:
    def before(grid: Keyed, number: int) -> None:
        if number == 2:
            grid.seated = grid.node_of(VICTIM)
            grid.leave(grid.seated)
            grid.add_node(VICTIM, OTHER)
        elif number == 4:  # both are there, one of them sits
            grid.come_back()
        elif number == 7:
            grid.remove_node(OTHER)

    grid = Keyed(before)
    result = run(grid, 10)
    told = [text for _, v, text in events(result) if v == VICTIM and "vertex 2" in text]
    assert told[0] == f"vertex 2 is back, on node {OTHER}"
    assert any(f"node {grid.seated} says vertex 2, where node {OTHER} sits" in t for t in told)
    assert told[-1] == f"vertex 2 is back, on node {grid.seated}"
    assert [r.missing for r in result.history][-2:] == [[], []]


def test_a_node_that_failed_when_it_was_asked_is_asked_again() -> None:
    """Its app could not be loaded at first; its id stays the same."""
    broken = [True]

    def before(grid: Keyed, number: int) -> None:
        if number == 2:
            grid.remove_node(grid.node_of(VICTIM))
            grid.add_node(VICTIM, OTHER)
        broken[0] = number < 4

    def intercept(vertex: int, message: Message) -> Exception | None:
        ours = broken[0] and message.metadata.dst_node_id == OTHER
        return ImportError("no module named 'torch'") if ours else None

    grid = Keyed(before)
    grid.intercept = intercept
    result = run(grid, 12)
    assert any("no module named 'torch'; " in text for *_, text in events(result))
    assert any(text == f"vertex 2 is back, on node {OTHER}" for *_, text in events(result))
    assert result.history[-1].missing == []


def test_a_vertex_belongs_to_the_registered_key_of_its_node() -> None:
    def before(grid: Keyed, number: int) -> None:
        if number == 2:
            grid.add_node(VICTIM, OTHER)
            grid.keys[OTHER] = b"key of a thief"
        elif number == 4:
            grid.leave(grid.node_of(VICTIM) if number < 4 else grid.seated)
        elif number == 7:
            grid.come_back()

    grid = Keyed(before)
    grid.seated = grid.node_of(VICTIM)
    result = run(grid, 9, bind_nodes=True)
    (refused,) = [text for *_, text in events(result) if f"node {OTHER} says" in text]
    assert "belongs to the registered key" in refused
    assert refused.endswith("; ignored")
    assert [VICTIM in r.missing for r in result.history][3:6] == [True] * 3, "nobody takes its seat"
    assert [r.missing for r in result.history][-2:] == [[], []]


def test_where_nodes_have_no_keys_there_is_nothing_to_bind_to() -> None:
    with pytest.raises(ConfigError, match=r"bind_nodes=True: the nodes of vertices \[0, 1, 2, 3\]"):
        run(Keyed(lambda *_: None, keys=False), 1, bind_nodes=True)


def test_a_claim_that_names_anothers_vertex_takes_nothing_from_an_agent_that_is_well() -> None:
    def before(grid: Keyed, number: int) -> None:
        if number == 2:
            grid.add_node(VICTIM, OTHER)

    grid = Keyed(before)
    result = run(grid, 5)
    assert all(r.missing == [] for r in result.history)
    asked = [m for _, m in grid.messages if m.metadata.dst_node_id == OTHER]
    assert {json.loads(str(m.content["flower_dhb"]["json"]))["ask"] for m in asked} == {"vertex"}
    assert all(isinstance(m.content["flower_dhb"], ConfigRecord) for m in asked)
