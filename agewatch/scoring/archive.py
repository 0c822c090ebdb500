"""Folder -> sorted file references -> shards, and what is new since last time."""

import builtins
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agewatch.errors import AgewatchError, ImageError, UsageError

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp",
        ".heic", ".heif", ".avif",
    }
)  # fmt: skip
MAX_BYTES = 2**31
"""Larger files are refused unread; the most pixels that are decoded have 1.4 GB at 16 bits and four channels."""
_LITTER_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_LITTER_FOLDERS = frozenset({"@eaDir", "__MACOSX", "_delta_log", ".agewatch"})  # the last two are our own

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file of an archive. `path` is relative, POSIX, in the table's encoding; see `encode_path`.

    Size and times are None where the file may not even be looked at.
    """

    path: str
    bytes: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    @classmethod
    def of(cls, path: str, found: os.stat_result) -> "FileRef":
        """A file as the operating system describes it."""
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def read(self, root: Path) -> tuple[builtins.bytes, "FileRef"]:
        """Return the file's bytes, and a listed file as it was when it was opened: it may have changed since.

        Raises ImageError with code `too_large`, `vanished`, `denied` or `unreadable`.
        """
        if (self.bytes or 0) > MAX_BYTES:
            raise ImageError("too_large", f"The file has {self.bytes:,} bytes; the limit is {MAX_BYTES:,}.")
        try:
            # What was listed may be a pipe or a link by now: neither wait nor follow.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if self.mtime_ns is not None else 0)
            with open(os.open(os.path.join(os.fsencode(root), decode_path(self.path)), flags), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise ImageError("unreadable", "The file can't be read: it is a folder, a pipe or a device.")
                opened = FileRef.of(self.path, found) if self.mtime_ns is not None else self
                return file.read(), opened
        except FileNotFoundError as error:
            raise ImageError("vanished", "The file disappeared before it could be read.") from error
        except PermissionError as error:
            raise ImageError("denied", "The file may not be read by this user.") from error
        except OSError as error:
            reason = "it is a symbolic link now" if error.errno == errno.ELOOP else error.strerror
            raise ImageError("unreadable", f"The file can't be read: {reason}.") from error


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds: files to score, how many others were ignored, and folders that can't be listed."""

    files: list[FileRef]
    ignored: int
    unlisted: list[str]


def find(root: Path) -> Listing:
    """List the pictures below a folder, sorted by path; symbolic links and system litter are passed over.

    A picture is a regular file with a picture's suffix (any case) or with none; its content is judged later.
    Raises UsageError where `root` is no folder, AgewatchError where it can't be listed.
    """
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}.")
    files: list[FileRef] = []
    unlisted: list[str] = []
    ignored = 0
    start = os.path.join(os.fsencode(root), b"")
    skipped = len(start)
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder == start:
                raise AgewatchError(f"The folder {root} can't be listed: {error.strerror}.") from error
            unlisted.append(encode_path(folder[skipped:]))
            continue
        for entry in entries:
            name = os.fsdecode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if name not in _LITTER_FOLDERS:
                    folders.append(entry.path)
            elif _is_litter(name):
                continue
            elif not entry.is_file(follow_symlinks=False) or not _may_be_picture(name):
                ignored += 1
            else:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:
                    files.append(FileRef(encode_path(entry.path[skipped:])))
                else:
                    files.append(FileRef.of(encode_path(entry.path[skipped:]), found))
    return Listing(sorted(files, key=lambda file: file.path), ignored, sorted(unlisted))


def shards(files: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a list of files into shards of at most `size` files, in order."""
    return (files[start : start + size] for start in range(0, len(files), size))


def encode_path(path: bytes) -> str:
    r"""Write a path's bytes as text: UTF-8 stays, any other byte is `\xNN`, a literal backslash `\\`."""
    return path.replace(b"\\", b"\\\\").decode("utf-8", errors="backslashreplace")


def decode_path(path: str) -> bytes:
    """Invert `encode_path`."""

    def byte(escape: re.Match[bytes]) -> bytes:
        return b"\\" if escape[0] == b"\\\\" else bytes([int(escape[1], 16)])

    return re.sub(rb"\\\\|\\x([0-9a-f]{2})", byte, path.encode())


def _is_litter(name: str) -> bool:
    return name in _LITTER_FILES or name.startswith("._")


def _may_be_picture(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in PICTURE_SUFFIXES or (not suffix and not name.startswith("."))
