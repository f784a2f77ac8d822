"""A schedule as text: one line an event, with what the core made of it."""

from __future__ import annotations

import sys
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from flower_dhb.peer.protocol.events import Heard, LinkEvent, Payload, Tick

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Trace"]

_QUIET = ("record", "text")


def _short(value: Any) -> str:
    if isinstance(value, Payload):
        return _short(value.digest)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, int) and value >= 1 << 40:
        return f"#{value & 0xFFFF:04x}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_short, value)) + ")"
    if hasattr(value, "__dataclass_fields__"):
        inner = (
            f"{f.name}={_short(getattr(value, f.name))}"
            for f in fields(value)
            if f.name not in _QUIET and getattr(value, f.name) != f.default
        )
        return f"{type(value).__name__}({', '.join(inner)})"
    return str(value)


class Trace:
    """Writes a line for each event. quiet: without signs of life that nothing came of."""

    def __init__(self, out: TextIO | None = None, *, quiet: bool = True) -> None:
        self._out = out or sys.stdout
        self._quiet = quiet

    def __call__(self, process: Process, event: Any, effects: list[Any], before: Any) -> None:
        if self._quiet and not effects and isinstance(event, Heard | Tick):
            return
        core = process.core
        name = f"{process.vertex}.{process.life}"
        phase = before.name if before is core.phase else f"{before.name}>{core.phase.name}"
        stages = ""
        if isinstance(event, LinkEvent):
            edge = core.edges.get(event.neighbor)
            if edge is not None:
                stale = "" if edge.link == event.link else " STALE"
                stages = f" [{edge.connection.name} {edge.stage.name}{stale}]"
        self._out.write(
            f"{process.world.now:10.4f} {name:>5} r{core.round}/{core.closed} {phase}{stages} "
            f"{_short(event)}"
            + "".join(f"\n{'':>18}-> {_short(effect)}" for effect in effects)
            + "\n"
        )

    def note(self, process: Process, text: str) -> None:
        """A line about something that no core has seen."""
        self._out.write(f"{process.world.now:10.4f} {process.vertex}.{process.life:<3} {text}\n")
