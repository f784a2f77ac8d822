"""Real peers on a slow link, and real peers that are started one after the other."""

import time

import pytest

from benchmarks.peers_links import Case, link, run
from tests.support.peers import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(120)]


def test_a_slow_link_counts_in_every_round_and_takes_what_it_needs(tmp_path):
    """The silence limit is 8 s; before chunks shrank, one of 1 MiB would have taken 17 s."""
    case = Case("200 KB, 500 kbit/s", 200_000, link(500e3), 3)
    counted, seconds = run(case, tmp_path / "mesh")
    assert counted >= 0.95
    assert seconds <= 2.0 * case.needs_s  # the proxy's threads are late on a busy machine


def test_peers_that_are_started_apart_are_in_common_rounds_soon(tmp_path):
    """Their ceiling is 300 s: whoever waited for that would not be seen here."""
    peer = {"start-timeout-s": 3.0}
    with Mesh(
        tmp_path / "mesh",
        n=5,
        topology="ring:5",
        rounds=400,
        round_timeout_s=300.0,
        step_s=0.1,
        peer=peer,
    ) as mesh:
        begun = time.monotonic()
        for at, vertices in ((0.0, (0, 1)), (2.5, (2,)), (4.0, (3,)), (5.0, (4,))):
            time.sleep(max(begun + at - time.monotonic(), 0.0))
            mesh.start(*vertices)

        def common():
            rounds = [mesh.named(v, "round")[-3:] for v in mesh.paths]
            return all(len(r) == 3 and not any(e["missing"] for e in r) for r in rounds)

        mesh.wait(common, 30.0, "common rounds")
