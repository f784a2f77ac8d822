"""The command line without Flower: arguments, refusals, and the two views of a run."""

import json
import queue
import re
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flower_dhb import cli
from flower_dhb.cli import run
from flower_dhb.errors import ConfigError, RoundError

PYPROJECT = """
[tool.flwr.app.config]
topology = "ring:5"
rounds = 10
learning-rate = 0.5
name = "demo"
runs-dir = "runs"
data-dir = "data"
[tool.flwr.app.config.nested]
key = 1
"""


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    return folder


class FakeLink:
    """A SuperLink that only remembers what it was asked for, and has a log to be read."""

    def __init__(self, lines=(), status=("finished:completed", "")):
        self.lines = lines
        self._status = status
        self.submitted = []
        self.homes = []
        self.log_path = Path("superlink.log")

    @contextmanager
    def __call__(self, home):
        self.homes.append(home)
        yield self

    def submit(self, app, n_agents, settings):
        self.submitted.append((app, n_agents, dict(settings)))
        return "7"

    @contextmanager
    def log(self, run_id):
        assert run_id == "7"
        yield iter(self.lines)

    def status(self, run_id):
        return self._status


@pytest.fixture
def link(monkeypatch):
    fake = FakeLink()
    monkeypatch.setattr(run, "local_superlink", fake)
    return fake


def submitted(link, app, *words):
    """What the command submits: `(number of agents, settings)`."""
    assert cli.main(["run", str(app), *words]) == 0
    ((path, n_agents, settings),) = link.submitted
    assert path == app
    return n_agents, settings


# --- the dispatcher ----------------------------------------------------------------------


def test_no_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([])
    assert error.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_an_unknown_command_names_those_that_exist(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["fly"])
    assert error.value.code == 2
    assert "run" in capsys.readouterr().err


def test_help_tells_what_each_command_does(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--help"])
    assert error.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "run a Flower App on this machine" in text


def test_help_of_a_command_names_its_arguments(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    for argument in ("--run-config", "--agents", "--home", "--verbose"):
        assert argument in text


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ConfigError("no good"), 1, "flower-dhb run: no good\n"),
        (KeyboardInterrupt(), 130, "flower-dhb run: stopped\n"),
    ],
)
def test_errors_end_in_one_line_and_a_status(monkeypatch, capsys, error, status, text):
    def execute(arguments):
        raise error

    monkeypatch.setattr(run, "execute", execute)
    assert cli.main(["run"]) == status
    assert capsys.readouterr().err == text


# --- arguments of run --------------------------------------------------------------------


def test_agents_come_from_the_topology(link, app):
    n_agents, settings = submitted(link, app)
    assert n_agents == 5
    assert settings == {"runs-dir": str(app / "runs"), "data-dir": str(app / "data")}


def test_agents_come_from_an_overridden_topology(link, app):
    n_agents, settings = submitted(link, app, "-c", 'topology="torus:3x4"')
    assert (n_agents, settings["topology"]) == (12, "torus:3x4")


def test_agents_may_be_told(link, app):
    assert submitted(link, app, "--agents", "3")[0] == 3


@pytest.mark.parametrize("number", ["0", "-2"])
def test_a_run_needs_an_agent(link, app, number, capsys):
    assert cli.main(["run", str(app), "--agents", number]) == 1
    assert f"--agents must be at least 1, got {number}" in capsys.readouterr().err
    assert link.submitted == []


def test_an_app_without_a_topology_needs_the_number(link, app, capsys):
    (app / "pyproject.toml").write_text("[tool.flwr.app.config]\nrounds = 3\n")
    assert cli.main(["run", str(app)]) == 1
    assert "names no topology; say how many agents: --agents N" in capsys.readouterr().err
    assert submitted(link, app, "--agents", "4") == (4, {})


