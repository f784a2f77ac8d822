"""Imports point down only: every module is held against the house of docs/architecture.md."""

import ast
import functools
import importlib
import importlib.util
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flower_dhb

ROOT = Path(flower_dhb.__file__).parent
DOOR = "flower_dhb"  # loads public names from all layers on first use; belongs to none

PAGE = ROOT.parent / "docs" / "architecture.md"


def rooms_of_the_page():
    """The house from the roof to the ground, as the page has it: `cli.`, `peer.mesh.`, `errors`.

    A name with a dot at its end is a folder: all modules below it.
    """
    text = PAGE.read_text(encoding="utf-8").partition("| room |")[2].partition("\n\n")[0]
    return [name.replace("/", ".") for name in re.findall(r"^\| `([\w/]+)` \|", text, re.MULTILINE)]


# Below all of the peers' rooms is their door, which says which extra they need.
ROOMS = rooms_of_the_page()
ROOMS.insert(ROOMS.index("peer.monitor") + 1, "peer.")

# Third-party packages that a room may import, and more that single modules may.
EXTERNAL = {
    "peer.": {"numpy"},
    "peer.mesh.": {"cryptography", "grpc", "safetensors", "tomli_w"},
    "peer.doctor.": {"grpc", "packaging"},
    "peer.device.": {"flwr", "safetensors", "xxhash"},
    "peer.watch.": {"prometheus_client", "safetensors", "xxhash"},
    "peer.wire.": {"cryptography", "google", "grpc"},
    "site.": {"cryptography", "flwr", "numpy"},
    "dashboard.": {"numpy", "starlette", "uvicorn"},
    "pages.": {"numpy"},
    "runs.": {"numpy", "safetensors"},
    "runs.superlink": {"click", "flwr", "psutil", "tomli_w"},
    "figures.": {"numpy", "matplotlib"},
    "compare.": {"numpy", "scipy", "torch"},
    "flower.": {"numpy", "flwr", "safetensors", "xxhash"},
    "engine.": {"numpy", "torch", "safetensors"},
    "topology.": {"numpy"},
    "topology.graph": {"networkx"},
    "topology.given": {"networkx"},
    "topology.spectrum": {"scipy"},
    "topology.fastest": {"cvxpy"},
    "agent.": {"numpy"},
    "agent.codec": {"xxhash"},
    "algorithms.": {"numpy"},
    "problems.": {"numpy", "torch", "sklearn"},
    "metrics": {"numpy"},
    "types": {"numpy"},
}

# A peer's device calls the app as Flower does; nothing else of the peers leans on the relay.
TO_FLOWER = {"peer.device.app"}


def modules():
    """Every module below the package as `{name: path}`: `graph`, `algorithms.base`, `flower.`"""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1]) + "." if parts[-1] == "__init__" else ".".join(parts)
        if name != ".":
            found[name] = path
    return found


def belongs(module, entry):
    return module == entry or (entry.endswith(".") and module.startswith(entry))


def room_of(module):
    if module == "peer.":
        return module
    return next((room for room in ROOMS if room != "peer." and belongs(module, room)), None)


