"""The log of real peers: first line, last line, and a neighbor that is dead for a while."""

import pytest

from flower_dhb import __version__
from tests.support.peers import Mesh, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(120)]


def test_what_the_log_says_from_the_first_line_to_the_last(tmp_path):
    graph = tmp_path / "robots.edgelist"
    graph.write_text("arm lidar\n")  # the arm, vertex 0, dials
    limits = {"retry-s": 0.02, "retry-max-s": 0.1}
    with Mesh(
        tmp_path / "m", n=2, topology=str(graph), rounds=2000, evaluate_every=0, step_s=0.01,
        peer={"timing": {"least-s": 0.4, "reconnect-s": 0.2}, "limits": limits, "linger-s": 0.0},
    ) as mesh:  # fmt: skip
        mesh.start()
        mesh.wait_round(0, 3)
        begins = mesh.processes[0].events[0]
        assert begins["event"] == "begins"
        assert (begins["vertex"], begins["name"], begins["dials"]) == (0, "arm", [1])
        assert begins["message"].startswith(f"takes part in mesh {begins['mesh']} (run ")
        for words in (__version__, "peer_app", "dialing vertex 1 (lidar); begins anew"):
            assert words in begins["message"]
        mesh.kill(1)
        mesh.wait_event(0, "unreachable", why="nothing listens there")
        mesh.wait(  # as many as in a minute of a neighbor dialed every 3 s
            lambda: sum(e.get("more", 1) for e in mesh.named(0, "unreachable")) > 20,
            60, "20 attempts in vain",
        )  # fmt: skip
        mesh.start(1)
        mesh.wait(lambda: len(mesh.named(0, "connected")) == 2, 30, "the neighbor to be back")
        lines = [e for e in mesh.processes[0].events if e["event"] != "round"]
        names = [e["event"] for e in lines]
        assert names.count("unreachable") <= 5  # with a count, ever more seldom, and at the end
        back = lines[len(names) - 1 - names[::-1].index("connected")]
        assert (
            f"connected to vertex 1 (lidar), which is in round {back['round']}, after "
            in (back["message"])
        )
        assert back["after_s"] >= 10
        begins = mesh.processes[1].events[0]
        assert begins["resumes_after"] >= 2
        assert f"listening on {mesh.settings(1).listen}; resumes after round" in begins["message"]
        mesh.processes[0].popen.terminate()
        mesh.wait_event(0, "ends")
        ends = mesh.named(0, "ends")[0]
        assert (ends["how"], ends["status"], ends["rounds"]) == ("stopped", 3, 2000)
        assert ends["message"].startswith(f"ends: stopped (status 3), after round {ends['round']}")
        assert mesh.processes[0].popen.wait() == 3
        # A setting that changed for the worse, in text form.
        again = run_cli("peer", mesh.paths[0], "--state-dir", "/dev/null/x")
        assert " warning vertex 0 (arm): ends: again (status 75)" in again.stderr
