"""A run whose ServerApp dies at any moment, and goes on: nothing is lost, and nothing else changes.

The ServerApp dies where a SIGKILL finds it: in the midst of a call to Flower, with whatever the
agents have done by then.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord
from safetensors.numpy import load_file
from support.apps import flat, numpy_app, start_arrays
from support.dying import DyingGrid, Killed
from support.grid import LocalGrid
from support.meshes import write_keys

from flower_dhb import (
    DSGD,
    ConfigError,
    HeavyBall,
    ServerlessStrategy,
    StateError,
    Topology,
    consensus_mod,
)
from flower_dhb.errors import NotNowError
from flower_dhb.flower.checkpoint import Checkpoint, read_records
from flower_dhb.metrics import RoundRecord
from flower_dhb.peer.mesh.certificates import Authority

N, D, ROUNDS = 3, 4, 3
GRAPH = Topology.star(N)

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("unforced")]


class Grid(DyingGrid):
    """One whose ServerApp lives on, once the run is over."""

    def __init__(
        self,
        folder: Path | None,
        dies_at: int | None = None,
        configs: Sequence[dict[str, Any]] = (),
    ):
        where = {} if folder is None else {"state-dir": str(folder)}
        configs = configs or [{}] * N
        app = numpy_app(N, D, mods=[consensus_mod, self._train])
        self.meanwhile = lambda: None  # happens while an agent trains
        self._over = False

        def node_config(i: int) -> dict[str, Any]:
            return {"partition-id": i, **where, **configs[i]}

        super().__init__(app, N, node_config=node_config, dies_at=dies_at)

    def _train(self, message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        self.meanwhile()
        return reply

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if any('"finish"' in str(m.content["flower_dhb"]["json"]) for m in messages):
            self._over = True  # the agents remove their files: there is no way back from here
        return super().push_messages(messages)

    def _perhaps_the_last(self, call: Any) -> Any:
        return call() if self._over else super()._perhaps_the_last(call)


def strategy(folder: Path | None, rule: Any = None, **options: Any) -> ServerlessStrategy:
    settings = {"collect_models": True, "evaluate_every": 2, **options}
    return ServerlessStrategy(GRAPH, rule or HeavyBall(), checkpoint=folder, **settings)


def observe(k: int, arrays: Any) -> MetricRecord:
    return MetricRecord({"norm": float(np.linalg.norm(flat(arrays)))})


def start(made: ServerlessStrategy, grid: LocalGrid, *, rounds: int = ROUNDS, first: float = 0.0):
    initial = start_arrays(D)[0] if not first else _others(first)
    return made.start(grid, initial, rounds, evaluate_fn=observe)


def _others(value: float) -> Any:
    arrays, x = start_arrays(D)
    return type(arrays)([np.full((1, 2), value), np.full(len(x) - 2, value)])


def told(result: Any) -> list[dict[str, Any]]:
    """The history, but for what a clock says."""
    return [{**record.to_dict(), "seconds": 0.0, "profile": {}} for record in result.history]


def same(result: Any, plain: Any) -> None:
    for v in range(N):
        np.testing.assert_array_equal(flat(result.models[v]), flat(plain.models[v]))
    for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        assert _plain(getattr(result, name)) == _plain(getattr(plain, name))
    assert _plain(result.evaluate_metrics_serverapp) == _plain(plain.evaluate_metrics_serverapp)
    assert told(result) == told(plain)


def _plain(metrics: Any) -> dict[int, dict[str, Any]]:
    return {k: dict(record.items()) for k, record in metrics.items()}


def test_a_death_at_any_call_changes_no_bit(tmp_path: Path) -> None:
    """Of a rule that has a memory, and conserves a sum over agents."""
    rule = HeavyBall(form="tracking")
    counting = Grid(tmp_path / "counted")
    plain = start(strategy(None, rule), counting)
    rounds_kept = []
    for n in range(1, counting.calls + 1):
        here = tmp_path / str(n)
        with pytest.raises(Killed):
            start(strategy(here / "run", rule), Grid(here / "agents", n))
        kept = Checkpoint(here / "run").read()
        rounds_kept.append(0 if kept is None else kept.round)
        # Another process of the app may draw other initial arrays; the run has its own.
        first = 0.0 if kept is None else 3.0
        result = start(strategy(here / "run", rule), Grid(here / "agents"), first=first)
        same(result, plain)
        assert not (here / "run").exists()
    # Enrolling takes two calls, and each round two, and two more where it is evaluated.
    assert rounds_kept == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3]


def test_a_death_at_any_call_where_evaluations_come_with_the_next_round(tmp_path: Path) -> None:
    options = {"join_evaluation": True, "evaluate_every": 1}
    counting = Grid(tmp_path / "counted")
    plain = start(strategy(None, **options), counting)
    for n in range(1, counting.calls + 1):
        here = tmp_path / str(n)
        with pytest.raises(Killed):
            start(strategy(here / "run", **options), Grid(here / "agents", n))
        same(start(strategy(here / "run", **options), Grid(here / "agents")), plain)


def test_a_death_at_any_call_where_payloads_are_sealed(tmp_path: Path) -> None:
    """Keys and secrets of the agents' files serve the run that goes on, too."""
    homes = write_keys(Authority.create("m1", 30), tmp_path / "mesh", N)

    def live(here: Path, dies_at: int | None = None) -> tuple[DyingGrid, Any]:
        files = [here / f"model-{v}.safetensors" for v in range(N)]
        configs = [{"mesh": str(homes[v]), "model-file": str(files[v])} for v in range(N)]
        grid = Grid(here / "agents", dies_at, configs)
        settings = {"encryption": "neighbors", "collect_models": False}
        made = strategy(here / "run", HeavyBall(form="tracking"), **settings)
        result = made.start(grid, start_arrays(D)[0], ROUNDS)
        models = [load_file(path) for path in files]
        # A signature may be a few bytes longer or shorter.
        history = [{**r, "bytes_sent": 0, "bytes_by_agent": {}} for r in told(result)]
        return grid, (history, [[m[key].tolist() for key in sorted(m)] for m in models])

    counting, plain = live(tmp_path / "counted")
    assert not any(record["events"] or record["missing"] for record in plain[0])
    for n in range(1, counting.calls + 1):
        with pytest.raises(Killed):
            live(tmp_path / str(n), n)
        assert live(tmp_path / str(n))[1] == plain


