"""Who a node is: its mesh's key and certificate, what it announces, and whom it believes.

A mesh's authority, whose key is on no node and not in Flower's SuperLink, has signed for every
vertex. So whatever carries the announcements can hold them back, and can put none in their place.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flower_dhb.errors import ConfigError, PayloadError
from flower_dhb.peer.wire.bulletin import (
    AUTHORITY,
    LIMIT_BYTES,
    REVOCATIONS,
    Bulletin,
    BulletinError,
    verify,
)
from flower_dhb.peer.wire.identity import Identity, named_in, utc_now
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.trust import Trust

__all__ = ["Announced", "MeshKeys", "sealing_key"]

_TITLE = b"flower-dhb announcement 1\n"
_LIMIT_CHARACTERS = 16 * 1024
_LINKS = 3  # of a chain of certificates
_FILES = 64  # bulletins that are looked at
_SUM_BYTES = 17  # a checksum and the end of its line, before a bulletin that a neighbor told


@dataclass(frozen=True)
class Announced:
    """What a neighbor has announced, once that is believed.

    sealing_key: what is meant for it alone is encrypted with it. signing_key: of its certificate.
    """

    vertex: int
    sealing_key: X25519PublicKey
    signing_key: ec.EllipticCurvePublicKey


class MeshKeys:
    """A node's own key and certificate, and the authorities that it believes.

    tls: its files. Raises ConfigError, as `TlsFiles.read` does.
    """

    def __init__(self, tls: TlsFiles) -> None:
        key, certificate, _ = tls.read()
        secret = serialization.load_pem_private_key(key, password=None)
        if not isinstance(secret, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{tls.key}: the key of {tls.identity} is no elliptic-curve key")
        self.tls = tls
        self._key = secret
        self._chain = x509.load_pem_x509_certificates(certificate)[:_LINKS]

    @classmethod
    def load(
        cls, directory: Path, vertex: int, clock: Callable[[], datetime.datetime] = utc_now
    ) -> MeshKeys:
        """The keys in a device's directory, as `flower-dhb mesh` writes it.

        vertex: of the node. Raises ConfigError if key or certificate are missing, of another
        vertex, expired, revoked, or of an authority that is not the directory's.
        """
        identity = _identity_in(directory)
        if identity.vertex != vertex:
            raise ConfigError(
                f"this node is vertex {vertex}, but the certificate in {directory} is of "
                f"{identity} of mesh {identity.mesh}; each node has its own directory of the mesh"
            )
        trust = Trust()
        files = TlsFiles.in_folder(identity, directory)
        renewed = directory / "segments" / "identity.pem"
        tls = TlsFiles(
            identity, files.key, files.certificate, files.authority, clock, trust, renewed
        )
        _hear(tls, directory)
        return cls(tls)

    @property
    def identity(self) -> Identity:
        """Mesh and vertex."""
        return self.tls.identity

    def announce(self, run: str, sealing_key: X25519PublicKey) -> str:
        """What this node's neighbors need in a run, signed; the same each time."""
        public = sealing_key.public_bytes_raw()
        signed = _signed(self.identity, run, public)
        der = [c.public_bytes(serialization.Encoding.DER) for c in self._chain]
        document = {
            "mesh": self.identity.mesh,
            "vertex": self.identity.vertex,
            "run": run,
            "key": _text(public),
            "certificates": [_text(data) for data in der],
            "signature": _text(self._key.sign(signed, _repeatable())),
        }
        return json.dumps(document, separators=(",", ":"))

    def sign(self, digest_of: hashes.Hash) -> bytes:
        """The signature of this node's mesh key over what has been hashed (SHA-256)."""
        return self._key.sign(digest_of.finalize(), ec.ECDSA(Prehashed(hashes.SHA256())))

    def believe(self, announcement: str, vertex: int, run: str) -> Announced:
        """What a neighbor has announced for a run. Raises PayloadError if it is not believed."""
        who = f"vertex {vertex}"
        if not announcement:
            raise PayloadError(
                f"{who} has announced no key: its node config must name its directory of the mesh, "
                "mesh='…'"
            )
        try:  # nobody has vouched for any of this yet
            mesh, found, chain, public, signature = _read(announcement)
            key, named = chain[0].public_key(), named_in(chain[0])
        except Exception as error:  # the library has more kinds of them than it says
            raise PayloadError(f"{who}: its announcement cannot be read: {error}") from None
        expected = Identity(self.identity.mesh, vertex)
        if named != expected:
            of = "nobody" if named is None else f"{named} of mesh {named.mesh}"
            raise PayloadError(
                f"{who} shows the certificate of {of}, expected {expected} of mesh {expected.mesh}"
            )
        why = self.tls.why_not(chain)
        if why is not None:
            raise PayloadError(f"{who}: {why}")
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise PayloadError(f"{who}: the key of its certificate is no elliptic-curve key")
        try:
            signed = _signed(expected, run, public)
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            about = f"vertex {found[0]} of mesh {mesh} in run {found[1]}"
            raise PayloadError(
                f"{who} has not signed what is said to be its announcement: that is of "
                f"{about[:120]}, expected {who} of mesh {expected.mesh} in run {run}"
            ) from None
        return Announced(vertex, X25519PublicKey.from_public_bytes(public), key)


