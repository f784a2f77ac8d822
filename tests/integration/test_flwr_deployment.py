"""Flower's deployment runtime: a real SuperLink, SuperNodes with registered keys, and faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.deployment import Deployment, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

VICTIM = 2


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path) as deployment:
        deployment.start_link()
        deployment.start_nodes(range(3))
        yield deployment


def test_a_killed_supernode_is_missed_and_takes_its_vertex_back_with_its_state(
    deployment: Deployment,
) -> None:
    run = Run.submit(deployment)
    run.wait_for(lambda rows: len(rows) >= 1)
    deployment.kill_node(VICTIM)
    run.wait_for(lambda rows: any(row["missing"] for row in rows))
    deployment.start_node(VICTIM, key="-second")
    rows = run.finish()

    assert len(rows) == 8, run.text()
    missed = [row["round"] for row in rows if row["missing"]]
    assert missed, "its neighbors noticed"
    assert all(row["missing"] in ([], [VICTIM]) for row in rows)
    assert rows[-1]["missing"] == [], rows
    events = [event["what"] for row in rows for event in row["events"]]
    assert any(f"vertex {VICTIM} is back" in event for event in events), events
    # Its state lay in a file, so it goes on from there and need not rejoin.
    assert all(row["rejoined"] == [] for row in rows), rows
    assert len(list(run.folder.glob("agent-*.safetensors"))) == 3
