"""What `mesh status` says of a real mesh in which much goes wrong at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest
import tomli_w

from flower_dhb.peer.mesh.create import Host, local_hosts
from flower_dhb.peer.mesh.findings import findings
from flower_dhb.peer.mesh.fleet import Fleet
from tests.support.links import Shape, ShapedLinks
from tests.support.net import Proxies
from tests.support.peers import APP, COMMAND, Mesh, environment, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240)]

# Of a torus of 3 x 5; each is a neighbor of v ± 1 in its row and of v ± 5.
FAILING, STOPPED, KILLED, HIDDEN, EXPIRING = 1, 2, 3, 4, 5
HANGING, DISK, CODE, CLOCK, SLOW, RUN, LIAR = 6, 7, 8, 9, 10, 11, 12
CUT, LONG = (13, 14), (8, 13)
N = 15
SHIFTED = """
import datetime

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(hours=3)

datetime.datetime = Shifted
"""


def through(mesh, edge, before):
    """Send the connection of an edge through a proxy."""
    a, b = edge
    v, w = (a, b) if b in mesh.settings(a).dial else (b, a)
    change(mesh, v, lambda document: [
        n.update(address=before(n["address"])) for n in document["neighbors"] if n["vertex"] == w
    ])  # fmt: skip


def change(mesh, vertex, what):
    document = tomllib.loads(mesh.paths[vertex].read_text())
    what(document)
    mesh.paths[vertex].write_text(tomli_w.dumps(document))


def in_a_terminal(out, columns, lines):
    """The command's output as a terminal of that size gets it."""
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    size = {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "dumb"}
    command = [sys.executable, "-c", COMMAND, "mesh", "status", str(out)]
    with subprocess.Popen(command, stdout=other, env={**environment(), **size}) as process:
        os.close(other)
        text = b""
        while True:
            try:
                data = os.read(main, 65536)
            except OSError:  # what Linux says at the end
                break
            if not data:
                break
            text += data
        os.close(main)
        status = process.wait(60)
    return status, text.decode().replace("\r\n", "\n").rstrip("\n").split("\n")


@pytest.mark.xdist_group("busy")
def test_a_mesh_in_which_much_goes_wrong(tmp_path):
    """Each fault is told of its own device, in words that say what to do, and of no other."""
    trouble, shift, other_app = tmp_path / "trouble", tmp_path / "shift", tmp_path / "app"
    trouble.mkdir()
    shift.mkdir()
    (shift / "sitecustomize.py").write_text(SHIFTED)
    shutil.copytree(APP, other_app)
    with (other_app / "quadratics.py").open("a") as file:
        file.write("\nNEWER = True\n")
    hosts = local_hosts(N)
    hosts[HIDDEN] = Host(HIDDEN)
    hosts[CODE] = Host(CODE, hosts[CODE].address, app=str(other_app))
    # The proxy gives back up to 0.1 s of each way: there and back it takes 0.3 s.
    cut, long = Proxies(set(), 0), ShapedLinks(Shape(1e8, way_s=0.25))

    def prefix(v):
        path = f"PYTHONPATH={shift}{os.pathsep}{environment()['PYTHONPATH']}"
        return ["env", path] if v == CLOCK else []

    with Mesh(
        tmp_path / "m", hosts=hosts, topology="torus:3x5", rounds=100000, step_s=0.02,
        trouble=str(trouble),
        peer={
            "limits": {"hello-s": 2.0, "heartbeat-s": 0.3, "dead-after-s": 2.0},
            "timing": {"ceiling-s": 2.0, "reconnect-s": 0.5},
            "start-timeout-s": 20.0,
        },
    ) as mesh:  # fmt: skip
        through(mesh, CUT, cut.before)
        through(mesh, LONG, long.before)
        renewed = run_cli("mesh", "renew", mesh.out, "--vertex", EXPIRING, "--days", 12)
        assert renewed.returncode == 0, renewed.stderr
        change(mesh, RUN, lambda document: document.update(run="another"))
        try:
            mesh.start(prefix=prefix)
            for v in set(range(N)) - {RUN}:
                mesh.wait_round(v, 3, 90)
            (trouble / f"fails-{FAILING}").write_text("6")
            (trouble / f"slow-{HANGING}").write_text("600")
            (trouble / f"slow-{SLOW}").write_text("4")
            (trouble / f"lies-{LIAR}").write_text("1e30")
            mesh.signal(STOPPED, signal.SIGSTOP)
            mesh.kill(KILLED)
            state = mesh.out / f"vertex-{DISK}" / "state"
            state.rename(state.with_name("away"))
            state.write_text("no directory")
            cut.cut()
            look_at(mesh)
        finally:
            mesh.signal(STOPPED, signal.SIGCONT)
            cut.close()
            long.close()


