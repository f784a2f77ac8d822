"""Parts of a SuperLink of one's own; the whole is in tests/integration."""

import json
import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from flower_dhb.errors import ConfigError, RoundError
from flower_dhb.runs import superlink
from flower_dhb.runs.superlink import SuperLink

APP = """
[project]
name = "old"
version = "1.0.0"
[tool.flwr.app]
publisher = "tests"
fab-exclude = ["old/notes.py"]
[tool.flwr.app.components]
serverapp = "old.server_app:app"
clientapp = "old.client_app:app"
[tool.flwr.app.config]
rounds = 3
"""
FEDERATIONS = """
[tool.flwr.federations]
default = "local"
[tool.flwr.federations.local]
options.num-supernodes = 4
"""


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "old"
    (folder / "old").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(APP + FEDERATIONS)
    for name in ("__init__", "server_app", "client_app", "notes"):
        (folder / "old" / f"{name}.py").write_text("app = None\n")
    return folder


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Make `flwr` a small program of the test's own; it sees its arguments in sys.argv."""

    def install(source):
        path = tmp_path / "flwr"
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o700)
        monkeypatch.setattr(superlink, "executable", lambda name: str(path))
        home = tmp_path / "home"
        home.mkdir()
        return SuperLink(dict(os.environ), home / "superlink.log")

    return install


SHOW = """
import json, os, sys, tomllib
from pathlib import Path
words = sys.argv[1:]
found = {"success": True, "run-id": 7, "cwd": os.getcwd(), "words": words}
if "--run-config" in words:
    found["config"] = Path(words[words.index("--run-config") + 1]).read_text()
found["pyproject"] = Path(words[1], "pyproject.toml").read_text()
found["files"] = sorted(p.name for p in Path(words[1]).rglob("*.py"))
Path(os.environ["FOUND"]).write_text(json.dumps(found))
print("some words first", json.dumps({"success": True, "run-id": 7}))
"""


@pytest.fixture
def found(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    monkeypatch.setenv("FOUND", str(path))
    return lambda: json.loads(path.read_text())


def test_an_app_of_an_older_template_is_left_as_it_is(app, stand_in, found):
    """Flower would comment its federations out, into a state that is deleted."""
    before = (app / "pyproject.toml").read_text()
    link = stand_in(SHOW)
    assert link.submit(app, 4, {"rounds": 5}) == "7"
    submitted = tomllib.loads(found()["pyproject"])
    assert "federations" not in submitted["tool"]["flwr"]
    assert submitted["tool"]["flwr"]["app"]["config"] == {"rounds": 3}
    assert found()["files"] == ["__init__.py", "client_app.py", "server_app.py"]
    assert Path(found()["words"][1]) != app
    assert (app / "pyproject.toml").read_text() == before
    assert tomllib.loads(found()["config"]) == {"rounds": 5}
    # Nothing of it stays, neither there nor in the SuperLink's folder.
    assert sorted(p.name for p in app.iterdir()) == ["old", "pyproject.toml"]
    assert list(link.log_path.parent.iterdir()) == []


def test_an_app_without_federations_is_submitted_itself(app, stand_in, found):
    (app / "pyproject.toml").write_text(APP)
    stand_in(SHOW).submit(app, 4, {})
    assert found()["words"][:2] == ["run", str(app)]
    assert "--run-config" not in found()["words"]


def test_flower_never_runs_in_the_users_folder(app, stand_in, found, monkeypatch):
    monkeypatch.chdir(app)
    link = stand_in(SHOW)
    link.submit(app, 4, {})
    assert found()["cwd"] == str(link.log_path.parent)


def test_an_older_app_that_flower_would_not_take_is_refused_with_its_words(app, stand_in):
    (app / "pyproject.toml").write_text(APP.replace("old/notes.py", "absent.py") + FEDERATIONS)
    with pytest.raises(ConfigError, match=r'Pattern in "fab-exclude" did not match any files'):
        stand_in(SHOW).submit(app, 4, {})


WAIT = """
import os, sys, time
from pathlib import Path
words = sys.argv[1:]
mine = Path(words[words.index("--run-config") + 1])
arrived = Path(os.environ["FOUND"] + "." + words[words.index("--federation-config") + 1][15])
arrived.touch()
while len(list(arrived.parent.glob("found.json.*"))) < 2:  # both are being submitted
    time.sleep(0.01)
print('{"success": true, "run-id": "' + mine.read_text().strip() + '"}')
"""


def test_two_runs_submitted_at_once_keep_their_own_settings(app, stand_in, found):
    link, ids = stand_in(WAIT), {}
    (app / "pyproject.toml").write_text(APP)

    def submit(n):
        ids[n] = link.submit(app, n, {"rounds": n})

    threads = [threading.Thread(daemon=True, target=submit, args=(n,)) for n in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert ids == {3: "rounds = 3", 4: "rounds = 4"}


def test_a_flower_that_does_not_answer_is_told(app, stand_in, monkeypatch):
    monkeypatch.setattr(superlink, "_COMMAND_S", 0.2)
    link = stand_in("import time; time.sleep(60)")
    with pytest.raises(RoundError, match=r"'flwr list' gave no answer within 0.2 s; see .*log"):
        link.status("7")


# --- ports -----------------------------------------------------------------------------------

BIND = """
import os, socket, sys, time
from pathlib import Path
home = Path(os.environ["FLWR_HOME"])
tries = home / "tries"
tries.open("a").write(sys.argv[-1] + os.linesep)
if len(tries.read_text().split()) <= int(os.environ["TAKEN"]):
    sys.exit("[Errno 98] address already in use")
with socket.create_server(("127.0.0.1", int(sys.argv[-1]))):
    time.sleep(60)
"""


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """A SuperLink that finds its port taken so many times."""
    path = tmp_path / "flower-superlink"
    path.write_text(f"#!{sys.executable}\n{BIND}")
    path.chmod(0o700)
    monkeypatch.setattr(superlink, "executable", lambda name: str(path))
    return tmp_path / "home"


def test_a_port_that_somebody_takes_meanwhile_is_tried_no_second_time(taken):
    with superlink.local_superlink(taken, {"TAKEN": "1"}) as link:
        first, second = (taken / "tries").read_text().split()
        assert first != second == link.environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]


@pytest.mark.thorough
def test_a_superlink_that_never_comes_up_says_why(taken):
    with (
        pytest.raises(RoundError, match=r"exit status 1.*is: \[Errno 98\] address already in use"),
        superlink.local_superlink(taken, {"TAKEN": "99"}),
    ):
        pytest.fail("it is not up")
    assert len((taken / "tries").read_text().split()) == superlink._TRIES


def test_a_home_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), superlink.local_superlink(tmp_path / "file" / "home"):  # noqa: PT011
        pytest.fail("it is not up")


def test_free_ports_differ():
    assert len(set(superlink.free_ports(20))) == 20


def test_the_guard_ends_what_it_started_when_its_parent_is_gone(tmp_path):
    program = "import time, sys; print('up', flush=True); time.sleep(60)"
    guard = "from flower_dhb.runs.superlink import guard; guard()"
    guarded = subprocess.Popen(
        [sys.executable, "-c", guard, sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert guarded.stdout.readline() == b"up\n"
    guarded.stdin.close()
    guarded.wait(timeout=30)
    assert guarded.stdout.read() == b""  # the pipe is closed: nobody holds it any more
    guarded.stdout.close()
