"""A library of an optional extra that is not installed: an error that names the extra."""

import sys
from importlib import import_module

import pytest

from flower_dhb import ConfigError, Topology, draw
from flower_dhb.cli import compare, main
from flower_dhb.compare import Comparison, Results
from flower_dhb.extras import installed, needs_extra
from flower_dhb.topology.fastest import fastest_weights


@pytest.fixture
def without(monkeypatch):
    """Make a library fail to import, and forget the modules of this package that have it."""

    def block(library, *users):
        monkeypatch.setitem(sys.modules, library, None)
        for name in list(sys.modules):
            if any(name == user or name.startswith(f"{user}.") for user in users):
                monkeypatch.delitem(sys.modules, name)

    return block


def test_the_message_holds_the_command():
    message = "a picture needs the 'plot' extra: pip install 'flower-dhb[plot]'"
    assert str(needs_extra("a picture", "plot")) == message


def test_what_is_installed(without):
    assert installed("numpy", "json")
    assert not installed("numpy", "no_such_library")
    assert not installed("no_such_library.part")
    without("matplotlib")
    assert not installed("matplotlib")


def test_a_picture_without_matplotlib(without):
    without("matplotlib")
    with pytest.raises(ConfigError, match=r"needs the 'plot' extra: pip install 'flower-dhb\[plot"):
        draw(Topology.ring(5))


def test_fastest_weights_without_cvxpy(without):
    without("cvxpy")
    with pytest.raises(ConfigError, match=r"'fdla'.* needs the 'fdla' extra: pip install"):
        Topology.ring(5, fastest_weights)


@pytest.mark.parametrize("library", ["grpc", "cryptography", "prometheus_client", "tomli_w"])
def test_the_peer_runtime_without_its_libraries(without, library):
    without(library, "flower_dhb.peer")
    with pytest.raises(ConfigError, match="the peer runtime needs the 'peer' extra"):
        import_module("flower_dhb.peer.mesh.certificates")


@pytest.mark.parametrize(
    "words", [["peer", "p.toml"], ["mesh", "create", "--out", "x"], ["replay", "x"]]
)
def test_commands_of_peers_without_grpc(without, words, capsys):
    without("grpc", "flower_dhb.peer", f"flower_dhb.cli.{words[0]}")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said == (
        f"flower-dhb {words[0]}: the peer runtime needs the 'peer' extra: "
        "pip install 'flower-dhb[peer]'\n"
    )


@pytest.mark.thorough
def test_commands_without_matplotlib(without, capsys, tmp_path):
    without("matplotlib", "flower_dhb.figures.comparisons")
    assert main(["topology", "show", "path:3", "--picture", str(tmp_path / "g.png")]) == 2
    assert "a picture needs the 'plot' extra" in capsys.readouterr().err
    comparison = Comparison(problem="averaging", topologies=["ring:3"], splits=(), methods=["dsgd"])
    assert compare._draw(Results(comparison, []), tmp_path, ["pdf"]) == []
    assert "no pictures: a picture needs the 'plot' extra" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
