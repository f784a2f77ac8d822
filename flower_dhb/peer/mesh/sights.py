"""When each device of a mesh was seen last, kept beside `mesh.toml` from one look to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flower_dhb.files import write_durably
from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["SIGHTS", "Sight", "read_sights", "seen", "write_sights"]

SIGHTS = "last-sights.json"


@dataclass(frozen=True)
class Sight:
    """A device as it was seen last. at: seconds since 1970, by the operator's clock.

    by: neighbors that heard it then, none where it answered itself. left_s: until its last
    round, None if unknown.
    """

    at: float
    round: int
    rounds: int
    phase: str
    software: str = ""
    by: tuple[int, ...] = ()
    left_s: float | None = None


def read_sights(directory: Path) -> dict[int, Sight]:
    """Last sights by vertex; none where the file is not there or not readable: it is a memory."""
    try:
        document = json.loads((directory / SIGHTS).read_text(encoding="utf-8"))
        return {
            int(v): Sight(**{**found, "by": tuple(found["by"])}) for v, found in document.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def write_sights(directory: Path, sights: Mapping[int, Sight]) -> None:
    """Keep last sights. Where the folder takes none, the next look knows less, and no more."""
    text = json.dumps({v: asdict(sight) for v, sight in sorted(sights.items())}, indent=1)
    with suppress(OSError):
        write_durably(directory / SIGHTS, text.encode() + b"\n", make_folder=False)


def seen(
    before: Mapping[int, Sight], replies: Mapping[int, pb.StatusReply], now: float
) -> dict[int, Sight]:
    """Last sights after a look: of those that answered, and of those whom a neighbor hears."""
    after = dict(before)
    for reply in replies.values():
        for n in reply.neighbors:
            if n.vertex in replies or not n.HasField("heard_s"):
                continue
            found = after.get(n.vertex)
            at = now - n.heard_s
            if found is None or at > found.at + 1.0:
                phase = "finished" if n.done else "heard"
                found = Sight(at, n.closed, reply.rounds, phase, found.software if found else "")
                after[n.vertex] = replace(found, by=(reply.vertex,))
            elif found.by and abs(at - found.at) <= 1.0:
                by = tuple(sorted({*found.by, reply.vertex}))
                after[n.vertex] = replace(found, round=max(found.round, n.closed), by=by)
    for v, r in replies.items():
        left_s = r.left_s if r.HasField("left_s") else None
        after[v] = Sight(now, r.round, r.rounds, r.phase, r.software, left_s=left_s)
    return after
