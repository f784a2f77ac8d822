"""Ways to a device and from it: its own port, and each neighbor that it dials."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from flower_dhb.errors import ConfigError
from flower_dhb.metrics import agents_text
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.doctor.finding import Finding, Grade, fine, note, wrong
from flower_dhb.peer.doctor.links import link
from flower_dhb.peer.wire.address import parse_address
from flower_dhb.peer.wire.identity import Identity, host_name
from flower_dhb.peer.wire.tls import TlsFiles

__all__ = ["neighbors", "own_port"]

_AT_A_TIME = 16
_SLOW_S = 0.5  # of a round trip: a vote takes one
_LOOPBACK = ("127.", "[::1]", "localhost")


def own_port(settings: PeerSettings) -> Iterator[Finding]:
    """Whether the device can listen where its neighbors will dial. It must not be running."""
    ports = {"listen": settings.listen}
    if settings.metrics_port:
        ports["metrics-port"] = f"127.0.0.1:{settings.metrics_port}"
    for key, address in ports.items():
        if address is None:
            yield fine("listen", "no neighbor dials this device")
            continue
        subject = f"{key} {address}"
        host, port = parse_address(address, least_port=0)
        try:
            _bind(host, port)
        except OSError as error:
            yield wrong(subject, f"{error.strerror or error}", _remedy_to_bind(error, port))
        else:
            yield fine(subject, "is free")
    if settings.listen is not None and settings.tls is not None:
        yield from _heard_from_elsewhere(settings)


def _bind(host: str, port: int) -> None:
    """Bind an address and let go of it. Raises OSError."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM,
                               flags=socket.AI_PASSIVE)  # fmt: skip
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(1)


def _remedy_to_bind(error: OSError, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return "Write an address of this device, or make its name known to it."
    if error.errno == errno.EADDRINUSE:
        return "End the program that has it ('ss -ltnp' names it), or take another port."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Ports below 1024 belong to the system: take another one than {port}."
    return "Write an address that this device has ('ip address' lists them)."


def _heard_from_elsewhere(settings: PeerSettings) -> Iterator[Finding]:
    dialing = [j for j in settings.neighbors if j not in settings.dial]
    remote = [a for a in settings.dial.values() if not a.startswith(_LOOPBACK)]
    here = (settings.listen or "").startswith(_LOOPBACK)
    if here and dialing and remote:
        yield wrong(
            f"listen {settings.listen}",
            f"is seen by this machine alone, and {agents_text(dialing)} must be able to dial it",
            "Listen on 0.0.0.0, or on the address that they dial.",
        )
    elif dialing:
        text = f"only from there can it be seen whether {agents_text(dialing)} can dial this device"
        yield note("neighbors", text, "Run 'flower-dhb doctor' there, too.")


# --- neighbors --------------------------------------------------------------------------


def neighbors(
    settings: PeerSettings, timeout_s: float, payload: int | None = None
) -> Iterator[Finding]:
    """Whether each neighbor that this device dials is there, is who it should be, and how fast.

    timeout_s: for each of them; several are tried at a time. The device's own certificate is
    shown to them, as a peer does. payload: bytes that a round sends to each of them, 0 if that is
    not known; None to measure no rates, for which up to 0.9 MB go each way.
    """
    with ThreadPoolExecutor(_AT_A_TIME) as several, TemporaryDirectory() as folder:
        try:
            tls = None if settings.tls is None else _context(settings.tls, Path(folder))
        except ConfigError:  # which is a finding of its own
            yield note("neighbors", "not tried: there is no certificate to show them")
            return
        trials = {
            j: several.submit(_try, settings, j, address, tls, timeout_s)
            for j, address in sorted(settings.dial.items())
        }
        for j, trial in trials.items():
            found = trial.result()
            yield found
            # One at a time, lest they take each other's bandwidth.
            if payload is not None and found.grade is not Grade.WRONG:
                yield link(settings, j, payload, timeout_s)


def _context(tls: TlsFiles, folder: Path) -> ssl.SSLContext:
    """What this device shows, and whom it believes. Raises ConfigError."""
    key, certificate, authority = tls.read()
    shown = folder / "shown.pem"
    shown.touch(mode=0o600)
    shown.write_bytes(certificate + b"\n" + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode("ascii"))
    context.load_cert_chain(shown)
    context.set_alpn_protocols(["h2"])
    return context


def _try(
    settings: PeerSettings, j: int, address: str, tls: ssl.SSLContext | None, timeout_s: float
) -> Finding:
    name = settings.names.get(j)
    subject = f"vertex {j} ({name}) at {address}" if name else f"vertex {j} at {address}"
    if settings.listen is not None and address == settings.listen and settings.tls is not None:
        return wrong(subject, "that is this device's own address", "Correct one of the two.")
    host, port = parse_address(address)
    begin = time.monotonic()
    try:
        connection = socket.create_connection((host.strip("[]"), port), timeout_s)
    except OSError as error:
        return wrong(subject, *_unreachable(error, timeout_s))
    trip = time.monotonic() - begin
    with connection:
        connection.settimeout(timeout_s)
        if tls is not None:
            identity = Identity(settings.mesh, j)
            bad = _greet(connection, tls, identity)
            if bad is not None:
                return wrong(subject, *bad)
    text = f"answers in {1000 * trip:.1f} ms"
    if trip > _SLOW_S:
        remedy = "Each round takes at least two of these; a larger 'timing.least-s' may be needed."
        return note(subject, text, remedy)
    return fine(subject, text + (" and is who it should be" if tls is not None else ""))


def _unreachable(error: OSError, timeout_s: float) -> tuple[str, str]:
    if isinstance(error, socket.gaierror):
        return (
            f"its name is not known: {error.strerror}",
            "Correct the address in peer.toml, or make the name known (DNS, mDNS, /etc/hosts).",
        )
    if isinstance(error, TimeoutError):
        return (
            f"nothing answers within {timeout_s:g} s",
            "See whether it has power and network, and let its port through the firewalls between.",
        )
    if error.errno == errno.ECONNREFUSED:
        return "nobody listens there", "Start the peer there, or correct the address in peer.toml."
    return f"{error.strerror or error}", "See to the network between here and there."


def _greet(
    connection: socket.socket, tls: ssl.SSLContext, identity: Identity
) -> tuple[str, str] | None:
    """What is wrong with the other end, or what it finds wrong with this one; None if nothing."""
    try:
        with tls.wrap_socket(connection, server_hostname=host_name(identity)) as secure:
            # Whether it believes this device shows when it speaks: HTTP/2 begins with its settings.
            if not secure.recv(1):
                return _NOT_BELIEVED
    except ssl.SSLCertVerificationError as error:
        return _unbelieved(error, identity)
    except TimeoutError:
        return "it connects, and then says nothing", "See whether a peer runs on that port."
    except (ssl.SSLEOFError, ConnectionError):
        return "it connects, and then hangs up", "See its log: it says whom it turns away, and why."
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return _NOT_BELIEVED
        return "what listens there speaks no TLS", "Correct the address, or see what runs there."
    except OSError as error:
        text = f"the connection breaks: {error.strerror or error}"
        return text, "See to the network between here and there."
    return None


_NOT_BELIEVED = (
    "it does not believe this device's certificate",
    "See its log; if the authority has changed or the certificate is revoked, copy new files from "
    "'flower-dhb mesh renew'. A wrong clock there looks the same.",
)


# What OpenSSL finds wrong with a certificate (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME = 9, 10, 62


def _unbelieved(error: ssl.SSLCertVerificationError, identity: Identity) -> tuple[str, str]:
    if error.verify_code == _EXPIRED:
        return (
            "its certificate has expired, or this device's clock is ahead",
            f"flower-dhb mesh renew --vertex {identity.vertex}, or set the clock.",
        )
    if error.verify_code == _NOT_YET_VALID:
        return "its certificate is not valid yet, by this device's clock", "Set the clock."
    if error.verify_code == _OTHER_NAME:
        return (
            "another device answers there: its certificate is of another vertex or mesh",
            "Correct the address in peer.toml, or the files on the device.",
        )
    return (
        f"its certificate is not of this mesh's authority ({error.verify_message})",
        "Copy the files of one and the same mesh to both devices.",
    )
