"""Folder -> sorted file references -> shards, and what is new since last time."""

import builtins
import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from agewatch.errors import AgewatchError, ImageError, UsageError
from agewatch.scoring.litter import Litter

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp",
        ".heic", ".heif", ".hif", ".heics", ".avif",
        ".jp2", ".j2k", ".dng", ".cr2", ".nef", ".arw",
    }
)  # fmt: skip
MAX_BYTES = 2**31
"""Larger files are refused unread; the most pixels that are decoded have 1.4 GB at 16 bits and four channels."""
_MOST = 2**63 - 1
"""Of the table's numbers: a file system may hold dates (in nanoseconds, after 2262) that are larger."""
_TRUSTED = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay", "nfs", "nfs4"}
)
"""File systems that change a file's change time with its content, and only when something of it changed."""

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
    def of(cls, path: str, found: os.stat_result, *, trust_ctime: bool = True) -> "FileRef":
        """A file as the operating system describes it; a time that the table can't hold is None."""
        changed = _fitting(found.st_ctime_ns) if trust_ctime else None
        return cls(path, found.st_size, _fitting(found.st_mtime_ns), changed)

    def read(self, root: Path) -> tuple[builtins.bytes, "FileRef"]:
        """Return the file's bytes, and a listed file as it was when it was opened: it may have changed since.

        Raises ImageError with code `too_large`, `vanished`, `denied` or `unreadable`.
        """
        is_listed = self.bytes is not None
        if (self.bytes or 0) > MAX_BYTES:
            raise _too_large(self.bytes or 0)
        try:
            # What was listed may be a pipe or a link by now: neither wait nor follow.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if is_listed else 0)
            with open(os.open(os.path.join(os.fsencode(root), decode_path(self.path)), flags), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise ImageError("unreadable", "The file can't be read: it is a folder, a pipe or a device.")
                if found.st_size > MAX_BYTES:  # it grew, or was not looked at
                    raise _too_large(found.st_size)
                opened = FileRef.of(self.path, found, trust_ctime=self.ctime_ns is not None) if is_listed else self
                return file.read(), opened
        except MemoryError as error:
            raise ImageError("too_large", "The file does not fit into memory.") from error
        except FileNotFoundError as error:
            raise ImageError("vanished", "The file disappeared before it could be read.") from error
        except PermissionError as error:
            raise ImageError("denied", "The file may not be read by this user.") from error
        except OSError as error:
            reason = "it is a symbolic link now" if error.errno == errno.ELOOP else error.strerror
            raise ImageError("unreadable", f"The file can't be read: {reason}.") from error


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds: files to score, the others by their suffix, and folders that can't be listed."""

    files: list[FileRef]
    ignored: dict[str, int]
    unlisted: list[str]
    litter: Litter = field(default_factory=Litter)

    def may_hold(self, path: str) -> bool:
        """Tell whether a path lies in a folder that can't be listed, so that it may still be there."""
        return any(path.startswith(f"{folder}/") for folder in self.unlisted)


def find(root: Path, exclude: Sequence[str] = ()) -> Listing:
    """List the pictures below a folder, sorted by path; symbolic links and litter are passed over.

    A picture is a regular file with a picture's suffix (any case) or with none; its content is judged later. `exclude`
    adds to what is litter, see `litter.Litter`. Raises UsageError where `root` is no folder, AgewatchError where it
    can't be listed.
    """
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}.")
    litter, trust_ctime = Litter(exclude), file_system(root) in _TRUSTED
    files: list[FileRef] = []
    unlisted: list[str] = []
    ignored: Counter[str] = Counter()
    start = os.path.join(os.fsencode(root), b"")
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder == start:
                raise AgewatchError(f"The folder {root} can't be listed: {error.strerror}.") from error
            unlisted.append(encode_path(folder[len(start) :]))
            continue
        for entry in entries:
            name, path = os.fsdecode(entry.name), encode_path(entry.path[len(start) :])
            kind = _kind(entry)
            if kind == "folder":
                if not litter.is_folder(name, path):
                    folders.append(entry.path)
            elif litter.is_file(name, path):
                continue
            elif kind == "other" or not _may_be_picture(name):
                ignored[os.path.splitext(name)[1].lower()] += 1
            elif (file := _file(entry, path, trust_ctime)) is not None:
                files.append(file)
    return Listing(sorted(files, key=lambda file: file.path), dict(ignored.most_common()), sorted(unlisted), litter)


def file_system(root: Path) -> str | None:
    """The kind of the file system that a folder lies on, as Linux names it; None where it does not say."""
    place, kinds = root.resolve(), {}
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            before, _, after = line.partition(
                " - "
            )  # proc(5): the mount point is field 5, the kind comes after the dash
            kinds[Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4]))] = (
                after.split()[0]
            )
    return next((kinds[folder] for folder in (place, *place.parents) if folder in kinds), None)


def _too_large(size: int) -> ImageError:
    return ImageError("too_large", f"The file has {size:,} bytes; the limit is {MAX_BYTES:,}.")


def _kind(entry: os.DirEntry[bytes]) -> Literal["folder", "file", "other"]:
    """What an entry is; a folder that may be listed but not searched, on a file system without kinds, hides it."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "file" if entry.is_file(follow_symlinks=False) else "other"
    except OSError:
        return "file"


def _file(entry: os.DirEntry[bytes], path: str, trust_ctime: bool) -> FileRef | None:
    """A file with what the operating system says of it, where it says anything; None where it is gone already."""
    try:
        return FileRef.of(path, entry.stat(follow_symlinks=False), trust_ctime=trust_ctime)
    except FileNotFoundError:
        return None
    except OSError:
        return FileRef(path)


def _fitting(nanoseconds: int) -> int | None:
    return nanoseconds if abs(nanoseconds) <= _MOST else None


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


def _may_be_picture(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in PICTURE_SUFFIXES or (not suffix and not name.startswith("."))
