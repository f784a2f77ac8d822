"""Payloads that nobody between two neighbors can read, change, or hand to somebody else.

One content key a sealing, drawn from the system's randomness and used for nothing else, encrypts
the payload once (AES-256-GCM); it is wrapped for each neighbor (HPKE, RFC 9180: X25519,
HKDF-SHA256, AES-256-GCM). Each piece is bound to the header, which names run, round, sender and
receivers, and the sender's mesh key signs header and encrypted pieces, so no receiver can forge
what another one gets.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from flower_dhb.agent.envelope import TAG_BYTES, Envelope, pieces, read_envelope
from flower_dhb.errors import PayloadError
from flower_dhb.site.keys import Announced, MeshKeys, sealing_key

__all__ = ["Sealer"]

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_KEY_BYTES, _NONCE_BYTES = 32, 12
_TITLE = b"flower-dhb sealed payload 1\n"


class Sealer:
    """Seals one agent's payloads for its neighbors, and opens theirs, in one run.

    keys: who the agent is. secret: 32 random bytes that it keeps for the run.
    announcements: of its neighbors, as they came; each is believed only if the mesh's
    authority has vouched for it.
    """

    def __init__(
        self, keys: MeshKeys, run: str, secret: bytes, announcements: Mapping[int, str]
    ) -> None:
        self._keys, self._run = keys, run
        self._secret: X25519PrivateKey = sealing_key(secret, keys.identity, run)
        self._announcements = announcements
        self._believed: dict[int, Announced | PayloadError] = {}

    @property
    def vertex(self) -> int:
        """Of the agent."""
        return self._keys.identity.vertex

    def announcement(self) -> str:
        """What this agent's neighbors need."""
        return self._keys.announce(self._run, self._secret.public_key())

    def seal(self, frame: bytes, round: int, refuse: Callable[[str], None]) -> bytes:
        """A payload's frame, sealed for all neighbors whose announcement is believed.

        refuse: is told of each of the others, and why. Raises PayloadError if there are more
        receivers than a header can hold.
        """
        neighbors = []
        for j in sorted(self._announcements):
            try:
                neighbors.append(self._neighbor(j))
            except PayloadError as error:
                refuse(f"round {round}: the payload is not sealed for {error}")
        content_key = secrets.token_bytes(_KEY_BYTES)
        receivers = [neighbor.vertex for neighbor in neighbors]
        wrapped = {
            n.vertex: _SUITE.encrypt(
                content_key, n.sealing_key, self._info(round, self.vertex, n.vertex, receivers)
            )
            for n in neighbors
        }
        about = Envelope(self._run, round, self.vertex, len(frame), wrapped)
        header = about.header()
        cipher, bound = AESGCM(content_key), _digest(header)
        digest = self._digest_of(header)
        encrypted = []
        view = memoryview(frame)
        for number, (begin, end) in enumerate(pieces(len(frame))):
            piece = cipher.encrypt(_nonce(number), view[begin:end], bound)
            digest.update(piece)
            encrypted.append(piece)
        head = about.to_bytes(header, self._keys.sign(digest))
        return b"".join((head, *encrypted))

    def open(self, data: bytes, sender: int, round: int) -> bytearray:
        """The frame that a neighbor has sealed for this agent.

        Raises PayloadError, with the reason, for whatever is not exactly that: from somebody
        else, of another run or round, for others, changed, or by a key that is not believed.
        """
        who = f"round {round}, neighbor {sender}"
        about, header, signature, body = read_envelope(data, who)
        about.check(self._run, round, sender)
        if self.vertex not in about.receivers:
            raise PayloadError(
                f"{who}: the payload is sealed for vertices {sorted(about.receivers)[:20]}, not "
                f"for vertex {self.vertex}"
            )
        try:
            neighbor = self._neighbor(sender)
        except PayloadError as error:
            raise PayloadError(f"{who}: {error}") from None
        digest = self._digest_of(header)
        digest.update(body)
        try:
            scheme = ec.ECDSA(Prehashed(hashes.SHA256()))
            neighbor.signing_key.verify(bytes(signature), digest.finalize(), scheme)
        except InvalidSignature:
            raise PayloadError(
                f"{who}: the sealed payload is not as vertex {sender} has signed it"
            ) from None
        info = self._info(round, sender, self.vertex, about.receivers)
        try:
            content_key = _SUITE.decrypt(about.receivers[self.vertex], self._secret, info)
            return _decrypted(content_key, about, _digest(bytes(header)), body)
        except (InvalidTag, ValueError, TypeError):
            raise PayloadError(
                f"{who}: the payload is sealed with a key that vertex {self.vertex} does not have; "
                "one of the two has lost its state since, and announces a new key"
            ) from None

    def _neighbor(self, vertex: int) -> Announced:
        """A neighbor's announcement. Raises PayloadError if it is not believed."""
        found = self._believed.get(vertex)
        if found is None:
            try:
                announcement = self._announcements.get(vertex, "")
                found = self._keys.believe(announcement, vertex, self._run)
            except PayloadError as error:
                found = error
            self._believed[vertex] = found
        if isinstance(found, PayloadError):
            raise PayloadError(str(found))
        return found

    def _info(self, round: int, sender: int, receiver: int, receivers: Iterable[int]) -> bytes:
        """What a wrapped key is bound to."""
        everybody = ",".join(map(str, sorted(receivers)))
        return (
            f"flower-dhb content key 1\n{self._keys.identity.mesh}\n{self._run}\n{round}\n"
            f"{sender}\n{receiver}\n{everybody}\n"
        ).encode()

    def _digest_of(self, header: bytes | memoryview) -> hashes.Hash:
        """What is signed begins with this; the encrypted pieces follow."""
        digest = hashes.Hash(hashes.SHA256())
        digest.update(_TITLE + f"{self._keys.identity.mesh}\n{len(header)}\n".encode())
        digest.update(header)
        return digest


def _decrypted(content_key: bytes, about: Envelope, bound: bytes, body: memoryview) -> bytearray:
    cipher = AESGCM(content_key)
    frame = bytearray(about.size)
    view, at = memoryview(frame), 0
    for number, (begin, end) in enumerate(pieces(about.size)):
        until = at + end - begin + TAG_BYTES
        cipher.decrypt_into(_nonce(number), body[at:until], bound, view[begin:end])
        at = until
    return frame


def _nonce(number: int) -> bytes:
    """Of a piece. A content key is used for one payload, so its pieces are counted."""
    return number.to_bytes(_NONCE_BYTES, "big")


def _digest(header: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(header)
    return digest.finalize()