def imports(source, package):
    """Names of all modules that a source imports, inside functions and type blocks too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                above = parents[: len(parents) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            yield base
            # `from flower_dhb import mixing` imports a module, not a name of the door.
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def dependencies(name, path):
    """What a module imports: `(own, external)`, own modules named as `modules` names them."""
    known, own, external = MODULES, set(), set()
    parents = [DOOR, *name.split(".")[:-1]]
    for target in imports(path.read_text(encoding="utf-8"), ".".join(parents)):
        top, _, rest = target.partition(".")
        if top != DOOR:
            external.add(top)
        else:
            home = flower_dhb._HOMES.get(rest, rest)  # a public name is its home's
            own.update({home, f"{home}."} & known.keys())
    return own - {name}, external - set(sys.stdlib_module_names) - {""}


MODULES = modules()


def test_every_room_of_the_page_is_there():
    assert ROOMS[0] == "cli."
    empty = {room for room in ROOMS if not any(belongs(name, room) for name in MODULES)}
    assert not empty
    assert len(ROOMS) == len(set(ROOMS)) > 20


def test_what_the_page_says_where_to_find_is_there():
    table = PAGE.read_text(encoding="utf-8").partition("### Where do I find")[2].partition("###")[0]
    files = re.findall(r"\| `([\w/]+\.py)` \|$", table, re.MULTILINE)
    assert len(files) > 40
    assert not [file for file in files if not (ROOT / file).is_file()]


def test_every_module_has_its_room():
    assert [name for name in MODULES if room_of(name) is None] == []


def test_imports_point_down():
    above = {}
    for name, path in MODULES.items():
        own, _ = dependencies(name, path)
        here = ROOMS.index(room_of(name))
        above[name] = {target for target in own if ROOMS.index(room_of(target)) < here}
    assert {name: found for name, found in above.items() if found} == {}


def test_the_two_runtimes_do_not_lean_on_each_other():
    leaning = {
        name: [target for target in dependencies(name, path)[0] if belongs(target, "flower.")]
        for name, path in MODULES.items()
        if belongs(name, "peer.") and name not in TO_FLOWER
    }
    assert len(leaning) > 50
    assert {name: found for name, found in leaning.items() if found} == {}


def test_third_party_packages_stay_in_their_rooms():
    strangers = {}
    for name, path in MODULES.items():
        allowed = {p for entry, found in EXTERNAL.items() if belongs(name, entry) for p in found}
        if room_of(name) != "cli.":  # commands, on top, may use whatever is installed
            strangers[name] = dependencies(name, path)[1] - allowed
    assert {name: found for name, found in strangers.items() if found} == {}


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for name, path in MODULES.items():
        own, _ = dependencies(name, path)
        graph[name] = set(own)
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("topology.weights") < order.index("topology.graph")


@pytest.mark.parametrize("folder", ["benchmarks", "clients", "strategies"])
def test_what_imports_the_package_from_outside_finds_its_names(folder):
    names = set()
    for path in sorted((ROOT.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(DOOR):
                names |= {(node.module, alias.name) for alias in node.names}
    lost = {
        (module, name)
        for module, name in names
        if not hasattr(importlib.import_module(module), name)
        and importlib.util.find_spec(f"{module}.{name}") is None
    }
    assert names
    assert not lost


IO = {"asyncio", "datetime", "io", "logging", "os", "pathlib", "random", "secrets", "socket"}
IO |= {"subprocess", "tempfile", "threading", "time"}


@pytest.mark.parametrize("room", ["agent.", "algorithms.", "peer.protocol."])
def test_what_is_pure_has_no_threads_sockets_files_clocks_or_logs(room):
    inside = {n: p for n, p in MODULES.items() if belongs(n, room)}
    assert len(inside) > 2
    for name, path in inside.items():
        tops = {found.partition(".")[0] for found in imports(path.read_text(), DOOR)}
        assert not tops & IO, name


# --- the yardstick itself -----------------------------------------------------------------


def test_the_parser_sees_imports_of_every_kind():
    source = """
import flower_dhb.topology.graph
from flower_dhb.agent import mixing
from . import codec
from ..types import State
def later():
    from flower_dhb.site.mod import consensus_mod
if TYPE_CHECKING:
    import torch
"""
    assert {
        "flower_dhb.topology.graph",
        "flower_dhb.agent.mixing",
        "flower_dhb.peer.codec",
        "flower_dhb.types",
        "flower_dhb.site.mod",
        "torch",
    } <= set(imports(source, "flower_dhb.peer"))


@pytest.mark.parametrize(
    "name", ["stray", "topologies.graph", "flowers.mod", "cli_extra", "peer.stray"]
)
def test_a_module_outside_the_house_has_no_room(name):
    assert room_of(name) is None


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("errors", "errors"),
        ("algorithms.", "algorithms."),
        ("algorithms.base", "algorithms."),
        ("peer.device.daemon", "peer.device."),
        ("peer.", "peer."),
    ],
)
def test_rooms_of_the_house(name, room):
    assert room_of(name) == room
