"""Devices are upgraded one by one: neighbors of two releases in one mesh, as real processes."""

import json
import sys

import pytest

from flower_dhb import __version__
from flower_dhb.peer.wire.frames import VERSION
from tests.support.later import SOFTWARE
from tests.support.peers import PATIENT, Mesh, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_minor_release_takes_part_and_a_major_one_is_refused_by_name(tmp_path):
    with Mesh(
        tmp_path / "m", n=4, topology="ring:4", rounds=100_000, step_s=0.05, evaluate_every=0,
        peer={"record": "checksums", "timing": {"reconnect-s": 1.0, **PATIENT["timing"]}},
    ) as mesh:  # fmt: skip

        def start_as(kind):
            mesh.start(1, prefix=lambda _: [sys.executable, "-m", "tests.support.later", kind])

        mesh.start(0, 2, 3)
        start_as("minor")
        for v in mesh.paths:
            mesh.wait_round(v, 10)
        for v in (0, 2):
            told = mesh.wait_event(v, "software", neighbor=1)
            assert (told["there"], told["here"]) == (SOFTWARE, __version__)
        assert {e["neighbor"] for e in mesh.named(1, "software")} == {0, 2}
        assert mesh.named(3, "software") == []
        # Not an edge is lost by it, and nobody refuses anything.
        for v in mesh.paths:
            assert [e["missing"] for e in mesh.named(v, "round") if e["missing"]] == []
            assert mesh.named(v, "refused") == mesh.named(v, "refused-there") == []
        shown = json.loads(run_cli("mesh", "status", mesh.out, "--json").stdout)
        answers = [shown["devices"][v]["answer"] for v in ("0", "1")]
        assert int(answers[0]["counts"]["ignored.1"]) > 5
        assert [answer["software"] for answer in answers] == [__version__, SOFTWARE]
        assert [f["vertices"] for f in shown["findings"] if f["kind"] == "versions"] != []
        assert not shown["needs_somebody"]

        mesh.kill(1)
        start_as("major")
        words = (
            f"vertex 0 (flower_dhb {__version__}) speaks version {VERSION} of the protocol, vertex "
            f"1 (flower_dhb {SOFTWARE}) version {VERSION + 1}; upgrade flower_dhb on vertex 0"
        )
        mesh.wait_event(0, "refused", neighbor=1, why=words)
        there = mesh.wait_event(1, "refused", neighbor=0)["why"]
        assert there.startswith(f"vertex 1 (flower_dhb {SOFTWARE}) speaks version {VERSION + 1} of")
        assert there.endswith("upgrade flower_dhb on vertex 0")
        at = mesh.named(0, "round")[-1]["round"]
        mesh.wait_round(0, at + 20)  # the others go on
        assert mesh.named(0, "round")[-1]["missing"] == [1]
        assert len([e for e in mesh.named(0, "refused") if e["neighbor"] == 1]) == 1  # told once
        shown = run_cli("mesh", "status", mesh.out).stdout
        assert "upgrade flower_dhb" in " ".join(shown.split()), shown

        mesh.kill(1)
        mesh.start(1)  # the release of the others
        mesh.wait_event(1, "connected", neighbor=0)
        at = mesh.named(1, "resumed")[-1]["round"]
        mesh.wait_round(1, at + 20)
        for v in mesh.paths:
            mesh.kill(v)
        mesh.replay()
