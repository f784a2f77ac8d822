"""The files of an image data set as they are published: which ones, where they go, unpacking."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flower_dhb import ConfigError

__all__ = ["Originals"]


@dataclass(frozen=True)
class Originals:
    """What a class of torchvision reads from a folder.

    source: the class. root: the run's `data-dir`. folder: where the files lie within it. files:
    their names with their MD5 sums, empty where only the packed one's is known. archive: path
    and MD5 sum of one file that holds all of them; without it, each is packed by itself as `.gz`.
    """

    source: Any
    root: Path
    folder: Path
    files: dict[str, str]
    archive: tuple[Path, str] | None = None

    @classmethod
    def of(cls, source: Any, root: Path) -> Originals:
        """Of MNIST and its like (IDX files), or of CIFAR-10 and its like (one archive)."""
        if hasattr(source, "resources"):
            files = {name.removesuffix(".gz"): "" for name, _ in source.resources}
            return cls(source, root, root / source.__name__ / "raw", files)
        files = dict([*source.train_list, *source.test_list])
        files[source.meta["filename"]] = source.meta["md5"]
        archive = (root / source.filename, source.tgz_md5)
        return cls(source, root, root / source.base_folder, files, archive)

    def provide(self, *, download: bool) -> None:
        """Have all files in their folder: unpack those that are packed, fetch them if asked.

        Raises ConfigError that says which files are missing or damaged, and where they go.
        """
        if self._missing():
            if not (self.root.is_dir() or download):
                raise self._error(f"the folder '{self.root}' does not exist")
            why = ""
            try:
                with _alone(self.root):
                    self._unpack()
                    if self._missing() and download:
                        self.source(str(self.root), download=True)
            except (EOFError, OSError, RuntimeError, tarfile.TarError) as error:
                why = f": {' '.join(str(error).split()) or type(error).__name__}"
            if missing := self._missing():
                raise self._error(f"{', '.join(missing)} are not in '{self.folder}'{why}")
        for name, expected in self.files.items():
            if expected and (found := _md5(self.folder / name)) != expected:
                raise self.damaged(f"the MD5 sum of {name} is {found}, expected {expected}")

    def damaged(self, how: str) -> ConfigError:
        """Error for files that are there, and are not the original ones."""
        return self._error(f"the files in '{self.folder}' are damaged: {how}. Delete what is wrong")

    def _error(self, what: str) -> ConfigError:
        packed = self.archive[0] if self.archive else f"{self.folder}{os.sep}*.gz"
        return ConfigError(
            f"{self.source.__name__}: {what}. Put {', '.join(self.files)} into '{self.folder}', or "
            f"what they are published in to '{packed}', or set download = true where there is a "
            "network"
        )

    def _missing(self) -> list[str]:
        return [name for name in self.files if not (self.folder / name).is_file()]

    def _unpack(self) -> None:
        """Unpack what is packed; a file is there whole or not at all."""
        if self.archive is None:
            for name in self._missing():
                if (packed := self.folder / f"{name}.gz").is_file():
                    _gunzip(packed, self.folder / name)
        elif self.archive[0].is_file():
            if (found := _md5(self.archive[0])) != self.archive[1]:
                raise OSError(f"the MD5 sum of {self.archive[0].name} is {found}: it is damaged")
            with tempfile.TemporaryDirectory(dir=self.root) as here:
                with tarfile.open(self.archive[0]) as archive:
                    archive.extractall(here, filter="data")  # nothing outside `here`
                shutil.rmtree(self.folder, ignore_errors=True)  # not all of them are there
                (Path(here) / self.folder.name).rename(self.folder)


def _gunzip(packed: Path, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        with gzip.open(packed) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
        part.replace(path)
    except (EOFError, OSError) as error:
        raise OSError(f"{packed.name}: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    """What the sums of these data sets are published in; it keeps errors out, not attackers."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it, no other process of this machine changes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
