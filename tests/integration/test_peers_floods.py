"""A peer with 256 descriptors under several floods at once: real processes, real TLS."""

import datetime
import json
import time

import psutil
import pytest

from flower_dhb.peer.mesh.fleet import Fleet
from flower_dhb.peer.wire.identity import Identity, host_name
from tests.support.floods import Flood
from tests.support.peers import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(110)]

LIMITED = ["/bin/sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
SECONDS = 12.0


def last_round(mesh, vertex):
    return max((e["round"] for e in mesh.named(vertex, "round")), default=0)


def stamp(event):
    return datetime.datetime.fromisoformat(event["time"]).timestamp()


def test_floods_of_strangers_and_of_a_greedy_neighbor(tmp_path):
    """Silent connections, handshakes without a certificate, and a neighbor that reads nothing.

    All call from the address of the honest neighbor, which is restarted meanwhile.
    """
    with Mesh(tmp_path / "m", n=3, topology="ring:3", rounds=10**6, step_s=0.05) as mesh:
        called = [j for v in mesh.paths for j in mesh.settings(v).dial]
        victim = max(mesh.paths, key=called.count)
        honest, bad = (v for v in mesh.paths if v != victim)
        settings = mesh.settings(victim)
        address, name = settings.listen, host_name(Identity(settings.mesh, victim))
        mesh.start(prefix=lambda v: LIMITED if v == victim else [])
        mesh.wait_round(victim, 10)
        mesh.kill(bad)
        mesh.wait_event(victim, "parted", neighbor=bad)
        mesh.wait_round(victim, last_round(mesh, victim) + 10)
        process = psutil.Process(mesh.processes[victim].popen.pid)
        memory, events = process.memory_info().rss, mesh.processes[victim].events
        first, said_before = last_round(mesh, victim), len(events)
        fleet, last = Fleet(mesh.out), 0
        # The greedy one comes first: in the crowd its way in may take long.
        floods = [Flood("greedy", address, SECONDS + 5, mesh.out / f"vertex-{bad}", name)]
        try:
            mesh.wait_event(victim, "turned-away", 20, reason="busy")
            floods += [
                Flood("silent", address, SECONDS, 2000),
                Flood("handshakes", address, SECONDS, 20000),
            ]
            begin = time.monotonic()
            while time.monotonic() < begin + SECONDS:
                found = fleet.status(5.0, 0)
                assert victim in found.replies, found.failures
                assert process.memory_info().rss < memory + 50e6
                assert process.num_fds() < 200
                if not last and time.monotonic() > begin + SECONDS / 2:
                    last = last_round(mesh, victim)
                    mesh.kill(honest)
                    mesh.start(honest)
                time.sleep(0.2)
            back = mesh.wait_event(honest, "connected", 10, neighbor=victim)
            assert stamp(back) - stamp(mesh.named(honest, "resumed")[0]) < 5.0
            counts = fleet.status(5.0, 0).replies[victim].counts
        finally:
            fleet.close()
            done = [flood.end() for flood in floods]
        assert done[1]["opened"] > 2000
        assert counts["turned-away.crowd"] > 1000
        assert counts["turned-away.handshake"] > 10
        assert counts[f"turned-away.busy.{bad}"] > 0
        assert last > first + 10
        missed = {k for k, edges in mesh.missing_edges().items() if (victim, honest) in edges}
        assert not {k for k in missed if first < k <= last}
        lines = [e for e in events[said_before:] if e["event"] != "round"]
        assert sum(len(json.dumps(line)) for line in lines) < 30_000
        mesh.wait_round(honest, last + 10)
