"""A device that sends 10^30 times its parameters, in real processes: nobody goes with it."""

import textwrap

import numpy as np
import pytest

from tests.support.peers import APP, PATIENT, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

LIAR = 2
LIES = """
from quadratics import app as honest, start  # noqa: F401
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp
from flower_dhb import consensus_mod

def lie(message, context, call_next):
    reply = call_next(message, context)
    k = int(message.content.config_records["config"]["server-round"])
    if int(context.node_config["vertex"]) == 2 and k >= 5 and "arrays" in reply.content:
        x = reply.content.array_records["arrays"]["x"].numpy()
        reply.content["arrays"] = ArrayRecord({"x": Array(x * 0 + 1e30)})
    return reply

class Liar(ClientApp):
    def __call__(self, message, context):
        return consensus_mod(message, context, lambda m, c: lie(m, c, honest))

app = Liar()
"""


def test_a_device_that_lies_takes_nobody_with_it_and_is_named(tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    for name in ("quadratics.py", "pyproject.toml"):
        (app / name).write_text((APP / name).read_text())
    (app / "lies.py").write_text(textwrap.dedent(LIES))
    project = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(
        project.replace('clientapp = "quadratics:', 'clientapp = "lies:')
    )
    with Mesh(
        tmp_path / "mesh", app=app, n=4, topology="ring:4", rounds=25, rate=0.1, evaluate_every=0,
        peer={"record": "payloads", **PATIENT},
    ) as mesh:  # fmt: skip
        mesh.start()
        mesh.finish(75, alone=(LIAR,))
        honest = [v for v in range(4) if v != LIAR]
        assert np.abs(mesh.parameters()[honest]).max() < 10.0
        for v in (1, 3):
            refused = [e for e in mesh.named(v, "refused") if e["reason"] == "screened"]
            assert {e["neighbor"] for e in refused} == {LIAR}
            assert f"neighbor {LIAR}: its payload is" in refused[0]["why"]
            assert mesh.wait_event(v, "quarantined")["neighbor"] == LIAR
        told = mesh.named(LIAR, "refused-there")
        assert {e["neighbor"] for e in told if e["reason"] == "screened"} == {1, 3}
        # Both ends gave the edges up; 0, in between, had all its rounds.
        assert mesh.missing_edges().keys() == set(range(5, 26))
        # The liar, whom nobody waits for, may leave out rounds.
        for edges in mesh.missing_edges().values():
            assert {(1, LIAR), (3, LIAR)} <= edges
            assert edges <= {(1, LIAR), (3, LIAR), (LIAR, 1), (LIAR, 3)}
        replay = mesh.replay()
        assert not replay.one_sided
