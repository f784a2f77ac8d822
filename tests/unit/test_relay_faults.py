"""Agents that fail: the run goes on, the others' average is kept, the history tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, Algorithm, HeavyBall, ServerlessStrategy, Topology, consensus_mod

pytestmark = pytest.mark.thorough

N, D, ROUNDS, RATE = 6, 4, 8, 0.05
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (5, 0)])
VICTIM = 3
FAULTY_ROUND = 4

Break = Callable[[Message, Message], Message]


def app_that_breaks(breaks: Callable[[int, int], Break | None]) -> ClientApp:
    """The NumPy app with a mod inside ours that spoils replies: (vertex, round) -> how."""

    def spoil(message: Message, context, call_next):
        config = message.content.config_records["config"]
        vertex = int(context.node_config["partition-id"])
        how = breaks(vertex, int(config["server-round"]))
        if how is None or message.metadata.message_type != "train":
            return call_next(message, context)
        return how(message, call_next(message, context))

    return numpy_app(N, D, rate=RATE, mods=[consensus_mod, spoil])


def raises(message: Message, reply: Message) -> Message:
    raise ValueError("the battery is empty")


def returns_nan(message: Message, reply: Message) -> Message:
    head, tail = reply.content.array_records["arrays"].to_numpy_ndarrays()
    tail = tail.copy()
    tail[-1] = np.nan
    reply.content["arrays"] = ArrayRecord([head, tail])
    return reply


def returns_other_shapes(message: Message, reply: Message) -> Message:
    head, tail = reply.content.array_records["arrays"].to_numpy_ndarrays()
    reply.content["arrays"] = ArrayRecord([head, tail[:-1]])
    return reply


def returns_two_records(message: Message, reply: Message) -> Message:
    reply.content["more"] = reply.content.array_records["arrays"]
    return reply


def run(rule: Algorithm, grid: LocalGrid, rounds: int = ROUNDS, **options: object):
    strategy = ServerlessStrategy(
        GRAPH,
        rule,
        collect_models=True,
        evaluate_every=0,
        **options,  # type: ignore[arg-type]
    )
    return strategy.start(grid, start_arrays(D)[0], rounds)


def frozen_in_one_round(rule: Algorithm) -> np.ndarray:
    """The law with the victim out of one round: no training, no edges, no step; `(n, d)`."""
    curvature, center = quadratic(N, D)
    state = rule.start(np.tile(start_arrays(D)[1], (N, 1)))
    for k in range(1, ROUNDS + 1):
        out = k == FAULTY_ROUND
        edges = [e for e in GRAPH.edges if out and VICTIM in e]
        trained = quadratic_step(state.parameters, curvature, center, RATE)
        payload = rule.outgoing(state, trained)
        mixed = {name: GRAPH.with_missing(edges) @ v for name, v in payload.items()}
        new = rule.combine(state, trained, mixed)
        if out:
            new.parameters[VICTIM] = state.parameters[VICTIM]
            for name, vector in new.memory.items():
                vector[VICTIM] = state.memory[name][VICTIM]
        state = new
    return state.parameters


@pytest.mark.parametrize("rule", [HeavyBall(), HeavyBall(form="tracking"), DSGD()], ids=str)
@pytest.mark.parametrize(
    ("how", "told"),
    [
        (raises, "ValueError: the battery is empty"),
        (returns_nan, "holds 1 values that are not finite"),
        (returns_other_shapes, "'1' is float64[1], expected float64[2]"),
        (returns_two_records, "exactly one ArrayRecord"),
    ],
)
def test_an_agent_that_fails_sits_out_the_round_and_nothing_else_changes(
    rule: Algorithm, how: Break, told: str
) -> None:
    app = app_that_breaks(lambda v, k: how if (v, k) == (VICTIM, FAULTY_ROUND) else None)
    result = run(rule, LocalGrid(app, N))
    final = np.stack([flat(result.models[i]) for i in range(N)])
    # float64 on both sides, sums of at most five terms in another order.
    np.testing.assert_allclose(final, frozen_in_one_round(rule), rtol=0, atol=1e-13)
    for record in result.history:
        assert record.missing == ([VICTIM] if record.round == FAULTY_ROUND else [])
    ((vertex, text),) = result.history[FAULTY_ROUND - 1].events
    assert vertex == VICTIM
    assert told in text


def test_others_average_moves_as_centralized_heavy_ball_while_an_agent_is_out() -> None:
    # The claim of the design, computed from what crossed the wire, not from the law's code.
    always_out = app_that_breaks(lambda v, _: raises if v == VICTIM else None)
    models = []
    for rounds in (1, 2, 3):
        result = run(HeavyBall(momentum=0.8), LocalGrid(always_out, N), rounds)
        models.append(np.stack([flat(result.models[i]) for i in range(N) if i != VICTIM]))
    curvature, center = quadratic(N, D)
    others = [i for i in range(N) if i != VICTIM]
    z = quadratic_step(models[1], curvature[others], center[others], RATE)
    moved = z.mean(axis=0) + 0.8 * (models[1] - models[0]).mean(axis=0)
    np.testing.assert_allclose(models[2].mean(axis=0), moved, rtol=0, atol=1e-13)


def test_an_agent_killed_in_the_middle_catches_up_on_what_its_neighbors_combined() -> None:
    # Killed: no answer and no trace of the round in its state, as when its process dies.
    def intercept(vertex: int, message: Message) -> Exception | None:
        return MemoryError("killed") if dead(vertex, message) else None

    def dead(vertex: int, message: Message) -> bool:
        return (vertex, message.metadata.group_id) == (VICTIM, str(FAULTY_ROUND))

    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    result = run(HeavyBall(), LocalGrid(app, N, intercept=intercept))
    final = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(final, frozen_in_one_round(HeavyBall()), rtol=0, atol=1e-13)
    assert result.history[FAULTY_ROUND - 1].events == [(VICTIM, "error: killed")]


def test_an_agent_slower_than_the_deadline_is_missing_and_comes_back() -> None:
    def hold(vertex: int, message: Message) -> int:
        late = (vertex, message.metadata.group_id) == (VICTIM, str(FAULTY_ROUND))
        return 10**6 if late and not released else 0

    released: list[bool] = []

    def release(record) -> None:
        if record.round == FAULTY_ROUND + 1:
            released.append(True)
            for message_id, (message, _) in grid._queue.items():
                grid._queue[message_id] = (message, 0)

    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    grid = LocalGrid(app, N, hold=hold)
    result = run(HeavyBall(), grid, round_timeout_s=0.05, on_round=release)
    missing = {r.round: r.missing for r in result.history}
    assert missing[FAULTY_ROUND] == [VICTIM]
    assert missing[FAULTY_ROUND + 1] == [VICTIM], "busy: it must not get a second message"
    assert missing[ROUNDS] == []
    texts = [text for r in result.history for _, text in r.events]
    assert "no answer to 'train' within 0.05 s" in texts
    assert "still busy with an earlier message" in texts
    assert f"late answer to 'train' of round {FAULTY_ROUND}" in texts
    asked = [m.metadata.group_id for v, m in grid.messages if v == VICTIM]
    assert asked.count(str(FAULTY_ROUND + 1)) == 0


def test_a_late_agent_combines_alone_so_that_the_average_is_kept() -> None:
    # Its neighbors dropped the edge, so it must, too: with no gradients (rate 0) and no
    # momentum the network average never moves.
    app = numpy_app(N, D, rate=0.0, mods=[consensus_mod])
    start = start_arrays(D)[1]
    shift = np.arange(N)[:, None] * np.ones(D)

    def spread(message: Message, context, call_next):
        reply = call_next(message, context)
        if int(message.content.config_records["config"]["server-round"]) == 1:
            i = int(context.node_config["partition-id"])
            head, tail = reply.content.array_records["arrays"].to_numpy_ndarrays()
            reply.content["arrays"] = ArrayRecord([head + i, tail + i])
        return reply

    app = numpy_app(N, D, rate=0.0, mods=[consensus_mod, spread])
    grid = LocalGrid(app, N, hold=lambda v, m: 3 * (v == VICTIM and m.metadata.group_id == "3"))
    result = run(DSGD(), grid, round_timeout_s=0.001)
    assert any(r.missing for r in result.history)
    final = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(final.mean(axis=0), (start + shift).mean(axis=0), atol=1e-13)


def test_an_agent_that_lost_its_state_rejoins_from_its_neighbors() -> None:
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])

    def lose(record) -> None:
        if record.round == FAULTY_ROUND:
            grid.lose_state(VICTIM)

    grid = LocalGrid(app, N)
    result = run(HeavyBall(), grid, on_round=lose)
    record = result.history[FAULTY_ROUND]
    assert record.rejoined == [VICTIM]
    assert (VICTIM, f"state was lost; rejoined at round {FAULTY_ROUND}") in record.events
    assert all(r.missing == [] for r in result.history), "it takes part in the same round"
    assert np.isfinite(flat(result.models[VICTIM])).all()


def test_a_node_that_restarts_under_another_id_takes_its_vertex_back() -> None:
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    grid = LocalGrid(app, N)

    def restart(record) -> None:
        if record.round == 3:
            grid.remove_node(grid.node_of(VICTIM))
        if record.round == 5:
            grid.add_node(VICTIM, node_id=4242)

    result = run(HeavyBall(), grid, on_round=restart)
    missing = {r.round: r.missing for r in result.history}
    assert [missing[k] for k in (3, 4, 5, 6, 7, 8)] == [[], [3], [3], [3], [], []]
    events = [text for r in result.history for _, text in r.events]
    assert f"vertex {VICTIM} is back, on node 4242" in events
    assert result.history[6].rejoined == [VICTIM]


def test_a_damaged_payload_is_refused_and_named() -> None:
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])

    def damaging(message: Message, context):
        reply = app(message, context)
        record = reply.content.array_records.get("flower_dhb.payload")
        if record is not None and message.metadata.group_id == "2":
            frame = bytearray(record["payload"].data)
            frame[-3] ^= 1
            record["payload"] = Array("uint8", (len(frame),), record["payload"].stype, bytes(frame))
            reply.content["flower_dhb.payload"] = record
        return reply

    class Damaging(ClientApp):
        __call__ = staticmethod(damaging)  # type: ignore[assignment]

    damaged = Damaging()
    grid = LocalGrid(lambda vertex: damaged if vertex == VICTIM else app, N)
    result = run(HeavyBall(), grid)
    assert result.history[1].missing == [VICTIM]
    ((vertex, text),) = result.history[1].events
    assert vertex == VICTIM
    assert "payload refused: round 2, neighbor 3: checksum" in text
    assert all(r.missing == [] for r in result.history[2:])


def state_dir_grid(path: Path, **options: object) -> LocalGrid:
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    return LocalGrid(
        app,
        N,
        node_config=lambda i: {"partition-id": i, "state-dir": str(path)},
        **options,  # type: ignore[arg-type]
    )


def test_state_in_a_file_survives_a_restart_of_the_node(tmp_path: Path) -> None:
    grid = state_dir_grid(tmp_path)

    def restart(record) -> None:
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            f"run-{grid.run_id:016x}-vertex-{v}.safetensors" for v in range(N)
        ]
        if record.round == 3:
            grid.remove_node(grid.node_of(VICTIM))
            grid.add_node(VICTIM, node_id=4242)

    result = run(HeavyBall(), grid, on_round=restart)
    assert all(r.rejoined == [] for r in result.history)


def test_a_damaged_state_file_is_reported_and_the_agent_rejoins(tmp_path: Path) -> None:
    grid = state_dir_grid(tmp_path)

    def damage(record) -> None:
        if record.round == 3:
            path = tmp_path / f"run-{grid.run_id:016x}-vertex-{VICTIM}.safetensors"
            path.write_bytes(path.read_bytes()[:-5])

    result = run(HeavyBall(), grid, on_round=damage)
    assert result.history[3].rejoined == [VICTIM]


def test_a_second_start_in_the_same_run_begins_anew() -> None:
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod])
    grid = LocalGrid(app, N)
    first, second = (run(HeavyBall(), grid) for _ in range(2))
    assert all(r.events == [] and r.rejoined == [] for r in second.history)
    for vertex in range(N):
        assert np.array_equal(flat(first.models[vertex]), flat(second.models[vertex]))


def test_a_node_that_dies_after_saving_but_before_answering_goes_on_alone(tmp_path: Path) -> None:
    # Its file is a round ahead of what the relay knows; its neighbors never got that round.
    def lose_reply(vertex: int, message: Message) -> Exception | None:
        if (vertex, message.metadata.group_id) != (VICTIM, str(FAULTY_ROUND)):
            return None
        grid.app_of(vertex)(message, grid.contexts[grid.node_of(vertex)])
        return ConnectionError("gone before the reply")

    grid = state_dir_grid(tmp_path, intercept=lose_reply)
    result = run(HeavyBall(), grid)
    assert [r.round for r in result.history if r.missing] == [FAULTY_ROUND]
    assert all(r.rejoined == [] for r in result.history)


def test_a_full_disk_costs_the_round_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flower_dhb.flower import store

    save, calls = store._FileStore.save, []

    def full(self, *args, **how) -> None:
        if f"vertex-{VICTIM}." in str(self._path):
            calls.append(1)
            if len(calls) == FAULTY_ROUND:
                raise OSError(28, "No space left on device")
        save(self, *args, **how)

    monkeypatch.setattr(store._FileStore, "save", full)
    result = run(HeavyBall(), state_dir_grid(tmp_path))
    record = result.history[FAULTY_ROUND - 1]
    assert record.missing == [VICTIM]
    assert "state cannot be kept" in record.events[0][1]
    final = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(final, frozen_in_one_round(HeavyBall()), rtol=0, atol=1e-13)
