"""Mutual TLS for gRPC: credentials that follow their files, and who is at the other end."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from flower_dhb.errors import ConfigError
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.identity import (
    Identity,
    check_own,
    host_name,
    identity_of,
    private_bytes,
    utc_now,
)

__all__ = ["TlsFiles", "peer_identity"]


@dataclass(frozen=True)
class TlsFiles:
    """A device's key, certificate and authority, as files that may be replaced at any time.

    clock: says the time by which certificates are judged.
    """

    identity: Identity
    key: Path
    certificate: Path
    authority: Path
    clock: Callable[[], datetime.datetime] = utc_now

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Key, certificate and authority, checked. Raises ConfigError, as `check_own` does."""
        try:
            key = private_bytes(self.key)
            certificate, authority = self.certificate.read_bytes(), self.authority.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{self.identity}: cannot read {error.filename}: {error.strerror}; there is no "
                "connection without key and certificate"
            ) from None
        check_own(key, certificate, authority, self.identity, self.clock())
        return key, certificate, authority

    def roots(self) -> tuple[x509.Certificate, ...]:
        """The authorities that are believed, as the file is now; none if it cannot be read."""
        try:
            return tuple(x509.load_pem_x509_certificates(self.authority.read_bytes()))
        except (OSError, ValueError):
            return ()

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
            last = now
            monitor.event("certificate-renewed")
            return configuration

        return fetch

    def _stamps(self) -> tuple[int, ...]:
        files = (self.key, self.certificate, self.authority)
        return tuple(f.stat().st_mtime_ns if f.exists() else 0 for f in files)


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
