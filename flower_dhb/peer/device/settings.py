"""One device's configuration: `peer.toml` to a frozen dataclass; bad values are refused here."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.agent.policy import Policy
from flower_dhb.algorithms import Algorithm, algorithm_from_config, check_relayed
from flower_dhb.errors import ConfigError, unknown
from flower_dhb.files import read_toml
from flower_dhb.peer.device.code import digest_of_folder
from flower_dhb.peer.protocol.edition import Edition, in_turn
from flower_dhb.peer.protocol.settings import Config, Timing
from flower_dhb.peer.wire.address import parse_address
from flower_dhb.peer.wire.edition import MeshEdition
from flower_dhb.peer.wire.identity import Identity
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.transport import Limits
from flower_dhb.references import folder_here, is_reference

__all__ = ["KEYS", "TIMES", "NeighborKeys", "PeerKeys", "PeerSettings", "check_loopback"]

T = TypeVar("T")

_TEXTS = (
    "mesh", "run", "graph", "app", "client-app", "start", "state-dir", "listen", "bulletins",
    "log-file",
)  # fmt: skip
TIMES = ("ceiling_s", "least_s", "factor", "reconnect_s", "resume_s")
_INTEGERS = {  # and the least that each can be
    "vertex": 0,
    "rounds": 1,
    "checkpoint_every": 1,
    "away_rounds": 1,
    "evaluate_every": 0,
    "metrics_port": 0,
    "edition": 1,
    "begins": 1,
    "members_since": 1,
}


class PeerKeys(TypedDict, total=False):
    """Keys of `peer.toml` beside those that `PeerSettings` has a field for."""

    name: str
    """The name of this device's vertex, where the graph has names."""
    own_weight: float
    """The mixing weight that the agent gives to its own value."""
    neighbors: list[NeighborKeys]
    """A table for each neighbor; see `[[neighbors]]`."""
    plaintext: bool
    """`true` in place of `[tls]`: no TLS, on loopback addresses only."""


