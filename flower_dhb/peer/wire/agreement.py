"""What two neighbors must have in common, compared and named in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flower_dhb import __version__
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import VERSION, Reason, RefusedError

__all__ = ["Agreement"]

_SHOWN = 48  # characters of what a neighbor calls its digest or its version
# A part of the agreement: what differs, and what is to be done about it.
_WORDS = {
    "algorithm": ("algorithm", "give all devices the files of one and the same mesh"),
    "compression": (
        "compression of payloads",
        "give all devices the files of one and the same mesh",
    ),
    "layout": (
        "model: names, shapes or dtypes of its arrays differ",
        "run the same app with the same settings everywhere",
    ),
    "start": (
        "start: initial arrays of the same form and other values",
        "copy one start.safetensors to all devices",
    ),
    "segment": (
        "segment of the run",
        "the one that is behind ends its own in time, and takes part in the next",
    ),
    "app": ("version of the app's code", "bring the app to the same version where that matters"),
}


@dataclass(frozen=True)
class Agreement:
    """What one end says of itself in its Hello, and what it expects in the other's.

    parts: digests, or short texts, by name. may_differ: parts whose difference is a warning, no
    refusal. A part that only one end names is not compared: the other runs a version that does
    not know it. editions: the same of each edition of the mesh that is known at the moment; those
    that only one end knows are not compared, since the other learns them. differs: called with a
    part that differs, and with what the neighbor says of it.
    """

    vertex: int
    run: str
    parts: Mapping[str, str]
    may_differ: frozenset[str]
    monitor: Monitor
    editions: Callable[[], Mapping[str, str]] = dict
    differs: Callable[[str, str], None] | None = None
    _refused: dict[int, str] = field(default_factory=dict)  # why, as told in the log
    _software: dict[int, str] = field(default_factory=dict)  # of neighbors, as told in the log

    def put(self, neighbor: int, hello: pb.Hello) -> None:
        """Say in an own Hello who speaks, to whom, and what the two must have in common."""
        hello.version, hello.software, hello.run = VERSION, __version__, self.run
        hello.vertex, hello.neighbor = self.vertex, neighbor
        for part, digest in {**self.parts, **self.editions()}.items():
            hello.agreement[part] = digest

    def check(self, neighbor: int, hello: pb.Hello) -> None:
        """Hold a neighbor's Hello against it. Raises RefusedError if the two do not fit.

        A neighbor that does not fit comes again and again: the log has each reason once.
        """
        try:
            self._check(neighbor, hello)
        except RefusedError as error:
            error.told = self._refused.get(neighbor) == str(error)
            self._refused[neighbor] = str(error)
            raise
        self._refused.pop(neighbor, None)

    def _check(self, neighbor: int, hello: pb.Hello) -> None:
        who = f"neighbor {neighbor}"
        if hello.version != VERSION:
            self.monitor.count("other-version", neighbor)
            raise RefusedError(Reason.AGREEMENT, self._other_version(neighbor, hello))
        if (hello.vertex, hello.neighbor) != (neighbor, self.vertex):
            raise RefusedError(
                Reason.IDENTITY,
                f"{who} says that it is vertex {hello.vertex} and wants vertex {hello.neighbor}; "
                f"its certificate is of vertex {neighbor}, this is vertex {self.vertex}",
            )
        if hello.run != self.run:
            raise RefusedError(
                Reason.AGREEMENT,
                f"vertex {neighbor} is in run '{hello.run[:64]}', vertex {self.vertex} in run "
                f"'{self.run}'; give both the files of one and the same mesh",
            )
        for part, own in self.parts.items():
            found = hello.agreement.get(part)
            if found is None:
                self.monitor.count(f"not-compared.{part}", neighbor)
            elif found != own:
                self._differs(neighbor, part, found, own)
        for part, own in self.editions().items():
            found = hello.agreement.get(part, own)
            if found != own:
                self._differs(neighbor, part, found, own)
        self._tell_software(neighbor, hello.software[:_SHOWN])

    def _differs(self, neighbor: int, part: str, found: str, own: str) -> None:
        if self.differs is not None:
            self.differs(part, found)
        other = (f"{part} of the mesh", "give both the files of one and the same mesh")
        what, remedy = _WORDS.get(part, other)
        name = what.partition(":")[0]
        why = f"vertex {neighbor} has another {what} than vertex {self.vertex}"
        detail = _details(found, own)
        why = f"{why} ({detail}); {remedy}"
        if part not in self.may_differ:
            raise RefusedError(Reason.AGREEMENT, why)
        self.monitor.count(f"differs.{part}", neighbor)
        self.monitor.warning("differs", neighbor=neighbor, part=name, why=why)

    def _other_version(self, neighbor: int, hello: pb.Hello) -> str:
        there = hello.software[:_SHOWN] or "unknown"
        older = neighbor if hello.version < VERSION else self.vertex
        return (
            f"vertex {self.vertex} (flower_dhb {__version__}) speaks version {VERSION} of the "
            f"protocol, vertex {neighbor} (flower_dhb {there}) version {hello.version}; upgrade "
            f"flower_dhb on vertex {older}"
        )

    def _tell_software(self, neighbor: int, there: str) -> None:
        before = self._software.get(neighbor, __version__)
        self._software[neighbor] = there
        if there != before:
            self.monitor.event("software", neighbor=neighbor, there=there, here=__version__)


def _details(found: str, own: str) -> str:
    """Where two texts differ: by key if they are JSON objects."""
    try:
        there, here = json.loads(found[:4096]), json.loads(own)
    except ValueError:
        there = here = None
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
        told = [f"{k} is {there.get(k)!r} there and {here.get(k)!r} here" for k in keys[:4]]
        return ", ".join(told)[:200]
    return f"{found[:_SHOWN]!r} there and {own[:_SHOWN]!r} here"
