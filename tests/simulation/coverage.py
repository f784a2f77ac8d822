"""Which transitions of an edge a campaign has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flower_dhb.peer.protocol.edge import TRANSITIONS, Edge, Step

__all__ = ["name_of", "names", "never_seen", "watched"]


def name_of(stage: str, step: str) -> str:
    """A transition as text: stage and step."""
    return f"{stage}, {step}"


def names() -> list[str]:
    """All transitions of the core's table."""
    return [name_of(stage.value, step.value) for stage, step in TRANSITIONS]


def never_seen(seen: Counter[str]) -> list[str]:
    """Transitions of the table that did not happen."""
    return [name for name in names() if not seen[name]]


@contextmanager
def watched(seen: Counter[str]) -> Iterator[None]:
    """Count transitions of all edges while the context is open."""
    original = Edge.take
    table = {key: name_of(key[0].value, key[1].value) for key in TRANSITIONS}

    def take(self: Edge, step: Step) -> bool:
        name = table.get((self.stage, step))
        if name is not None:
            seen[name] += 1
        return original(self, step)

    Edge.take = take  # type: ignore[method-assign]
    try:
        yield
    finally:
        Edge.take = original  # type: ignore[method-assign]
