"""A Flower App's folder, read and checked before anything starts."""

from __future__ import annotations

import ast
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flower_dhb.errors import ConfigError, GraphError, unknown
from flower_dhb.files import flat
from flower_dhb.runs.config import RunConfig
from flower_dhb.runs.resuming import KEY, config_of, folder_to_resume
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.turns import Turns, count_agents

__all__ = ["AppFolder"]

_NEEDED = (
    ("project", "name"),
    ("project", "version"),
    ("tool", "flwr", "app", "publisher"),
    ("tool", "flwr", "app", "components", "serverapp"),
    ("tool", "flwr", "app", "components", "clientapp"),
)
_FOLDERS = ("runs-dir", "data-dir")
_OURS = {"RunConfig", "RunFolder"}


@dataclass(frozen=True, kw_only=True)
class AppFolder:
    """What a Flower App says of itself, without being loaded.

    config: its run config, flat. nodes: number of simulated nodes that an older template
    names. server: the parsed module of its ServerApp, None if that is installed elsewhere.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    nodes: int | None = None
    server: ast.Module | None = None

    @classmethod
    def read(cls, path: Path) -> AppFolder:
        """Read an app's folder. Raises ConfigError if Flower would not take it."""
        document = _document(path)
        lacks = [
            f"'{keys[-1]}' in [{'.'.join(keys[:-1])}]"
            for keys in _NEEDED
            if not _has(document, keys)
        ]
        if lacks:
            raise ConfigError(f"{path} is not a Flower App: its pyproject.toml lacks {lacks}")
        app = document["tool"]["flwr"]["app"]
        config = flat(app.get("config", {}), f"{path / 'pyproject.toml'}: [tool.flwr.app.config]")
        modules = [
            _module(path, kind, app["components"][kind]) for kind in ("serverapp", "clientapp")
        ]
        return cls(path=path, config=config, nodes=_nodes(document), server=modules[0])

    def settings(
        self, overrides: Mapping[str, Any], agents: int | None
    ) -> tuple[int, dict[str, Any]]:
        """Number of agents, and all settings to hand down, once they are checked.

        overrides: of the run config. agents: their number, if the user said it. Raises
        ConfigError for what the run would refuse later.
        """
        for key in overrides:
            if key not in self.config:
                raise ConfigError(unknown("run-config key", key, sorted(self.config)))
        overrides = self._resumed(overrides)
        handed = {**overrides, **self._paths({**self.config, **overrides})}
        values = {**self.config, **handed}
        if agents is not None and not agents >= 1:
            raise ConfigError(f"--agents must be at least 1, got {agents}")
        if not self._names("RunConfig"):
            return self._agents(values) if agents is None else agents, handed
        topology = RunConfig.of(values, str(self.path)).topology
        if agents not in (None, topology.n_agents):
            raise ConfigError(
                f"--agents {agents}, but the topology '{topology.name}' has {topology.n_agents} "
                "vertices; leave --agents out, or change the topology"
            )
        return topology.n_agents, handed

    def _resumed(self, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
        """With `resume`, all that the run had that is to go on; what is given now wins."""
        text = str(overrides.get(KEY, ""))
        if not text or not self._names("RunFolder"):
            return overrides
        folder = folder_to_resume(str(self.path / Path(text).expanduser()))
        before = {k: v for k, v in config_of(folder).items() if k in self.config}
        return {**before, **overrides, KEY: str(folder)}

    def _agents(self, values: Mapping[str, Any]) -> int:
        """Number of agents that run config, source or an older template name."""
        why = "the app's run config names no topology"
        if "topology" in values:
            try:
                return count_agents(str(values["topology"]))
            except GraphError as error:
                why = f"the run config has topology = '{values['topology']}', but: {error}"
        sizes = {size for call in self._calls() if (size := _size(call)) is not None}
        if len(sizes) == 1:
            return sizes.pop()
        if self.nodes is not None:
            return self.nodes
        raise ConfigError(f"{why}; say how many agents: --agents N")

    def _paths(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Absolute paths of the settings that are paths, which are relative to the app.

        The app runs from a copy of itself, in which they would point to nowhere. A setting
        of the same name in an app that does not use ours may mean anything.
        """
        ours = any(self._names(name) for name in _OURS)
        paths = {}
        for key in _FOLDERS if ours else ():
            if key in values and "://" not in str(values[key]):
                paths[key] = str(self.path / Path(str(values[key])).expanduser())
        if "runs-dir" in paths:
            _check_writable(Path(paths["runs-dir"]))
        if "topology" in values and (self.path / str(values["topology"])).is_file():
            paths["topology"] = str(self.path / str(values["topology"]))
        return paths

    def _names(self, name: str) -> bool:
        """Whether the ServerApp's module names something."""
        nodes = ast.walk(self.server) if self.server is not None else ()
        return any(
            name in (getattr(node, "id", None), getattr(node, "attr", None)) for node in nodes
        )

    def _calls(self) -> Iterator[ast.Call]:
        nodes = ast.walk(self.server) if self.server is not None else ()
        return (node for node in nodes if isinstance(node, ast.Call))


def _document(path: Path) -> dict[str, Any]:
    file = path / "pyproject.toml"
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(f"{path} is not a Flower App: it {what}; give the app's folder")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is not a Flower App: it has no pyproject.toml") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a Flower App: {file.name}: {error}") from None


def _has(document: Mapping[str, Any], keys: Sequence[str]) -> bool:
    value: Any = document
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return isinstance(value, str) and bool(value)


def _nodes(document: Mapping[str, Any]) -> int | None:
    """`options.num-supernodes` of the default federation, in older templates."""
    federations = document["tool"]["flwr"].get("federations", {})
    default = (
        federations.get(federations.get("default"), {}) if isinstance(federations, dict) else {}
    )
    nodes = default.get("options", {}).get("num-supernodes") if isinstance(default, dict) else None
    return nodes if isinstance(nodes, int) and nodes >= 1 else None


def _module(path: Path, kind: str, reference: str) -> ast.Module | None:
    """Parse the module of a component such as `app.server_app:app`."""
    name, _, attribute = reference.partition(":")
    if not (name and attribute):
        raise ConfigError(f"{path}: {kind} = '{reference}' must be MODULE:NAME")
    parts = name.split(".")
    file = path.joinpath(*parts).with_suffix(".py")
    if not file.is_file():
        file = path.joinpath(*parts, "__init__.py")
    if not file.is_file():
        if not (path / parts[0]).exists():
            return None  # an installed package, or Flower will say that there is none
        raise ConfigError(f"{path}: {kind} = '{reference}', but there is no {'/'.join(parts)}.py")
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        text = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(f"{file}{line}: {text}") from None


def _size(call: ast.Call) -> int | None:
    """Number of agents in `Topology.ring(8)` or `ServerlessStrategy("ring:8")`, if it is that."""
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    owner = getattr(call.func, "value", None)
    try:
        words = [ast.literal_eval(word) for word in call.args]
        called = getattr(owner, "id", None) or getattr(owner, "attr", None)
        kinds: dict[str | None, type] = {"Topology": Topology, "Turns": Turns}
        if called in kinds:
            named = {
                str(word.arg): ast.literal_eval(word.value)
                for word in call.keywords
                if word.arg != "weights"
            }
            return int(getattr(kinds[called], str(name))(*words, **named).n_agents)
        if name == "ServerlessStrategy" and words and isinstance(words[0], str):
            return count_agents(words[0])
    except (ValueError, TypeError, AttributeError, OSError):
        return None  # not written out, or not a graph: the app will say so
    return None


def _check_writable(folder: Path) -> None:
    """Refuse a folder of results that cannot be written, before anything starts."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"runs-dir = '{folder}': {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"runs-dir = '{folder}': {there} cannot be written; choose another folder"
        )