class NeighborKeys(TypedDict, total=False):
    """A `[[neighbors]]` table of `peer.toml`."""

    vertex: int
    """The neighbor's vertex."""
    weight: float
    """The mixing weight of the edge."""
    name: str
    """The name of the neighbor's vertex, where the graph has names."""
    address: str
    """Where this device dials the neighbor; without it the neighbor dials. Allowed: `host:port`."""


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """Everything that one peer knows of the mesh: itself and its neighbors.

    It is what `peer.toml` holds, read and checked. What each field says is what its key means.
    weights: mixing weight by vertex, its own and its neighbors'. dial: addresses of the
    neighbors that it dials; the others dial `listen`. names: of those vertices whose graph gave
    them one, by number; its own and its neighbors'.
    """

    mesh: str
    """The mesh's random name, which certificates name, too."""
    run: str
    """The run: peers of another run are refused. A state directory holds one run only."""
    vertex: int
    """The vertex that this device is. Allowed: an integer, 0 or more."""
    rounds: int
    """The last round of the run. Unit: rounds. Allowed: 1 or more."""
    weights: Mapping[int, float]
    algorithm: Algorithm
    """The rule: its `name` and its settings, as in the run config."""
    compression: Compression = NONE
    """How payloads are compressed on their way; the same on all devices.

    Allowed: `none`, `bf16`, `int8`, `int4`, `topk:SHARE`, `randk:SHARE`, `lowrank:RANK`; see
    [compression](compression.md).
    """
    graph: str
    """Digest of the graph and its weights, in hexadecimal."""
    app: Path
    """Directory of the Flower App. A relative path begins at the folder of `peer.toml`."""
    client_app: str
    """The app's ClientApp. Allowed: `module:name`."""
    start: Path
    """File of the initial arrays. A relative path begins at the folder of `peer.toml`."""
    state_dir: Path
    """What the peer must not lose.

    A relative path begins at the folder of `peer.toml`; one process holds the directory at a
    time.
    """
    listen: str | None = None
    """Where the neighbors that dial this device reach it; none do where the key is not there.

    Allowed: `host:port`; port 0 takes a free one.
    """
    dial: Mapping[int, str] = field(default_factory=dict)
    tls: TlsFiles | None = None
    """Files that say who the device is and whom it trusts; see `[tls]`."""
    node_config: Mapping[str, Any] = field(default_factory=dict)
    """A table: what the app finds in `context.node_config`.

    Allowed: numbers, texts, true, false.
    """
    run_config: Mapping[str, Any] = field(default_factory=dict)
    """A table: what the app finds in `context.run_config`."""
    train_config: Mapping[str, Any] = field(default_factory=dict)
    """A table: what the app finds in the `config` of its training messages.

    Allowed: numbers, texts, true, false.
    """
    evaluate_config: Mapping[str, Any] = field(default_factory=dict)
    """A table: what the app finds in the `config` of its evaluation messages.

    Allowed: numbers, texts, true, false.
    """
    timing: Timing = field(default_factory=Timing)
    """Time limits of a round; see `[timing]`."""
    limits: Limits = field(default_factory=Limits)
    """Bounds on what neighbors and strangers can do; see `[limits]`."""
    policy: Policy = field(default_factory=Policy)
    """What may leave this device, whatever the app does; see `[policy]`."""
    evaluate_every: int = 1
    """Rounds from one evaluation of the app to the next.

    Unit: rounds. Allowed: 0 or more; 0 for none.
    """
    checkpoint_every: int = 1
    """Rounds from one forced write of the state to the next. Unit: rounds. Allowed: 1 or more."""
    away_rounds: int = 10
    """A peer that missed more exchanges takes its neighbors' average.

    Unit: rounds in which a neighbor was due. Allowed: 1 or more.
    """
    start_timeout_s: float = 120.0
    """How long a peer waits for its neighbors before its first round. Allowed: 0 or more."""
    linger_s: float = 10.0
    """How long a finished peer stays for neighbors that have not finished. Allowed: 0 or more."""
    on_damage: str = "stop"
    """What happens if no file of the state can be used.

    Allowed: `stop` (the peer ends with status 6), `rejoin` (it begins again from its neighbors).
    """
    strict_app: bool = False
    """Whether a neighbor whose app has other code is refused; if not, that is a warning.

    Allowed: true, false.
    """
    record: str = "off"
    """What the flight recorder writes for `flower-dhb replay`.

    Allowed: `off`, `checksums`, `payloads`.
    """
    metrics_port: int = 0
    """Loopback port on which Prometheus finds numbers. Allowed: a port; 0 for none."""
    log: str = "text"
    """Form of the log's lines. Allowed: `text`, `json`."""
    names: Mapping[int, str] = field(default_factory=dict)
    edition: int = 1
    """Number of the mesh's edition that this file is of. Allowed: 1 or more."""
    begins: int = 1
    """The first round of that edition. Unit: rounds. Allowed: 1 or more."""
    turns: tuple[Mapping[int, float], ...] = ()
    """Which neighbors are due in the rounds of a period, of graphs that take turns.

    An array of tables, one a round; round k has the table (k - 1) modulo their number. Each has
    `own-weight`, and `weights` by neighbor; an empty one means that the device keeps to itself in
    that round. Without the key all neighbors are due in every round.
    """
    members_since: int = 1
    """Since which edition the members are the same.

    A device that joins later, or takes another's place, has no part in the rounds before. Allowed:
    1 or more.
    """
    bulletins: Path | None = None
    """Folder in which the operator may put bulletins by hand.

    A relative path begins at the folder of `peer.toml`; without the key it is `bulletins`.
    """
    log_file: Path | None = None
    """File in which log lines are kept beside standard error, for `flower-dhb mesh fetch`.

    A relative path begins at the folder of `peer.toml`; beyond 10 MiB the file becomes `NAME.1`.
    Without the key there is none.
    """

    def __post_init__(self) -> None:
        neighbors = set(self.weights) - {self.vertex}
        if self.vertex not in self.weights or not neighbors:
            raise ConfigError(f"vertex {self.vertex}: needs its own weight and one neighbor")
        if not set(self.dial) <= neighbors:
            raise ConfigError(
                f"vertex {self.vertex}: dials {sorted(self.dial)}, its neighbors are "
                f"{sorted(neighbors)}"
            )
        if self.listen is None and set(self.dial) != neighbors:
            raise ConfigError(
                f"vertex {self.vertex}: neighbors {sorted(neighbors - set(self.dial))} dial it, "
                "but it has no 'listen' address"
            )
        for at, row in enumerate(self.turns):
            if not set(row) <= set(self.weights) or not abs(sum(row.values()) - 1.0) <= 1e-9:
                raise ConfigError(
                    f"vertex {self.vertex}: turn {at + 1} has the weights {dict(row)}; expected "
                    "its own and those of some neighbors, which sum to 1"
                )
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name in ("start_timeout_s", "linger_s"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0.0 <= value < math.inf):
                raise ConfigError(f"{name} must be seconds, 0 or more, got {value!r}")
        if self.record not in ("off", "checksums", "payloads"):
            raise ConfigError(unknown("record", self.record, ("off", "checksums", "payloads")))
        if self.on_damage not in ("stop", "rejoin"):
            raise ConfigError(unknown("on-damage", self.on_damage, ("stop", "rejoin")))
        if not isinstance(self.strict_app, bool):
            raise ConfigError(f"strict-app must be true or false, got {self.strict_app!r}")
        if self.log not in ("text", "json"):
            raise ConfigError(unknown("log", self.log, ("text", "json")))
        for name in self.names.values():
            if not isinstance(name, str):
                raise ConfigError(f"the name of a vertex must be a text, got {name!r}")
        for table in ("node_config", "train_config", "evaluate_config"):
            _check_values(table.replace("_", "-"), getattr(self, table))
        _check_node_config(self.node_config, self.vertex)
        if self.listen is not None:
            parse_address(self.listen, least_port=0)
        for address in self.dial.values():
            parse_address(address)
        if self.tls is None:
            for address in [*([self.listen] if self.listen else []), *self.dial.values()]:
                check_loopback(address)

    @property
    def neighbors(self) -> tuple[int, ...]:
        """Vertices that it exchanges payloads with, ascending."""
        return tuple(sorted(set(self.weights) - {self.vertex}))

    def row(self, round: int) -> Mapping[int, float]:
        """Mixing weights of a round by vertex, its own and those of the neighbors that are due."""
        return in_turn(self.turns, round) if self.turns else self.weights

    def due(self, round: int) -> tuple[int, ...]:
        """Neighbors that are due in a round, ascending."""
        return tuple(sorted(set(self.row(round)) - {self.vertex}))

    def protocol(self, editions: tuple[Edition, ...], *, early: bool) -> Config:
        """All that the protocol must know.

        editions: of the mesh, that are known. early: a payload is known before training.
        """
        return Config(
            vertex=self.vertex,
            editions=editions,
            timing=self.all_timing,
            away_rounds=self.away_rounds,
            early=early,
            conserves=bool(self.algorithm.conserved),
        )

    @property
    def all_timing(self) -> Timing:
        """The time limits of a round, with those of connections, start and end."""
        limits = self.limits
        return replace(
            self.timing,
            start_s=self.start_timeout_s,
            linger_s=self.linger_s,
            hello_s=limits.hello_s,
            dead_after_s=limits.dead_after_s,
            transfer_s=limits.transfer_s,
            least_bytes_s=limits.least_bytes_s,
        )

    def in_edition(self, edition: MeshEdition) -> PeerSettings:
        """What an edition of the mesh makes of them: graph, rounds, addresses and limits.

        Raises ConfigError if this device cannot follow it, or is no member by it.
        """
        if self.vertex not in edition.vertices:
            raise ConfigError(f"vertex {self.vertex} is no member by edition {edition.number}")
        timing = _settings(Timing, "timing", edition.timing, TIMES)
        near = (self.vertex, *edition.neighbors(self.vertex))
        names = {j: edition.vertices[j].name for j in near}
        return replace(
            self,
            edition=edition.number,
            begins=edition.begins,
            members_since=edition.members_since,
            rounds=edition.rounds,
            evaluate_every=edition.evaluate_every,
            weights=edition.row(self.vertex),
            turns=edition.rows(self.vertex),
            dial=edition.dial(self.vertex),
            graph=edition.graph,
            names={j: name for j, name in names.items() if name is not None},
            timing=replace(self.timing, **timing),
            limits=replace(self.limits, **_settings(Limits, "limits", edition.limits)),
        )

    @classmethod
    def load(cls, path: str | Path) -> PeerSettings:
        """Read a `peer.toml`. Raises ConfigError that names the file and the key."""
        path = Path(path)
        document = read_toml(path, "'flower-dhb mesh create' writes it")
        try:
            return cls.of(document, path.resolve().parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def of(cls, document: Mapping[str, Any], home: Path) -> PeerSettings:
        """What a `peer.toml` in the directory `home` holds. Raises ConfigError."""
        try:
            return cls._of(document, home)
        except KeyError as error:
            raise ConfigError(f"lacks {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(str(error)) from None

    @classmethod
    def _of(cls, document: Mapping[str, Any], home: Path) -> PeerSettings:
        values = dict(document)
        vertex, mesh = values["vertex"], values["mesh"]
        neighbors = values.pop("neighbors")
        weights = {n["vertex"]: float(n["weight"]) for n in neighbors}
        weights[vertex] = float(values.pop("own-weight"))
        names = {n["vertex"]: n["name"] for n in neighbors if "name" in n}
        values["turns"] = tuple(_turn(vertex, turn) for turn in values.get("turns", ()))
        if "name" in values:
            names[vertex] = values.pop("name")
        tls, plaintext = values.pop("tls", None), values.pop("plaintext", False)
        if (tls is None) != (plaintext is True):
            raise ConfigError(
                "needs a [tls] table, or 'plaintext = true' on loopback addresses; not both"
            )
        for key in values:
            if key not in KEYS:
                raise ConfigError(unknown("key", key, KEYS))
        for key in sorted(_REQUIRED - values.keys()):
            raise KeyError(key)
        for key in _TEXTS:
            if not isinstance(values.get(key, ""), str):
                raise ConfigError(f"{key} must be a text, got {values[key]!r}")
        values.setdefault("bulletins", "bulletins")
        for key in ("app", "start", "state-dir", "bulletins"):
            values[key] = home / values[key]
        if "log-file" in values:
            values["log-file"] = home / values["log-file"]
        values["timing"] = _table(Timing, "timing", values.get("timing", {}), TIMES)
        values["limits"] = _table(Limits, "limits", values.get("limits", {}))
        values["policy"] = Policy.of_table(values.get("policy", {}))
        values["algorithm"] = _rule(values["algorithm"], values["app"], values["policy"])
        check_relayed(values["algorithm"])
        values["compression"] = Compression.parse(values.get("compression", NONE))
        return cls(
            **{key.replace("-", "_"): value for key, value in values.items()},
            weights=weights,
            names=names,
            dial={n["vertex"]: n["address"] for n in neighbors if "address" in n},
            tls=tls and TlsFiles(Identity(mesh, vertex), **{k: home / f for k, f in tls.items()}),
        )


# The keys at the top of a peer.toml.
KEYS = sorted(
    key.replace("_", "-")
    for key in {*PeerKeys.__annotations__, *(f.name for f in fields(PeerSettings))}
    - {"weights", "dial", "names"}
)
_REQUIRED = {
    f.name.replace("_", "-")
    for f in fields(PeerSettings)
    if f.default is MISSING and f.default_factory is MISSING and f.name != "weights"
}


def _turn(vertex: int, table: Mapping[str, Any]) -> dict[int, float]:
    """A round's weights by vertex, from a table of `turns`."""
    for key in table:
        if key not in ("own-weight", "weights"):
            raise ConfigError(unknown("key of a turn", key, ("own-weight", "weights")))
    near = {int(j): float(weight) for j, weight in table.get("weights", {}).items()}
    return dict(sorted({**near, vertex: float(table.get("own-weight", 1.0))}.items()))


def _rule(config: Mapping[str, Any], app: Path, policy: Policy) -> Algorithm:
    """The rule, which may be the app's own: none of its code runs before the policy allows it."""
    folder = folder_here(app)
    if folder and policy.apps is not None and is_reference(str(config.get("name"))):
        policy.check_app(digest_of_folder(app))
    return algorithm_from_config(config, folder)


def check_loopback(address: str) -> None:
    """Raise ConfigError unless a plaintext address is a loopback address."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise ConfigError(
            f"plaintext on {address}: allowed on loopback addresses only; configure [tls]"
        )


def _check_values(table: str, config: object) -> None:
    if not isinstance(config, Mapping):
        raise ConfigError(f"{table} must be a table, got {config!r}")
    for key, value in config.items():
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(
                f"[{table}] {key} must be a number, a text, true or false; got {value!r}"
            )


# Keys of a node config that a peer has no use for, and what it has instead.
_OF_SUPERNODES = {
    "state-dir": "a peer keeps its state where the key 'state-dir' at the top says",
    "model-file": "a peer keeps its model as model.safetensors in its state directory",
    "mesh": "a peer's keys are in the table [tls]",
    "encryption": "peers encrypt all that they send, unless 'plaintext' is set",
}


def _check_node_config(config: Mapping[str, Any], vertex: int) -> None:
    for key, value in config.items():
        if key.startswith("policy-"):
            raise ConfigError(
                f"[node-config] {key} is for Flower's SuperNodes; a peer's policy is the table "
                "[policy] of its peer.toml"
            )
        if key in _OF_SUPERNODES:
            raise ConfigError(
                f"[node-config] {key} is for Flower's SuperNodes; {_OF_SUPERNODES[key]}"
            )
        if key in ("vertex", "partition-id") and value != vertex:
            raise ConfigError(f"[node-config] {key} is {value!r}, this is vertex {vertex}")


def _table(
    kind: type[T], name: str, table: Mapping[str, Any], names: Iterable[str] | None = None
) -> T:
    """A table as a dataclass, of whose fields it may hold `names`, or all."""
    return kind(**_settings(kind, name, table, names))


def _settings(
    kind: type[Any], name: str, table: Mapping[str, Any], names: Iterable[str] | None = None
) -> dict[str, Any]:
    """The fields of a dataclass that a table says."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"[{name}] must be a table, got {table!r}")
    known = [n.replace("_", "-") for n in (names or [f.name for f in fields(kind)])]
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(unknown(f"key of [{name}]", key, known))
        pair = isinstance(value, list | tuple) and len(value) == 2
        for number in value if pair else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
                raise ConfigError(f"[{name}] {key} must be above 0, got {value!r}")
        settings[key.replace("-", "_")] = tuple(value) if pair else float(value)
    return settings
