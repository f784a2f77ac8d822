"""Everything that a fleet needs, written once: configurations, keys, certificates, start."""

from __future__ import annotations

import importlib
import inspect
import json
import secrets
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import tomli_w
from numpy.typing import NDArray
from safetensors.numpy import save

from flower_dhb.agent.compression import Compression
from flower_dhb.agent.node import compressor_of
from flower_dhb.errors import ConfigError, unknown
from flower_dhb.files import flat, read_toml, write_durably
from flower_dhb.peer.device.model import read_start
from flower_dhb.peer.device.settings import check_loopback
from flower_dhb.peer.mesh.certificates import AUTHORITY_DAYS, DEVICE_DAYS, Authority
from flower_dhb.peer.mesh.devices import START, Host, device_files, folder_of, peer_document
from flower_dhb.peer.mesh.overview import overview_of
from flower_dhb.peer.watch.editions import FOLDER as EDITIONS
from flower_dhb.peer.watch.editions import edition_name
from flower_dhb.peer.wire.address import parse_address
from flower_dhb.peer.wire.edition import MeshEdge, MeshEdition, MeshTurn, MeshVertex
from flower_dhb.peer.wire.identity import OPERATOR
from flower_dhb.runs.config import RunConfig, known_keys
from flower_dhb.topology.graph import Topology
from flower_dhb.types import Layout, NDArrays

__all__ = [
    "Host",
    "MeshPlan",
    "check_addresses",
    "check_empty",
    "create_mesh",
    "dialing_ends",
    "local_hosts",
    "n_agents",
    "read_hosts",
    "run_config_of",
]

# Keys of peer.toml that the mesh decides, and what decides them.
_DECIDED = {
    "algorithm": "--run-config says the rule and its settings",
    "compression": "--compression says it, or --run-config",
    "run-config": "--run-config says it",
    "rounds": "--rounds says it",
    "app": "--app says it, or 'app' in hosts.toml",
    "start": "--start says it",
    "client-app": "the app's pyproject.toml says it",
    "listen": "hosts.toml says it",
    "plaintext": "--insecure-plaintext says it",
    **dict.fromkeys(
        (
            *("mesh", "run", "vertex", "name", "own-weight", "neighbors", "graph", "tls"),
            *("edition", "begins", "members-since"),
        ),
        "it is each device's own",
    ),
}
_PORTS = range(20000, 32000)  # below the ports that systems hand out to outgoing connections


@dataclass(frozen=True, kw_only=True)
class MeshPlan:
    """What `mesh create` was asked for.

    days, authority_days: how long certificates, and who issues them, are valid. force: a mesh
    that lies in `out` is replaced.
    """

    app: Path
    out: Path
    hosts: list[Host]
    overrides: Mapping[str, Any]
    start: str | None = None
    days: int = DEVICE_DAYS
    authority_days: int = AUTHORITY_DAYS
    plaintext: bool = False
    peer: Mapping[str, Any] | None = None
    force: bool = False


def read_hosts(path: Path) -> list[Host]:
    """Hosts from a TOML file with one `[[hosts]]` table per vertex. Raises ConfigError."""
    document = read_toml(path, "expected [[hosts]] tables with vertex and address")
    try:
        return [_host(table) for table in document["hosts"]]
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ConfigError(
            f"{path}: expected [[hosts]] tables with vertex, address, listen, app and node-config: "
            f"{error}"
        ) from None


def _host(table: Mapping[str, Any]) -> Host:
    """One `[[hosts]]` table. Raises ConfigError if it cannot be meant."""
    known = [f.name.replace("_", "-") for f in fields(Host)]
    for key in table:
        if key not in known:
            raise ConfigError(unknown("key", key, known))
    if "vertex" not in table:
        raise ConfigError(f"a table lacks 'vertex': {dict(table)}")
    vertex = table["vertex"]
    if isinstance(vertex, bool) or not isinstance(vertex, int | str):
        raise ConfigError(f"vertex must be a number or a name, got {vertex!r}")
    for key in ("address", "listen", "app"):
        if not isinstance(table.get(key, ""), str):
            raise ConfigError(f"vertex {vertex}: {key} must be a text, got {table[key]!r}")
    if not isinstance(table.get("node-config", {}), Mapping):
        raise ConfigError(f"vertex {vertex}: node-config must be a table")
    return Host(**{key.replace("-", "_"): value for key, value in table.items()})


def local_hosts(n: int) -> list[Host]:
    """All vertices on this machine, on free loopback ports."""
    hosts: list[Host] = []
    sockets: list[socket.socket] = []
    try:
        order = np.random.default_rng().permutation(np.array(_PORTS))
        for port in map(int, order):
            if len(hosts) == n:
                return hosts
            probe = socket.socket()
            sockets.append(probe)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            hosts.append(Host(len(hosts), f"127.0.0.1:{port}"))
    finally:
        for probe in sockets:
            probe.close()
    raise ConfigError(f"no {n} free ports on the loopback interface")


