"""Where a round's time goes: the parts of a round that was written out by hand."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console
from support.apps import start_arrays
from support.grid import LocalGrid

from flower_dhb import ServerlessStrategy, Topology, consensus_mod
from flower_dhb.cli.run_view import print_profile
from flower_dhb.flower.profile import PARTS, Profile, Spent, mean_profile, started_at
from flower_dhb.runs.table import Row

# The upload takes from 100 to 101, the agents' answers are there at 113 and at 121.
FIRST = Spent(started=104.0, began=107.0, ended=110.0, app_s=2.0)
SECOND = Spent(started=0.0, began=108.0, ended=112.0, app_s=3.0)  # its process was there


def measured(*spent: Spent, shift: float = 0.0) -> dict[str, float]:
    """shift: by how much the clock of the first agent is wrong."""
    first, second = spent
    profile = Profile()
    profile.pushed(100.0, 101.0)
    profile.pulled([0], 113.0, 114.0)
    profile.pulled([1], 121.0, 123.0)
    profile.collected(123.0)
    wrong = (first.started + shift) if first.started else 0.0
    profile.told(0, Spent(wrong, first.began + shift, first.ended + shift, first.app_s))
    profile.told(1, second)
    return profile.parts(30.0)


def test_a_round_by_hand() -> None:
    assert measured(FIRST, SECOND) == {
        "queueing": pytest.approx((3.0 + 7.0) / 2),
        "process-start": pytest.approx((3.0 + 0.0) / 2),
        "app": pytest.approx((2.0 + 3.0) / 2),
        "ours": pytest.approx((1.0 + 1.0) / 2 + (30.0 - 23.0)),
        "transfer": pytest.approx(1.0 + (1.0 + 2.0) / 2),
        "polling": pytest.approx((3.0 + 9.0) / 2),
        # Of 23 s the mean agent has seen 1 + (13 + 22) / 2.
        "slowest": pytest.approx(23.0 - 1.0 - (13.0 + 22.0) / 2),
    }


@pytest.mark.parametrize("shift", [3600.0, -50.0])
def test_where_clocks_differ_what_is_between_them_is_halved(shift: float) -> None:
    parts, right = measured(FIRST, SECOND, shift=shift), measured(FIRST, SECOND)
    for name in ("process-start", "app", "ours", "transfer", "slowest"):
        assert parts[name] == pytest.approx(right[name])
    assert parts["queueing"] == pytest.approx((3.0 + 7.0) / 2)
    assert sum(parts.values()) == pytest.approx(30.0)


def test_a_process_that_was_there_long_before_its_first_message_did_not_start_for_it() -> None:
    parts = measured(Spent(started=5.0, began=107.0, ended=110.0, app_s=2.0), SECOND)
    assert parts["process-start"] == pytest.approx((113.0 - 101.0 - 3.0) / 2)
    assert parts["queueing"] == pytest.approx(7.0 / 2)
    assert sum(parts.values()) == pytest.approx(30.0)


def test_absurd_times_of_an_agent_make_no_part_negative() -> None:
    for spent in (
        Spent(1e15, -1e15, 1e15, 1e15),
        Spent(-1e15, 1e15, -1e15, -1e15),
        Spent(0.0, 0.0, 0.0, 0.0),
    ):
        parts = measured(spent, SECOND)
        assert all(seconds >= 0.0 for seconds in parts.values()), parts


def test_what_was_not_measured_is_empty() -> None:
    profile = Profile()
    assert profile.parts(1.0) == {}
    profile.pulled([0], 1.0, 2.0)
    profile.told(0, FIRST)
    profile.pushed(1.0, 2.0)
    profile.told(0, None)
    profile.collected(3.0)
    assert profile.parts(1.0) == {}
    assert mean_profile([{}, {}]) == {}
    assert mean_profile([{}, {"app": 1.0}, {"app": 3.0}])["app"] == 2.0


@pytest.mark.parametrize("joined", [False, True])
def test_the_parts_of_a_real_round_are_the_round(joined: bool) -> None:
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(0.02)
        content = {"arrays": message.content["arrays"], "m": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        time.sleep(0.01)
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1})}), reply_to=message)

    strategy = ServerlessStrategy(Topology.path(2), join_evaluation=joined)
    arrays: ArrayRecord = start_arrays(4)[0]
    result = strategy.start(LocalGrid(app, 2), arrays, 3)
    for record in result.history[1:]:
        assert list(record.profile) == list(PARTS)
        assert sum(record.profile.values()) == pytest.approx(record.seconds, rel=0.05)
        assert 0.03 <= record.profile["app"] < record.seconds
        assert all(seconds >= 0.0 for seconds in record.profile.values())


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="Linux tells it")
def test_a_process_knows_when_it_began() -> None:
    code = "from flower_dhb.flower.profile import started_at; print(started_at())"
    before = time.time()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The system counts in hundredths of a second.
    assert before - 0.02 <= float(told.stdout) <= time.time() + 0.02
    assert started_at() <= before


def test_the_table_has_every_part_with_its_share() -> None:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    rows = [Row(round=1), Row(round=2, profile=measured(FIRST, SECOND))]
    print_profile(rows, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a round takes 30 s" in text
    for name, what in PARTS.items():
        assert name in text
        assert what in text
    assert "27%" in text, "8 of 30 s are ours"
    print_profile([Row(round=1)], console)
    assert "No round's time was measured" in console.file.getvalue()  # type: ignore[attr-defined]
