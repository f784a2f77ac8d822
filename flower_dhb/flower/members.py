"""Which Flower node sits on which vertex, asked once and kept up to date.

Node ids are random in simulation, and in deployment a node without a key gets a new one
at every restart, so nothing is ever concluded from an id: the node says its vertex.

Flower lists a dead node for up to a minute, so a node that restarts quickly comes back
while its former self still sits on its vertex. The new one waits beside it and takes the
vertex as soon as the old one does not answer. So a node that names a stranger's vertex by
mistake takes nothing from an agent that is well.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO

from flwr.app import Message, MessageType
from flwr.common import log
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.flower.records import Answer, Question
from flower_dhb.flower.relay import NOBODY, Relay, Sent, is_unavailable
from flower_dhb.topology.turns import Graphs
from flower_dhb.types import Encryption

__all__ = ["Members"]

_ASK = "vertex"
_SIMULATION_WAIT_S, _DEPLOYMENT_WAIT_S = 10.0, 600.0
_ANSWER_S = 300.0  # the first answer waits for the simulation's workers to start
_SURPLUS_S = 5.0  # how long nodes are waited for that the graph does not need
_LOG_EVERY_S = 5.0
_POLL_MIN_S, _POLL_MAX_S = 0.005, 0.25


@dataclass
class _Inquiry:
    """How often a node was asked for its vertex, and from which refresh on it may be again."""

    times: int = 0
    again: float = 0.0


class Members:
    """The nodes that take part, by vertex."""

    def __init__(
        self,
        topology: Graphs,
        relay: Relay,
        *,
        run: str,
        encryption: Encryption = "none",
        bind_nodes: bool = False,
    ) -> None:
        self._topology = topology
        self._relay = relay
        self._run = run
        self._encryption = encryption
        self._bind_nodes = bind_nodes
        self._bound: dict[int, bytes] = {}  # public key by vertex
        self._ignored: dict[int, str] = {}  # by node, what was told last
        self._node_of: dict[int, int | None] = {}
        self._standby: dict[int, list[int]] = {}  # by vertex, the newest last
        self._silent: set[int] = set()  # vertices whose node did not answer
        self._online: set[int] = set()
        self._inquiries: dict[int, _Inquiry] = {}
        self._refreshes = 0
        self._keeps_file: set[int] = set()  # nodes
        self._direct: set[int] = set()  # nodes that can hold rounds with their neighbors
        self._addresses: dict[int, str] = {}  # by node
        self._announced: dict[int, str] = {}  # by node

    # --- before the run -------------------------------------------------------------

    def enroll(self, node_timeout_s: float | None) -> None:
        """Wait until every vertex has a node that has said so.

        Raises ConfigError if the nodes do not cover the graph, one node to a vertex, or if
        payloads are to be sealed and one has no keys; and at once if a node answers that it is no
        agent.
        """
        if node_timeout_s is None:
            node_timeout_s = _default_wait_s(self._relay.grid)
        claims: dict[int, int] = {}  # vertex by node
        gone: set[int] = set()  # listed, but not there
        begin = asked = time.monotonic()
        covered: float | None = None
        next_log, pause = begin + _LOG_EVERY_S, _POLL_MIN_S
        while True:
            self._online = self._relay.nodes()
            new = self._online - set(self._inquiries)
            if new:
                self._ask(new)
                asked = time.monotonic()
            for message in self._relay.collect(set(), None):
                self._take_first_claim(message, claims, gone)
            now = time.monotonic()
            there = self._online - gone
            silent = there - set(claims)
            if self._covers(claims):
                covered = now if covered is None else covered
                if not silent or now - covered >= _SURPLUS_S:
                    break
            elif not silent and len(there) >= self._topology.n_agents:
                break
            elif len(there) < self._topology.n_agents and now - begin >= node_timeout_s:
                raise ConfigError(self._too_few(len(there), node_timeout_s))
            elif silent and now - asked >= max(_ANSWER_S, node_timeout_s):
                raise ConfigError(
                    f"{len(silent)} of {len(there)} nodes did not say their vertex in "
                    f"{now - asked:.0f} s"
                )
            if now >= next_log:
                log(INFO, "waiting for nodes: %d connected, %d enrolled", len(there), len(claims))
                next_log = now + _LOG_EVERY_S
            time.sleep(pause)
            pause = min(2 * pause, _POLL_MAX_S)
        self._seat(claims)

    def _take_first_claim(self, message: Message, claims: dict[int, int], gone: set[int]) -> None:
        sent = self._relay.origin(message)
        if sent is None:
            return
        if is_unavailable(message):
            gone.add(sent.node_id)
            return
        claims[sent.node_id] = self._claimed(sent, message)

    def _covers(self, claims: Mapping[int, int]) -> bool:
        return sorted(claims.values()) == list(range(self._topology.n_agents))

    def _too_few(self, found: int, waited_s: float) -> str:
        expected = self._topology.n_agents
        return (
            f"topology '{self._topology.name}' has {expected} vertices, but {found} nodes are "
            f"connected after {waited_s:g} s. Start as many nodes as vertices (in simulation: "
            f'--federation-config "num-supernodes={expected} client-resources-num-cpus=1") or '
            "choose a topology of that size"
        )

    def _seat(self, claims: Mapping[int, int]) -> None:
        n = self._topology.n_agents
        nodes_of: dict[int, list[int]] = {}
        for node, vertex in claims.items():
            nodes_of.setdefault(vertex, []).append(node)
        missing = [v for v in range(n) if v not in nodes_of]
        doubled = [v for v, nodes in sorted(nodes_of.items()) if len(nodes) > 1]
        beyond = [v for v in sorted(nodes_of) if not 0 <= v < n]
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
        self._node_of = {vertex: nodes[0] for vertex, nodes in nodes_of.items()}
        if self._bind_nodes:
            self._bound = {v: self._relay.key_of(nodes[0]) for v, nodes in nodes_of.items()}
            without = [vertex for vertex, key in sorted(self._bound.items()) if not key]
            if without:
                raise ConfigError(
                    f"bind_nodes=True: the nodes of vertices {without} have no key. Start the "
                    "SuperLink with --enable-supernode-auth, register each SuperNode's key, and "
                    "start it with --auth-supernode-private-key; simulated nodes have none"
                )
        silent = [v for v in range(n) if not self.announcement(v)]
        if self._encryption != "none" and silent:
            raise ConfigError(
                f"encryption = '{self._encryption}': the nodes of vertices {silent} have announced "
                "no keys. Each SuperNode needs mesh='…' in its node config, its directory as "
                "'flower-dhb mesh' writes it; simulated nodes have none, so this is for deployments"
            )

    # --- during the run -------------------------------------------------------------

    def node(self, vertex: int) -> int | None:
        """Node of a vertex, None if it is not connected."""
        node = self._node_of[vertex]
        return node if node in self._online else None

    def keeps_file(self, vertex: int) -> bool:
        """Whether the node of a vertex keeps its state in a file."""
        return self._node_of[vertex] in self._keeps_file

    def is_direct(self, vertex: int) -> bool:
        """Whether the node of a vertex can hold rounds with its neighbors."""
        return self._node_of[vertex] in self._direct

    def address(self, vertex: int) -> str:
        """Where other nodes reach the node of a vertex, empty if they do not."""
        node = self._node_of[vertex]
        return "" if node is None else self._addresses.get(node, "")

    def in_context(self) -> list[int]:
        """Vertices of a deployment whose state Flower carries between SuperNode and app."""
        if _is_simulated(self._relay.grid):
            return []
        return [v for v in self._node_of if not self.keeps_file(v)]

    def announcement(self, vertex: int) -> str:
        """What the node of a vertex has announced of itself, empty if nothing."""
        node = self._node_of[vertex]
        return self._announced.get(node, "") if node is not None else ""

    def announces(self, node: int, announcement: str) -> None:
        """A node has other keys than before: it has lost its state, or its certificate is new."""
        self._announced[node] = announcement

    def refresh(self) -> None:
        """See who is connected now, and ask nodes that are new for their vertex.

        A node that has been away and sits on no vertex is asked again: another one may have taken
        its place meanwhile, and be gone.
        """
        self._refreshes += 1
        online = self._relay.nodes()
        for node in online - self._online - set(self._node_of.values()):
            self._inquiries.pop(node, None)
        self._online = online
        self._relay.forget_others(self._online)
        due = {
            node
            for node in self._online
            if self._inquiries.get(node, _Inquiry()).again <= self._refreshes
        }
        self._ask(due)

    def settle(self, vertex: int) -> str:
        """Give a vertex to a node that waits for it, if its own is gone or does not answer.

        Returns what happened, for the history, empty if nothing did.
        """
        seated = self.node(vertex)
        waiting = [node for node in self._standby.get(vertex, []) if node in self._online]
        if not waiting or (seated is not None and vertex not in self._silent):
            return ""
        node = waiting.pop()
        self._standby[vertex] = waiting if seated is None else [seated, *waiting]
        self._node_of[vertex] = node
        self._silent.discard(vertex)
        if seated is None:
            return f"vertex {vertex} is back, on node {node}"
        self._relay.forget(seated)
        return f"vertex {vertex} is back, on node {node}, since node {seated} does not answer"

    def answered(self, vertex: int) -> None:
        """The node of a vertex has answered as it should."""
        self._silent.discard(vertex)

    def doubt(self, vertex: int, *, ask: bool = False) -> None:
        """The node of a vertex has not answered. ask: it answered, but not as this agent."""
        self._silent.add(vertex)
        node = self._node_of[vertex]
        if ask and node in self._inquiries:
            inquiry = self._inquiries[node]
            inquiry.again = min(inquiry.again, self._refreshes + 2 ** (inquiry.times - 1))

    def claim(self, sent: Sent, message: Message) -> tuple[int, str]:
        """Hear a node that was asked during the run.

        Returns the vertex that it is about and what happened, empty if nothing did.
        """
        node = sent.node_id
        if is_unavailable(message):
            return NOBODY, ""  # listed, but not there; it is asked again later
        try:
            vertex = self._claimed(sent, message)
        except ConfigError as error:
            return self._ignore(node, NOBODY, f"{error}; ignored")
        if vertex not in self._node_of:
            self._leave(node)
            what = f"node {node} says vertex {vertex}, which the topology does not have; ignored"
            return self._ignore(node, NOBODY, what)
        seated = self._node_of[vertex]
        if seated == node:
            return vertex, ""
        if self._bind_nodes and self._relay.key_of(node) != self._bound[vertex]:
            self._leave(node)
            what = (
                f"node {node} says vertex {vertex}, which belongs to the registered key "
                f"{_short(self._bound[vertex])}, and has the key {_short(self._relay.key_of(node))}"
                "; ignored"
            )
            return self._ignore(node, vertex, what)
        self._leave(node)
        self._standby.setdefault(vertex, []).append(node)
        if self.node(vertex) is None:
            return vertex, self.settle(vertex)
        return vertex, (
            f"node {node} says vertex {vertex}, where node {seated} sits; it takes over if node "
            f"{seated} does not answer. If this is no restart, give each node a vertex of its own"
        )

    def _ignore(self, node: int, vertex: int, what: str) -> tuple[int, str]:
        """A claim that comes to nothing; the same words are told once."""
        told, self._ignored[node] = self._ignored.get(node), what
        return vertex, "" if told == what else what

    def _leave(self, node: int) -> None:
        """A node is not where it was before."""
        for vertex, seated in self._node_of.items():
            if seated == node:
                self._node_of[vertex] = None
        for nodes in self._standby.values():
            if node in nodes:
                nodes.remove(node)

    def _ask(self, nodes: set[int]) -> None:
        messages = []
        for node in sorted(nodes):
            inquiry = self._inquiries.setdefault(node, _Inquiry())
            inquiry.times += 1
            # A question may be lost, so it is put again, ever more seldom.
            inquiry.again = self._refreshes + 2**inquiry.times
            message = Message(Question(run=self._run).to_records(), node, MessageType.TRAIN)
            self._relay.address(message, Sent(node, NOBODY, _ASK, 0))
            messages.append(message)
        self._relay.send(messages)

    def _claimed(self, sent: Sent, message: Message) -> int:
        """The vertex that a node says it is. Raises ConfigError if it is no agent of ours.

        Such a node is asked again, ever more seldom: it may be mended without a new id.
        """
        answer = _read_claim(sent, message)
        if 0 <= answer.vertex < self._topology.n_agents:
            self._inquiries[sent.node_id].again = math.inf
        if answer.keeps_file:
            self._keeps_file.add(sent.node_id)
        if answer.direct:
            self._direct.add(sent.node_id)
        self._addresses[sent.node_id] = answer.address
        if answer.announcement:
            self._announced[sent.node_id] = answer.announcement
        return answer.vertex


def _short(key: bytes) -> str:
    """How messages name a public key."""
    return hashlib.sha256(key).hexdigest()[:12] if key else "none"


def _read_claim(sent: Sent, message: Message) -> Answer:
    node = sent.node_id
    remedy = (
        "consensus_mod must be the first of ClientApp(mods=[...]), or the app wrapped in "
        "decentralize(app)"
    )
    if message.has_error():
        if message.error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION:
            raise ConfigError(
                "correct the app's imports, or install what it needs where the agents run (the "
                f"node's log has the traceback): node {node} cannot load its ClientApp: "
                f"{message.error.reason}"
            )
        raise ConfigError(f"node {node} failed to say its vertex: {message.error.reason}; {remedy}")
    try:
        answer = Answer.from_records(message.content)
    except FlowerDhbError as error:
        raise ConfigError(f"node {node} failed to say its vertex: {error}") from None
    if answer is None:
        raise ConfigError(f"node {node} did not answer as an agent; {remedy}")
    if answer.failure:
        raise ConfigError(answer.failure)
    if answer.ask != _ASK or answer.vertex < 0:
        raise ConfigError(f"node {node} was asked for its vertex and answered '{answer.ask}'")
    return answer


def _default_wait_s(grid: Grid) -> float:
    # In simulation all nodes are there at once; devices are switched on one by one.
    return _SIMULATION_WAIT_S if _is_simulated(grid) else _DEPLOYMENT_WAIT_S


def _is_simulated(grid: Grid) -> bool:
    return type(grid).__name__ == "InMemoryGrid"