def dialing_ends(
    edges: Iterable[tuple[int, int]], addresses: Mapping[int, str | None]
) -> dict[tuple[int, int], int]:
    """Which end of each edge dials: the one whose neighbor can be reached.

    Where both can be reached the work is shared out evenly. Raises ConfigError for an
    edge of which neither end can be reached.
    """
    ends: dict[tuple[int, int], int] = {}
    for a, b in edges:
        reachable = [v for v in (a, b) if addresses[v] is not None]
        if not reachable:
            raise ConfigError(
                f"edge {a}-{b}: neither end has an address, so nobody can dial; give one of them "
                "an address, or choose a topology without this edge"
            )
        if len(reachable) == 1:
            ends[a, b] = b if reachable[0] == a else a
        else:
            ends[a, b] = a if (a + b) % 2 else b
    return ends


def create_mesh(plan: MeshPlan) -> list[Path]:
    """Write the mesh. Returns each device's `peer.toml`, by vertex. Raises ConfigError."""
    document = _app_document(plan.app)
    defaults = document["config"]
    _check_keys(plan, defaults)
    values = {**defaults, **plan.overrides}
    config = RunConfig.of(values, str(plan.app))
    topology = config.topology.together
    hosts = _placed(plan.hosts, topology)
    check_addresses(hosts)
    if plan.plaintext:
        for host in plan.hosts:
            check_loopback(host.listens_on or "127.0.0.1:0")
    ends = dialing_ends(topology.edges, {v: host.address for v, host in hosts.items()})
    mesh = secrets.token_hex(4)
    common = _common(plan, config, values, mesh, document)
    edition = _first_edition(plan, config, hosts, ends)
    # Whatever a device would refuse is refused here.
    documents = {v: peer_document(common, edition, hosts[v], v, plan.out) for v in hosts}
    arrays = _start_arrays(plan, values, document["start"])
    compression = Compression.parse(config.compression)
    if compression.on:  # refuses what the model cannot be compressed by
        compressor_of(compression, config.algorithm, Layout.of(arrays))
    authority = None if plan.plaintext else Authority.create(mesh, plan.authority_days)
    if authority is not None and plan.days > plan.authority_days:
        raise ConfigError(
            f"certificates of {plan.days} days by an authority of {plan.authority_days}: none can "
            "hold longer than its authority; choose fewer --days"
        )

    check_empty(plan.out, force=plan.force)
    if plan.force and plan.out.exists():
        shutil.rmtree(plan.out)
    plan.out.mkdir(parents=True, exist_ok=True)
    write_durably(plan.out / START, save(arrays))
    paths = []
    for vertex in sorted(hosts):
        home = plan.out / folder_of(vertex)
        home.mkdir(mode=0o700)
        shutil.copyfile(plan.out / START, home / START)
        if authority is not None:
            _issue(authority, home, vertex, plan.days)
        path = home / "peer.toml"
        write_durably(path, tomli_w.dumps(documents[vertex]).encode())
        paths.append(path)
    body = json.dumps(edition.body(), indent=1).encode()
    write_durably(plan.out / EDITIONS / edition_name(1), body)
    write_durably(plan.out / "mesh.toml", overview_of(common, edition, hosts))
    if authority is not None:
        (plan.out / "authority").mkdir(mode=0o700)
        authority.save(plan.out / "authority")
        (plan.out / "operator").mkdir(mode=0o700)
        _issue(authority, plan.out / "operator", OPERATOR, plan.days)
    return paths


def payload_of(out: Path, app: Path, overrides: Mapping[str, Any]) -> tuple[RunConfig, int]:
    """The run config of a mesh that has been written, and the numbers of one payload in it."""
    config = RunConfig.of(run_config_of(app, overrides), str(app))
    arrays, _ = read_start(out / START)
    return config, len(config.algorithm.vectors) * Layout.of(arrays).size


def ceiling_s(config: RunConfig) -> float:
    """Seconds after which a device gives up whom it has not heard in a round."""
    return config.round_timeout_s or 3600.0


def _check_keys(plan: MeshPlan, defaults: Mapping[str, Any]) -> None:
    """Refuse keys that nothing would read, and those that are decided elsewhere."""
    known = sorted({*defaults, *known_keys({**defaults, **plan.overrides}, str(plan.app))})
    for key in plan.overrides:
        if key not in known:
            raise ConfigError(unknown("run-config key", key, known))
    for key in plan.peer or {}:
        if key in _DECIDED:
            raise ConfigError(
                f"'{key}' of peer.toml cannot be set for all devices: {_DECIDED[key]}"
            )


