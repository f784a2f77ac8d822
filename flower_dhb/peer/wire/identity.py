"""Who is who: the identity in a certificate, and the check of a device's own files."""

from __future__ import annotations

import datetime
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from flower_dhb.errors import ConfigError

__all__ = [
    "OPERATOR",
    "Identity",
    "ValidityError",
    "check_own",
    "host_name",
    "identity_of",
    "identity_uri",
    "private_bytes",
    "utc_now",
]

OPERATOR = -1  # the identity of who runs the mesh: it asks peers, and is no neighbor
_SCHEME = "flower-dhb"


class ValidityError(ConfigError):
    """A certificate is not valid at this time: clock or file will have to change.

    reason: what is the matter, the same words as long as it is.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


def utc_now() -> datetime.datetime:
    """The time by which certificates are judged."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Identity:
    """Mesh and vertex that a certificate names; the vertex is OPERATOR for the operator."""

    mesh: str
    vertex: int

    def __str__(self) -> str:
        return "the operator" if self.vertex == OPERATOR else f"vertex {self.vertex}"


def identity_uri(identity: Identity) -> str:
    """The identity as it stands in a certificate: `flower-dhb://MESH/vertex/3`."""
    path = "operator" if identity.vertex == OPERATOR else f"vertex/{identity.vertex}"
    return f"{_SCHEME}://{identity.mesh}/{path}"


def host_name(identity: Identity) -> str:
    """The name that TLS checks the dialed end against; no address needs to be in it."""
    who = "operator" if identity.vertex == OPERATOR else f"vertex-{identity.vertex}"
    return f"{who}.{identity.mesh}.{_SCHEME}"


def identity_of(uri: str) -> Identity | None:
    """Inverse of `identity_uri`; None for anything else."""
    prefix = f"{_SCHEME}://"
    if not uri.startswith(prefix):
        return None
    match uri[len(prefix) :].split("/"):
        case [mesh, "operator"]:
            return Identity(mesh, OPERATOR)
        case [mesh, "vertex", number] if number.isdecimal() and number == str(int(number)):
            return Identity(mesh, int(number))
    return None


def check_own(
    key: bytes,
    certificate: bytes,
    authority: bytes,
    identity: Identity,
    now: datetime.datetime | None = None,
) -> None:
    """Refuse a device's own files before it talks to anyone. now: by this device's clock.

    Raises ConfigError that says which of them is wrong, why, and what to do, and ValidityError
    if that may change by itself.
    """
    remedy = f"issue new files with 'flower-dhb mesh renew --vertex {identity.vertex}'"
    try:
        own = x509.load_pem_x509_certificate(certificate)
        root = x509.load_pem_x509_certificate(authority)
        secret = serialization.load_pem_private_key(key, password=None)
    except ValueError as error:
        raise ConfigError(f"key or certificate of {identity} is unreadable: {error}") from None
    if secret.public_key() != own.public_key():
        raise ConfigError(f"certificate of {identity} does not belong to its key; {remedy}")
    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(
            f"certificate of {identity} is not signed by the authority of mesh {identity.mesh}; "
            f"{remedy}"
        ) from None
    found = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = found.get_values_for_type(x509.UniformResourceIdentifier)
    if identity_uri(identity) not in uris:
        raise ConfigError(f"certificate is of {uris}, expected {identity_uri(identity)}; {remedy}")
    now = now or utc_now()
    _check_time(f"certificate of {identity}", own, now, f"{remedy} and copy them over the old ones")
    _check_time(
        f"authority of mesh {identity.mesh}", root, now, "create the mesh anew for all devices"
    )


def _check_time(
    what: str, certificate: x509.Certificate, now: datetime.datetime, remedy: str
) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    found = (
        f"the {what} is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and this "
        f"device's clock says {now:%Y-%m-%d %H:%M} UTC"
    )
    if now < begin:
        raise ValidityError(
            f"{found}: set the clock (by NTP, GPS or hand); the peer goes on when it is right",
            f"{what} not yet valid",
        )
    if now > end:
        raise ValidityError(
            f"{found}: it has expired. {remedy[0].upper()}{remedy[1:]}, or set the clock if it is "
            "wrong; the peer goes on by itself then",
            f"{what} expired",
        )


def private_bytes(path: Path) -> bytes:
    """Contents of a key file. Raises ConfigError if others may read or write it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{path}: mode {mode:04o} lets others at a private key, expected 0600; chmod 600 it, "
            "and issue a new key if the device has other users"
        )
    return path.read_bytes()
