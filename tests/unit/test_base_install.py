"""The base install: what works without any extra, what says which extra it needs.

A finder refuses the libraries of all extras in a process of its own. `make test-small` does the
same with an environment that really lacks them.
"""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

import flower_dhb
from flower_dhb.extras import EXTRAS
from tests.support.base_install import Refusing

pytestmark = pytest.mark.thorough

ROOT = Path(flower_dhb.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
APP = ROOT / "tests" / "support" / "peer_app"
IN_FLOWER = {"cryptography", "google", "grpc", "tomli_w"}  # Flower installs them in any case
REFUSED = set(EXTRAS) - IN_FLOWER - {"prometheus_client"}
TAIL = "pip install 'flower-dhb[{}]'\n"


def names(requirements):
    """Distributions of requirements, their versions and extras left out."""
    return {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in requirements}


def python(*words, text="", refused=REFUSED):
    """Standard output of a process that may not import the libraries of extras."""
    command = [sys.executable, *words, ",".join(sorted(refused))]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WORKS = {
    "a ring": ["topology", "show", "ring:8"],
    "a random graph": ["topology", "show", "erdos-renyi:12:0.4:1", "--weights", "laplacian"],
    "a better graph": ["topology", "suggest", "path:5"],
    "an edge list": ["topology", "show", "EDGES"],
    "a mesh": ["mesh", "create", "--topology", "path:3", "--app", str(APP), "--out", "MESH"],
}
REFUSES = {
    "compare": (["compare", "--problem", "averaging"], "comparing methods needs the", "engine"),
    "run": (["run", str(APP)], "running an app on this machine needs the", "simulation"),
    "a picture": (["topology", "show", "ring:5", "--picture", "x.png"], "a picture", "plot"),
    "fastest weights": (["topology", "optimize", "ring:5"], "fastest-mixing", "fdla"),
    "a regular graph": (
        ["topology", "show", "random-regular:8:3:1"],
        "'random-regular' graph needs",
        "graphs",
    ),
    "small world": (["topology", "show", "small-world:8:2:0.1:1"], "'small-world'", "graphs"),
    "GraphML": (["topology", "show", "GRAPHML"], "a GraphML file needs", "graphs"),
    "a large graph": (
        ["mesh", "create", "--topology", "path:2100", "--weights=laplacian", "--out", "MESH2"],
        "the spectrum of an irregular graph of 2,100 agents needs",
        "graphs",
    ),
    "this app": (
        ["mesh", "create", "--app", str(ROOT), "--out", "MESH3"],
        "this app needs the",
        "engine",
    ),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What came of each command: status, output, errors."""
    folder = tmp_path_factory.mktemp("base")
    files = {name: str(folder / name.lower()) for name in ("EDGES", "MESH", "MESH2", "MESH3")}
    files["EDGES"] += ".txt"
    Path(files["EDGES"]).write_text("a b\nb c\nc a\nc d\n")
    files["GRAPHML"] = str(folder / "graph.graphml")
    Path(files["GRAPHML"]).write_text("<graphml/>")
    commands = {**WORKS, **{name: words for name, (words, _, _) in REFUSES.items()}}
    words = [[files.get(word, word) for word in each] for each in commands.values()]
    found = json.loads(python("-m", "tests.support.base_install", text=json.dumps(words)))
    assert {path.name for path in (folder / "mesh").iterdir()} >= {"mesh.toml", "vertex-2"}
    return dict(zip(commands, found, strict=True))


@pytest.mark.parametrize("name", WORKS)
def test_what_needs_no_extra_works_without_any(done, name):
    status, said, complaint = done[name]
    assert (status, complaint.strip()) == (0, "")
    assert said


@pytest.mark.parametrize("name", REFUSES)
def test_what_needs_an_extra_names_it_in_one_line(done, name):
    status, said, complaint = done[name]
    _, what, extra = REFUSES[name]
    assert status == 2
    assert said == ""
    assert what in complaint
    assert complaint.endswith(TAIL.format(extra))
    assert complaint.count("\n") == 1


def test_the_finder_refuses(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [Refusing({"wave"}), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises(ModuleNotFoundError, match="wave"):
        importlib.import_module("wave")
    assert importlib.import_module("json") is json


EVERYTHING = """
import json, sys
at_start = set(sys.modules)
sys.path.insert(0, "")
from tests.support.base_install import refuse
refuse(sys.argv[1].split(","))
import flower_dhb, flower_dhb.flower.rounds
for name in flower_dhb.__all__:
    getattr(flower_dhb, name)
print(json.dumps([m.partition(".")[0] for m in set(sys.modules) - at_start]))
"""


def test_the_base_dependencies_cover_all_public_names():
    """Strategy, mod, simulate, graphs: what they load comes with the base requirements."""
    loaded = set(json.loads(python("-c", EVERYTHING)))
    known = names(PROJECT["project"]["dependencies"])
    reached, rest = set(), sorted(known)
    while rest:
        name = rest.pop()
        reached.add(name)
        try:
            wanted = [text for text in requires(name) or () if "extra ==" not in text]
        except PackageNotFoundError:  # of another Python or system
            continue
        rest += sorted(names(wanted) - reached)
    homes = packages_distributions()
    assert loaded & {"flwr", "numpy", "safetensors", "xxhash"} == {
        "flwr",
        "numpy",
        "safetensors",
        "xxhash",
    }
    ours = {"flower-dhb"}
    foreign = {
        top: homes[top]
        for top in loaded
        if top in homes and not names(homes[top]) & (reached | ours)
    }
    assert not foreign


def test_the_base_is_small():
    assert names(PROJECT["project"]["dependencies"]) == {
        "flwr",
        "numpy",
        "rich",
        "safetensors",
        "xxhash",
    }
    assert not any("[" in text for text in PROJECT["project"]["dependencies"])


DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "mlflow": "mlflow-skinny",
    "prometheus_client": "prometheus-client",
    "ray": "flwr",
    "sklearn": "scikit-learn",
    "tomli_w": "tomli-w",
    "vl_convert": "vl-convert-python",
}


@pytest.mark.parametrize("library", EXTRAS)
def test_the_extra_of_a_library_installs_it(library):
    extra = PROJECT["project"]["optional-dependencies"][EXTRAS[library]]
    assert DISTRIBUTIONS.get(library, library) in names(extra)


def test_where_flower_installs_the_app_it_installs_what_the_app_imports():
    """`uv sync` takes the base dependencies and the default groups of pyproject.toml."""
    extras, group = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]["app"]
    assert PROJECT["tool"]["uv"]["default-groups"] == ["app"]
    assert sorted(group) == sorted({*extras["engine"], *extras["graphs"]})
    assert extras["app"] == ["flower-dhb[engine,graphs,simulation]"]


def test_flower_still_calls_uv_in_that_way():
    """No `--no-default-groups`, no `--only-group`: what the group relies on."""
    installer = importlib.import_module("flwr.supercore.superexec.dependency_installer")
    source = Path(installer.__file__).read_text(encoding="utf-8")
    command = re.search(r"sync_cmd: list\[str\] = \[(.*?)\]", source, re.DOTALL)[1]
    words = re.findall(r'"([^"]+)"', command)
    assert words[:3] == ["-m", "uv", "sync"]
    assert set(words[3:]) == {
        "--python",
        "--no-install-project",
        "--no-install-package",
        "flwr",
        "--inexact",
    }
