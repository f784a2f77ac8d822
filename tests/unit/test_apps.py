"""The apps in apps/: within the limits of Flower's Hub, and worth copying."""

import importlib
import io
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.supercore import constant
from support.grid import LocalGrid

from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.create import MeshPlan, create_mesh, local_hosts

pytestmark = pytest.mark.thorough

APPS = Path(__file__).resolve().parents[2] / "apps"
NAMES = sorted(path.name for path in APPS.iterdir())
WORST = {"dhb-numpy": 0.9, "dhb-pytorch": 0.85, "dhb-sklearn": 0.85}


def document(name):
    return tomllib.loads((APPS / name / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(params=NAMES)
def app(request, monkeypatch):
    monkeypatch.syspath_prepend(str(APPS / request.param))
    before = set(sys.modules)
    yield request.param
    for name in set(sys.modules) - before:
        if name.startswith("dhb_"):
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_apps_are_built_within_the_limits_of_the_hub(name):
    data = build_fab_from_disk(APPS / name)
    assert len(data) < constant.MAX_TOTAL_BYTES
    with zipfile.ZipFile(io.BytesIO(data)) as fab:
        files = fab.namelist()
        assert fab.testzip() is None
    package = name.replace("-", "_")
    assert {f"{package}/{part}.py" for part in ("client_app", "server_app", "task")} < set(files)
    assert {"LICENSE", "README.md", "pyproject.toml"} < set(files)
    shipped = [p for p in (APPS / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(shipped) < constant.MAX_FILE_COUNT
    for path in shipped:
        assert path.stat().st_size < constant.MAX_FILE_BYTES
        assert path.suffix in (".py", ".toml", ".md") or path.name == "LICENSE"
    project = document(name)["project"]
    assert project["name"] == name
    assert len(name) <= constant.MAX_NAME_LENGTH
    assert any(text.startswith("flower-dhb") for text in project["dependencies"])
    license_ = (APPS / name / "LICENSE").read_bytes()
    assert license_ == (APPS.parent / "LICENSE").read_bytes()


def test_apps_learn_what_no_agent_has_seen(app, capsys):
    components = document(app)["tool"]["flwr"]["app"]["components"]
    config = document(app)["tool"]["flwr"]["app"]["config"]

    def load(reference):
        module, _, name = reference.partition(":")
        return getattr(importlib.import_module(module), name)

    grid = LocalGrid(load(components["clientapp"]), 8, run_config=config)
    context = Context(
        run_id=grid.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=config
    )
    load(components["serverapp"])(grid, context)
    lines = [line for line in capsys.readouterr().out.splitlines() if "worst" in line]
    assert len(lines) == config["rounds"]
    first, last = (float(line.rpartition(" ")[2]) for line in (lines[0], lines[-1]))
    assert first + 0.1 < last, lines
    assert last >= WORST[app], lines[-1]


def test_apps_start_a_mesh_of_peers(app, tmp_path):
    plan = MeshPlan(
        app=APPS / app,
        out=tmp_path / "mesh",
        hosts=local_hosts(8),
        overrides={"topology": "ring:8", "rounds": 3},
    )
    paths = create_mesh(plan)
    settings = PeerSettings.load(paths[3])
    assert settings.client_app == document(app)["tool"]["flwr"]["app"]["components"]["clientapp"]
    assert settings.start.stat().st_size > 0