def sealing_key(secret: bytes, identity: Identity, run: str) -> X25519PrivateKey:
    """The key with which a node opens what is sealed for it in a run.

    secret: 32 random bytes that the node keeps for the run, and for no other.
    """
    info = f"flower-dhb sealing key 1\n{identity.mesh}\n{identity.vertex}\n{run}\n".encode()
    derived = HKDF(hashes.SHA256(), length=32, salt=None, info=info).derive(secret)
    return X25519PrivateKey.from_private_bytes(derived)


def _repeatable() -> ec.ECDSA:
    """A scheme that signs the same text alike each time, wherever the library has that."""
    try:
        return ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:
        return ec.ECDSA(hashes.SHA256())


def _identity_in(directory: Path) -> Identity:
    """Who the certificate in a directory names. Raises ConfigError."""
    path = directory / "certificate.pem"
    remedy = (
        "node config 'mesh' names a device's directory as 'flower-dhb mesh' writes it, with "
        "key.pem, certificate.pem and authority.pem"
    )
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no certificate: {error}; {remedy}") from None
    identity = named_in(chain[0])
    if identity is None:
        raise ConfigError(f"{path} is a certificate of nobody of a mesh; {remedy}")
    return identity


def _hear(tls: TlsFiles, directory: Path) -> None:
    """Take what the operator has published: authorities first, which may have signed the rest."""
    trust = tls.trust
    for kind, take in (
        (AUTHORITY, trust.take_authority),
        (REVOCATIONS, trust.take_revocations),
    ):
        newest: Bulletin | None = None
        roots = tls.roots()
        for raw in _bulletins(directory):
            try:
                found = verify(raw, roots, tls.identity.mesh)
            except BulletinError:  # of somebody else
                continue
            if found.kind == kind and (newest is None or found.number > newest.number):
                newest = found
        if newest is not None:
            take(newest)


def _bulletins(directory: Path) -> list[bytes]:
    """Files that the operator has put there, and what neighbors have told in direct rounds."""
    found: list[bytes] = []
    places = (
        (directory / "bulletins", "[!.]*", 0),
        (directory / "segments", "bulletin-*", _SUM_BYTES),
    )
    for folder, pattern, skipped in places:
        try:
            for path in sorted(p for p in folder.glob(pattern) if p.is_file())[:_FILES]:
                with path.open("rb") as file:
                    found.append(file.read(LIMIT_BYTES + skipped)[skipped:])
        except OSError:  # as a rule there is none
            continue
    return found


def _read(
    announcement: str,
) -> tuple[str, tuple[int, str], list[x509.Certificate], bytes, bytes]:
    """Mesh, vertex and run, certificates, key, signature. Raises errors of many kinds."""
    if len(announcement) > _LIMIT_CHARACTERS:
        raise ValueError(f"it has {len(announcement)} characters")
    document = json.loads(announcement)
    certificates = [
        x509.load_der_x509_certificate(_bytes(text)) for text in document["certificates"][:_LINKS]
    ]
    about = (int(document["vertex"]), str(document["run"]))
    return (
        str(document["mesh"]),
        about,
        certificates,
        _bytes(document["key"]),
        _bytes(document["signature"]),
    )


def _signed(identity: Identity, run: str, public: bytes) -> bytes:
    about = f"{identity.mesh}\n{identity.vertex}\n{run}\n{public.hex()}\n"
    return _TITLE + about.encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError(str(error)) from None
