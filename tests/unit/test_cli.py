"""The command line's door: usage, exit statuses, and one message for whatever goes wrong."""

import argparse
import builtins
import errno
import gc
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flower_dhb import __version__, cli
from flower_dhb.cli import run
from flower_dhb.errors import ConfigError, GraphError, RoundError

PEER_APP = Path(__file__).parents[1] / "support" / "peer_app"


def test_no_command_prints_the_help_and_is_wrong_usage(capsys):
    assert cli.main([]) == 2
    text = " ".join(capsys.readouterr().err.split())
    for name, summary in cli._COMMANDS.items():
        assert f"{name} {summary}" in text


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


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out == f"flower-dhb {__version__}\n"


@pytest.mark.parametrize("command", sorted(cli._COMMANDS.keys() - {"compare"}))  # loads torch
def test_every_command_has_help_of_its_own(capsys, command):
    with pytest.raises(SystemExit) as error:
        cli.main([command, "--help"])
    assert error.value.code == 0
    assert f"usage: flower-dhb {command}" in capsys.readouterr().out


def test_help_of_run_names_its_arguments(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    for argument in ("--run-config", "--agents", "--home", "--verbose"):
        assert argument in text


def absent(name):
    return ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RoundError("it broke"), 1, "it broke"),
        (ConfigError("no good"), 2, "no good"),
        (GraphError("no graph"), 2, "no graph"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "/x/y: Permission denied"),
        (
            OSError(errno.EXDEV, "Cross-device link", "a", None, "b"),
            1,
            "a and b: Cross-device link",
        ),
        (
            absent("grpc.aio"),
            1,
            "'grpc' is not installed, which this needs: pip install 'flower-dhb[peer]'",
        ),
        (
            absent("matplotlib"),
            1,
            "'matplotlib' is not installed, which this needs: pip install 'flower-dhb[plot]'",
        ),
    ],
)
def test_errors_end_in_one_message_and_a_status(monkeypatch, capsys, error, status, text):
    def execute(arguments):
        raise error

    monkeypatch.setattr(run, "execute", execute)
    assert cli.main(["run"]) == status
    assert capsys.readouterr().err == f"flower-dhb run: {text}\n"


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_shown_as_one(monkeypatch):
    def execute(arguments):
        raise absent("flower_dhb.flyer")

    monkeypatch.setattr(run, "execute", execute)
    with pytest.raises(ModuleNotFoundError, match="flyer"):
        cli.main(["run"])


def test_an_extra_that_a_command_needs_to_load_is_named(monkeypatch, capsys):
    monkeypatch.setattr(cli, "import_module", lambda name: builtins.__import__("cvxpy.absent"))
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    assert cli.main(["topology", "show", "ring:8"]) == 1
    assert "pip install 'flower-dhb[fdla]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["topology", "show", "/dev/null/x.json"],
        ["mesh", "create", "--app", "/dev/null", "--out", "/dev/null/mesh"],
        ["mesh", "status", "/dev/null"],
        ["mesh", "renew", "/dev/null", "--all"],
        ["mesh", "revoke", "/dev/null", "3"],
        ["mesh", "up", "/dev/null"],
        ["peer", "/dev/null/peer.toml"],
        ["replay", "/dev/null"],
        ["run", "/dev/null/app"],
    ],
)
def test_files_that_cannot_be_read_or_written_are_one_line(words, capsys):
    pytest.importorskip("grpc")
    assert cli.main(words) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith(f"flower-dhb {words[0]}: ")
    assert "/dev/null" in error
    assert error.count("\n") == 1