def _placed(hosts: Sequence[Host], topology: Topology) -> dict[int, Host]:
    """Hosts by the number of their vertex, which may be said by its name."""
    names = {str(label): v for v, label in enumerate(topology.labels)}
    named = any(isinstance(label, str) for label in topology.labels)
    placed: dict[int, Host] = {}
    for host in hosts:
        vertex = host.vertex
        if isinstance(vertex, str):
            if not named:
                raise ConfigError(
                    f"hosts: the vertices of '{topology.name}' have no names but the numbers "
                    f"0 … {topology.n_agents - 1}, got vertex = '{vertex}'"
                )
            if vertex not in names:
                raise ConfigError(f"hosts: {unknown('vertex', vertex, names)}")
            vertex = names[vertex]
        if vertex in placed:
            raise ConfigError(f"hosts: vertex {_called(vertex, topology)} is given twice")
        placed[vertex] = replace(host, vertex=vertex)
    if sorted(placed) != list(range(topology.n_agents)):
        missing = [_called(v, topology) for v in range(topology.n_agents) if v not in placed]
        raise ConfigError(
            f"hosts are of vertices {sorted(placed)}, the topology '{topology.name}' has vertices "
            f"0 … {topology.n_agents - 1}, each once"
            + (f"; missing: {', '.join(missing[:8])}" if missing else "")
        )
    return placed


def _called(vertex: int, topology: Topology) -> str:
    """A vertex as its user calls it."""
    label = topology.labels[vertex] if 0 <= vertex < topology.n_agents else vertex
    return str(vertex) if label == vertex else f"{vertex} ('{label}')"


def check_addresses(hosts: Mapping[int, Host]) -> None:
    """Refuse addresses that nobody can reach, or that are two devices' at once."""
    taken: dict[tuple[str, int], int] = {}
    for vertex, host in sorted(hosts.items()):
        try:
            if host.address is not None:
                where = parse_address(host.address)
                if where in taken:
                    raise ConfigError(
                        f"address '{host.address}' is that of vertex {taken[where]}, too; each "
                        "device has its own"
                    )
                taken[where] = vertex
            if host.listen is not None:
                parse_address(host.listen)
        except ConfigError as error:
            raise ConfigError(f"hosts: vertex {vertex}: {error}") from None


def n_agents(app: Path, overrides: Mapping[str, Any]) -> int:
    """Number of vertices of the topology that the app's run config names."""
    return RunConfig.of(run_config_of(app, overrides), str(app)).topology.n_agents


class AppKeys(TypedDict, total=False):
    """Keys of `[tool.flower-dhb]` in an app's `pyproject.toml`, for `mesh create`."""

    start: str
    """The initial arrays, where `--start` does not say them.

    Allowed: a `.safetensors` file, or `module:name` of a function (of the run config, or of
    nothing) that returns arrays by name or a model, or of a model's class.
    """
    train_config: Mapping[str, Any]
    """As `train-config` of `peer.toml`, for all devices."""
    evaluate_config: Mapping[str, Any]
    """As `evaluate-config` of `peer.toml`, for all devices."""


