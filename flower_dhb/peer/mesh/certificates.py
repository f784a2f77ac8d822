"""The authority of a mesh, which signs certificates whose identity is the vertex."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flower_dhb.errors import ConfigError
from flower_dhb.files import write_durably
from flower_dhb.peer.wire.bulletin import Bulletin, sign
from flower_dhb.peer.wire.identity import (
    Identity,
    host_name,
    identity_uri,
    private_bytes,
    utc_now,
)

__all__ = [
    "AUTHORITY_DAYS",
    "DEVICE_DAYS",
    "NEXT_CERTIFICATE",
    "NEXT_KEY",
    "Authority",
    "write_private",
]

AUTHORITY_DAYS = 7300  # whoever renews certificates for years needs one that lasts
DEVICE_DAYS = 825
_KEY, _CERTIFICATE = "authority-key.pem", "authority.pem"
NEXT_KEY, NEXT_CERTIFICATE = "next-key.pem", "next.pem"
_SKEW = datetime.timedelta(minutes=5)  # between the clocks of two devices
_NAME = re.compile(r"(.+) authority( [0-9]+)?")


class Authority:
    """Signs the certificates and bulletins of one mesh. Its key belongs on no device.

    following: the authority that takes its place, while the mesh changes from one to the other.
    Devices are then to believe both; certificates are issued by the following one, with a
    certificate by the present one that makes it known; bulletins are signed by both.
    """

    def __init__(
        self,
        mesh: str,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        following: Authority | None = None,
    ) -> None:
        self.mesh = mesh
        self._key = key
        self.certificate = certificate
        self.following = following

    @classmethod
    def create(cls, mesh: str, days: int = AUTHORITY_DAYS, number: int = 1) -> Authority:
        """A new authority. number: of the authorities that the mesh has had, with this one."""
        key = ec.generate_private_key(ec.SECP256R1())
        counted = "" if number == 1 else f" {number}"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{mesh} authority{counted}")])
        return cls(mesh, key, _authority_certificate(name, name, key.public_key(), key, days))

    def successor(self, days: int = AUTHORITY_DAYS) -> Authority:
        """A new authority of the same mesh."""
        match = _NAME.fullmatch(_common_name(self.certificate))
        number = int(match[2] or 1) if match else 1
        return Authority.create(self.mesh, days, number + 1)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """The authority in a directory, and the following one. Raises ConfigError if unreadable."""
        present = cls._load(directory, _KEY, _CERTIFICATE)
        if (directory / NEXT_KEY).exists():
            present.following = cls._load(directory, NEXT_KEY, NEXT_CERTIFICATE)
        return present

    @classmethod
    def _load(cls, directory: Path, key_name: str, certificate_name: str) -> Authority:
        try:
            key = serialization.load_pem_private_key(
                private_bytes(directory / key_name), password=None
            )
            certificate = x509.load_pem_x509_certificate(
                (directory / certificate_name).read_bytes()
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{directory}: not a mesh authority: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{directory}: the authority's key is no elliptic-curve key")
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{directory}: {key_name} is not the key of {certificate_name}")
        match = _NAME.fullmatch(_common_name(certificate))
        if match is None:
            raise ConfigError(f"{directory}: {certificate_name} is not of a mesh's authority")
        return cls(match[1], key, certificate)

    def save(self, directory: Path) -> None:
        """Write key and certificate; the key is readable by its owner only."""
        write_private(directory / _KEY, self.key_pem)
        write_durably(directory / _CERTIFICATE, _pem_of(self.certificate))

    @property
    def issuer(self) -> Authority:
        """Who issues certificates now."""
        return self.following or self

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The certificates that all devices are to trust."""
        if self.following is None:
            return (self.certificate,)
        return (self.certificate, *self.following.roots)

    @property
    def pem(self) -> bytes:
        """The same, as `authority.pem` of a device holds them."""
        return b"".join(map(_pem_of, self.roots))

    @property
    def key_pem(self) -> bytes:
        """The private key."""
        return _pem(self._key)

    def sign(self, bulletin: Bulletin) -> bytes:
        """A bulletin as devices believe it. Raises ConfigError if it is none."""
        keys = [self._key] if self.following is None else [self._key, self.following._key]
        return sign(bulletin, keys)

    def issue(
        self, vertex: int, days: int, start: datetime.datetime | None = None
    ) -> tuple[bytes, bytes]:
        """A new key and a certificate for one vertex, both PEM. start: now, if not given.

        Raises ConfigError if the authority does not live as long.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return _pem(key), self.certify(vertex, key.public_key(), days, start)

    def certify(
        self,
        vertex: int,
        key: ec.EllipticCurvePublicKey,
        days: int,
        start: datetime.datetime | None = None,
    ) -> bytes:
        """A certificate for the key of one vertex, PEM. Raises ConfigError, as `issue` does."""
        issuer, identity = self.issuer, Identity(self.mesh, vertex)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host_name(identity))])
        names = [
            x509.UniformResourceIdentifier(identity_uri(identity)),
            x509.DNSName(host_name(identity)),
        ]
        begin = (start or _now()) - _SKEW
        last = issuer.certificate.not_valid_after_utc
        if begin + datetime.timedelta(days=days) > last:
            left = (last - begin).days
            fewer = f"choose --days {left} or fewer, or " if left >= 1 else ""
            raise ConfigError(
                f"{identity}: {days} days from now are beyond {last:%Y-%m-%d}, when the authority "
                f"of mesh {self.mesh} ends; {fewer}change the authority with 'flower-dhb mesh "
                "renew --authority'"
            )
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = (
            _builder(name, issuer.certificate.subject, key, begin, days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(issuer._key, hashes.SHA256())
        )
        return _pem_of(certificate) + self._made_known()

    def _made_known(self) -> bytes:
        """The following authority's certificate by the present one, for who trusts only that."""
        if self.following is None:
            return b""
        left = self.certificate.not_valid_after_utc - _now()
        if left.days < 1:
            return b""  # nobody believes the present one any more
        known = self.following.certificate
        return _pem_of(
            _authority_certificate(
                known.subject, self.certificate.subject, known.public_key(), self._key, left.days
            )
        )


def write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody but its owner could read at any moment."""
    write_durably(path, data, private=True)


def _now() -> datetime.datetime:
    return utc_now()


def _common_name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _authority_certificate(
    name: x509.Name,
    issuer: x509.Name,
    key: Any,
    by: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    # One authority may make the next one known, and that one issues certificates.
    length = 1 if name == issuer else 0
    return (
        _builder(name, issuer, key, _now() - _SKEW, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(by, hashes.SHA256())
    )


def _pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begin: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days) + _SKEW)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
