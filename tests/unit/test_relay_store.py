"""Where an agent's state rests: what it holds, what it refuses, and when its files go."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file, save_file
from support.apps import flat, numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, HeavyBall, ServerlessStrategy, StateError, Topology, consensus_mod
from flower_dhb.agent.node import Pending, Snapshot
from flower_dhb.flower.store import Store, open_store
from flower_dhb.types import Layout, State

N, D = 4, 4
GRAPH = Topology.star(N)
RUN, OTHER_RUN = "0" * 15 + "7", "0" * 15 + "8"
RULE = HeavyBall()
ARRAYS = {
    "w": np.zeros((2, 3), np.float32),
    "norm.running_var": np.ones(3, np.float32),
    "norm.count": np.zeros((), np.int64),
}
LAYOUT = Layout.of(ARRAYS)
DAY_S = 24 * 3600.0


def context_of(path: Path | None) -> Context:
    config = {"partition-id": 1} | ({} if path is None else {"state-dir": str(path)})
    return Context(7, 1001, config, RecordDict(), {})  # type: ignore[arg-type]


def vector(first: float, size: int = 6) -> np.ndarray:
    return np.arange(size, dtype=np.float32) + np.float32(first)


def snapshot(round: int, *, pending: bool) -> Snapshot:
    return Snapshot(
        round,
        State(vector(1), {name: vector(10) for name in RULE.memory}),
        vector(20, 3),
        {"norm.count": np.array(5)},
        Pending(round + 1, vector(30), vector(40, 3)) if pending else None,
    )


@pytest.fixture(params=["context", "file"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Context:
    return context_of(None if request.param == "context" else tmp_path / "made" / "here")


def store(where: Context, run: str = RUN) -> Store:
    return open_store(where, run, 1)


@pytest.mark.parametrize("pending", [False, True])
def test_what_is_stored_comes_back_whole(where: Context, pending: bool) -> None:
    assert store(where).load(RULE, LAYOUT) is None
    store(where).save(snapshot(3, pending=not pending), RULE)
    before = snapshot(8, pending=pending)
    store(where).save(before, RULE)
    found = store(where).load(RULE, LAYOUT)
    assert found is not None
    assert found.round == 8
    np.testing.assert_array_equal(found.state.parameters, before.state.parameters)
    for name in RULE.memory:
        np.testing.assert_array_equal(found.state.memory[name], before.state.memory[name])
    np.testing.assert_array_equal(found.statistics, before.statistics)
    assert found.local["norm.count"].shape == ()
    assert int(found.local["norm.count"]) == 5
    if before.pending is None:
        assert found.pending is None
        return
    assert found.pending is not None
    assert found.pending.round == 9
    np.testing.assert_array_equal(found.pending.trained, before.pending.trained)
    np.testing.assert_array_equal(found.pending.statistics, before.pending.statistics)


@pytest.mark.parametrize(
    ("rule", "arrays", "run", "told"),
    [
        (DSGD(), ARRAYS, RUN, "state is of rule"),
        (HeavyBall(momentum=0.8), ARRAYS, RUN, "state is of rule"),
        (RULE, ARRAYS, OTHER_RUN, None),
        (RULE, ARRAYS | {"w": np.zeros((2, 4), np.float32)}, RUN, r"is float32\[6\]"),
        (RULE, ARRAYS | {"w": np.zeros((2, 3))}, RUN, r"expected float64\[6\]"),
        (RULE, ARRAYS | {"norm.running_var": np.ones(4, np.float32)}, RUN, "'statistics' is"),
        (RULE, ARRAYS | {"norm.count": np.zeros(2, np.int64)}, RUN, "'norm.count' is int64"),
        (RULE, ARRAYS | {"more": np.zeros(1, np.int64)}, RUN, "state lacks 'local/more'"),
    ],
)
def test_a_state_of_another_rule_model_or_run_is_not_used(
    where: Context, rule, arrays, run: str, told: str | None
) -> None:
    store(where).save(snapshot(3, pending=True), RULE)
    if told is None and "state-dir" in where.node_config:
        assert store(where, run).load(rule, Layout.of(arrays)) is None, "another file"
        return
    with pytest.raises(StateError, match=told or f"state is of run {RUN}, expected {OTHER_RUN}"):
        store(where, run).load(rule, Layout.of(arrays))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"round": "3"}, "its round is '3'"),
        ({"round": -1}, "its round is -1"),
        ({"pending_round": 2.0}, "its pending round is 2.0"),
        ({"epoch": True}, "its epoch is True"),
        ({"algorithm": None}, "state is of rule None"),
    ],
)
def test_a_file_that_says_nonsense_is_damaged(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    where = context_of(tmp_path)
    store(where).save(snapshot(3, pending=True), RULE)
    (path,) = tmp_path.iterdir()
    with safetensors.safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["about"])
    save_file(load_file(path), path, metadata={"about": json.dumps(about | change)})
    with pytest.raises(StateError, match=told):
        store(where).load(RULE, LAYOUT)


# --- an older state -----------------------------------------------------------------


def start(grid: LocalGrid, rounds: int = 6, **options: object):
    strategy = ServerlessStrategy(GRAPH, RULE, collect_models=True, evaluate_every=0, **options)  # type: ignore[arg-type]
    return strategy.start(grid, start_arrays(D)[0], rounds)


def grid_in(path: Path) -> LocalGrid:
    config = {"state-dir": str(path)}
    app = numpy_app(N, D, mods=[consensus_mod])
    return LocalGrid(app, N, node_config=lambda i: {"partition-id": i, **config})


def test_a_state_older_than_the_relay_knows_of_is_not_used(tmp_path: Path) -> None:
    """As from a backup: to go on from it would combine other payloads than the neighbors did."""
    grid = grid_in(tmp_path)
    kept: dict[int, bytes] = {}

    def restore(record) -> None:
        path = tmp_path / f"run-{grid.run_id:016x}-vertex-2.safetensors"
        kept[record.round] = path.read_bytes()
        if record.round == 4:
            path.write_bytes(kept[3])

    result = start(grid, on_round=restore)
    assert [r.round for r in result.history if r.rejoined] == [5]
    assert result.history[4].events == [(2, "state was lost; rejoined at round 4")]
    assert all(r.missing == [] for r in result.history)


def test_the_same_state_put_back_is_used(tmp_path: Path) -> None:
    grid = grid_in(tmp_path)

    def rewrite(record) -> None:
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes())

    result, plain = start(grid, on_round=rewrite), start(grid_in(tmp_path))
    assert all(r.events == [] for r in result.history)
    for i in range(N):
        assert np.array_equal(flat(result.models[i]), flat(plain.models[i]))


# --- when files go ------------------------------------------------------------------


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_a_run_that_ends_leaves_no_state_behind(tmp_path: Path) -> None:
    grid = grid_in(tmp_path)
    seen = []
    start(grid, on_round=lambda r: seen.append(len(names(tmp_path))))
    assert seen == [N] * 6
    assert names(tmp_path) == []
    farewells = [m for _, m in grid.messages if '"finish"' in str(m.content["flower_dhb"]["json"])]
    assert len(farewells) == N


def test_agents_without_files_are_not_bothered_at_the_end() -> None:
    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    start(grid)
    assert not any('"finish"' in str(m.content["flower_dhb"]["json"]) for _, m in grid.messages)


def test_a_run_that_fails_keeps_its_files_and_an_end_unheard_ends_no_run(tmp_path: Path) -> None:
    def stop(record) -> None:
        if record.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(grid_in(tmp_path), on_round=stop)
    assert len(names(tmp_path)) == N
    grid = grid_in(tmp_path / "other")
    grid.refuse = lambda _, m: '"finish"' in str(m.content["flower_dhb"]["json"])
    assert len(start(grid).models) == N
    assert len(names(tmp_path / "other")) == N


def test_two_runs_at_once_in_one_folder_do_not_touch_each_others_files(tmp_path: Path) -> None:
    outer, inner = grid_in(tmp_path), grid_in(tmp_path)

    def begin_another(record) -> None:
        if record.round == 3:
            mine = names(tmp_path)
            result = start(inner)
            assert all(r.events == [] for r in result.history)
            assert names(tmp_path) == mine

    result = start(outer, on_round=begin_another)
    assert all(r.events == [] and r.rejoined == [] for r in result.history)
    assert names(tmp_path) == []


def test_what_crashed_runs_left_goes_when_the_same_agent_begins_another(tmp_path: Path) -> None:
    def make(name: str, age_s: float) -> None:
        path = tmp_path / name
        path.write_bytes(b"x")
        written = time.time() - age_s
        os.utime(path, (written, written))

    old, young = 1.5 * DAY_S, 0.5 * DAY_S
    gone = [f"run-{OTHER_RUN}-vertex-1.safetensors", f"run-{OTHER_RUN}.2-vertex-1.safetensors"]
    stay = [
        f"run-{OTHER_RUN}-vertex-2.safetensors",  # another agent's
        f"run-{OTHER_RUN}-vertex-11.safetensors",
        f"run-{OTHER_RUN}-vertex-1.safetensors.bak",
        f"my-run-{OTHER_RUN}-vertex-1.safetensors",
        "run-best-vertex-1.safetensors",
        "model.safetensors",
    ]
    for name in (*gone, *stay):
        make(name, old)
    make("run-00000000000000ab-vertex-1.safetensors", young)  # may be going on
    (tmp_path / "run-00000000000000ac-vertex-1.safetensors").mkdir()
    where = context_of(tmp_path)
    store(where).save(snapshot(0, pending=True), RULE)
    rest = {*stay, *(f"run-00000000000000{x}-vertex-1.safetensors" for x in ("ab", "ac"))}
    own = f"run-{RUN}-vertex-1.safetensors"
    assert set(names(tmp_path)) == rest | {own}
    # Its own file may be as old as it likes, and nothing is looked for in later rounds.
    os.utime(tmp_path / own, (0, 0))
    make(gone[0], old)
    store(where).save(snapshot(1, pending=True), RULE)
    assert set(names(tmp_path)) == rest | {own, gone[0]}
