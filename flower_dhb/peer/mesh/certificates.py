"""The authority of a mesh, which signs certificates whose identity is the vertex."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flower_dhb.errors import ConfigError
from flower_dhb.files import write_durably
from flower_dhb.peer.wire.bulletin import Bulletin, sign
from flower_dhb.peer.wire.identity import Identity, host_name, identity_uri, private_bytes

__all__ = ["Authority", "write_private"]

_AUTHORITY_DAYS = 7300  # at least: whoever renews certificates for years needs one that lasts
_SKEW = datetime.timedelta(minutes=5)  # between the clocks of two devices


class Authority:
    """Signs the certificates of one mesh. Its key belongs on no device."""

    def __init__(self, mesh: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate):
        self.mesh = mesh
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, mesh: str, days: int) -> Authority:
        """A new authority, valid for `days`, and for twenty years at least."""
        days = max(days, _AUTHORITY_DAYS)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{mesh} authority")])
        builder = (
            _builder(name, name, key.public_key(), _now() - _SKEW, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
        )
        return cls(mesh, key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """The authority that `save` wrote. Raises ConfigError if it cannot be read."""
        try:
            key = serialization.load_pem_private_key(
                private_bytes(directory / "authority-key.pem"), password=None
            )
            certificate = x509.load_pem_x509_certificate((directory / "authority.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{directory}: not a mesh authority: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{directory}: the authority's key is no elliptic-curve key")
        name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return cls(str(name).removesuffix(" authority"), key, certificate)

    def save(self, directory: Path) -> None:
        """Write key and certificate; the key is readable by its owner only."""
        write_private(directory / "authority-key.pem", _pem(self._key))
        write_durably(directory / "authority.pem", self.pem)

    def sign(self, bulletin: Bulletin) -> bytes:
        """A bulletin as devices believe it. Raises ConfigError if it is none."""
        return sign(bulletin, [self._key])

    @property
    def pem(self) -> bytes:
        """The certificate that all devices trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, vertex: int, days: int, start: datetime.datetime | None = None
    ) -> tuple[bytes, bytes]:
        """A new key and a certificate for one vertex, both PEM. start: now, if not given.

        Raises ConfigError if the authority does not live as long.
        """
        identity = Identity(self.mesh, vertex)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host_name(identity))])
        names = [
            x509.UniformResourceIdentifier(identity_uri(identity)),
            x509.DNSName(host_name(identity)),
        ]
        begin = (start or _now()) - _SKEW
        last = self.certificate.not_valid_after_utc
        if begin + datetime.timedelta(days=days) > last:
            raise ConfigError(
                f"{identity}: {days} days from now are beyond {last:%Y-%m-%d}, when the authority "
                f"of mesh {self.mesh} ends; choose fewer days, or create the mesh anew"
            )
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = (
            _builder(name, self.certificate.subject, key.public_key(), begin, days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody but its owner could read at any moment."""
    write_durably(path, data, private=True)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


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
