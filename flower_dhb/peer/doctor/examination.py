"""All checks of a device, or of a machine that is to become one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flower_dhb.agent.compression import frame
from flower_dhb.agent.node import Node, compressor_of
from flower_dhb.errors import ConfigError, FlowerDhbError, NotNowError
from flower_dhb.extras import installed
from flower_dhb.metrics import size_text
from flower_dhb.peer.device.home import HeldError, Home
from flower_dhb.peer.device.model import read_start
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.doctor import machine
from flower_dhb.peer.doctor import neighbors as ways
from flower_dhb.peer.doctor.finding import Finding, fine, note, wrong
from flower_dhb.peer.wire.descriptors import needed_for
from flower_dhb.types import Layout, NDArrays

__all__ = ["device", "machine_alone"]

_RENEW_DAYS = 30.0
_VECTORS = 8  # of the model's size that a peer holds beside its neighbors' payloads
_KEPT = 12  # of the model's size on the disk: two states, the journal, the model


def machine_alone(folder: Path) -> Iterator[Finding]:
    """A machine on which there is no device yet. folder: where one would keep its state."""
    yield from machine.versions("peer" if installed("tomli_w", "prometheus_client") else "")
    yield machine.extras()
    yield machine.memory(0)
    yield from machine.disk(folder, 0)
    yield machine.descriptors(needed_for(4))
    yield machine.clock({"this program": _written(Path(__file__))})
    yield from machine.surroundings()


def device(
    path: Path, timeout_s: float, *, app: bool = True, train: bool = False, rates: bool = True
) -> Iterator[Finding]:
    """A device, before or while it runs.

    path: of its `peer.toml`. timeout_s: for each neighbor. app: whether to load its ClientApp,
    which runs the app's code. train: whether to have it train once, from the initial model; what
    comes of it is dropped. rates: whether to measure how fast the links are.
    """
    yield from machine.versions("peer")
    try:
        settings = PeerSettings.load(path)
    except (ConfigError, OSError) as error:
        yield wrong("peer.toml", str(error), "Correct it, or copy it from the operator's again.")
        return
    yield fine("peer.toml", f"vertex {settings.vertex} of mesh {settings.mesh}")
    arrays, finding = _start(settings)
    yield finding
    size = sum(array.nbytes for array in arrays.values())
    if app:
        yield from _app(settings, arrays if train and arrays else None)
    degree = len(settings.neighbors)
    in_memory, on_disk = degree + _VECTORS, _KEPT
    if settings.compression.on:  # what it remembers: of its own payloads, or of its neighbors' too
        remembered = 1 + degree if settings.compression.estimates else 1
        in_memory, on_disk = in_memory + 2 * remembered, on_disk + 2 * remembered
    yield machine.memory(in_memory * size)
    yield from machine.disk(settings.state_dir, on_disk * size)
    yield machine.descriptors(needed_for(degree))
    yield from _keys(settings)
    yield machine.clock(_newest(settings, path))
    yield from machine.surroundings()
    runs = _runs(settings)
    if runs:
        yield fine("peer", runs)
    else:
        yield from ways.own_port(settings)
    payload = _payload_bytes(settings, arrays) if rates else None
    yield from ways.neighbors(settings, timeout_s, payload)


def _start(settings: PeerSettings) -> tuple[NDArrays, Finding]:
    """The model that the mesh starts with, and what is to be said of it."""
    try:
        arrays, _ = read_start(settings.start)
    except (FlowerDhbError, OSError) as error:
        text = str(error)
        return {}, wrong("start", text, "Copy the file from the operator's device folder again.")
    size = sum(array.nbytes for array in arrays.values())
    return arrays, fine("start", f"{len(arrays)} arrays, {size_text(size)}")


def _payload_bytes(settings: PeerSettings, arrays: NDArrays) -> int:
    """Length of what the device sends to each neighbor in a round; 0 if it is not known."""
    if not arrays:
        return 0
    layout = Layout.of(arrays)
    specs = Node.vectors_of(settings.algorithm, layout)
    with suppress(ConfigError):  # of which the app's own finding speaks
        compressor = compressor_of(settings.compression, settings.algorithm, layout)
        if compressor is not None:
            return frame.length(compressor, specs)
    return sum(spec.n_bytes for spec in specs)


def _app(settings: PeerSettings, arrays: NDArrays | None) -> Iterator[Finding]:
    """Load the app, and have it train from arrays if there are any."""
    from flower_dhb.peer.device.app import agent_of, load_app

    begin = time.monotonic()
    try:
        app = load_app(settings)
    except (Exception, SystemExit) as error:  # the app's own code: anything may come out of it
        text = f"it cannot be loaded: {type(error).__name__}: {error}"
        yield wrong("app", text, "Install what it imports, or copy its folder again.")
        return
    yield fine("app", f"{settings.client_app} loads in {time.monotonic() - begin:.1f} s")
    if arrays is None:
        return
    begin = time.monotonic()
    try:
        failure = agent_of(settings, app, arrays).train(1).failure
    except (Exception, SystemExit) as error:  # of the app, or it does not fit its settings
        failure = f"{type(error).__name__}: {error}"
    took = time.monotonic() - begin
    if failure:
        text = f"its train fails: {failure}"
        yield wrong("training", text, "See the app's log; its data may be missing on this device.")
    else:
        yield fine("training", f"a round's local training takes {took:.3g} s")


def _keys(settings: PeerSettings) -> Iterator[Finding]:
    if settings.tls is None:
        yield note("TLS", "off: this mesh is for one machine alone")
        return
    try:
        settings.tls.read()
        standing = settings.tls.standing()
    except (ConfigError, OSError) as error:
        renew = f"flower-dhb mesh renew MESH --vertex {settings.vertex}"
        yield wrong("certificate", str(error), f"Issue new files with '{renew}' and copy them.")
        return
    if standing is None:
        return
    days = standing.days_left
    text = f"{standing.serial}, for {days:.0f} days more"
    if days < _RENEW_DAYS:
        who = "--all" if standing.certificate_days < standing.authority_days else "--authority"
        yield note("certificate", text, f"flower-dhb mesh renew MESH {who}")
    else:
        yield fine("certificate", text)


def _newest(settings: PeerSettings, path: Path) -> dict[str, float]:
    found = {str(path): _written(path), "the state": _written(settings.state_dir / "history.jsonl")}
    if settings.tls is not None:
        found["the certificate"] = _written(settings.tls.certificate)
    return found


def _written(path: Path) -> float:
    """When a file was written, 0 if it is not there."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _runs(settings: PeerSettings) -> str:
    """Who holds the state directory, in words; empty if nobody does."""
    if not settings.state_dir.is_dir():
        return ""
    home = Home(settings.state_dir)
    try:
        home.take()
    except HeldError:
        return "it runs on this machine"
    except NotNowError:  # which is a finding of its own: the disk does not take it
        return ""
    home.release()
    return ""
