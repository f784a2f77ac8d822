"""A bulletin: what the operator changes in a running mesh, signed, with a number that only grows.

The bytes are the same in a file, from the operator, and between neighbors:

    flower-dhb bulletin 1
    signed-by 4f1c… MEUCIQ…

    {"body":{…},"kind":"revocations","mesh":"5c04a1f2","number":3}

Each line `signed-by` names an authority by the fingerprint of its public key, and holds its
signature (ECDSA, SHA-256) over all but these lines. Nothing of the text is read before a trusted
authority has been found to have signed it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flower_dhb.errors import ConfigError, PayloadError

__all__ = [
    "AUTHORITY",
    "EDITION",
    "KINDS",
    "LIMIT_BYTES",
    "NO_BOARD",
    "REVOCATIONS",
    "Board",
    "Bulletin",
    "BulletinError",
    "NoBoard",
    "Notice",
    "Root",
    "fingerprint",
    "parse",
    "sign",
    "signers",
    "verify",
]

Root: TypeAlias = x509.Certificate  # of an authority that is believed

AUTHORITY, EDITION, REVOCATIONS = "authority", "edition", "revocations"
KINDS = (AUTHORITY, EDITION, REVOCATIONS)
LIMIT_BYTES = 4 * 1024 * 1024
_NUMBER_LIMIT = 2**53  # that every reader of JSON knows exactly

_TITLE = b"flower-dhb bulletin 1\n"
_HEAD_LIMIT_BYTES = 1024
_SIGNERS = 4
_LINE = re.compile(rb"signed-by ([0-9a-f]{32}) ([A-Za-z0-9+/=]{8,128})")
_KIND = re.compile(r"[a-z][a-z-]{0,31}")


class BulletinError(PayloadError):
    """A bulletin that changes nothing. cause: in one word, for counters and logs."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Bulletin:
    """What is said to a mesh. Of each kind the one with the largest number is valid."""

    kind: str
    mesh: str
    number: int
    body: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ConfigError(f"a kind of bulletin is a word such as 'edition', got {self.kind!r}")
        if type(self.number) is not int or not 1 <= self.number < _NUMBER_LIMIT:
            raise ConfigError(f"the number of a bulletin is 1 or more, got {self.number!r}")


@dataclass(frozen=True, slots=True)
class Notice:
    """A bulletin as it travels: its bytes, and what they are said to be."""

    kind: str
    number: int
    raw: bytes


class Board(Protocol):
    """Where the connections of a peer get bulletins from, and bring them to."""

    def known(self) -> Mapping[str, int]:
        """Number of the newest bulletin that is on the disk, by kind."""

    def wants(self, kind: str, number: int) -> bool:
        """Whether a bulletin that is announced would be news. Raises BulletinError if never."""

    def newer_than(self, known: Mapping[str, int]) -> Sequence[Notice]:
        """What somebody lacks who knows these."""

    def take(self, raw: bytes, source: str) -> Notice:
        """Check a bulletin, and keep it if it is news. Raises BulletinError if it is not believed.

        source: who brought it, in words.
        """

    def wait(self, notice: Notice, seconds: float) -> bool:
        """Wait until a bulletin that was taken, or a newer one, is on the disk."""


class NoBoard:
    """A mesh in plaintext has no authority, so there is no bulletin that could be believed."""

    def known(self) -> Mapping[str, int]:
        """Nothing."""
        return {}

    def wants(self, kind: str, number: int) -> bool:
        """Raises BulletinError."""
        raise _plaintext(f"bulletin {number} of kind '{kind[:32]}'")

    def newer_than(self, known: Mapping[str, int]) -> Sequence[Notice]:  # noqa: ARG002
        """Nothing."""
        return ()

    def take(self, raw: bytes, source: str) -> Notice:  # noqa: ARG002
        """Raises BulletinError."""
        raise _plaintext("a bulletin")

    def wait(self, notice: Notice, seconds: float) -> bool:  # noqa: ARG002
        """Nothing is ever taken."""
        return False


def _plaintext(what: str) -> BulletinError:
    return BulletinError(
        "plaintext",
        f"{what}: this mesh is in plaintext and has no authority that could have signed it; "
        "create a mesh with TLS",
    )


NO_BOARD = NoBoard()


def fingerprint(root: Root) -> str:
    """32 hexadecimal digits that name an authority: of the SHA-256 of its public key."""
    return _fingerprint(root.public_key())


