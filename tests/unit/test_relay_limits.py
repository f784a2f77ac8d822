"""What Flower cannot carry is refused before the first round, with the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import (
    DSGD,
    ConfigError,
    HeavyBall,
    ServerlessStrategy,
    Topology,
    consensus_mod,
    memory,
)
from flower_dhb.agent.compression import Compression
from flower_dhb.flower import limits, records
from flower_dhb.flower.limits import check_layout, check_state, memory_warning, state_bytes
from flower_dhb.types import Entry, Layout

N, D = 4, 4
F32 = np.dtype(np.float32)


def layout_of(size: int, *others: Entry) -> Layout:
    return Layout((Entry("w", (size,), F32, "parameter"), *others))


def grid_of(folders: dict[int, str] | None = None) -> LocalGrid:
    keep = folders or {}
    config = lambda i: {"partition-id": i} | ({"state-dir": keep[i]} if i in keep else {})  # noqa: E731
    return LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N, node_config=config)


def start(grid: LocalGrid):
    return ServerlessStrategy(Topology.ring(N), HeavyBall()).start(grid, start_arrays(D)[0], 1)


def test_the_state_of_an_agent_is_counted_at_its_largest() -> None:
    counter = Entry("count", (3,), np.dtype(np.int64), "local")
    variance = Entry("var", (5,), F32, "statistic")
    layout = layout_of(100, counter, variance)
    assert state_bytes(DSGD(), layout) == 4 * 2 * 100 + 3 * 8 + 2 * 5 * 4
    assert state_bytes(HeavyBall(), layout) - state_bytes(DSGD(), layout) == 4 * 100


def test_what_is_counted_is_what_a_node_keeps() -> None:
    grid = grid_of()
    ServerlessStrategy(Topology.ring(N), HeavyBall(), evaluate_every=0, average=False).start(
        grid, start_arrays(D)[0], 2
    )
    arrays = grid.contexts[grid.node_of(1)].state["flower_dhb.state"]
    kept = sum(len(array.data) for array in arrays.values())
    entry = Entry("w", (D,), np.dtype(np.float64), "parameter")
    assert kept == state_bytes(HeavyBall(), Layout((entry,)))


@pytest.mark.parametrize("compression", ["int8", "int8:whole", "topk:0.5"])
def test_what_a_compression_remembers_is_counted(
    compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Compression.parse(compression)
    grid = grid_of()
    ServerlessStrategy(
        Topology.ring(N), HeavyBall(), compression=made, evaluate_every=0, average=False
    ).start(grid, start_arrays(D)[0], 2)
    arrays = grid.contexts[grid.node_of(1)].state["flower_dhb.state"]
    kept = sum(len(array.data) for array in arrays.values())
    layout = Layout((Entry("w", (D,), np.dtype(np.float64), "parameter"),))
    assert kept == state_bytes(HeavyBall(), layout, made, 2)
    monkeypatch.setattr(limits, "_MOST_BYTES", 2**20 + kept - 1)
    check_state(HeavyBall(), layout, [0])
    with pytest.raises(ConfigError, match=f"what compression '{compression}' remembers"):
        ServerlessStrategy(Topology.ring(N), HeavyBall(), compression=made).start(
            grid_of(), start_arrays(D)[0], 1
        )


def test_a_state_that_protobuf_cannot_carry_is_refused_where_the_context_keeps_it() -> None:
    most = (2**31 - 1 - 2**20) // (3 * 4)
    check_state(HeavyBall(), layout_of(most), [0, 2])
    check_state(HeavyBall(), layout_of(10**10), [])
    with pytest.raises(ConfigError) as caught:
        check_state(HeavyBall(), layout_of(most + 1), [0, 2])
    text = str(caught.value)
    assert text.startswith(f"agents 0 and 2: an agent's state of {most + 1:,} float32 parameters")
    assert f"takes {12 * (most + 1) + 2**20:,} bytes" in text
    assert "2,147,483,647 at most. Set state-dir in the node config" in text


def test_a_run_begins_only_if_all_states_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_MOST_BYTES", 2**20 + 10)
    grid = grid_of({1: str(tmp_path)})
    with pytest.raises(ConfigError, match="agents 0, 2 and 3: an agent's state of 4 float64"):
        start(grid)
    assert all(m.content["flower_dhb"]["json"].count('"vertex"') for _, m in grid.messages)
    assert start(grid_of(dict.fromkeys(range(N), str(tmp_path)))).has_arrays


def test_too_many_names_are_refused_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LIMIT_INSTRUCTION", 100)
    with pytest.raises(ConfigError, match=r"^initial_arrays: names and shapes of 1 arrays take \d"):
        check_layout(DSGD(), layout_of(3))


def test_a_machine_with_too_little_memory_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "_FILE", told)
    layout = layout_of(10**6)
    told.write_text("MemTotal: 9 kB\nMemAvailable:   625000 kB\n")
    assert memory_warning(DSGD(), layout, 64) == ""
    told.write_text("MemTotal: 9 kB\nMemAvailable:   624999 kB\n")
    text = memory_warning(DSGD(), layout, 64)
    assert text.startswith("the ServerApp will hold up to 0.6 GB (2.5 payloads of 4 MB for each of")
    told.write_text("MemAvailable: 0 kB\n")
    assert any("will hold up to" in text for text in start(grid_of()).warnings)
    told.write_text("nothing of use\n")
    assert memory_warning(DSGD(), layout, 64) == ""
    told.unlink()
    assert memory_warning(DSGD(), layout, 64) == ""
