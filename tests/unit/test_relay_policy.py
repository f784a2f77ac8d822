"""The operator's policy in a run of the relay: what leaves its node, and an app that resists."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg
from support.apps import flat, numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, ServerlessStrategy, Topology, consensus_mod
from flower_dhb.agent import codec
from flower_dhb.runs.folder import history_row

N, D = 4, 4
RING = Topology.ring(N)
BOUND = 2  # the vertex whose node has a policy


def run(
    policy: dict[str, object], mods: list[object] | None = None, rounds: int = 3, **options: object
):
    app = numpy_app(N, D, rate=0.5, mods=[consensus_mod, *(mods or [])])

    def config(vertex: int) -> dict[str, object]:
        return {"partition-id": vertex, **(policy if vertex == BOUND else {})}

    grid = LocalGrid(app, N, node_config=config)
    strategy = ServerlessStrategy(RING, DSGD(), **options)  # type: ignore[arg-type]
    result = strategy.start(grid, start_arrays(D)[0], rounds)
    return grid, result


def sent(grid: LocalGrid, vertex: int, round: int) -> np.ndarray:
    (frame,) = (
        reply.content["flower_dhb.payload"]["payload"].data
        for v, reply in grid.replies
        if v == vertex
        and reply.metadata.group_id == str(round)
        and "flower_dhb.payload" in reply.content
    )
    return codec.decode(frame, codec.read_header(frame))["parameters"]


def test_a_policy_holds_for_all_that_leaves_its_node_and_the_history_shows_it(caplog):
    policy = {"policy-clip": 0.125, "policy-metrics": "num-examples,norm"}
    with caplog.at_level(logging.INFO, logger="flwr"):
        grid, result = run(policy)
    start = start_arrays(D)[1]
    assert np.linalg.norm(sent(grid, BOUND, 1) - start) == pytest.approx(0.125)
    assert np.linalg.norm(sent(grid, 0, 1) - start) > 0.25, "others' updates are as they were"
    for record in result.history:
        assert record.policies == {BOUND: "clip 0.125; metrics num-examples, norm"}
        assert set(record.train[BOUND]) == {"num-examples"}
        assert set(record.train[0]) == {"num-examples", "train_loss"}
        assert set(record.evaluate[BOUND]) == {"num-examples", "norm"}
    row = history_row(result.history[0], N)
    told = {"agents": [BOUND], "policy": "clip 0.125; metrics num-examples, norm"}
    assert row["policies"] == [told]
    assert caplog.text.count("agent 2: the node's policy is: clip 0.125; metrics") == 1


def test_without_a_policy_nothing_changes_and_nothing_is_said():
    _, result = run({})
    assert all(record.policies == {} for record in result.history)
    assert history_row(result.history[0], N)["policies"] == []
    # A clip that is never reached, and a size that is never exceeded, change no bit.
    _, far = run({"policy-clip": 1e9, "policy-payload-bytes": 10**6})
    np.testing.assert_array_equal(flat(result.arrays), flat(far.arrays))


def test_noise_is_another_one_in_each_run_and_where_the_app_sets_a_seed():
    def seeds(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        np.random.seed(0)
        return call_next(message, context)

    one, other = (
        sent(run({"policy-clip": 0.5, "policy-noise": 1.0}, [seeds], 1)[0], BOUND, 1)
        for _ in range(2)
    )
    # Four elements of standard deviation 0.5: closer than a thousandth is beyond all chance.
    assert np.linalg.norm(one - other) > 1e-3


def test_an_app_that_rewrites_the_node_config_changes_nothing():
    def resists(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        context.node_config.pop("policy-clip", None)
        context.node_config["vertex"] = 0
        return reply

    def replaces(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        context.node_config = {"partition-id": 0}
        return reply

    for mod in (resists, replaces):
        grid, result = run({"policy-clip": 0.125}, [mod])
        assert [record.events for record in result.history] == [[], [], []]
        assert all(record.policies == {BOUND: "clip 0.125"} for record in result.history)
        x = flat(result.arrays)
        assert np.isfinite(x).all()
        node = grid.contexts[grid.node_of(BOUND)]
        assert node.node_config == {"partition-id": BOUND, "policy-clip": 0.125}


def test_an_evaluation_that_comes_with_the_next_training_is_bound_too():
    def raises(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if "norm" in str(reply.content) and reply.content["metrics"]["num-examples"] == BOUND + 1:
            calls.append(1)
            if len(calls) == 2:
                raise ValueError("patient 17")
        return reply

    calls: list[int] = []
    grid, result = run({"policy-metrics": "norm"}, [raises], join_evaluation=True)
    assert len(calls) == 3, "it evaluates after each of three rounds"
    assert [set(record.evaluate.get(BOUND, ())) for record in result.history] == [
        {"norm"}, set(), {"norm"},
    ]  # fmt: skip
    texts = [text for record in result.history for v, text in record.events if v == BOUND]
    assert any("ValueError in the app; its text stays in the log" in text for text in texts)
    assert not any("patient" in text for text in texts)
    for _, reply in grid.replies:
        assert not any("patient" in str(record) for record in reply.content.values())


def test_an_error_of_the_app_leaves_by_its_type_alone():
    class SecretError(Exception):
        pass

    def raises(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if context.node_config["partition-id"] == BOUND:
            raise (ValueError if message.metadata.group_id == "1" else SecretError)("patient 17")
        return call_next(message, context)

    grid, result = run({"policy-metrics": ""}, [raises], 2)
    told = [[text for _, text in record.events] for record in result.history]
    where = "in the app; its text stays in the log of the node, by the node's policy"
    assert all(text == f"ValueError {where}" for text in told[0])
    assert all(text == f"an error {where}" for text in told[1])
    assert [record.missing for record in result.history] == [[BOUND], [BOUND]]
    for _, reply in grid.replies:
        assert not any("patient" in str(record) for record in reply.content.values())


def test_a_payload_that_is_too_large_is_the_nodes_own_failure_before_the_app_is_called():
    called = []

    def counts(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        called.append(context.node_config["partition-id"])
        return call_next(message, context)

    _, result = run({"policy-payload-bytes": 31}, [counts], 2)
    assert [record.missing for record in result.history] == [[BOUND], [BOUND]]
    assert BOUND not in called
    texts = {text for record in result.history for _, text in record.events}
    assert any("has 32 bytes, and this node's policy lets out 31 at most" in t for t in texts)


def test_a_policy_that_cannot_be_read_is_told_when_the_nodes_are_asked():
    with pytest.raises(ValueError, match="unknown key of the node config 'policy-clipp'"):
        run({"policy-clipp": 1.0})


def test_messages_of_another_strategy_do_not_reach_the_app_of_a_node_with_a_policy():
    called = []

    def counts(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        called.append(message)
        return call_next(message, context)

    app: ClientApp = numpy_app(N, D, mods=[consensus_mod, counts])
    grid = LocalGrid(app, N, node_config=lambda v: {"partition-id": v, "policy-clip": 1.0})
    message = Message(next(iter(_fedavg(grid))).content, grid.node_of(0), "train")
    reply = grid.send_and_receive([message])
    assert [r.has_error() for r in reply] == [True]
    assert "(clip 1) holds for messages of a ServerlessStrategy" in next(iter(reply)).error.reason
    assert called == []


def _fedavg(grid: LocalGrid):
    strategy = FedAvg(min_train_nodes=1, min_available_nodes=1)
    return strategy.configure_train(1, start_arrays(D)[0], ConfigRecord(), grid)