def _fingerprint(key: Any) -> str:
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()[:32]


def sign(bulletin: Bulletin, keys: Iterable[ec.EllipticCurvePrivateKey]) -> bytes:
    """A bulletin's bytes, signed by each of these authorities' keys. Raises ConfigError."""
    try:
        text = json.dumps(
            {
                "body": dict(bulletin.body),
                "kind": bulletin.kind,
                "mesh": bulletin.mesh,
                "number": bulletin.number,
            },
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        ).encode("ascii")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"bulletin of kind '{bulletin.kind}': {error}") from None
    lines = [
        f"signed-by {_fingerprint(key.public_key())} ".encode()
        + base64.b64encode(key.sign(_signed(text), _HASH))
        for key in keys
    ]
    if not 1 <= len(lines) <= _SIGNERS:
        raise ConfigError(f"a bulletin is signed by 1 … {_SIGNERS} authorities, got {len(lines)}")
    raw = b"".join((_TITLE, b"\n".join(lines), b"\n\n", text))
    if len(raw) > LIMIT_BYTES:
        raise ConfigError(
            f"bulletin of kind '{bulletin.kind}' has {len(raw)} bytes, at most {LIMIT_BYTES} can "
            "be published"
        )
    return raw


def signers(raw: bytes, roots: Iterable[Root]) -> frozenset[str]:
    """Fingerprints of those of the authorities that have signed these bytes.

    Raises BulletinError if they are not a bulletin's.
    """
    lines, text = _split(raw)
    known = {fingerprint(root): root.public_key() for root in roots}
    found = set()
    for who, signature in lines:
        key = known.get(who)
        if isinstance(key, ec.EllipticCurvePublicKey) and who not in found:
            try:
                key.verify(signature, _signed(text), _HASH)
            except InvalidSignature:
                continue
            found.add(who)
    return frozenset(found)


def verify(raw: bytes, roots: Iterable[Root], mesh: str) -> Bulletin:
    """The bulletin in these bytes, if one of the authorities has signed it for this mesh.

    Raises BulletinError.
    """
    if not signers(raw, roots):
        lines, _ = _split(raw)
        raise BulletinError(
            "untrusted",
            "a bulletin that no trusted authority has signed; it names "
            + ", ".join(who for who, _ in lines),
        )
    bulletin = parse(raw)
    if bulletin.mesh != mesh:
        raise BulletinError(
            "mesh", f"a bulletin for mesh '{bulletin.mesh[:64]}', this is mesh '{mesh}'"
        )
    return bulletin


def parse(raw: bytes) -> Bulletin:
    """The bulletin in bytes whose signature is known to be good. Raises BulletinError."""
    _, text = _split(raw)
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("not an object")
        body, mesh = document["body"], document["mesh"]
        if not (isinstance(body, dict) and isinstance(mesh, str)):
            raise TypeError("'body' is to be an object and 'mesh' a text")
        return Bulletin(str(document["kind"]), mesh, document["number"], body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BulletinError(
            "content", f"a signed bulletin that cannot be read: {type(error).__name__}: {error}"
        ) from None


def _split(raw: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    """Who says to have signed, with the signatures; and what they have signed."""
    if len(raw) > LIMIT_BYTES:
        raise BulletinError(
            "size", f"a bulletin of {len(raw)} bytes, expected at most {LIMIT_BYTES}"
        )
    end = raw.find(b"\n\n", 0, _HEAD_LIMIT_BYTES)
    if not raw.startswith(_TITLE) or end < len(_TITLE):
        raise BulletinError("garbage", "not a bulletin: it does not begin as one")
    lines = raw[len(_TITLE) : end].split(b"\n")
    if len(lines) > _SIGNERS:
        raise BulletinError("garbage", f"a bulletin with {len(lines)} signatures")
    found = []
    for line in lines:
        match = _LINE.fullmatch(line)
        try:
            if match is None:
                raise ValueError("form")
            found.append((match[1].decode(), base64.b64decode(match[2], validate=True)))
        except (ValueError, binascii.Error):
            raise BulletinError("garbage", "not a bulletin: a signature is no signature") from None
    return found, raw[end + 2 :]


def _signed(text: bytes) -> bytes:
    return _TITLE + text


_HASH = ec.ECDSA(hashes.SHA256())
