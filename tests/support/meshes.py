"""Directories of a mesh's devices with nothing but their keys, and what its operator publishes."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from flower_dhb.files import write_durably
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.peer.mesh.devices import device_files
from flower_dhb.peer.wire.bulletin import REVOCATIONS, Bulletin
from flower_dhb.peer.wire.trust import serial_text


def write_keys(authority: Authority, folder: Path, n: int) -> list[Path]:
    """A directory for each of n vertices."""
    return [write_key(authority, folder / f"vertex-{vertex}", vertex) for vertex in range(n)]


def write_key(authority: Authority, home: Path, vertex: int) -> Path:
    for name, (data, private) in device_files(authority, vertex, 5).items():
        write_durably(home / name, data, private=private)
    return home


def revoke(authority: Authority, home: Path, listeners: list[Path]) -> None:
    """Revoke the certificate in a directory, and let others have the bulletin as a file."""
    own = x509.load_pem_x509_certificate((home / "certificate.pem").read_bytes())
    entry = {"serial": serial_text(own), "since": "2031-05-07", "reason": "stolen"}
    bulletin = Bulletin(REVOCATIONS, authority.mesh, 1, {"certificates": [entry]})
    for listener in listeners:
        write_durably(listener / "bulletins" / "revocations-1", authority.sign(bulletin))
