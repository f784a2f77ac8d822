"""`flower-dhb run` as processes: two at the same time, and two that are stopped."""

from __future__ import annotations

import re
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.flower_runs import command, history, processes_of

from tests.support.programs import Programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FAULTY = Path(__file__).parent / "apps" / "faulty"
FOREIGN = Path(__file__).parent / "apps" / "foreign"


# --- an app that knows nothing of run folders, and two commands at once ---------------------------

ROUNDS_OF = {"serverless": 2, "fedavg": 3}


@pytest.fixture(scope="module")
def commanded(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two commands at the same time with one app and one home: `{mode: what it said}`."""
    here = tmp_path_factory.mktemp("commanded")
    foreign, home = here / "foreign", here / "home"
    shutil.copytree(FOREIGN, foreign)
    before = {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()}
    said = {}
    with programs.used(), ExitStack() as stack:
        running = {
            mode: stack.enter_context(
                command(
                    foreign,
                    home,
                    {"mode": mode, "num-server-rounds": rounds, "out": str(here / mode)},
                )
            )
            for mode, rounds in ROUNDS_OF.items()
        }
        for mode, process in running.items():
            said[mode], _ = process.communicate(timeout=250)
            assert process.returncode == 0, said[mode]
    after = {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()}
    assert after == before, "a command leaves nothing in the app's folder"
    assert len([path for path in home.iterdir() if path.is_dir()]) == 2
    assert processes_of(home) == []
    for mode, rounds in ROUNDS_OF.items():
        assert (here / mode).read_text() == str(list(range(1, rounds + 1)))
    return said


@pytest.mark.xdist_group("two commands")
@pytest.mark.parametrize(
    ("mode", "last"),
    [
        ("serverless", r"round 2/2 \| eval_loss .* \| consensus distance "),
        # From 0, all move half way to the mean, 1.5, in each of three rounds.
        ("fedavg", r"round 3/3 \| .*eval_loss 0.1875 \| eval_acc 0.8421$"),
    ],
)
def test_an_app_of_ones_own_shows_its_prints_and_its_rounds(
    commanded: dict[str, str], mode: str, last: str
) -> None:
    lines, n = commanded[mode].splitlines(), ROUNDS_OF[mode]
    assert lines[:2] == ["Starting 4 agents.", f"the app begins, mode {mode}"]
    assert f"the app ends with {n} evaluations" in lines
    assert any(line.startswith("agents: client ") for line in lines)
    told = [line for line in lines if line.startswith("round ")]
    assert [line.split(" | ")[0] for line in told] == [f"round {k}/{n}" for k in range(1, n + 1)]
    assert re.match(last, told[-1])
    assert not any("SuperNodes" in line or "logstream" in line for line in lines)


# --- commands that are stopped --------------------------------------------------------------------

# A command takes SIGINT as it takes SIGTERM: `tests/unit/test_cli.py`.
SIGNALS = {signal.SIGTERM: 130, signal.SIGKILL: -9}


def test_stopped_commands_leave_finished_rounds_and_no_process(tmp_path: Path) -> None:
    """Two at once, each ended by a signal of its own as soon as it has finished two rounds."""
    homes = {number: tmp_path / f"home-{number.name}" for number in SIGNALS}
    runs = {number: tmp_path / f"runs-{number.name}" for number in SIGNALS}
    with ExitStack() as stack:
        running = {
            number: stack.enter_context(
                command(
                    FAULTY,
                    homes[number],
                    {"rounds": 100000, "runs-dir": str(runs[number])},
                    *("--agents", "6"),
                )
            )
            for number in SIGNALS
        }
        deadline, left = time.monotonic() + 200, set(SIGNALS)
        while left:
            assert [running[n].poll() for n in left] == [None] * len(left)
            assert time.monotonic() < deadline
            ready = {n for n in left if any(len(history(f)) >= 2 for f in runs[n].glob("*"))}
            for number in ready:
                running[number].send_signal(number)
            left -= ready
            time.sleep(0.1)
        for number, process in running.items():
            process.communicate(timeout=60)
            assert process.returncode == SIGNALS[number]
    for number in SIGNALS:
        assert processes_of(homes[number]) == []
        rows = history(next(runs[number].iterdir()))
        assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))
