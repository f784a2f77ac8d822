"""Imports point down only: every module is held against the table of docs/architecture.md."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flower_dhb

ROOT = Path(flower_dhb.__file__).parent
DOOR = "flower_dhb"  # loads public names from all layers on first use; belongs to none

# A name with a dot at its end is a folder: all modules below it.
LAYERS = [
    ["errors", "extras", "types", "files"],
    [
        *("graph", "graph_forms", "graph_input", "graph_files", "digraph"),
        *("weights", "spectrum", "fdla"),
        *("algorithms.", "config", "data", "planning", "links"),
    ],
    [
        "node",
        "mixing",
        "codec",
        "engine.",
        "metrics",
        "health",
        "progress",
        "reference",
        "problems.",
    ],
    ["flower.", "peer."],
    ["plots", "positions", "plots_compare", "compare.", "runs", "superlink", "cli."],
]

# Third-party packages that a layer, and then single modules, may import.
EXTERNAL = [{"numpy"}, {"numpy", "networkx"}, {"numpy"}]
EXTERNAL_OF = {
    "codec": {"xxhash"},
    "mixing": {"numpy", "scipy"},
    "engine.": {"torch", "safetensors"},
    "digraph": {"numpy", "scipy"},
    "spectrum": {"numpy", "scipy"},
    "weights": {"numpy", "scipy"},
    "planning": {"numpy", "networkx"},
    "problems.": {"torch", "sklearn"},
    "graph": {"matplotlib"},  # the type of a picture
    "flower.": {"numpy", "flwr", "xxhash", "safetensors"},
    "peer.": {
        "cryptography",
        "flwr",
        "google",
        "grpc",
        "numpy",
        "prometheus_client",
        "safetensors",
        "tomli_w",
        "xxhash",
    },
}

# A topology draws itself.
EXCEPTIONS = {("graph", "plots")}
# Side by side in layer 3: a peer's agent calls the app as Flower does, nothing else crosses over.
ACROSS = {("peer.agent", "flower.")}


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


def layer_of(module):
    return next(
        (i for i, layer in enumerate(LAYERS) if any(belongs(module, entry) for entry in layer)),
        None,
    )


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


def dependencies(name, path):
    """What a module imports: `(own, external)`, own modules named as `modules` names them."""
    known, own, external = modules(), set(), set()
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
every_module = pytest.mark.parametrize("name", MODULES)
TOP = len(LAYERS) - 1


@every_module
def test_every_module_has_its_layer(name):
    assert layer_of(name) is not None, f"{name} is in no layer of the table"


@every_module
def test_imports_point_down_or_sideways(name):
    own, _ = dependencies(name, MODULES[name])
    up = {
        target
        for target in own
        if layer_of(target) > layer_of(name) and (name, target) not in EXCEPTIONS
    }
    assert not up, f"{name} (layer {layer_of(name)}) imports {up}"


@every_module
def test_the_two_runtimes_do_not_lean_on_each_other(name):
    own, _ = dependencies(name, MODULES[name])
    for here, there in (("flower.", "peer."), ("peer.", "flower.")):
        if belongs(name, here) and (name, there) not in ACROSS:
            assert not [target for target in own if belongs(target, there)]


# Figures and commands, on top, may use whatever is installed.
@pytest.mark.parametrize("name", [name for name in MODULES if layer_of(name) != TOP])
def test_third_party_packages_stay_in_their_layers(name):
    layer = layer_of(name)
    allowed = set(EXTERNAL[layer]) if layer < len(EXTERNAL) else set()
    for entry, packages in EXTERNAL_OF.items():
        if belongs(name, entry):
            allowed |= packages
    _, external = dependencies(name, MODULES[name])
    assert external <= allowed


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for name, path in MODULES.items():
        own, _ = dependencies(name, path)
        graph[name] = {target for target in own if (name, target) not in EXCEPTIONS}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("weights") < order.index("graph")


# --- the yardstick itself -----------------------------------------------------------------


def test_the_parser_sees_imports_of_every_kind():
    source = """
import flower_dhb.graph
from flower_dhb import mixing
from . import codec
from ..types import State
def later():
    from flower_dhb.flower.mod import consensus_mod
if TYPE_CHECKING:
    import torch
"""
    assert {
        "flower_dhb.graph",
        "flower_dhb.mixing",
        "flower_dhb.peer.codec",
        "flower_dhb.types",
        "flower_dhb.flower.mod",
        "torch",
    } <= set(imports(source, "flower_dhb.peer"))


@pytest.mark.parametrize("name", ["stray", "graphs", "flowers.mod", "cli_extra"])
def test_a_module_outside_the_table_has_no_layer(name):
    assert layer_of(name) is None


@pytest.mark.parametrize(
    ("name", "layer"),
    [("errors", 0), ("algorithms.", 1), ("algorithms.base", 1), ("node", 2), ("peer.daemon", 3)],
)
def test_layers_of_the_table(name, layer):
    assert layer_of(name) == layer