def options_of(parser):
    """All options of a command, and of its actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from options_of(each)
        elif action.option_strings and "--help" not in action.option_strings:
            yield action


@pytest.mark.parametrize("command", ["compare", "topology", "run", "peer", "mesh", "replay"])
def test_the_help_of_each_option_says_what_it_does_and_its_default(command, capsys, monkeypatch):
    pytest.importorskip("grpc")
    kept = []
    monkeypatch.setattr(cli, "_say_defaults", spy(cli._say_defaults, kept))
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    capsys.readouterr()
    for option in options_of(kept[0]):
        assert re.sub(r"\(default.*", "", option.help or ""), option
        if option.default is not False and option.default not in (None, "", []):
            assert "default" in option.help, option


def spy(function, kept):
    def called(parser):
        kept.append(parser)
        function(parser)

    return called


@pytest.fixture
def odd_files(tmp_path):
    """Files of every command that are no TOML, no text, or lack what they should hold."""
    for folder, content in (("toml", b"not toml ["), ("text", b"\xff\xfe"), ("empty", b"x = 1")):
        (tmp_path / folder).mkdir()
        for name in ("mesh.toml", "peer.toml", "pyproject.toml", "hosts.toml"):
            (tmp_path / folder / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("folder", ["toml", "text", "empty"])
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["mesh", "status", "{}"], "mesh.toml"),
        (["mesh", "up", "{}"], "mesh.toml"),
        (["replay", "{}"], "mesh.toml"),
        (["peer", "{}/peer.toml"], "peer.toml"),
        (["mesh", "create", "--app", "{}", "--out", "/dev/null/x"], "pyproject.toml"),
        (["mesh", "create", "--hosts", "{}/hosts.toml", "--out", "/dev/null/x"], "hosts.toml"),
        (["run", "{}"], "pyproject.toml"),
        (["run", "{}/../../../app", "-c", "{}/hosts.toml"], ""),
    ],
)
def test_files_that_hold_something_else_are_named(odd_files, capsys, words, name, folder):
    pytest.importorskip("grpc")
    path = str(odd_files / folder)
    assert cli.main([word.replace("{}", path) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"flower-dhb {words[0]}: ")
    assert name in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["create", "--out", "/dev/null/x"], ["renew", "/dev/null", "--operator"]]
)
def test_certificates_that_nobody_could_use_are_refused(capsys, words):
    pytest.importorskip("grpc")
    assert cli.main(["mesh", *words, "--days", "0"]) == 2
    assert "--days must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.thorough
def test_whoever_stops_reading_gets_no_traceback():
    program = (
        "from flower_dhb import cli\nfrom flower_dhb.cli import run\n"
        "run.execute = lambda arguments: [print('x' * 100) for _ in range(10000)] and 0\n"
        "raise SystemExit(cli.main(['run']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.thorough
def test_a_command_that_is_stopped_cleans_up_and_says_so(number):
    program = (
        "import time\nfrom flower_dhb import cli\nfrom flower_dhb.cli import run\n"
        "def execute(arguments):\n"
        "    try: print('begun', flush=True); time.sleep(60)\n"
        "    finally: print('cleaned up')\n"
        "run.execute = execute\n"
        "raise SystemExit(cli.main(['run']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "cleaned up\n")
    assert error.count("\n") == 1


def test_a_peer_looks_for_garbage_once_its_modules_are_loaded(tmp_path, capsys):
    assert cli.main(["peer", str(tmp_path / "peer.toml")]) != 0
    assert "peer.toml" in capsys.readouterr().err
    assert gc.isenabled()


_SMALL = """
import resource, sys
from pathlib import Path
import flower_dhb.peer.device.daemon
from flower_dhb.cli import main
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peer_that_gets_no_memory_for_a_thread_says_so_and_may_be_started_again(tmp_path):
    create = ["mesh", "create", "--app", str(PEER_APP), "--out", str(tmp_path / "mesh")]
    assert cli.main([*create, "--topology", "path:2", "--insecure-plaintext"]) == 0
    peer = ["peer", str(tmp_path / "mesh" / "vertex-0" / "peer.toml"), "--log", "json"]
    found = subprocess.run(
        [sys.executable, "-c", _SMALL, str(4 * 2**20), *peer],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 75, found.stderr
    assert "flower-dhb peer: the system gives this process no more threads: raise" in found.stderr
    assert "Traceback" not in found.stderr


def test_an_array_for_which_there_is_no_memory_is_told_with_its_size(monkeypatch, capsys):
    monkeypatch.setattr(run, "execute", lambda _: np.empty(2**57))
    assert cli.main(["run"]) == 1
    said = capsys.readouterr().err
    assert "flower-dhb run: memory ran out (Unable to allocate 1.00 EiB" in said
    assert said.count("\n") == 1


def test_other_errors_of_python_keep_their_traceback(monkeypatch):
    def execute(_):
        raise RuntimeError("can't happen")

    monkeypatch.setattr(run, "execute", execute)
    with pytest.raises(RuntimeError, match="can't happen"):
        cli.main(["run"])
