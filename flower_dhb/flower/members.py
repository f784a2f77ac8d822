"""Which Flower node sits on which vertex, asked once and kept up to date.

Node ids are random in simulation, and in deployment a node without a key gets a new one
at every restart, so nothing is ever concluded from an id: the node says its vertex.
"""

from __future__ import annotations

import time
from logging import INFO

from flwr.app import Message, MessageType
from flwr.common import log
from flwr.serverapp import Grid

from flower_dhb.errors import ConfigError
from flower_dhb.flower.records import Answer, Question
from flower_dhb.flower.relay import Relay, Sent
from flower_dhb.graph import Topology

__all__ = ["Members"]

_ASK = "vertex"
_NOBODY = -1
_SIMULATION_WAIT_S, _DEPLOYMENT_WAIT_S = 10.0, 600.0
_ANSWER_S = 300.0  # the first answer waits for the simulation's workers to start
_LOG_EVERY_S = 5.0


class Members:
    """The nodes that take part, by vertex."""

    def __init__(self, topology: Topology, relay: Relay) -> None:
        self._topology = topology
        self._relay = relay
        self._node_of: dict[int, int] = {}
        self._asked: set[int] = set()
        self._online: set[int] = set()

    def enroll(self, node_timeout_s: float | None) -> None:
        """Wait for as many nodes as vertices, ask each for its vertex, and seat them.

        Raises ConfigError if they do not cover the graph, one node to a vertex.
        """
        expected = self._topology.n_agents
        if node_timeout_s is None:
            node_timeout_s = _default_wait_s(self._relay.grid)
        nodes = _wait_for_nodes(self._relay.grid, expected, node_timeout_s)
        if len(nodes) < expected:
            raise ConfigError(
                f"topology '{self._topology.name}' has {expected} vertices, but {len(nodes)} "
                f"nodes are connected after {node_timeout_s:g} s. Start as many nodes as vertices "
                f'(in simulation: --federation-config "num-supernodes={expected} '
                'client-resources-num-cpus=1") or choose a topology of that size'
            )
        self._online = nodes
        self._ask(nodes)
        claims: dict[int, list[int]] = {}
        for message in self._relay.collect({_NOBODY}, _ANSWER_S):
            sent = self._relay.origin(message)
            if sent is not None:
                claims.setdefault(_claimed(sent, message), []).append(sent.node_id)
        silent = len(nodes) - sum(len(ids) for ids in claims.values())
        self._relay.forget(_NOBODY)
        if silent:
            raise ConfigError(f"{silent} of {len(nodes)} nodes did not say their vertex in time")
        self._seat(claims)

    def node(self, vertex: int) -> int | None:
        """Node of a vertex, None if it is not connected."""
        node = self._node_of[vertex]
        return node if node in self._online else None

    def refresh(self) -> None:
        """See who is connected now, and ask nodes that are new for their vertex."""
        self._online = set(self._relay.grid.get_node_ids())
        for vertex, node in self._node_of.items():
            if node not in self._online:
                self._relay.forget(vertex)
        self._ask(self._online - self._asked)

    def claim(self, sent: Sent, message: Message) -> str:
        """Seat a node that came during the run. Returns what happened, for the history."""
        node = sent.node_id
        try:
            vertex = _claimed(sent, message)
        except ConfigError as error:
            return str(error)
        if vertex not in self._node_of:
            return f"node {node} says vertex {vertex}, which the topology does not have; ignored"
        if self.node(vertex) is not None:
            return f"node {node} says vertex {vertex}, where another node sits; ignored"
        self._node_of[vertex] = node
        return f"vertex {vertex} is back, on node {node}"

    def _ask(self, nodes: set[int]) -> None:
        self._asked |= nodes
        messages = []
        for node in sorted(nodes):
            message = Message(Question().to_records(), node, MessageType.TRAIN)
            self._relay.address(message, Sent(node, _NOBODY, _ASK, 0))
            messages.append(message)
        self._relay.send(messages)

    def _seat(self, claims: dict[int, list[int]]) -> None:
        n = self._topology.n_agents
        missing = [v for v in range(n) if v not in claims]
        doubled = [v for v, nodes in sorted(claims.items()) if len(nodes) > 1]
        beyond = [v for v in sorted(claims) if not 0 <= v < n]
        if missing or doubled or beyond:
            problems = [
                f"{what} {vertices}"
                for what, vertices in (
                    ("vertices without a node", missing),
                    ("vertices with more than one node", doubled),
                    ("nodes on vertices that it does not have", beyond),
                )
                if vertices
            ]
            raise ConfigError(
                f"the nodes do not cover topology '{self._topology.name}' (vertices 0 … {n - 1}): "
                f"{'; '.join(problems)}. A node's vertex is 'vertex' or 'partition-id' in its "
                "node config"
            )
        self._node_of = {vertex: nodes[0] for vertex, nodes in claims.items()}


def _claimed(sent: Sent, message: Message) -> int:
    """The vertex that a node says it is. Raises ConfigError if it is no agent of ours."""
    node = sent.node_id
    remedy = "is consensus_mod the first of ClientApp(mods=[...]), or decentralize(app) used?"
    if message.has_error():
        raise ConfigError(f"node {node} failed to say its vertex: {message.error.reason}; {remedy}")
    answer = Answer.from_records(message.content)
    if answer is None:
        raise ConfigError(f"node {node} did not answer as an agent; {remedy}")
    if answer.failure:
        raise ConfigError(answer.failure)
    return answer.vertex


def _wait_for_nodes(grid: Grid, expected: int, timeout_s: float) -> set[int]:
    begin = time.monotonic()
    next_log = begin + _LOG_EVERY_S
    while True:
        nodes = set(grid.get_node_ids())
        now = time.monotonic()
        if len(nodes) >= expected or now - begin >= timeout_s:
            return nodes
        if now >= next_log:
            log(INFO, "waiting for nodes: %d of %d connected", len(nodes), expected)
            next_log = now + _LOG_EVERY_S
        time.sleep(0.1)


def _default_wait_s(grid: Grid) -> float:
    # In simulation all nodes are there at once; devices are switched on one by one.
    simulated = type(grid).__name__ == "InMemoryGrid"
    return _SIMULATION_WAIT_S if simulated else _DEPLOYMENT_WAIT_S