def test_files_and_pairs_are_combined_and_later_ones_win(link, app, tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text('rounds = 20\nname = "preset"\nlearning-rate = 0.1\n')
    words = ["-c", "rounds=30 nested.key=5", "-c", str(preset), "-c", 'name="a b" rounds=40']
    _, settings = submitted(link, app, *words)
    assert settings == {
        "rounds": 40,
        "name": "a b",
        "learning-rate": 0.1,
        "nested.key": 5,
        "runs-dir": str(app / "runs"),
        "data-dir": str(app / "data"),
    }


def test_relative_folders_are_the_apps_and_absolute_ones_stay(link, app, tmp_path):
    _, settings = submitted(link, app, "-c", f'runs-dir="out" data-dir="{tmp_path}"')
    assert settings == {"runs-dir": str(app / "out"), "data-dir": str(tmp_path)}


def test_a_graph_file_is_the_apps_too(link, app):
    (app / "roads.edges").write_text("0 1\n1 2\n2 3\n")
    n_agents, settings = submitted(link, app, "-c", 'topology="roads.edges"')
    assert (n_agents, settings["topology"]) == (4, str(app / "roads.edges"))


def test_flowers_state_lies_in_the_app_or_where_it_is_told(link, app, tmp_path):
    submitted(link, app)
    link.submitted.clear()
    submitted(link, app, "--home", str(tmp_path / "home"))
    assert link.homes == [app / ".flwr", tmp_path / "home"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", "learnig-rate=1"], "unknown run-config key 'learnig-rate', did you mean 'learning"),
        (["-c", "rounds"], "--run-config 'rounds': 'rounds' is neither KEY=VALUE nor a .toml file"),
        (["-c", "rounds=5 and more"], "'and more' is neither KEY=VALUE"),
        (["-c", "rounds=five"], "--run-config 'rounds=five':"),
        (["-c", "absent.toml"], "--run-config 'absent.toml': [Errno 2]"),
        (["-c", 'topology="rign:5"'], "unknown topology 'rign', did you mean 'ring'?"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(link, app, capsys, words, message):
    assert cli.main(["run", str(app), *words]) == 1
    assert message in capsys.readouterr().err
    assert link.homes == []


@pytest.mark.parametrize("content", [None, "[project]\nname = 'x'\n", "not toml", "\xff"])
def test_a_folder_that_is_no_flower_app(link, tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "pyproject.toml").write_bytes(content.encode("latin-1"))
    assert cli.main(["run", str(tmp_path)]) == 1
    assert f"{tmp_path} is not a Flower App" in capsys.readouterr().err
    assert link.homes == []


def test_a_run_that_fails_says_how_it_ended_and_where_to_look(link, app, capsys):
    link._status = ("finished:failed", "out of memory")
    assert cli.main(["run", str(app)]) == 1
    error = capsys.readouterr().err
    assert "the run ended as finished:failed: out of memory; see superlink.log" in error


# --- what is seen ------------------------------------------------------------------------


def history_row(k, **changes):
    values = {
        "round": k,
        "accuracy_mean": 0.5 + k / 100,
        "accuracy_worst": 0.4 + k / 100,
        "accuracy_average_model": None,
        "consensus_distance": 0.125 * k,
        "missing": [],
        "seconds": 0.5,
    }
    return values | changes


def write_folder(path, rows, rounds=20):
    path.mkdir()
    (path / "config.toml").write_text(f'name = "x"\nrounds = {rounds}\n')
    (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_shows_its_rounds_its_table_and_its_folder(link, app, tmp_path, capsys):
    rows = [history_row(1), history_row(2, accuracy_worst=0.9), history_row(3)]
    folder = write_folder(tmp_path / "results", rows)
    link.lines = [
        "Loading project configuration...\n",
        f"\x1b[92mINFO \x1b[0m:      this run leaves its results in {folder}\n",
        "\x1b[92mINFO \x1b[0m:      round 1/3 | accuracy 0.51 | 0.50 s\n",
        "WARNING :   round 2, agent 1: something\n",
        "ERROR :     agent 1: ValueError: the battery is empty [1]\n",
    ]
    assert cli.main(["run", str(app)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "Starting 5 agents; no server averages anything."
    assert lines[1] == "round 1/3 | accuracy 0.51 | 0.50 s"
    assert lines[2] == "agent 1: ValueError: the battery is empty [1]"
    assert "Loading" not in out
    cells = {line.split()[1]: re.findall(r"[\d.]+%?|-", line) for line in lines if "%" in line}
    assert cells["first"] == ["1", "51.0%", "41.0%", "-", "0.125"]
    assert cells["best"] == ["2", "52.0%", "90.0%", "-", "0.25"]
    assert cells["last"] == ["3", "53.0%", "43.0%", "-", "0.375"]
    assert lines[-1] == f"Results: {folder}"


def test_verbose_prints_all_lines(link, app, capsys):
    link.lines = ["INFO :      one\n", "two\n", "\n"]
    assert cli.main(["run", str(app), "--verbose"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["one", "two"]


def test_a_run_without_evaluation_has_no_table(tmp_path):
    console = Console(file=StringIO(), width=100)
    rows = [history_row(k, accuracy_mean=None, accuracy_worst=None) for k in (1, 2)]
    folder = write_folder(tmp_path / "results", rows)
    run._print_table(folder, console)
    assert console.file.getvalue() == f"Results: {folder}\n"


def terminal():
    return Console(file=StringIO(), force_terminal=True, width=120, color_system=None)


def test_the_live_line_follows_the_history(tmp_path):
    console = terminal()
    folder = write_folder(tmp_path / "results", [history_row(7, missing=[3])])
    with run._Live(console) as view:
        view.show("", None)
        (task,) = view._progress.tasks
        assert task.fields["state"] == "starting the agents"
        view.show("INFO", folder)
        assert (task.completed, task.total) == (7, 20)
        assert task.fields["state"] == "accuracy 0.570  worst 0.470  distance 0.875  missing [3]"
        view._progress.refresh()
    assert "7/20" in console.file.getvalue()
    assert "accuracy 0.570" in console.file.getvalue()


def test_the_live_view_lets_errors_through(tmp_path):
    console = terminal()
    with run._Live(console) as view:
        view.show("ConfigError: unknown topology [rign]", None)
        view.show("an ordinary line", None)
    assert "ConfigError: unknown topology [rign]" in console.file.getvalue()
    assert "ordinary" not in console.file.getvalue()


@pytest.mark.parametrize("tail", ["", '{"round": 2, "accu'])
def test_a_line_that_is_being_written_is_not_read(tmp_path, tail):
    folder = write_folder(tmp_path / "results", [] if not tail else [history_row(1)])
    with (folder / "history.jsonl").open("a") as file:
        file.write(tail)
    assert run._last_row(folder) is None


def test_before_the_folder_is_known_there_is_nothing_to_read(tmp_path):
    assert run._last_row(None) is None
    assert run._last_row(tmp_path) is None
    assert run._rounds(None) is None


def test_lines_come_without_colors_and_levels_until_the_end():
    arriving = queue.Queue()
    run._pump(["\x1b[92mINFO \x1b[0m:      one\n", "WARNING:two \n"], arriving)
    assert list(run._until_end(arriving)) == ["one", "two"]


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
    link._status = ("running", "")
    arguments = ["run", str(app)]
    assert cli.main(arguments) == 1
    with pytest.raises(RoundError, match="the run ended as running"):
        run.execute(_parsed(arguments))


def _parsed(words):
    import argparse

    parser = argparse.ArgumentParser()
    run.configure(parser)
    return parser.parse_args(words[1:])
