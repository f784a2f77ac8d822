"""A device makes a new key, and the operator signs a certificate for it: no key travels."""

from __future__ import annotations

import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flower_dhb.errors import ConfigError
from flower_dhb.files import with_remedy
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.identity import OPERATOR, host_name
from flower_dhb.peer.wire.proof import proof_of
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.trust import serial_text

__all__ = ["Renewing"]


class Renewing:
    """The device's side. The key waits in memory until the certificate for it comes."""

    def __init__(self, tls: TlsFiles, monitor: Monitor) -> None:
        self._tls, self._monitor = tls, monitor
        self._lock = threading.Lock()
        self._key: ec.EllipticCurvePrivateKey | None = None

    def answer(self, request: pb.RenewRequest) -> pb.RenewReply:
        """What the operator asks: for a new key first, then to use the certificate for it."""
        with self._lock:
            if request.certificate:
                return pb.RenewReply(refused=self._install(request.certificate))
            shown, proof = proof_of(self._tls, request.challenge, OPERATOR)
            self._key = ec.generate_private_key(ec.SECP256R1())
            name = x509.NameAttribute(NameOID.COMMON_NAME, host_name(self._tls.identity))
            made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([name]))
            signed = made.sign(self._key, hashes.SHA256())
            return pb.RenewReply(
                request=signed.public_bytes(serialization.Encoding.PEM),
                certificate=shown,
                proof=proof,
            )

    def _install(self, certificate: bytes) -> str:
        """Use a certificate for the new key. Returns why not, if not."""
        if self._key is None:
            return "no new key waits for a certificate here: ask for one first"
        key = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            self._tls.keep_renewed(key, certificate)
        except ConfigError as error:
            return str(error)
        except OSError as error:
            return with_remedy(f"its disk does not take it: {error.strerror or error}", error)
        self._key = None
        own = x509.load_pem_x509_certificate(certificate)
        self._monitor.event(
            "certificate-installed",
            serial=serial_text(own),
            ends=f"{own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
        )
        return ""
