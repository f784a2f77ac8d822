"""Whom a device believes: authorities of its file and of bulletins, and nothing that is revoked."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from flower_dhb.errors import ConfigError
from flower_dhb.peer.wire.bulletin import Bulletin, Root, fingerprint
from flower_dhb.peer.wire.identity import issuer_of, named_in, why_invalid

__all__ = ["Trust", "authorities_of", "check_authority", "check_revocations", "serial_text"]


@dataclass(frozen=True, slots=True)
class _Revoked:
    since: str
    reason: str


class Trust:
    """What the newest bulletins say of authorities and certificates. Safe to use from any thread.

    version: grows with each change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: tuple[Root, ...] = ()
        self._added: tuple[Root, ...] = ()
        self._retired: frozenset[str] = frozenset()
        self._revoked: Mapping[int, _Revoked] = {}
        self.version = 0

    def take_authority(self, bulletin: Bulletin) -> None:
        """Believe these authorities beside those of the file, and no retired one."""
        added, retired = authorities_of(bulletin)
        with self._lock:
            self._added, self._retired = added, retired
            self.version += 1

    def take_revocations(self, bulletin: Bulletin) -> None:
        """Believe none of these certificates."""
        revoked = _revoked_of(bulletin)
        with self._lock:
            self._revoked = revoked
            self.version += 1

    def roots(self, file: Sequence[Root] | None = None) -> tuple[Root, ...]:
        """The authorities that are believed, if the device's file has these.

        file: those of the last time, if not given.
        """
        with self._lock:
            if file is not None:
                self._file = tuple(file)
            found = {fingerprint(root): root for root in (*self._file, *self._added)}
            return tuple(root for name, root in found.items() if name not in self._retired)

    def why_revoked(self, certificate: x509.Certificate) -> str | None:
        """Why a certificate is believed no longer, if it is not."""
        with self._lock:
            found = self._revoked.get(certificate.serial_number)
        if found is None:
            return None
        reason = f": {found.reason}" if found.reason else ""
        return f"was revoked on {found.since}{reason}"

    def why_not(
        self,
        chain: Sequence[x509.Certificate],
        roots: Sequence[Root],
        now: datetime.datetime,
    ) -> str | None:
        """Why the certificate at the beginning of a chain is not believed; None if it is."""
        own = chain[0]
        who = named_in(own)
        name = f"the certificate {serial_text(own)} of {who or 'nobody'}"
        revoked = self.why_revoked(own)
        if revoked is not None:
            return f"{name} {revoked}"
        issuer = issuer_of(chain, roots)
        if issuer is None:
            return f"{name} is of an authority that is not believed"
        for what, certificate in ((name, own), ("its authority", issuer)):
            invalid = why_invalid(certificate, now)
            if invalid is not None:
                return f"{what} {invalid}"
        return None


def serial_text(certificate: x509.Certificate) -> str:
    """The serial number of a certificate in hexadecimal digits, as `openssl` prints it."""
    return f"{certificate.serial_number:040x}"


def check_authority(bulletin: Bulletin) -> None:
    """Raises ConfigError if a bulletin of this kind cannot be meant."""
    added, retired = authorities_of(bulletin)
    if not {fingerprint(root) for root in added} - retired:
        raise ConfigError("no authority would be left that is believed")


def authorities_of(bulletin: Bulletin) -> tuple[tuple[Root, ...], frozenset[str]]:
    """Certificates of the authorities that are to be believed, fingerprints of retired ones.

    Raises ConfigError.
    """
    body = bulletin.body
    try:
        added = [x509.load_pem_x509_certificate(pem.encode()) for pem in body["authorities"]]
        retired = frozenset(str(name) for name in body["retired"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"authorities cannot be read: {type(error).__name__}: {error}") from None
    return tuple(added), retired


def check_revocations(bulletin: Bulletin) -> None:
    """Raises ConfigError if a bulletin of this kind cannot be meant."""
    _revoked_of(bulletin)


def _revoked_of(bulletin: Bulletin) -> dict[int, _Revoked]:
    try:
        entries: list[Mapping[str, Any]] = list(bulletin.body["certificates"])
        return {
            int(entry["serial"], 16): _Revoked(
                str(entry["since"])[:40], str(entry.get("reason", ""))[:200]
            )
            for entry in entries
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the list cannot be read: {type(error).__name__}: {error}") from None
