"""`flower-dhb mesh identities`: who nodes are, with no graph, and what it renews and revokes."""

import pytest

from flower_dhb import ConfigError, PayloadError
from flower_dhb.cli import main
from flower_dhb.peer.mesh.identities import IdentityPlan, create_identities
from flower_dhb.site.keys import MeshKeys
from flower_dhb.site.sealing import Sealer


def test_nodes_believe_each_other_until_one_is_revoked_or_renewed(tmp_path, capsys):
    out = tmp_path / "mesh"
    assert main(["mesh", "identities", "--vertices", "3", "--out", str(out)]) == 0
    assert "3 identities" in capsys.readouterr().out
    assert (out / "authority" / "authority-key.pem").stat().st_mode & 0o077 == 0
    keys = [MeshKeys.load(out / f"vertex-{vertex}", vertex) for vertex in range(3)]
    text = Sealer(keys[1], "r", b"1" * 32, {}).announcement()
    assert keys[0].believe(text, 1, "r").vertex == 1

    assert main(["mesh", "revoke", str(out), "1", "--reason", "stolen"]) in (0, 1)
    with pytest.raises(PayloadError, match=r"was revoked on .*: stolen"):
        MeshKeys.load(out / "vertex-0", 0).believe(text, 1, "r")
    with pytest.raises(ConfigError, match=r"was revoked on .*: stolen"):
        MeshKeys.load(out / "vertex-1", 1)

    assert main(["mesh", "renew", str(out), "--vertex", "1"]) == 0
    renewed = MeshKeys.load(out / "vertex-1", 1)
    text = Sealer(renewed, "r", b"1" * 32, {}).announcement()
    assert MeshKeys.load(out / "vertex-0", 0).believe(text, 1, "r").vertex == 1


def test_what_cannot_be_meant_is_refused_before_anything_is_written(tmp_path):
    for changes, why in (
        ({"vertices": 0}, "--vertices must be at least 1, got 0"),
        ({"days": 30, "authority_days": 20}, "none can hold longer than its authority"),
        ({"days": 0}, "certificates of 0 days"),
    ):
        with pytest.raises(ConfigError, match=why):
            IdentityPlan(**{"out": tmp_path, "vertices": 3, **changes})
    (tmp_path / "thesis.tex").write_text("chapter 1")
    for force in (False, True):
        with pytest.raises(ConfigError, match=r"is not empty|holds something else than a mesh"):
            create_identities(IdentityPlan(out=tmp_path, vertices=3, force=force))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
