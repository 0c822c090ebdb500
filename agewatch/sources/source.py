"""What every place of an archive does: list its pictures in the order of their paths, and read one by its path."""

import builtins
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from agewatch.errors import ImageError
from agewatch.sources.litter import Litter

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp",
        ".heic", ".heif", ".hif", ".heics", ".avif",
        ".jp2", ".j2k", ".dng", ".cr2", ".nef", ".arw",
    }
)  # fmt: skip
_ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
MAX_BYTES = 2**31
"""Larger files are refused unread; the most pixels that are decoded have 1.4 GB at 16 bits and four channels."""
_MOST = 2**63 - 1
"""Of the table's numbers: a file system may hold dates (in nanoseconds, after 2262) that are larger."""


@dataclass(slots=True, unsafe_hash=True)  # and nobody changes one; frozen it takes three times as long to make
class FileRef:
    """One file of an archive. `path` is relative, POSIX, in the table's encoding; see `encode_path`.

    Size and times are None where the file may not even be looked at.
    """

    path: str
    bytes: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    @classmethod
    def of(cls, path: str, found: os.stat_result, *, trust_ctime: bool = True) -> "FileRef":
        """A file as the operating system describes it; a time that the table can't hold is None."""
        changed = fitting(found.st_ctime_ns) if trust_ctime else None
        return cls(path, found.st_size, fitting(found.st_mtime_ns), changed)


Read = Callable[[], tuple[bytes, FileRef]]
"""Returns a file's bytes, and the file as it was when it was opened. Raises ImageError."""


class Sieve:
    """Tells pictures from what else an archive holds, and counts that while a place is listed.

    A picture is a regular file with a picture's suffix (any case) or with none; its content is judged later. `exclude`
    adds to what is litter, see `litter.Litter`. `nested` are archives inside, which are not opened; `damage` says in a
    sentence why not all that is there was listed. Raises UsageError where `exclude` is malformed.
    """

    def __init__(self, exclude: Sequence[str] = ()) -> None:
        self.litter = Litter(exclude)
        self.ignored: Counter[str] = Counter()
        self.unlisted: list[str] = []
        self.nested: list[str] = []
        self.damage: str | None = None
        self._last_folder = ("", False)

    def enters(self, name: str, path: str) -> bool:
        """Tell of a folder whether it is listed."""
        return not self.litter.is_folder(name, path)

    def keeps(self, name: str, path: str, *, is_regular: bool) -> bool:
        """Tell of a file, whose folder is listed, whether it is a picture; else count it, unless it is litter."""
        if self.litter.is_file(name, path):
            return False
        dot = name.rfind(".")
        suffix = name[dot:].lower() if dot > 0 and name[:dot].strip(".") else ""  # as os.path.splitext, but quick
        if is_regular and (suffix in PICTURE_SUFFIXES or (not suffix and not name.startswith("."))):
            return True
        self.ignored[suffix] += 1
        if suffix in _ARCHIVES:
            self.nested.append(path)
        return False

    def keeps_at(self, path: str, *, is_regular: bool = True) -> bool:
        """The same where nothing but paths is listed, of a file by all of its path."""
        folder, _, name = path.rpartition("/")
        if folder != self._last_folder[0]:
            self._last_folder = folder, self.litter.covers_folder(folder)
        return not self._last_folder[1] and self.keeps(name, path, is_regular=is_regular)

    def may_hold(self, path: str) -> bool:
        """Tell whether a path lies in what can't be listed, so that it may still be there."""
        return self.damage is not None or any(path.startswith(f"{folder}/") for folder in self.unlisted)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a place holds: files to score, the others by their suffix, and folders that can't be listed; see `Sieve`."""

    files: list[FileRef]
    ignored: dict[str, int]
    unlisted: list[str]
    nested: list[str] = field(default_factory=list)
    damage: str | None = None


class Source(ABC):
    """A place. It travels to worker processes, each of which opens it by a handle of its own.

    `root` is what the table binds an archive's name to, `name` what the archive is called by default.
    """

    root: str
    name: str

    @abstractmethod
    def require_there(self) -> None:
        """Raise UsageError where there is no such place."""

    @abstractmethod
    def walk(self, sieve: Sieve) -> Iterator[FileRef]:
        """Yield the pictures in the order of their paths, as they are found. Raises AgewatchError."""

    @abstractmethod
    def read(self, file: FileRef) -> tuple[bytes, FileRef]:
        """Return a file's bytes, and a listed file as it was when it was opened: it may have changed since.

        Raises ImageError with code `too_large`, `vanished`, `denied` or `unreadable`.
        """

    def reads(self, files: Sequence[FileRef]) -> Iterator[tuple[FileRef, Read]]:
        """Yield files, each with what reads it: where reading is slow, some are read ahead."""
        return ((file, partial(self.read, file)) for file in files)


def too_large(size: int) -> ImageError:
    """The refusal of a file that no picture is as large as."""
    return ImageError("too_large", f"The file has {size:,} bytes; the limit is {MAX_BYTES:,}.")


def fitting(nanoseconds: int) -> int | None:
    """A time that the table can hold, else None."""
    return nanoseconds if -_MOST <= nanoseconds <= _MOST else None


def stamped(seconds: int, token: int) -> int:
    """A date in nanoseconds of which the place keeps whole seconds, and beyond them what it says of the content.

    So a file that is replaced within a second by another of its size is seen, by an ETag or a checksum.
    """
    return fitting(seconds * 10**9 + token % 10**9) or 0


def encode_path(path: builtins.bytes) -> str:
    r"""Write a path's bytes as text: UTF-8 stays, any other byte is `\xNN`, a literal backslash `\\`."""
    return path.replace(b"\\", b"\\\\").decode("utf-8", errors="backslashreplace")


def decode_path(path: str) -> builtins.bytes:
    """Invert `encode_path`."""

    def byte(escape: re.Match[builtins.bytes]) -> builtins.bytes:
        return b"\\" if escape[0] == b"\\\\" else bytes([int(escape[1], 16)])

    return re.sub(rb"\\\\|\\x([0-9a-f]{2})", byte, path.encode())
