"""What a machine brings: versions, memory, disk, descriptors, clock, surroundings."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from flower_dhb.extras import EXTRAS, installed
from flower_dhb.files import write_durably
from flower_dhb.memory import free_bytes
from flower_dhb.metrics import size_text
from flower_dhb.peer.doctor.finding import Finding, fine, note, wrong
from flower_dhb.peer.wire.descriptors import raise_limit
from flower_dhb.peer.wire.identity import utc_now

__all__ = [
    "clock",
    "descriptors",
    "disk",
    "extras",
    "memory",
    "surroundings",
    "versions",
]

_PACKAGE = "flower-dhb"
_SLOW_DISK_S = 0.25  # a round waits for one such write at least
_NEWEST_PYTHON = (3, 14)  # the first one that nothing has been tried on
_VOLATILE = ("tmpfs", "ramfs")
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
_AHEAD_S = 120.0  # files of other machines, or of the time before a leap, may be this far ahead


def versions(extra: str = "") -> Iterator[Finding]:
    """Python and the libraries that are needed, with those of an extra.

    What is installed beside this package may have replaced a version that it asked for.
    """
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= _NEWEST_PYTHON:
        yield note("Python", f"{found}, which nothing here has been tried on yet")
    else:
        yield fine("Python", found)
    try:
        wanted = [Requirement(text) for text in requires(_PACKAGE) or ()]
        yield fine(_PACKAGE, version(_PACKAGE))
    except (PackageNotFoundError, InvalidRequirement) as error:
        yield wrong(_PACKAGE, f"it is not installed properly: {error}", "Install it with pip.")
        return
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        if one.name.partition("[")[0] == _PACKAGE or (one.extras and one.marker is not None):
            continue  # an extra of ours, or of a library that is asked for by itself
        yield _library(one, extra)


def _library(wanted: Requirement, extra: str) -> Finding:
    name = f"{_PACKAGE}[{extra}]" if extra else _PACKAGE
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return wrong(wanted.name, "is not installed", f"pip install '{name}'")
    if not wanted.specifier.contains(found, prereleases=True):
        text = f"{found}, and {wanted.specifier} is needed"
        return wrong(wanted.name, text, f"pip install '{wanted.name}{wanted.specifier}'")
    return fine(wanted.name, found)


def extras() -> Finding:
    """Which of the optional parts can be used on this machine."""
    by_extra: dict[str, list[str]] = {}
    for library, extra in EXTRAS.items():
        by_extra.setdefault(extra, []).append(library)
    there = sorted(extra for extra, libraries in by_extra.items() if installed(*libraries))
    lacking = sorted(set(by_extra) - set(there))
    if not lacking:
        return fine("extras", "all are installed")
    text = f"{', '.join(there) or 'none'} installed; not {', '.join(lacking)}"
    return note("extras", text, f"pip install '{_PACKAGE}[NAME]' adds one.")


def memory(needed: int) -> Finding:
    """Free memory against what a device needs. needed: bytes; 0 if they are not known."""
    free = free_bytes()
    if free is None:
        return note("memory", "how much is free cannot be told on this system")
    text = f"{size_text(free)} free"
    if not needed:
        return fine("memory", text)
    text = f"{text}, and the model with its neighbors' payloads needs about {size_text(needed)}"
    if free < needed:
        return wrong(
            "memory", text, "Take a smaller model or fewer neighbors, or end what else runs."
        )
    if free < 2 * needed:
        return note("memory", text, "The app's own training needs some, too.")
    return fine("memory", text)


def disk(folder: Path, needed: int) -> Iterator[Finding]:
    """Whether a folder takes what is to be kept, durably, and how long that takes.

    folder: need not exist yet. needed: bytes that will lie there.
    """
    subject = f"disk of {folder}"
    probe = folder / f".doctor-{os.getpid()}"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    begin = time.monotonic()
    try:
        write_durably(probe, bytes(4096))
        took = time.monotonic() - begin
        free = shutil.disk_usage(folder).free
        probe.unlink()
    except OSError as error:
        text = f"nothing can be kept there: {error.strerror or error}"
        remedy = "Free space, mount the disk for writing, or give the folder to this user."
        yield wrong(subject, text, remedy)
        return
    finally:
        _remove(probe, made)
    text = f"{size_text(free)} free"
    if free < needed:
        text = f"{text}, and about {size_text(needed)} will be needed"
        yield wrong(subject, text, "Free space, or name another 'state-dir'.")
    elif took > _SLOW_DISK_S:
        text = f"{text}; a small durable write takes {took:.2f} s, and each round waits for one"
        yield note(subject, text, "Take a faster disk, or a larger 'checkpoint-every'.")
    else:
        yield fine(subject, f"{text}, a durable write takes {1000 * took:.0f} ms")
    if _kind_of(folder) in _VOLATILE:
        text = "it lies in memory: what is kept there is lost with the power"
        yield note(subject, text, "Name a 'state-dir' on a disk.")


def _remove(probe: Path, made: list[Path]) -> None:
    """Leave nothing behind, neither the file nor folders that were made for it."""
    try:
        probe.unlink(missing_ok=True)
        for path in made:
            path.rmdir()
    except OSError:
        return  # somebody else's files are in them by now


def _kind_of(folder: Path) -> str:
    """The kind of file system that a folder lies on; empty where the system does not say."""
    found, kind = "", ""
    try:
        path = str(folder.resolve())
        for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
            _, place, name, *_ = line.split()
            inside = path == place or path.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= len(found):
                found, kind = place, name
    except (OSError, ValueError):
        return ""
    return kind


def descriptors(needed: int) -> Finding:
    """How many files and connections a process may have open. needed: that a peer may have."""
    limit = raise_limit()
    text = f"{limit} may be open at a time, and a peer may need {needed}"
    if limit < needed:
        return wrong("descriptors", text, "Raise the hard limit (ulimit -Hn, LimitNOFILE).")
    return fine("descriptors", text)


def clock(newest: Mapping[str, float]) -> Finding:
    """Whether the clock is behind what has happened already.

    newest: by name, when something was written, in seconds of the clock that wrote it.
    """
    now = utc_now().timestamp()
    ahead = {name: at - now for name, at in newest.items() if at - now > _AHEAD_S}
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if not ahead:
        return fine("clock", shown)
    name = max(ahead, key=lambda each: ahead[each])
    text = f"{shown}, and {name} is from {ahead[name] / 3600:.1f} hours later"
    remedy = "Set the clock (by NTP, GPS or hand): certificates are judged by it."
    return wrong("clock", text, remedy)


def surroundings() -> Iterator[Finding]:
    """What other programs and the environment make of the machine."""
    cores = os.cpu_count() or 1
    try:
        load = os.getloadavg()[1]
    except OSError:
        load = 0.0
    if load > 1.5 * cores:
        text = f"{load:.1f} programs want {cores} of them: each step takes longer by as much"
        yield note("processors", text, "End what else runs.")
    else:
        yield fine("processors", f"{cores}")
    proxies = [n for n in _PROXIES if os.environ.get(n) or os.environ.get(n.upper())]
    if proxies:
        text = f"{', '.join(proxies)} set: peers dial their neighbors directly all the same"
        remedy = "Flower's own programs do use a proxy: list the SuperLink in no_proxy."
        yield note("proxy", text, remedy)
