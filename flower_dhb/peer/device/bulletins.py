"""The bulletins of one device: the newest of each kind, on its disk before anybody hears of it."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import xxhash

from flower_dhb.errors import ConfigError
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.bulletin import (
    KINDS,
    LIMIT_BYTES,
    Bulletin,
    BulletinError,
    Notice,
    Root,
    fingerprint,
    parse,
    signers,
    verify,
)

__all__ = ["Bulletins"]

_LOOK_S = 3.0  # between two looks at the folder
_FILES = 64  # of the folder, that are looked at
_SUM_BYTES = 17  # a checksum and the end of its line, before what the disk holds


class Bulletins:
    """What the operator has said, from whomever it came: a neighbor, the operator, or a file.

    A bulletin that is believed and news is stored; then those hear of it who asked to
    (`subscribe`), and then the neighbors (`tell`). One that the disk does not take yet is told
    to nobody. roots: authorities that are believed now. folder: is looked at every few seconds
    for files that somebody has put there. store: writes a file durably, tries again for as long
    as it takes, and then calls what it was given; in the order of its calls.
    """

    def __init__(
        self,
        mesh: str,
        *,
        roots: Callable[[], Sequence[Root]],
        state_dir: Path,
        folder: Path,
        monitor: Monitor,
        store: Callable[[Path, bytes, Callable[[], None]], None],
        tell: Callable[[Notice], None],
    ) -> None:
        self._mesh, self._roots = mesh, roots
        self._state_dir, self._folder = state_dir, folder
        self._monitor, self._store, self._tell = monitor, store, tell
        self._changed = threading.Condition()
        self._kept: dict[str, tuple[Notice, Bulletin]] = {}  # on the disk
        self._coming: dict[str, Notice] = {}  # on their way to it
        self._takers: dict[str, list[Callable[[Bulletin], None]]] = defaultdict(list)
        self._checks: dict[str, Callable[[Bulletin], None]] = {}
        self._seen: dict[str, tuple[int, int]] = {}  # files of the folder, as they were
        self._believed: frozenset[str] = frozenset()  # authorities at the last look
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="bulletins", daemon=True)
        self._load()

    def newest(self, kind: str) -> Bulletin | None:
        """The newest bulletin of a kind that is on the disk."""
        with self._changed:
            return self._kept[kind][1] if kind in self._kept else None

    def subscribe(
        self,
        kind: str,
        taker: Callable[[Bulletin], None],
        check: Callable[[Bulletin], None] | None = None,
    ) -> None:
        """Have every new bulletin of a kind handed over, and now the one that is there.

        taker: is called when the bulletin is on the disk, and before a neighbor hears of it; by
        the thread that writes, so what takes long belongs elsewhere. check: raises ConfigError
        for a body that cannot be meant; such a bulletin is refused.
        """
        with self._changed:
            self._takers[kind].append(taker)
            if check is not None:
                self._checks[kind] = check
            kept = self._kept.get(kind)
        if kept is not None:
            taker(kept[1])

    # --- the connections' side: a `Board` -------------------------------------------------

    def known(self) -> dict[str, int]:
        """Number of the newest bulletin that is on the disk, by kind."""
        with self._changed:
            return {kind: notice.number for kind, (notice, _) in self._kept.items()}

    def wants(self, kind: str, number: int) -> bool:
        """Whether a bulletin that is announced would be news."""
        with self._changed:
            present = self._present(kind)
        if present is None or number > present.number:
            return True
        self._monitor.count("bulletins-old")
        return number == present.number  # it may be signed by a newer authority, too

    def newer_than(self, known: Mapping[str, int]) -> list[Notice]:
        """What somebody lacks who knows these."""
        with self._changed:
            return [
                notice
                for kind, (notice, _) in self._kept.items()
                if notice.number > known.get(kind, 0)
            ]

    def take(self, raw: bytes, source: str) -> Notice:
        """Check a bulletin, and keep it if it is news. Raises BulletinError if it is not believed.

        Returns the bulletin that was brought, also if it is no news.
        """
        try:
            return self._take(raw, source)
        except BulletinError as error:
            self._monitor.count(f"bulletin-refused.{error.cause}")
            self._monitor.warning(
                "bulletin-refused", reason=error.cause, source=source, why=str(error)
            )
            raise

    def _take(self, raw: bytes, source: str) -> Notice:
        roots = self._roots()
        bulletin = verify(raw, roots, self._mesh)
        kind, number = bulletin.kind, bulletin.number
        notice = Notice(kind, number, raw)
        if kind not in KINDS:
            raise BulletinError(
                "kind", f"a bulletin of kind '{kind}', which this version does not know"
            )
        check = self._checks.get(kind)
        if check is not None:
            try:
                check(bulletin)
            except ConfigError as error:
                raise BulletinError(
                    "content", f"bulletin {number} of kind '{kind}': {error}"
                ) from None
        with self._changed:
            present = self._present(kind)
            if present is not None and number <= present.number:
                self._monitor.count("bulletins-old")
                if number < present.number or raw == present.raw:
                    return notice
                if parse(present.raw) != bulletin:
                    raise BulletinError(
                        "conflict",
                        f"another bulletin {number} of kind '{kind}' than the one that is here; "
                        "the operator is to publish one with a larger number",
                    )
                if not signers(raw, roots) > signers(present.raw, roots):
                    return notice
            self._coming[kind] = notice
            self._put(notice, bulletin, source)
        return notice

    def wait(self, notice: Notice, seconds: float) -> bool:
        """Wait until a bulletin that was taken, or a newer one, is on the disk."""
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    notice.kind in self._kept and self._kept[notice.kind][0].number >= notice.number
                ),
                seconds,
            )

    def _present(self, kind: str) -> Notice | None:
        """The newest that is here, be it on the disk or on its way there."""
        if kind in self._coming:
            return self._coming[kind]
        return self._kept[kind][0] if kind in self._kept else None

    # --- the disk ---------------------------------------------------------------------------

    def _path(self, kind: str) -> Path:
        return self._state_dir / f"bulletin-{kind}"

    def _put(self, notice: Notice, bulletin: Bulletin, source: str) -> None:
        self._store(
            self._path(notice.kind),
            f"{xxhash.xxh3_64_hexdigest(notice.raw)}\n".encode() + notice.raw,
            lambda: self._stored(notice, bulletin, source),
        )

    def _stored(self, notice: Notice, bulletin: Bulletin, source: str) -> None:
        """A bulletin is on the disk: now it is valid here, and may be told."""
        kind, number = notice.kind, notice.number
        with self._changed:
            self._kept[kind] = (notice, bulletin)
            takers = list(self._takers[kind])
        self._monitor.count("bulletins-taken")
        self._monitor.event("bulletin", kind=kind, number=number, source=source)
        for taker in takers:
            try:
                taker(bulletin)
            except Exception as error:  # what the operator wrote must not end the fleet
                place = traceback.extract_tb(error.__traceback__)[-1]
                self._monitor.count("bulletin-failed")
                self._monitor.event(
                    "bulletin-failed",
                    logging.ERROR,
                    kind=kind,
                    number=number,
                    why=f"{type(error).__name__}: {error}",
                    where=f"{Path(place.filename).name}:{place.lineno}, in {place.name}",
                )
        self._tell(notice)
        with self._changed:
            if self._coming.get(kind) is notice:
                del self._coming[kind]
            self._changed.notify_all()

    def store_again(self) -> None:
        """The state directory is another one than before: have it hold all again."""
        with self._changed:
            for notice, _ in self._kept.values():
                data = f"{xxhash.xxh3_64_hexdigest(notice.raw)}\n".encode() + notice.raw
                self._store(self._path(notice.kind), data, lambda: None)

    def _load(self) -> None:
        for kind in KINDS:
            path = self._path(kind)
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                self._monitor.warning("damaged", why=f"{path}: {error.strerror or error}")
                continue
            checksum, raw = data[: _SUM_BYTES - 1].decode(errors="replace"), data[_SUM_BYTES:]
            try:
                if xxhash.xxh3_64_hexdigest(raw) != checksum:
                    raise BulletinError("damaged", "its checksum is another one")
                bulletin = parse(raw)
            except BulletinError as error:
                why = f"{path}: {error}; the neighbors or the operator bring it again"
                self._monitor.warning("damaged", why=why)
                continue
            if (bulletin.mesh, bulletin.kind) == (self._mesh, kind):
                self._kept[kind] = (Notice(kind, bulletin.number, raw), bulletin)

    # --- the folder ---------------------------------------------------------------------------

    def start(self) -> None:
        """Look at the folder now, and from then on every few seconds."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def settle(self, seconds: float) -> bool:
        """Wait until nothing is on its way to the disk. Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._coming, seconds)

    def look(self) -> None:
        """Take what lies in the folder and has changed since the last look."""
        believed = frozenset(map(fingerprint, self._roots()))
        if believed != self._believed:  # what was refused before may be believed now
            self._believed, self._seen = believed, {}
        found: dict[str, tuple[int, int]] = {}
        try:
            paths = sorted(p for p in self._folder.iterdir() if not p.name.startswith("."))
        except OSError:  # as a rule there is none
            paths = []
        for path in paths[:_FILES]:
            try:
                state = path.stat()
                found[path.name] = stamp = (state.st_mtime_ns, state.st_size)
                if self._seen.get(path.name) == stamp:
                    continue
                with path.open("rb") as file:
                    self.take(file.read(LIMIT_BYTES + 1), f"the file {path}")
            except OSError as error:
                found.pop(path.name, None)
                if not isinstance(error, FileNotFoundError):
                    why = f"{path}: {error.strerror or error}"
                    self._monitor.warning("bulletin-refused", reason="unreadable", why=why)
            except BulletinError:
                pass  # it was told, and is told again when the file changes
        self._seen = found

    def _keep_looking(self) -> None:
        while not self._ending.wait(_LOOK_S):
            begin = time.monotonic()
            self.look()
            self._ending.wait(time.monotonic() - begin)  # a slow disk is not kept busy