def test_it_may_die_again_and_again(tmp_path: Path) -> None:
    plain = start(strategy(None), Grid(None))
    for deaths in itertools.count():
        try:
            # Before the second exchange of each life, so that each takes the run a step further.
            result = start(strategy(tmp_path / "run"), Grid(tmp_path / "agents", 5))
        except Killed:
            assert deaths < 20
            continue
        break
    assert deaths == ROUNDS + 1
    same(result, plain)


def test_agents_without_files_begin_again_from_their_neighbors(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(strategy(tmp_path, DSGD()), Grid(None, 9), rounds=25)
    kept = Checkpoint(tmp_path).read()
    assert kept is not None
    result = start(strategy(tmp_path, DSGD()), Grid(None), rounds=25)
    plain = start(strategy(None, DSGD()), Grid(None), rounds=25)
    again = [record.round for record in result.history if record.rejoined]
    assert again in ([kept.round], [kept.round + 1])
    assert [record.round for record in result.history] == list(range(1, 26))
    for v in range(N):
        # D-SGD has no memory: after twenty rounds of forgetting, it is where it would have been.
        np.testing.assert_allclose(
            flat(result.models[v]), flat(plain.models[v]), rtol=0.05, atol=0.05
        )


def test_one_agent_of_many_has_lost_its_file(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(strategy(tmp_path / "run"), Grid(tmp_path / "agents", 8))
    (file,) = (tmp_path / "agents").glob("*-vertex-2.safetensors")
    file.unlink()
    result = start(strategy(tmp_path / "run"), Grid(tmp_path / "agents"))
    assert [v for record in result.history for v in record.rejoined] == [2]
    assert all(record.missing == [] for record in result.history)


def test_what_is_still_done_for_a_dead_serverapp_is_not_kept(tmp_path: Path) -> None:
    """Its processes at the nodes go on for a while, beside those of the one that took over."""
    run, agents = tmp_path / "run", tmp_path / "agents"
    files: dict[int, bytes] = {}

    def file_of(vertex: int) -> Path:
        (file,) = agents.glob(f"*-vertex-{vertex}.safetensors")
        return file

    def look(record: RoundRecord) -> None:
        files[record.round] = file_of(1).read_bytes()

    first = Grid(agents, 6)
    with pytest.raises(Killed):
        start(strategy(run, on_round=look), first)
    message = next(m for v, m in reversed(first.messages) if v == 1)

    def another_takes_over() -> None:
        first.meanwhile = lambda: None
        with pytest.raises(Killed):
            start(strategy(run), Grid(agents, 6))
        files[2] = file_of(1).read_bytes()

    # The first one's process has read the state before the second one's agent writes it.
    file_of(1).write_bytes(files[1])
    first.meanwhile = another_takes_over
    answer = str(first._execute(message).content["flower_dhb"]["json"])
    assert "the run was taken up again (attempt 1)" in answer
    assert file_of(1).read_bytes() == files[2]
    # And a message that comes as late as that is not even begun.
    answer = str(first._execute(message).content["flower_dhb"]["json"])
    assert "a message of attempt 0 at the run came when attempt 1 was under way" in answer
    assert file_of(1).read_bytes() == files[2]
    same(start(strategy(run), Grid(agents)), start(strategy(None), Grid(None)))


def test_a_living_serverapp_is_not_joined(tmp_path: Path) -> None:
    def another(record: RoundRecord) -> None:
        with pytest.raises(NotNowError, match="another process goes on with this run"):
            start(strategy(tmp_path), Grid(None))

    start(strategy(tmp_path, on_round=another), Grid(None))


def test_another_graph_rule_or_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(strategy(tmp_path), Grid(None, 8))
    other = ServerlessStrategy(Topology.ring(N), checkpoint=tmp_path)
    for made, what in (
        (other, "has topology"),
        (strategy(tmp_path, DSGD()), "has algorithm"),
        (strategy(tmp_path, statistics=[1]), "divides its model"),
    ):
        with pytest.raises(ConfigError, match=what):
            start(made, Grid(None))
    with pytest.raises(ConfigError, match="checkpoint must be the path of a folder, got 3"):
        ServerlessStrategy(GRAPH, checkpoint=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("mailboxes.safetensors", lambda data: data[: len(data) // 2]),
        ("mailboxes.safetensors", lambda data: data.replace(b'\\"round\\"', b'\\"rnd\\"', 1)),
        ("mailboxes.safetensors", lambda data: data.replace(b'\\"due\\"', b'\\"dxe\\"', 1)),
        ("start.safetensors", lambda data: b""),
        ("records.jsonl", lambda data: data.replace(b"{", b"[", 1)),
    ],
)
def test_a_damaged_checkpoint_is_refused(name: str, spoil: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(strategy(tmp_path), Grid(None, 8))
    path = tmp_path / name
    changed = spoil(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(StateError, match="damaged"):
        start(strategy(tmp_path), Grid(None))
    assert path.read_bytes() == changed  # nothing is thrown away


def test_a_line_that_was_being_written_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(strategy(tmp_path / "run"), Grid(tmp_path / "agents", 8))
    path = tmp_path / "run" / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    short = len(read_records(tmp_path / "run"))
    assert short == len(whole.splitlines()) - 2  # one of them is that before the first round
    result = start(strategy(tmp_path / "run"), Grid(tmp_path / "agents"))
    assert len(result.history) >= ROUNDS - 1


def test_a_folder_that_takes_nothing_more_ends_no_run(tmp_path: Path) -> None:
    def lose(record: RoundRecord) -> None:
        if record.round == 1:
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").write_text("a disk that is away")

    result = start(strategy(tmp_path / "run", on_round=lose), Grid(None))
    assert len(result.history) == ROUNDS
    (text,) = [w for w in result.warnings if "its checkpoint cannot be written" in w]
    assert str(tmp_path / "run") in text


def test_a_record_comes_back_from_json_as_it_was() -> None:
    record = RoundRecord(
        3,
        train={0: {"loss": 0.5, "num-examples": 3}, 2: {"curve": [1.0, float("inf")]}},
        evaluate={1: {"accuracy": 1 / 3}},
        evaluate_average_model={"norm": 2.0},
        consensus_distance=0.25,
        distance_from_start=1.5,
        bytes_sent=10,
        bytes_by_agent={0: 4, 3: 6},
        missing=[1],
        rejoined=[2],
        events=[(1, "late"), (-1, "a stranger")],
        warnings=["drifting apart"],
        policies={2: "noise"},
        seconds=0.125,
        profile={"app": 0.1},
        weighted_by_key="weight",
        lower_is_better=("*loss*",),
    )
    default = RoundRecord(0).to_dict()
    values = record.to_dict()
    assert [name for name in values if values[name] == default[name]] == []
    assert RoundRecord.from_dict(json.loads(json.dumps(values))) == record
