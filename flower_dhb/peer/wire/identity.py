"""Who is who: the identity in a certificate, and the check of a device's own files."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Sequence
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
    "issuer_of",
    "named_in",
    "private_bytes",
    "utc_now",
    "why_invalid",
]

OPERATOR = -1  # the identity of who runs the mesh: it asks peers, and is no neighbor
_SCHEME = "flower-dhb"
_LINKS = 3  # of a chain that are looked at


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


def named_in(certificate: x509.Certificate) -> Identity | None:
    """Who a certificate names; None if it is nobody of a mesh."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    found = map(identity_of, names.get_values_for_type(x509.UniformResourceIdentifier))
    return next((identity for identity in found if identity is not None), None)


def issuer_of(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    """The certificate of the authority that issued the first one of a chain; None if untrusted.

    That is one of the roots, or one in the chain that a root has signed: a new authority whom
    the one before has made known.
    """
    for root in roots:
        if _issued(chain[0], root):
            return root
    for between in chain[1:_LINKS]:
        is_known = _is_authority(between) and any(_issued(between, root) for root in roots)
        if is_known and _issued(chain[0], between):
            return between
    return None


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def check_own(
    key: bytes,
    certificate: bytes,
    authority: bytes,
    identity: Identity,
    now: datetime.datetime | None = None,
) -> None:
    """Refuse a device's own files before it talks to anyone. now: by this device's clock.

    certificate: with what leads to an authority, if that is not one of `authority`. Raises
    ConfigError that says which of them is wrong, why, and what to do, and ValidityError if that
    may change by itself.
    """
    who = "operator" if identity.vertex == OPERATOR else f"vertex {identity.vertex}"
    remedy = f"issue new files with 'flower-dhb mesh renew --{who}'"
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        roots = x509.load_pem_x509_certificates(authority)
        secret = serialization.load_pem_private_key(key, password=None)
    except ValueError as error:
        raise ConfigError(f"key or certificate of {identity} is unreadable: {error}") from None
    own = chain[0]
    if secret.public_key() != own.public_key():
        raise ConfigError(f"certificate of {identity} does not belong to its key; {remedy}")
    issuer = issuer_of(chain, roots)
    if issuer is None:
        raise ConfigError(
            f"certificate of {identity} is not signed by the authority of mesh {identity.mesh}; "
            f"{remedy}"
        )
    found = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = found.get_values_for_type(x509.UniformResourceIdentifier)
    if identity_uri(identity) not in uris:
        raise ConfigError(f"certificate is of {uris}, expected {identity_uri(identity)}; {remedy}")
    now = now or utc_now()
    _check_time(f"certificate of {identity}", own, now, f"{remedy} and copy them over the old ones")
    _check_time(
        f"authority of mesh {identity.mesh}",
        issuer,
        now,
        "make another authority with 'flower-dhb mesh renew --authority --force' and copy the new "
        "files to all devices",
    )


def _check_time(
    what: str, certificate: x509.Certificate, now: datetime.datetime, remedy: str
) -> None:
    invalid = why_invalid(certificate, now)
    if invalid is None:
        return
    found = f"the {what} {invalid}"
    if now < certificate.not_valid_before_utc:
        raise ValidityError(
            f"{found}: set the clock (by NTP, GPS or hand); the peer goes on when it is right",
            f"{what} not yet valid",
        )
    raise ValidityError(
        f"{found}: it has expired. {remedy[0].upper()}{remedy[1:]}, or set the clock if it is "
        "wrong; the peer goes on by itself then",
        f"{what} expired",
    )


def why_invalid(certificate: x509.Certificate, now: datetime.datetime) -> str | None:
    """From when to when a certificate holds, if that is not now."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin <= now <= end:
        return None
    return (
        f"is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and this device's "
        f"clock says {now:%Y-%m-%d %H:%M} UTC"
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
