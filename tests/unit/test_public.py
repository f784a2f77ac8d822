"""The one public door: what it offers, and what it does not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flower_dhb
from flower_dhb import errors

PUBLIC = [
    "Algorithm",
    "ConfigError",
    "DSGD",
    "FlowerDhbError",
    "GraphError",
    "HeavyBall",
    "Node",
    "PayloadError",
    "RoundError",
    "RunConfig",
    "RunFolder",
    "SafeguardedHeavyBall",
    "ServerlessResult",
    "ServerlessStrategy",
    "StateError",
    "Topology",
    "Turns",
    "__version__",
    "algorithm_from_config",
    "consensus_distance",
    "consensus_mod",
    "decentralize",
    "draw",
    "lazy",
    "simulate",
]
SOURCE = Path(flower_dhb.__file__)


def test_public_names_are_pinned():
    assert sorted(flower_dhb.__all__) == PUBLIC
    assert dir(flower_dhb) == PUBLIC


def homes():
    """Where type checkers look each public name up: `{name: module}`."""
    blocks = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body]
    return {name.name: node.module for node in imports for name in node.names}


def test_names_load_at_run_time_from_where_type_checkers_find_them():
    lazy = {name: f"flower_dhb.{home}" for name, home in flower_dhb._HOMES.items()}
    assert lazy == homes()
    assert sorted([*lazy, "__version__"]) == PUBLIC


def exists(module):
    return SOURCE.parent.joinpath(*module.split(".")[1:]).with_suffix(".py").exists() or (
        SOURCE.parent.joinpath(*module.split(".")[1:], "__init__.py").exists()
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Flower imports in turn
@pytest.mark.parametrize("name", [name for name, home in homes().items() if exists(home)])
def test_public_names_load(name):
    assert getattr(flower_dhb, name).__name__ == name


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'flower_dhb' has no attribute 'Toplogy'"):
        _ = flower_dhb.Toplogy


HEAVY = {"flwr", "grpc", "torch", "matplotlib", "ray"}
CORE = """
from flower_dhb import DSGD, HeavyBall, Node, RunConfig, Topology, consensus_distance, simulate
RunConfig.of({}), Topology.ring(5), HeavyBall(), DSGD()
"""


@pytest.mark.parametrize(
    "program",
    [
        "import flower_dhb",
        CORE,
        "import flower_dhb.agent.codec, flower_dhb.problems.splits",
        "from flower_dhb import draw",
        "from flower_dhb.cli import main\nassert main(['topology', 'show', 'ring:8']) == 0",
        "from flower_dhb.cli import main\nassert main(['topology', 'suggest', 'path:4']) == 0",
    ],
    ids=[
        *("the package", "its core names", "codec and splits", "pictures, until one is drawn"),
        *("topology show", "topology suggest"),
    ],
)
@pytest.mark.thorough
def test_importing_loads_no_heavy_library(program):
    found = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert "flower_dhb" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name[0].isupper()])
def test_all_errors_are_of_one_tree(name):
    assert issubclass(getattr(errors, name), errors.FlowerDhbError)
