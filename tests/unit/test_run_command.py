"""`flower-dhb run` without Flower: what is submitted, followed, shown and left."""

import errno
import json
import queue
import re
import tempfile
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from support.flower_app import write_app

from flower_dhb import cli
from flower_dhb.cli import run
from flower_dhb.cli.run_log import Line
from flower_dhb.cli.run_view import Live, Plain, print_table
from flower_dhb.errors import RoundError
from flower_dhb.flower.progress import VARIABLE
from flower_dhb.runs.table import Row, main_metric, table

INFO = "\x1b[92mINFO \x1b[0m:      "


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


class FakeLink:
    """A SuperLink that remembers what it was asked for; its run tells and prints what it is given.

    tells: dictionaries for the progress file, each told before the line of the same number.
    """

    def __init__(self):
        self.lines, self.tells = [], []
        self.end = ("finished:completed", "")
        self.submitted, self.homes = [], []

    @contextmanager
    def __call__(self, home, variables):
        assert home.is_dir()
        self.homes.append(home)
        self.progress = Path(variables[VARIABLE])
        yield self

    def submit(self, app, n_agents, settings):
        self.submitted.append((app, n_agents, dict(settings)))
        return "7"

    @contextmanager
    def log(self, run_id):
        assert run_id == "7"
        yield self._run()

    def _run(self):
        for i in range(max(len(self.lines), len(self.tells))):
            if i < len(self.tells):
                with self.progress.open("a") as file:
                    file.write(json.dumps(self.tells[i]) + "\n")
            yield self.lines[i] if i < len(self.lines) else "\n"

    def status(self, run_id):
        return self.end


@pytest.fixture
def link(monkeypatch):
    fake = FakeLink()
    monkeypatch.setattr(run, "local_superlink", fake)
    return fake


def round_told(k, **changes):
    values = {
        "what": "round",
        "round": k,
        "metrics": {"accuracy": 0.5 + k / 100, "accuracy-worst": 0.4 + k / 100, "loss": 1.0},
        "average_model": {},
        "consensus_distance": 0.125 * k,
        "missing": [],
        "seconds": 0.5,
    }
    return values | changes


# --- what is submitted -----------------------------------------------------------------------


def test_the_app_its_agents_and_its_settings_are_submitted(link, app):
    words = ["-c", 'topology="torus:3x4" rounds=3', "-c", "rounds=4"]
    assert cli.main(["run", str(app), *words]) == 0
    settings = {"topology": "torus:3x4", "rounds": 4}
    folders = {"runs-dir": str(app / "runs"), "data-dir": str(app / "data")}
    assert link.submitted == [(app, 12, settings | folders)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", "learnig-rate=1"], "did you mean 'learning-rate'"),
        (["-c", "rounds=five"], "five is no TOML value"),
        (["-c", "rounds=0"], "'rounds' must be at least 1, got 0"),
        (["--agents", "0"], "--agents must be at least 1, got 0"),
    ],
)
def test_what_the_run_would_refuse_is_refused_before_anything_starts(
    link, app, capsys, words, message, temporary
):
    assert cli.main(["run", str(app), *words]) == 2
    assert message in capsys.readouterr().err
    assert link.homes == []
    assert list(temporary.iterdir()) == []


