"""The accepting end of a connection shows the dialing end its certificate, and that it is its own.

TLS has found that some certificate of the neighbor is valid; gRPC does not say which, so a revoked
one would pass. The dialing end sends a number that it has drawn (`challenge`), and the accepting
end answers with its certificate and a signature over that number, the mesh and both ends. A thief
with an old key cannot make it, and cannot have it made: the neighbor signs for none but those who
dial it with a certificate of their own, and the signature names them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.peer.wire.identity import Identity, named_in
from flower_dhb.peer.wire.tls import TlsFiles

__all__ = [
    "CHALLENGE",
    "NotBelievedError",
    "as_metadata",
    "believe",
    "new_challenge",
    "proof_of",
    "prove",
]

CHALLENGE, _CERTIFICATE, _PROOF = "challenge", "certificate-bin", "proof-bin"
_FORM = re.compile(r"[0-9a-f]{32}")
_LIMIT_BYTES = 16 * 1024
_LINKS = 3

Metadata = tuple[tuple[str, str | bytes], ...]


class NotBelievedError(FlowerDhbError):
    """The other end does not show a certificate that is believed."""


def new_challenge() -> str:
    """A number that nobody has heard before."""
    return secrets.token_hex(16)


def prove(tls: TlsFiles, challenge: str, dialing: int) -> Metadata:
    """What the accepting end answers to a challenge; nothing to what is none.

    dialing: vertex at the other end.
    """
    certificate, proof = proof_of(tls, challenge, dialing)
    return as_metadata(certificate, proof) if proof else ()


def as_metadata(certificate: bytes, proof: bytes) -> Metadata:
    """A certificate and a proof in the form in which they travel with a stream."""
    return ((_CERTIFICATE, certificate), (_PROOF, proof))


def proof_of(tls: TlsFiles, challenge: str, dialing: int) -> tuple[bytes, bytes]:
    """The certificate that is shown, and the proof; both empty to what is no challenge."""
    if not _FORM.fullmatch(challenge):
        return b"", b""
    try:
        key, certificate, _ = tls.read()
    except ConfigError:  # files that are being replaced; the other end tries again
        return b"", b""
    secret = serialization.load_pem_private_key(key, password=None)
    if not isinstance(secret, ec.EllipticCurvePrivateKey):
        return b"", b""
    text = _text(tls.identity, dialing, challenge)
    return certificate, secret.sign(text, ec.ECDSA(hashes.SHA256()))


def believe(
    tls: TlsFiles,
    metadata: Iterable[tuple[str, str | bytes]],
    challenge: str,
    accepting: int,
) -> tuple[x509.Certificate, ...]:
    """The chain of certificates of the end that was dialed. Raises NotBelievedError."""
    found = {name: value for name, value in metadata if isinstance(value, bytes)}
    pem, proof = found.get(_CERTIFICATE, b""), found.get(_PROOF, b"")
    other = Identity(tls.identity.mesh, accepting)
    if not (pem and proof) or len(pem) > _LIMIT_BYTES:
        raise NotBelievedError(f"{other} does not prove whose certificate it shows")
    try:  # nobody has vouched for these bytes yet
        chain = tuple(x509.load_pem_x509_certificates(pem))[:_LINKS]
        key, named = chain[0].public_key(), named_in(chain[0])
    except Exception as error:  # the library has more kinds of them than it says
        raise NotBelievedError(f"{other} shows no certificate: {error}") from None
    if named != other or not isinstance(key, ec.EllipticCurvePublicKey):
        raise NotBelievedError(f"{other} shows the certificate of {named}")
    try:
        key.verify(proof, _text(other, tls.identity.vertex, challenge), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise NotBelievedError(f"{other} shows a certificate whose key it does not have") from None
    why = tls.why_not(chain)
    if why is not None:
        raise NotBelievedError(why)
    return chain


def _text(accepting: Identity, dialing: int, challenge: str) -> bytes:
    return (
        f"flower-dhb, the end that was dialed\n{accepting.mesh}\n{accepting.vertex}\n{dialing}\n"
        f"{challenge}\n"
    ).encode()
