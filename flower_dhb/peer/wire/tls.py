"""Mutual TLS for gRPC: credentials that follow their files, and who is at the other end."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from flower_dhb.errors import ConfigError
from flower_dhb.files import write_durably
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.bulletin import fingerprint
from flower_dhb.peer.wire.identity import (
    Identity,
    ValidityError,
    check_own,
    host_name,
    identity_of,
    issuer_of,
    private_bytes,
    utc_now,
)
from flower_dhb.peer.wire.trust import Trust, serial_text

__all__ = ["Standing", "TlsFiles", "peer_chain", "peer_identity"]


@dataclass(frozen=True)
class Standing:
    """What a device shows and believes at a moment.

    serial: of its certificate. issuer: fingerprint of the authority that issued it; empty if that
    is not believed any more. trusts: fingerprints of all that are.
    """

    serial: str
    ends: datetime.datetime
    issuer: str
    authority_ends: datetime.datetime | None
    trusts: tuple[str, ...]
    now: datetime.datetime

    @property
    def days_left(self) -> float:
        """Until certificate or authority ends, whichever is first; negative if one has ended."""
        return min(self.certificate_days, self.authority_days)

    @property
    def certificate_days(self) -> float:
        """Until the certificate ends."""
        return (self.ends - self.now).total_seconds() / 86400.0

    @property
    def authority_days(self) -> float:
        """Until the authority ends that issued the certificate; 0 if it is not believed."""
        if self.authority_ends is None:
            return 0.0
        return (self.authority_ends - self.now).total_seconds() / 86400.0


@dataclass(frozen=True)
class TlsFiles:
    """A device's key, certificate and authority, as files that may be replaced at any time.

    clock: says the time by which certificates are judged. trust: what bulletins have said since
    the files were written. renewed: a file with a key that the device has made by itself and the
    certificate for it; it counts if it is the newer one of the two.
    """

    identity: Identity
    key: Path
    """Private key, with mode 0600. A relative path begins at the folder of `peer.toml`."""
    certificate: Path
    """Certificate of this vertex. A relative path begins at the folder of `peer.toml`."""
    authority: Path
    """Certificates of the authorities that are trusted.

    A relative path begins at the folder of `peer.toml`.
    """
    clock: Callable[[], datetime.datetime] = utc_now
    trust: Trust = field(default_factory=Trust, compare=False)
    renewed: Path | None = None

    @classmethod
    def in_folder(cls, identity: Identity, folder: Path) -> TlsFiles:
        """The files by the names that `flower-dhb mesh` gives them in a folder."""
        return cls(
            identity, folder / "key.pem", folder / "certificate.pem", folder / "authority.pem"
        )

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Key, certificate and authorities, checked. Raises ConfigError, as `check_own` does."""
        try:
            key = private_bytes(self.key)
            certificate, file = self.certificate.read_bytes(), self.authority.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{self.identity}: cannot read {error.filename}: {error.strerror}; there is no "
                "connection without key and certificate"
            ) from None
        authority = self._authorities(file)
        own, renewed = (key, certificate), self._renewed()
        shown = [own] if renewed is None else [renewed, own]
        shown.sort(key=lambda pair: _begins(pair[1]), reverse=True)
        why: dict[tuple[bytes, bytes], ConfigError] = {}
        for pair in shown:  # the newest that is believed
            try:
                self.check(*pair, authority)
            except ConfigError as error:
                why[pair] = error
            else:
                return (*pair, authority)
        raise why[own]

    def check(self, key: bytes, certificate: bytes, authority: bytes) -> None:
        """Refuse a key and a certificate that are not this device's, or that nobody believes."""
        check_own(key, certificate, authority, self.identity, self.clock())
        own = x509.load_pem_x509_certificate(certificate)
        revoked = self.trust.why_revoked(own)
        if revoked is not None:
            raise ValidityError(
                f"the certificate {serial_text(own)} of {self.identity} {revoked}. Copy new files "
                "over the old ones; the peer goes on by itself then",
                "revoked",
            )

    def keep_renewed(self, key: bytes, certificate: bytes) -> None:
        """Use another key and certificate from the next connection on.

        Raises ConfigError if they are not this device's or nobody would believe them, and OSError
        if they cannot be stored.
        """
        if self.renewed is None:
            raise ConfigError(f"{self.identity} has no place for a key that it makes by itself")
        roots = b"".join(root.public_bytes(serialization.Encoding.PEM) for root in self.roots())
        self.check(key, certificate, roots)
        write_durably(self.renewed, key + certificate, private=True, make_folder=False)

    def _renewed(self) -> tuple[bytes, bytes] | None:
        """Key and certificate that the device has made by itself, if there are any."""
        if self.renewed is None:
            return None
        try:
            key, begin, rest = private_bytes(self.renewed).partition(_BEGIN)
        except (OSError, ConfigError):
            return None
        return key, begin + rest

    def _authorities(self, file: bytes) -> bytes:
        try:
            roots = self.trust.roots(x509.load_pem_x509_certificates(file))
        except ValueError:
            return file  # `check_own` says what is wrong with it
        return b"".join(root.public_bytes(serialization.Encoding.PEM) for root in roots)

    def roots(self) -> tuple[x509.Certificate, ...]:
        """The authorities that are believed now.

        A file that cannot be read at the moment counts as it was when it could.
        """
        try:
            file = x509.load_pem_x509_certificates(self.authority.read_bytes())
        except (OSError, ValueError):
            return self.trust.roots()
        return self.trust.roots(file)

    def why_not(self, chain: Sequence[x509.Certificate]) -> str | None:
        """Why a certificate that somebody shows is not believed now; None if it is."""
        return self.trust.why_not(chain, self.roots(), self.clock())

    def standing(self) -> Standing | None:
        """What this device shows and believes; None if its files cannot be read."""
        try:
            _, own, _ = self.read()
        except ConfigError:  # what does not fit or is not valid is shown all the same
            try:
                own = self.certificate.read_bytes()
            except OSError:
                return None
        try:
            chain = x509.load_pem_x509_certificates(own)
        except ValueError:
            return None
        roots = self.roots()
        issuer = issuer_of(chain, roots)
        return Standing(
            serial=serial_text(chain[0]),
            ends=chain[0].not_valid_after_utc,
            issuer="" if issuer is None else fingerprint(issuer),
            authority_ends=None if issuer is None else issuer.not_valid_after_utc,
            trusts=tuple(map(fingerprint, roots)),
            now=self.clock(),
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """What a dialing end shows, as the files are now."""
        key, certificate, authority = self.read()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def server_credentials(self, monitor: Monitor) -> grpc.ServerCredentials:
        """What an accepting end shows; renewed files are used from the next connection on."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._fetcher(monitor), require_client_authentication=True
        )

    def server_name(self, neighbor: int) -> str:
        """The name that the certificate of a dialed neighbor must have."""
        return host_name(Identity(self.identity.mesh, neighbor))

    def _configuration(self) -> Any:
        key, certificate, authority = self.read()
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=authority
        )

    def _fetcher(self, monitor: Monitor) -> Callable[[], Any]:
        last = self._stamps()

        def fetch() -> Any:
            nonlocal last
            now = self._stamps()
            if now == last:
                return None
            try:
                configuration = self._configuration()
            except ConfigError as error:
                # Files are replaced one after the other; until they fit, the old ones serve.
                monitor.warning("certificate-not-renewed", why=str(error))
                return None
            if now[1:] != last[1:]:
                monitor.event("certificate-renewed")
            last = now
            return configuration

        return fetch

    def _stamps(self) -> tuple[int, ...]:
        """What changes with what is believed, first, and with the files."""
        files = [self.key, self.certificate, self.authority]
        files += [] if self.renewed is None else [self.renewed]
        stamps = (f.stat().st_mtime_ns if f.exists() else 0 for f in files)
        return (self.trust.version, *stamps)


_BEGIN = b"-----BEGIN CERTIFICATE-----"


def _begins(certificate: bytes) -> datetime.datetime:
    """From when on a certificate is valid; longest ago for what is none."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_before_utc
    except ValueError:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)


def peer_identity(context: Mapping[str, Any], mesh: str) -> Identity | None:
    """Who the certificate at the other end names; None if it is nobody of this mesh.

    context: gRPC's authentication context. The chain was verified by TLS.
    """
    for name in context.get("x509_subject_alternative_name", ()):
        text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        identity = identity_of(text)
        if identity is not None:
            return identity if identity.mesh == mesh else None
    return None


def peer_chain(context: Mapping[str, Any]) -> tuple[x509.Certificate, ...]:
    """The certificate at the other end, and what came with it; empty if there is none."""
    found = [
        pem
        for key in ("x509_pem_cert", "x509_pem_cert_chain")
        for pem in context.get(key, ())
        if isinstance(pem, bytes)
    ]
    return tuple(x509.load_pem_x509_certificates(b"".join(found))) if found else ()