def test_a_refused_setting_starts_no_flower():
    """Refusals take no longer than our own imports."""
    import subprocess
    import sys

    program = (
        "import sys; from flower_dhb.cli import main; main(['run', '.', '-c', 'rounds=0'])\n"
        "print([m for m in ('flwr', 'torch', 'ray', 'matplotlib') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    assert done.stderr == "flower-dhb run: run config: 'rounds' must be at least 1, got 0\n"


# --- files -----------------------------------------------------------------------------------


def test_a_run_leaves_no_file_anywhere(link, app, temporary):
    before = sorted(app.rglob("*"))
    assert cli.main(["run", str(app)]) == 0
    assert sorted(app.rglob("*")) == before
    assert link.homes[0].parent == temporary
    assert list(temporary.iterdir()) == []


def test_a_run_that_fails_leaves_its_log_and_names_it(link, app, temporary, capsys):
    link.lines = ["before\n", "Traceback (most recent call last):\n", "KeyError: 'x'\n"]
    link.end = ("finished:failed", "Simulation failed with exception: 'x'")
    assert cli.main(["run", str(app)]) == 1
    (home,) = temporary.iterdir()
    assert capsys.readouterr().err.splitlines() == [
        "flower-dhb run: the run failed: KeyError: 'x'",
        f"All of its log: {home / 'run.log'}",
    ]
    assert (home / "run.log").read_text() == "".join(link.lines)


def test_a_run_that_fails_shows_what_it_has_and_how_it_goes_on(link, app, tmp_path, capsys):
    folder = tmp_path / "results"
    (folder / "checkpoint").mkdir(parents=True)
    link.tells = [{"what": "start", "rounds": 3, "agents": 5}, round_told(1), round_told(2)]
    link.tells += [{"what": "folder", "path": str(folder)}]
    link.end = ("finished:failed", "no heartbeat")
    assert cli.main(["run", str(app)]) == 1
    out, err = capsys.readouterr()
    assert "2 rounds" in out
    assert f"Results: {folder}" in out.splitlines()
    assert err.splitlines()[-1] == f"It goes on with: -c \"resume='{folder}'\""


def test_a_run_whose_result_lacks_agents_has_not_succeeded(link, app, capsys):
    text = "the run has ended, but its result lacks agents 1 and 3"
    link.tells = [{"what": "start", "rounds": 1, "agents": 5}, round_told(1)]
    link.tells += [{"what": "end", "incomplete": text}]
    assert cli.main(["run", str(app)]) == 1
    out, err = capsys.readouterr()
    assert "1 rounds" in out
    assert err.splitlines()[-1] == f"flower-dhb run: {text}"
    # Another strategy of the same app, all of whose agents are there.
    link.tells += [{"what": "start", "rounds": 1, "agents": 5}, {"what": "end", "incomplete": ""}]
    assert cli.main(["run", str(app)]) == 0


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (("finished:failed", "out of memory"), "the run failed: out of memory"),
        (("finished:stopped", "by user"), "the run ended as finished:stopped: by user"),
    ],
)
def test_how_a_run_ended_is_told_in_flowers_words_if_there_is_no_traceback(
    link, app, capsys, end, message
):
    link.end = end
    assert cli.main(["run", str(app)]) == 1
    assert message in capsys.readouterr().err


def test_a_run_that_is_stopped_leaves_nothing(link, app, temporary, monkeypatch):
    def stop(self, run_id):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeLink, "log", stop)
    assert cli.main(["run", str(app)]) == 130
    assert list(temporary.iterdir()) == []


def test_a_home_is_kept_and_each_run_has_its_own_part(link, app, tmp_path, temporary):
    home = tmp_path / "deep" / "home"
    link.lines = ["hello\n"]
    for _ in range(2):
        assert cli.main(["run", str(app), "--home", str(home)]) == 0
    assert len(set(link.homes)) == 2
    assert sorted(link.homes) == sorted(home.iterdir())
    assert [(part / "run.log").read_text() for part in link.homes] == ["hello\n"] * 2
    assert list(temporary.iterdir()) == []


def test_a_home_that_cannot_be_made_is_one_line(link, app, capsys):
    assert cli.main(["run", str(app), "--home", "/dev/null/home"]) == 1
    assert capsys.readouterr().err.startswith("flower-dhb run: /dev/null/home: ")