def run_config_of(app: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """An app's run config, with what the operator says instead."""
    return {**_app_document(app)["config"], **overrides}


def _issue(authority: Authority, home: Path, vertex: int, days: int) -> None:
    for name, (data, private) in device_files(authority, vertex, days).items():
        write_durably(home / name, data, private=private)


def _common(
    plan: MeshPlan,
    config: RunConfig,
    values: Mapping[str, Any],
    mesh: str,
    app: Mapping[str, Any],
) -> dict[str, Any]:
    """What all devices have in common, and stays so in all editions of the mesh."""
    device: dict[str, Any] = {
        "app": str(plan.app.resolve()),
        "client-app": app["components"]["clientapp"],
        "start": START,
        "state-dir": "state",
        "algorithm": config.algorithm.to_config(),
        **({} if config.compression == "none" else {"compression": config.compression}),
        "timing": {"ceiling-s": ceiling_s(config)},
        "run-config": dict(values),
        **app["tables"],
    }
    for key, value in (plan.peer or {}).items():
        if key != "evaluate-every":  # of the edition
            table = isinstance(value, Mapping) and isinstance(device.get(key), Mapping)
            device[key] = {**device[key], **value} if table else value
    return {
        "mesh": mesh,
        "run": f"{config.name}-{mesh}",
        "topology": config.topology.name,
        "weights": str(values.get("weights", "metropolis")),
        "plaintext": plan.plaintext,
        "device": device,
    }


def _first_edition(
    plan: MeshPlan,
    config: RunConfig,
    hosts: Mapping[int, Host],
    ends: Mapping[tuple[int, int], int],
) -> MeshEdition:
    topology, period = config.topology.together, len(config.topology.graphs)
    matrix = topology.mixing_matrix
    names = {v: None if label == v else str(label) for v, label in enumerate(topology.labels)}
    return MeshEdition(
        number=1,
        begins=1,
        rounds=config.rounds,
        evaluate_every=(plan.peer or {}).get("evaluate-every", config.evaluate_every),
        vertices={v: MeshVertex(names[v], host.address) for v, host in sorted(hosts.items())},
        edges=tuple(MeshEdge(a, b, float(matrix[a, b]), ends[a, b]) for a, b in topology.edges),
        own_weights={v: float(w) for v, w in enumerate(matrix.diagonal())},
        turns=tuple(_turn(config.topology.shared(k)) for k in range(1, period + 1))
        if period > 1
        else (),
    )


def _turn(graph: Topology) -> MeshTurn:
    """One round of a period."""
    weights = graph.edge_weights
    pairs = zip(weights.ends.tolist(), weights.edge.tolist(), strict=True)
    edges = {(a, b): weight for (a, b), weight in pairs}
    own = weights.own.tolist()
    return MeshTurn(edges, {v: own[v] for v in sorted({v for edge in edges for v in edge})})


def _app_document(app: Path) -> dict[str, Any]:
    path = app / "pyproject.toml"
    tree = read_toml(path, "--app is a Flower App's directory")
    try:
        tool = tree["tool"]
        document = dict(tool["flwr"]["app"])
        if "clientapp" not in document["components"]:
            raise KeyError("clientapp")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is not a Flower App's: {error}") from None
    document["config"] = flat(document.get("config", {}), f"{path}: [tool.flwr.app.config]")
    own = tool.get("flower-dhb", {})
    document["start"] = own.get("start")
    document["tables"] = {k: own[k] for k in ("train-config", "evaluate-config") if k in own}
    return document


def _start_arrays(plan: MeshPlan, values: Mapping[str, Any], default: str | None) -> NDArrays:
    """Initial arrays: a .safetensors file, or what `module:function` makes of the run config."""
    reference = plan.start or default
    if reference is None:
        raise ConfigError(
            "no initial arrays: give --start FILE.safetensors or --start module:function, or "
            'set [tool.flower-dhb] start = "module:function" in the app\'s pyproject.toml'
        )
    if str(reference).endswith(".safetensors"):
        arrays, _ = read_start(Path(reference))
        if default is not None and default != reference and not default.endswith(".safetensors"):
            own: NDArrays | None = None
            with suppress(ConfigError):  # it is not needed
                own = _made(default, plan.app, values)
            if own is not None:
                _check_same_model(str(reference), arrays, default, own)
        return arrays
    return _made(str(reference), plan.app, values)


def _made(reference: str, app: Path, values: Mapping[str, Any]) -> NDArrays:
    """What `module:name` of an app makes of the run config."""
    module, _, name = reference.partition(":")
    path = str(app.resolve())
    if path not in sys.path:
        sys.path.insert(0, path)
    try:
        maker = getattr(importlib.import_module(module), name)
        made = maker(values) if _takes_values(maker) else maker()
        if hasattr(made, "state_dict"):
            made = made.state_dict()
        return {str(key): _numpy(value) for key, value in made.items()}
    except ConfigError as error:
        raise ConfigError(f"start '{reference}': {error}") from error
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"start '{reference}': {type(error).__name__}: {error}; expected a function of the "
            "run config, or of nothing, that returns arrays by name or a model with a state_dict"
        ) from error


def _check_same_model(
    given: str, arrays: Mapping[str, NDArray[Any]], named: str, own: Mapping[str, NDArray[Any]]
) -> None:
    """Refuse arrays of another model than the app's: on the devices the app would fail."""
    for name in {**own, **arrays}:
        if name not in arrays:
            why = f"lacks '{name}', which the app's own start '{named}' has"
        elif name not in own:
            why = f"has '{name}', which the app's own start '{named}' lacks"
        elif arrays[name].shape != own[name].shape:
            found, expected = list(arrays[name].shape), list(own[name].shape)
            why = f"'{name}' has the shape {found}, and {expected} in the app's own start '{named}'"
        else:
            continue
        raise ConfigError(f"{given}: {why}; a start is of the app's own model")


def _takes_values(maker: Any) -> bool:
    """Whether a function wants the run config; the class of a model does not."""
    if isinstance(maker, type):
        return False
    try:
        inspect.signature(maker).bind({})
    except (TypeError, ValueError):
        return False
    return True


def _numpy(value: Any) -> NDArray[Any]:
    """A NumPy array from one of NumPy, torch or Flower."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value, order="C")


def check_empty(out: Path, *, force: bool) -> None:
    """Refuse to write a mesh over another, or over something else. Raises ConfigError."""
    if not out.exists():
        return
    if not force and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty; --force replaces the mesh in it, keys and state")
    if not (out / "mesh.toml").exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: holds something else than a mesh; choose another directory")
