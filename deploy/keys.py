"""The certificates and keys that Flower's deployment needs, as an operator makes them by hand.

docs/deployment.md has the commands of `openssl` and `ssh-keygen` that do the same.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec

from flower_dhb.peer.mesh.certificates import write_private

__all__ = ["write_certificates", "write_key"]

_DAYS = 30


def write_certificates(folder: Path) -> None:
    """`ca.pem`, and `link.pem` with `link.key` that it signed, for a SuperLink on loopback."""
    authority = ec.generate_private_key(ec.SECP256R1())
    link = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of a deployment")])
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    root = (
        _certificate(name, name, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    signed = (
        _certificate(own, name, link.public_key())
        .add_extension(x509.SubjectAlternativeName(here), critical=False)
        .sign(authority, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(root.public_bytes(forms.Encoding.PEM))
    (folder / "link.pem").write_bytes(signed.public_bytes(forms.Encoding.PEM))
    write_private(
        folder / "link.key",
        link.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()),
    )


def write_key(path: Path) -> None:
    """A key pair as `ssh-keygen -t ecdsa -b 384` makes one: `path`, and `path.pub`."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(
        path,
        key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption()),
    )
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    Path(f"{path}.pub").write_bytes(public + b"\n")


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )
