"""The reference of all keys: `python -m tests.reference` writes docs/reference.md from the code.

Each key's meaning is the text below its field, its default the field's own; so there is one
place for both. `--check` says only whether the page is as the code has it.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from flower_dhb.agent.policy import Policy
from flower_dhb.flower.store import NodeKeys
from flower_dhb.peer.device.settings import TIMES, NeighborKeys, PeerKeys, PeerSettings
from flower_dhb.peer.mesh.create import AppKeys
from flower_dhb.peer.mesh.devices import Host
from flower_dhb.peer.protocol.settings import Timing
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.transport import Limits
from flower_dhb.runs.config import AUTO, RuleKeys, RunConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"

_UNITS = {"_bytes_s": "bytes/s", "_s": "s"}


@dataclass(frozen=True)
class Key:
    """One row. default: as TOML, empty if the key must be there or has none."""

    name: str
    default: str
    unit: str
    allowed: str
    meaning: str

    def __str__(self) -> str:
        cells = (f"`{self.name}`", self.default, self.unit, self.allowed, self.meaning)
        return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Section:
    """One table. words: before it."""

    title: str
    words: str
    keys: tuple[Key, ...]

    def __str__(self) -> str:
        head = "| key | default | unit | allowed | meaning |\n|---|---|---|---|---|"
        return "\n".join([f"## {self.title}\n\n{self.words}\n", head, *map(str, self.keys), ""])


def texts_of(kind: type) -> dict[str, str]:
    """The text below each field of a class, by field."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def keys_of(kind: type, *, only: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> list[Key]:
    """The keys that a class describes, in its own order. required: where it is no dataclass."""
    found = []
    own = {f.name: f for f in fields(kind)} if is_dataclass(kind) else {}
    for name, text in texts_of(kind).items():
        if only and name not in only:
            continue
        has_none = name not in required
        default: Any = None
        if name in own:
            default = own[name].default
            has_none = default is not MISSING or own[name].default_factory is not MISSING
        shown = f"`{_toml(default)}`" if default not in (None, MISSING) else ""
        found.append(_key(name, text, shown or ("none" if has_none else "required")))
    return found


def _key(name: str, text: str, default: str) -> Key:
    text, _, allowed = text.partition(" Allowed: ")
    unit = next((u for ending, u in _UNITS.items() if name.endswith(ending)), "")
    if found := re.search(r" Unit: ([^.]+)\.", text):
        text, unit = text.replace(found[0], ""), found[1]
    return Key(name.replace("_", "-"), default, unit, allowed.rstrip("."), text.strip())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def sections() -> list[Section]:
    """All tables, in the order of the page."""
    own = sorted(
        (*keys_of(PeerSettings), *keys_of(PeerKeys, required=("own_weight", "neighbors"))),
        key=lambda key: (key.default != "required", key.name),
    )
    graph = {"topology": '`"ring:16"`', "algorithm": '`"dmsgd"`'}
    run = [
        Key(k.name, graph.get(k.name, k.default), k.unit, k.allowed, k.meaning)
        for k in keys_of(RunConfig)
    ]
    rule = [
        Key(k.name, '`"metropolis"`' if k.name == "weights" else f'`"{AUTO}"`', *_rest(k))
        for k in keys_of(RuleKeys)
    ]
    return [
        Section(
            "`hosts.toml`",
            "What `mesh create --hosts` reads: a `[[hosts]]` table for each device.",
            tuple(keys_of(Host)),
        ),
        Section(
            "`peer.toml`",
            "What one device knows. `mesh create` writes it; `--set KEY=VALUE` sets a key for all "
            "devices, and a key of a table as `timing.ceiling-s=5`.",
            tuple(own),
        ),
        Section(
            "`[[neighbors]]` of `peer.toml`",
            "One for each neighbor.",
            tuple(keys_of(NeighborKeys, required=("vertex", "weight"))),
        ),
        Section(
            "`[tls]` of `peer.toml`",
            "Names of files. They may be replaced at any time.",
            tuple(keys_of(TlsFiles)),
        ),
        Section(
            "`[timing]` of `peer.toml`",
            "Time limits of a round. `mesh create` sets `ceiling-s` to the run config's "
            "`round-timeout-s`.",
            tuple(keys_of(Timing, only=TIMES)),
        ),
        Section(
            "`[limits]` of `peer.toml`",
            "Bounds on what neighbors and strangers can make a peer do.",
            tuple(keys_of(Limits)),
        ),
        Section(
            "`[policy]` of `peer.toml`",
            "What may leave a node, whatever its app does; [policy.md](policy.md) explains it. In "
            "a SuperNode's node config the same keys begin with `policy-`, and a list is a text "
            'with commas: `policy-metrics = "num-examples, accuracy"`.',
            tuple(keys_of(Policy)),
        ),
        Section(
            "Run config",
            "What `RunConfig.of`, `mesh create` and the app of this repository read from the run "
            "config of a Flower App. Settings of the rule may also follow its name: "
            '`algorithm = "dmsgd:momentum=0.8"`. A setting that is `"auto"` has the rule\'s own '
            "default; one that the rule lacks is refused. [algorithm.md](algorithm.md) explains "
            "them. The keys of this repository's own app are in [run-config.md](run-config.md).",
            (*run[:1], *rule[:1], *run[1:2], *rule[1:], *run[2:]),
        ),
        Section(
            "Node config",
            "What a SuperNode's `--node-config`, or `[node-config]` of `peer.toml`, can say to "
            "this package. All other keys are the app's.",
            tuple(keys_of(NodeKeys)),
        ),
        Section(
            "`[tool.flower-dhb]` of an app's `pyproject.toml`",
            "What an app says to `mesh create`.",
            tuple(keys_of(AppKeys)),
        ),
    ]


def _rest(key: Key) -> tuple[str, str, str]:
    return key.unit, key.allowed, key.meaning


def page() -> str:
    """The whole page."""
    words = (
        "# All keys\n\nEach key of each file and table that this package reads, with its default, "
        "unit and meaning. `make reference` writes this page from the code. A value that is not "
        "allowed is refused where it is read, with the reason.\n"
    )
    return "\n".join([words, *map(str, sections())])


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    arguments = parser.parse_args()
    if arguments.check:
        is_new = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        print("up to date" if is_new else f"{PAGE} is not as the code has it: make reference")
        return 0 if is_new else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
