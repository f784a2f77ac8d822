"""Bulletins between two neighbors: in pieces that a slow link bears, and together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import KINDS, LIMIT_BYTES, Board, BulletinError, Notice
from flower_dhb.peer.wire.frames import Reason, RefusedError

__all__ = ["Arrivals", "InLine", "frames_of", "pieces_of"]

_PIECE_BYTES = 64 * 1024


def frames_of(notice: Notice, chunk_bytes: Callable[[], int]) -> Iterator[bytes]:
    """Serialized frames of a bulletin. chunk_bytes is asked for the size of each piece."""
    for piece in _pieces(notice, chunk_bytes):
        yield pb.Frame(bulletin=piece).SerializeToString()


def pieces_of(notice: Notice) -> Iterator[bytes]:
    """Serialized pieces of a bulletin, outside of a stream of frames."""
    for piece in _pieces(notice, lambda: _PIECE_BYTES):
        yield piece.SerializeToString()


def _pieces(notice: Notice, chunk_bytes: Callable[[], int]) -> Iterator[pb.Bulletin]:
    start = 0
    while start < len(notice.raw):
        end = start + chunk_bytes()
        yield pb.Bulletin(
            kind=notice.kind,
            number=notice.number,
            total_bytes=len(notice.raw),
            offset=start,
            data=notice.raw[start:end],
        )
        start = end


class InLine:
    """Bulletins that are to go out: of each kind the newest, one under way at a time."""

    def __init__(self, chunk_bytes: Callable[[], int]) -> None:
        self._chunk_bytes = chunk_bytes
        self._waiting: dict[str, Notice] = {}
        self._kind = ""
        self._frames: Iterator[bytes] | None = None

    def put(self, notice: Notice) -> None:
        """Put a bulletin in line. An older one of its kind is given up, even in its middle."""
        if self._kind == notice.kind:
            self._frames = None
        self._waiting[notice.kind] = notice

    def next(self) -> bytes | None:
        """The next frame, None if nothing is in line."""
        while self._frames is not None or self._waiting:
            if self._frames is None:
                self._kind = next(iter(self._waiting))
                self._frames = frames_of(self._waiting.pop(self._kind), self._chunk_bytes)
            frame = next(self._frames, None)
            if frame is not None:
                return frame
            self._frames = None
        return None


class Arrivals:
    """Puts the pieces of one neighbor's bulletins together, one at a time.

    Memory grows with the bytes that have come, and only for what is news. allowed: asked once
    for each bulletin that begins.
    """

    def __init__(self, neighbor: int, board: Board, allowed: Callable[[], bool]) -> None:
        self._neighbor, self._board, self._allowed = neighbor, board, allowed
        self._of: tuple[str, int, int] | None = None  # kind, number and size of what comes
        self._seen = 0
        self._data: bytearray | None = None  # None if it is passed over

    def piece(self, piece: pb.Bulletin) -> Notice | None:
        """Take a piece. Returns the bulletin that it completes, if that was kept or known.

        Raises RefusedError.
        """
        if piece.offset == 0:
            self._begin(piece)
        of = (piece.kind, piece.number, piece.total_bytes)
        end = piece.offset + len(piece.data)
        if of != self._of or piece.offset != self._seen or not self._seen < end <= of[2]:
            self._of = self._data = None
            raise self._refused(
                Reason.MALFORMED, "a piece of a bulletin that does not follow the one before"
            )
        self._seen = end
        if self._data is not None:
            self._data += piece.data
        if end < of[2]:
            return None
        data, self._of, self._data = self._data, None, None
        if data is None:
            return None
        try:
            taken = self._board.take(bytes(data), f"neighbor {self._neighbor}")
        except BulletinError as error:
            raise self._refused(Reason.BULLETIN, str(error)) from None
        if (taken.kind, taken.number) != of[:2]:
            raise self._refused(
                Reason.BULLETIN,
                f"a bulletin {taken.number} of kind '{taken.kind}', announced as {of[1]} of kind "
                f"'{of[0][:32]}'",
            )
        return taken

    def _begin(self, piece: pb.Bulletin) -> None:
        self._of = self._data = None
        if not self._allowed():
            raise self._refused(Reason.BUSY, "more bulletins than there can be news")
        if piece.total_bytes > LIMIT_BYTES:
            raise self._refused(
                Reason.SIZE,
                f"a bulletin of {piece.total_bytes} bytes, expected at most {LIMIT_BYTES}",
            )
        self._seen = 0
        try:  # a kind of a later version is passed over: whoever knows it gets it elsewhere
            wanted = piece.kind in KINDS and self._board.wants(piece.kind, piece.number)
        except BulletinError as error:
            raise self._refused(Reason.BULLETIN, str(error)) from None
        self._of = (piece.kind, piece.number, piece.total_bytes)
        self._data = bytearray() if wanted else None

    def _refused(self, reason: pb.Refusal.Reason, text: str) -> RefusedError:
        return RefusedError(reason, f"neighbor {self._neighbor}: {text}")
