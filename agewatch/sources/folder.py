"""A folder of this machine."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from agewatch.errors import AgewatchError, ImageError, UsageError
from agewatch.sources.source import MAX_BYTES, FileRef, Sieve, Source, decode_path, encode_path, too_large

_TRUSTED = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay", "nfs", "nfs4"}
)
"""File systems that change a file's change time with its content, and only when something of it changed."""


class Folder(Source):
    """A folder, searched recursively; symbolic links are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.root = as_text(self.path)
        self.name = os.fsencode(self.path.name).decode(errors="backslashreplace")  # as paths stand in the table

    def require_there(self) -> None:
        """Raise UsageError where there is no such folder."""
        if not self.path.is_dir():
            kind = "file" if self.path.suffix.lower() in (".zip", ".tar") else "folder"
            raise UsageError(f"There is no {kind} {self.path}.")

    def walk(self, sieve: Sieve) -> Iterator[FileRef]:
        """Yield the pictures. Raises AgewatchError where the folder itself can't be listed."""
        trust_ctime = file_system(self.path) in _TRUSTED
        start = os.path.join(os.fsencode(self.path), b"")
        ahead: list[FileRef | bytes] = [start]  # what comes next is last; folders are bytes
        while ahead:
            if isinstance(found := ahead.pop(), FileRef):
                yield found
                continue
            try:
                entries = list(os.scandir(found))
            except OSError as error:
                if found == start:
                    raise AgewatchError(f"The folder {self.path} can't be listed: {error.strerror}.") from error
                sieve.unlisted.append(encode_path(found[len(start) :]))
                continue
            inside: dict[str, FileRef | bytes] = {}
            for entry in entries:
                name, path = entry.name.decode(errors="surrogateescape"), encode_path(entry.path[len(start) :])
                kind = _kind(entry)
                if kind == "folder":
                    if sieve.enters(name, path):
                        inside[f"{path}/"] = entry.path  # as the paths in it begin, so that all come in order
                elif sieve.keeps(name, path, is_regular=kind == "file"):
                    file = _file(entry, path, trust_ctime)
                    if file is not None:
                        inside[path] = file
            ahead += (inside[path] for path in sorted(inside, reverse=True))

    def read(self, file: FileRef) -> tuple[bytes, FileRef]:
        """Read a file, as `Source.read` says."""
        is_listed = file.bytes is not None
        if (file.bytes or 0) > MAX_BYTES:
            raise too_large(file.bytes or 0)
        try:
            # What was listed may be a pipe or a link by now: neither wait nor follow.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if is_listed else 0)
            place = os.path.join(os.fsencode(self.path), decode_path(file.path))
            with open(os.open(place, flags), "rb") as opened:
                found = os.fstat(opened.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise ImageError("unreadable", "The file can't be read: it is a folder, a pipe or a device.")
                if found.st_size > MAX_BYTES:  # it grew, or was not looked at
                    raise too_large(found.st_size)
                now = FileRef.of(file.path, found, trust_ctime=file.ctime_ns is not None) if is_listed else file
                return opened.read(), now
        except MemoryError as error:
            raise ImageError("too_large", "The file does not fit into memory.") from error
        except FileNotFoundError as error:
            raise ImageError("vanished", "The file disappeared before it could be read.") from error
        except PermissionError as error:
            raise ImageError("denied", "The file may not be read by this user.") from error
        except OSError as error:
            reason = "it is a symbolic link now" if error.errno == errno.ELOOP else error.strerror
            raise ImageError("unreadable", f"The file can't be read: {reason}.") from error


def as_text(path: Path) -> str:
    """An absolute path as UTF-8; one that is none as a file URI, which no path looks like."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        return path.as_uri()


def file_system(root: Path) -> str | None:
    """The kind of the file system that a folder lies on, as Linux names it; None where it does not say."""
    place, kinds = root.resolve(), {}
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            # proc(5): the mount point is field 5, the kind comes after the dash
            before, _, after = line.partition(" - ")
            mounted = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
            kinds[Path(mounted)] = after.split()[0]
    return next((kinds[folder] for folder in (place, *place.parents) if folder in kinds), None)


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
