"""Peak memory of the ServerApp, in payloads per agent, while the relay carries large models.

The ServerApp runs in a process of its own, on the very grid that Flower gives it in a
deployment, with the copies that this one makes. Behind it, in another process, are a store
of objects as a SuperLink's, and the simulated agents.
Usage: python benchmarks/relay_memory.py [--agents 64] [--parameters 1000000] [--rounds 4]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from flower_dhb import ServerlessStrategy, Topology, consensus_mod

RUN = 4711
DEGREE = 4
CALLS: dict[str, tuple[Any, Any]] = {
    "GetNodes": (GetNodesRequest, GetNodesResponse),
    "PushMessages": (PushAppMessagesRequest, PushAppMessagesResponse),
    "PushObject": (PushObjectRequest, PushObjectResponse),
    "PullMessages": (PullAppMessagesRequest, PullAppMessagesResponse),
    "PullObject": (PullObjectRequest, PullObjectResponse),
    "ConfirmMessageReceived": (ConfirmMessageReceivedRequest, ConfirmMessageReceivedResponse),
}


# --- behind the grid ---------------------------------------------------------------------


def make_client_app() -> ClientApp:
    """Moves its parameters a little, without data."""
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (x,) = message.content["arrays"].to_numpy_ndarrays()
        z = x * np.float32(0.99) + np.float32(int(context.node_config["partition-id"]) % 7)
        metrics = MetricRecord({"num-examples": 1, "train_loss": float(z[0])})
        return Message(
            RecordDict({"arrays": ArrayRecord([z]), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


class Link:
    """The objects of messages, as a SuperLink keeps them, and agents that answer when asked."""

    def __init__(self, agents: int) -> None:
        self.app = make_client_app()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
        self.contexts = {
            1000 + i: Context(RUN, 1000 + i, {"partition-id": i}, RecordDict(), {})
            for i in range(agents)
        }
        self.contents: dict[str, bytes] = {}
        self.queue: dict[str, tuple[Any, Any]] = {}  # message and its tree, by id
        self.replies: dict[str, dict[str, InflatableObject]] = {}

    def answer(self, call: str, request: Any) -> Any:
        """What the runtime's API answers to a call."""
        methods = {
            "GetNodes": self._get_nodes,
            "PushMessages": self._push_messages,
            "PushObject": self._push_object,
            "PullMessages": self._pull_messages,
            "PullObject": self._pull_object,
            "ConfirmMessageReceived": self._confirm_message_received,
        }
        return methods[call](request)

    def _get_nodes(self, _: Any) -> Any:
        return GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in self.contexts])

    def _push_messages(self, request: Any) -> Any:
        missing: dict[str, None] = {}
        for proto, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            self.queue[proto.metadata.message_id] = (proto, tree)
            missing |= {
                part.object_id: None
                for part in iterate_object_tree(tree)
                if part.object_id not in self.contents
            }
        return PushAppMessagesResponse(
            message_ids=[proto.metadata.message_id for proto in request.messages_list],
            objects_to_push=missing,
            session_id="s",
        )

    def _push_object(self, request: Any) -> Any:
        self.contents[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def _pull_messages(self, request: Any) -> Any:
        response = PullAppMessagesResponse()
        for message_id in request.message_ids:
            if message_id not in self.queue:
                continue
            proto, tree = self.queue.pop(message_id)
            reply = self._run(proto, tree)
            response.messages_list.append(message_to_proto(remove_content_from_message(reply)))
            response.message_object_trees.append(get_object_tree(reply))
        return response

    def _pull_object(self, request: Any) -> Any:
        for objects in self.replies.values():
            if request.object_id in objects:
                content = objects[request.object_id].deflate()
                return PullObjectResponse(
                    object_found=True, object_available=True, object_content=content
                )
        return PullObjectResponse()

    def _confirm_message_received(self, request: Any) -> Any:
        self.replies.pop(request.message_object_id, None)
        return ConfirmMessageReceivedResponse()

    def _run(self, proto: Any, tree: Any) -> Message:
        message = message_from_proto(proto)
        node = message.metadata.dst_node_id
        ids = {part.object_id for part in iterate_object_tree(tree)}
        found = {i: self.contents[i] for i in ids}
        content = inflate_object_from_contents(tree.object_id, found)
        message = Message(content.content, node, message.metadata.message_type)  # type: ignore[attr-defined]
        message.metadata.__dict__["_message_id"] = proto.metadata.message_id
        wanted = {part.object_id for _, t in self.queue.values() for part in iterate_object_tree(t)}
        for i in ids - wanted:
            del self.contents[i]
        reply = self.app(message, self.contexts[node])
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            self.replies[reply.object_id] = get_all_nested_objects(reply)
        return reply


def serve(connection: Connection, agents: int) -> None:
    """Answer the grid's calls until it hangs up."""
    link = Link(agents)
    while True:
        try:
            name = connection.recv()
            request = CALLS[name][0].FromString(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(link.answer(name, request).SerializeToString())


class Calls:
    """Flower's client of the runtime's API, over a pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def call(request: Any) -> Any:
            data = request.SerializeToString()
            with self._lock:
                self._connection.send(name)
                self._connection.send_bytes(data)
                answer = self._connection.recv_bytes()
            return CALLS[name][1].FromString(answer)

        return call


class PipeGrid(HttpGrid):
    """Flower's grid of a deployment; what it would send over HTTP goes through a pipe."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(token="none")  # noqa: S106 (nobody reads it)
        self._client = Calls(connection)  # type: ignore[assignment]
        self.set_run(Run.create_empty(RUN))


# --- the ServerApp --------------------------------------------------------------------------


def a_graph(n: int) -> Topology:
    """A random graph in which all vertices have four neighbors: two random circles."""
    rng = np.random.default_rng(3)
    while True:
        edges = set()
        for _ in range(DEGREE // 2):
            order = rng.permutation(n)
            edges |= {
                tuple(sorted((int(a), int(b))))
                for a, b in zip(order, np.roll(order, 1), strict=True)
            }
        if len(edges) == n * DEGREE // 2:
            return Topology.from_edges(sorted(edges))


def resident(field: str) -> int:
    """Bytes of memory that the process has (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def measure(connection: Connection, agents: int, parameters: int, rounds: int) -> dict[str, float]:
    """Payloads per agent at the peak, above what the process had before the run."""
    grid = PipeGrid(connection)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
    start = ArrayRecord([np.zeros(parameters, np.float32)])
    strategy = ServerlessStrategy(a_graph(agents))
    payload = 4 * parameters
    peaks: list[float] = []
    before = resident("VmRSS")

    def on_round(_: object) -> None:
        peaks.append((resident("VmHWM") - before) / payload / agents)

    strategy.on_round = on_round
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    result = strategy.start(grid, start, rounds)
    assert all(record.missing == [] for record in result.history)
    assert len(result.arrays) == 1
    peak = (resident("VmHWM") - before) / payload / agents
    return {"peak": peak, "rounds": peaks, "before_mb": before / 1e6}  # type: ignore[dict-item]


def main(words: Iterable[str] | None = None) -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--parameters", type=int, default=10**6)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args(None if words is None else list(words))
    context = get_context("spawn")
    here, there = context.Pipe()
    agents = context.Process(target=serve, args=(there, arguments.agents), daemon=True)
    agents.start()
    there.close()
    try:
        found = measure(here, arguments.agents, arguments.parameters, arguments.rounds)
    finally:
        here.close()
        agents.join(30)
    json.dump(found, sys.stdout)
    print()


if __name__ == "__main__":
    main()