def test_a_disk_that_is_full_costs_the_log_and_not_the_run(link, app, capsys, monkeypatch):
    real = Path.open

    def full(self, *words, **more):
        if self.name == "run.log":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *words, **more)

    monkeypatch.setattr(Path, "open", full)
    link.lines = ["one\n", "two\n"]
    assert cli.main(["run", str(app)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("this log is not kept: ")
    assert lines[2:] == ["one", "two"]


# --- what is shown ---------------------------------------------------------------------------


def test_a_run_shows_its_prints_its_rounds_its_table_and_its_folder(link, app, tmp_path, capsys):
    start = {"what": "start", "rounds": 3, "agents": 5}
    folder = {"what": "folder", "path": str(tmp_path / "results")}
    best = {"accuracy": 0.52, "accuracy-worst": 0.9}
    link.tells = [folder, start, round_told(1), round_told(2, metrics=best), round_told(3)]
    link.lines = [
        "Using SuperLink: local\n",
        "the app begins\n",
        f"{INFO}round 1/3 | accuracy 0.51 | 0.50 s\n",
        "WARNING :   round 2, agent 1: something\n",
        f"{INFO}round 3/3 | accuracy 0.53 | 0.50 s\n",
    ]
    assert cli.main(["run", str(app)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "Starting 5 agents.",
        "the app begins",
        "round 1/3 | accuracy 0.51 | 0.50 s",
        "round 2, agent 1: something",
        "round 3/3 | accuracy 0.53 | 0.50 s",
    ]
    cells = {line.split()[1]: re.findall(r"[\d.]+%?", line) for line in lines if "%" in line}
    assert cells["first"] == ["1", "51.0%", "41.0%", "0.125"]
    assert cells["best"] == ["2", "52.0%", "90.0%", "0.25"]
    assert cells["last"] == ["3", "53.0%", "43.0%", "0.375"]
    assert "3 rounds, 2 s" in "\n".join(lines)
    assert "average model" not in "\n".join(lines)
    assert lines[-1] == f"Results: {tmp_path / 'results'}"


def test_rounds_of_flowers_own_strategies_are_shown_too(link, app, capsys):
    metrics = "\t└──> Aggregated MetricRecord: {'eval_acc': 0.%s}\n"
    link.lines = [
        line
        for k in (1, 2)
        for line in (f"{INFO}[ROUND {k}/2]\n", INFO + metrics % f"{k}5", f"between {k}\n")
    ]
    assert cli.main(["run", str(app)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:5] == [
        "between 1",
        "round 1/2 | eval_acc 0.15",
        "between 2",
        "round 2/2 | eval_acc 0.25",
    ]
    assert "15.0%" in "".join(lines)
    assert "25.0%" in "".join(lines)


def test_verbose_prints_all_lines_and_each_once(link, app, capsys):
    link.lines = [f"{INFO}Starting Flower Simulation\n", "\n", f"{INFO}[ROUND 1/1]\n", "two\n"]
    assert cli.main(["run", str(app), "--verbose"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Starting 5 agents.",
        "INFO :      Starting Flower Simulation",
        "INFO :      [ROUND 1/1]",
        "two",
    ]


def test_an_error_that_did_not_end_the_run_is_told_at_its_end(link, app, capsys):
    link.lines = ["Traceback (most recent call last):\n", "KeyError: 'x'\n"]
    assert cli.main(["run", str(app)]) == 0
    assert "The app logged an error: KeyError: 'x'" in capsys.readouterr().out


def test_a_second_strategy_of_the_same_app_begins_anew(link, app, capsys):
    start = {"what": "start", "rounds": 2, "agents": 5}
    rounds = [round_told(1), round_told(2)]
    link.tells = [start, *rounds, start | {"rounds": 1}, round_told(1, metrics={"f1": 0.75})]
    assert cli.main(["run", str(app)]) == 0
    out = capsys.readouterr().out
    assert "1 rounds" in out
    assert "f1" in out
    assert "accuracy" not in out


def test_a_run_without_evaluation_has_no_table():
    console = Console(file=StringIO(), width=100)
    print_table([Row(round=1), Row(round=2)], console)
    print_table([], console)
    assert console.file.getvalue() == ""


def test_the_best_round_of_a_loss_is_its_lowest():
    console = Console(file=StringIO(), width=100)
    losses = {1: (3.0, 5.0), 2: (2.0, 2.5), 3: (1.0, 4.0)}
    rows = [
        Row(round=k, metrics={"loss": mean, "loss-worst": worst}, average_model={"loss": 0.5})
        for k, (mean, worst) in losses.items()
    ]
    print_table(rows, console)
    cells = {
        words[1]: words[3::2]
        for line in console.file.getvalue().splitlines()
        if (words := line.split()) and words[0] == "│"
    }
    assert cells["best"] == ["2", "2", "2.5", "0.5"]
    assert cells["last"] == ["3", "1", "4", "0.5"]


def test_the_user_says_of_which_metrics_less_is_better():
    rows = [
        Row(round=k, metrics={"drift": drift}, lower_is_better=["drift"])
        for k, drift in ((1, 0.5), (2, float("nan")), (3, 0.2), (4, 0.3))
    ]
    assert [cells[:2] for cells in table(rows)[1]] == [["first", "1"], ["best", "3"], ["last", "4"]]
    assert main_metric(["drift", "size"], ["drift"]) == "size"


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (["loss", "eval_acc", "accuracy"], "eval_acc"),
        (["loss", "f1", "f1-worst"], "f1"),
        (["train_loss", "mse"], "train_loss"),
        (["a-worst"], None),
        ([], None),
    ],
)
def test_the_metric_that_tells_most(names, main):
    assert main_metric(names) == main


def terminal():
    return Console(file=StringIO(), force_terminal=True, width=120, color_system=None)


def test_the_live_line_follows_the_rounds():
    console = terminal()
    with Live(console) as view:
        (task,) = view._progress.tasks
        assert (task.fields["state"], task.total) == ("starting the agents", None)
        told = round_told(7, missing=[3])
        del told["what"]
        view.row(Row(rounds=20, **told))
        assert (task.completed, task.total) == (7, 20)
        assert task.fields["state"] == "accuracy 0.570  worst 0.470  distance 0.875  missing [3]"
        view._progress.refresh()
    assert "7/20" in console.file.getvalue()
    assert "accuracy 0.570" in console.file.getvalue()


def test_a_live_line_without_a_total_or_metrics():
    with Live(terminal()) as view:
        view.row(Row(round=3))
        (task,) = view._progress.tasks
        assert (task.completed, task.total, task.fields["state"]) == (3, None, "")


def test_the_live_view_prints_what_is_said_and_moves_for_rounds():
    console = terminal()
    with Live(console) as view:
        view.line(Line(text="unknown topology [rign]", kind="trouble"))
        view.line(Line(text="the app says [this]"))
        view.line(Line(text="round 1/3 | words", kind="round"))
    text = console.file.getvalue()
    assert "unknown topology [rign]" in text
    assert "the app says [this]" in text
    assert "words" not in text


def test_the_plain_view_prints_a_round_once():
    console = Console(file=StringIO(), width=40)
    with Plain(console) as view:
        view.row(Row(round=1, rounds=3, metrics={"a": 0.12345, "a-worst": 0.1}))
        view.row(Row(round=2, told=True))
        view.row(Row(round=3))
        view.line(Line(text="x" * 60))
    assert console.file.getvalue().splitlines() == ["round 1/3 | a 0.1235", "round 3/?", "x" * 60]


# --- waiting ---------------------------------------------------------------------------------


def test_while_nothing_comes_there_are_empty_lines(monkeypatch):
    monkeypatch.setattr(run, "_POLL_S", 0.001)
    lines = run._until_end(queue.Queue())
    assert [next(lines), next(lines)] == ["", ""]


def test_a_status_that_is_not_final_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    states = iter(["running", "running", "finished:completed"])

    class Link:
        def status(self, run_id):
            return next(states), ""

    assert run._final_status(Link(), "7") == ("finished:completed", "")


def test_a_run_that_never_ends_is_told(link, app, monkeypatch):
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    link.end = ("running", "")
    arguments = ["run", str(app)]
    assert cli.main(arguments) == 1
    with pytest.raises(RoundError, match="the run ended as running"):
        run.execute(_parsed(arguments))


def _parsed(words):
    import argparse

    parser = argparse.ArgumentParser()
    run.configure(parser)
    return parser.parse_args(words[1:])


def test_the_live_line_counts_what_the_run_was_warned_of():
    console = Console(file=StringIO(), width=120, force_terminal=True)
    with Live(console) as live:
        live.row(Row(round=1, rounds=3))
        assert live._progress.tasks[0].fields["state"] == ""
        live.row(Row(round=2, rounds=3, warnings=["the loss rises", "agent 3 is far below"]))
        live.row(Row(round=3, rounds=3, metrics={"acc": 0.5}))
        assert live._progress.tasks[0].fields["state"] == "acc 0.500  warnings 2, see above"