NEEDED = {
    ("app-failing", (FAILING,)): "no camera at /dev/video0”. Mend the app there",
    ("silent", (STOPPED,)): "takes connections and does not answer",
    ("silent", (KILLED,)): "start its peer",
    ("certificate", (EXPIRING,)): "ends in 1",
    ("stalled", (HANGING,)): "so its app hangs in round",
    ("disk", (DISK,)): "a file stands where a directory should be: move it away",
    ("clock", (CLOCK,)): "its clock is 3 h ahead of this computer's",
    ("left-out", (SLOW,)): "Give it fewer local steps",
    ("alone", (RUN,)): "trains alone from its first round on",
    ("edge-down", (RUN, LIAR)): "the files of one and the same mesh",
    ("liar", (LIAR,)): "what it sends is absurd",
    ("edge-down", CUT): "something takes the connection, and says nothing",
}
NOTED = {
    ("other-code", (CODE, CODE + 1)): "different code of the app",
    ("slow-link", LONG): "its link takes 0.",
}


def look_at(mesh):
    fleet = Fleet(mesh.out)
    end, lacking, told = time.monotonic() + 70.0, {*NEEDED, *NOTED}, {}
    while lacking and time.monotonic() < end:
        found = fleet.status(1.0)
        told = {(f.kind, f.vertices): f for f in findings(found)}
        # A device that has just become slow is left out before it has told of a slow round.
        lacking = {
            place
            for place, words in {**NEEDED, **NOTED}.items()
            if place not in told or words not in told[place].text
        }
        time.sleep(1.0)
    fleet.close()
    assert not lacking, f"{lacking} in\n" + "\n".join(f.text for f in told.values())
    for place in {**NEEDED, **NOTED}:
        assert told[place].needs == (place in NEEDED)
    assert found.state(HIDDEN) == "heard"
    assert not {f.kind for f in told.values() if f.vertices in ((HIDDEN,), (0,))}
    for kind in ("app-failing", "stalled", "disk", "certificate", "clock", "liar", "alone"):
        assert {vs for k, vs in told if k == kind} == {vs for k, vs in NEEDED if k == kind}

    plain = run_cli("mesh", "status", mesh.out)
    assert plain.returncode == 1
    assert "no camera" in " ".join(plain.stdout.split())
    status, lines = in_a_terminal(mesh.out, 80, 24)
    assert status == 1
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    folder = os.environ.get("SHOW_STATUS")
    if folder:
        print("\n".join(lines), plain.stdout, sep="\n\n")
    document = json.loads(run_cli("mesh", "status", mesh.out, "--json").stdout)
    assert document["devices"][str(STOPPED)]["state"] == "silent"
    assert document["devices"][str(HIDDEN)]["heard_by"]
    assert document["devices"][str(KILLED)]["seen_s"] > 10.0


def test_who_has_finished_is_no_fault_and_who_never_came_is(tmp_path):
    """Through a neighbor that stays, and after that one is gone, too, by the last sight."""
    with Mesh(
        tmp_path / "m", n=3, topology="path:3", rounds=5,
        peer={"start-timeout-s": 1.0, "linger-s": 8.0},
    ) as mesh:  # fmt: skip
        mesh.start(0, 1)
        mesh.wait_event(0, "ended", 60)
        found = run_cli("mesh", "status", mesh.out, "--json")
        document = json.loads(found.stdout)
        states = {v: about["state"] for v, about in document["devices"].items()}
        assert states == {"0": "finished", "1": "finished", "2": "silent"}
        (finding,) = document["findings"]
        assert finding["vertices"] == [2]
        assert "never seen" in finding["what"]
        mesh.finish(60)
        found = run_cli("mesh", "status", mesh.out)
        shown = {line.split()[0]: line for line in found.stdout.splitlines()}
        assert "finished" in shown["0"]
        assert "finished" in shown["1"]
        assert "never seen" in shown["2"]
