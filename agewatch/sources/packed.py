"""A zip or tar file, whose members are read in place: nothing is ever unpacked to the disk.

Of members with the same path the last one counts, as it would after unpacking. A zip says of each member its date, to
two seconds and without a time zone (taken as UTC), and a checksum; a tar says its date only.
"""

import calendar
import math
import os
import stat
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from agewatch.errors import AgewatchError, ImageError, UsageError
from agewatch.sources.folder import as_text
from agewatch.sources.source import MAX_BYTES, FileRef, Sieve, Source, encode_path, fitting, stamped, too_large

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
_ENCRYPTED, _UTF8 = 0x1, 0x800  # of a zip's flags
_BLOCK = tarfile.BLOCKSIZE


def packed(path: Path) -> "Source":
    """The source that a file is. Raises UsageError where it is neither a zip nor a plain tar, or can't be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_BLOCK)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.") from error
    if head[:2] == b"PK" or zipfile.is_zipfile(path):
        return Zip(path)
    if _is_header(head) or (head and not any(head)):
        return Tar(path)
    if (kind := _COMPRESSED.get(head[:2])) is not None:
        raise UsageError(
            f"{path} is packed with {kind}, so its files can't be read in place: unpack it to a tar first."
        )
    raise UsageError(f"{path} is no folder, and no zip or tar file.")


class _Packed(Source):
    """A file that holds files."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.root = as_text(self.path)
        self.name = os.fsencode(self.path.name).decode(errors="backslashreplace")

    def require_there(self) -> None:
        """Raise UsageError where the file is gone."""
        if not self.path.is_file():
            raise UsageError(f"There is no file {self.path}.")

    def read(self, file: FileRef) -> tuple[bytes, FileRef]:
        """Read a member, as `Source.read` says; `denied` where it is encrypted."""
        try:
            return self._read(file)
        except (ImageError, AgewatchError):
            raise
        except KeyError as error:
            raise ImageError("vanished", "The file is no longer in the archive.") from error
        except MemoryError as error:
            raise ImageError("too_large", "The file does not fit into memory.") from error
        except NotImplementedError as error:
            raise ImageError("unsupported", "The file is packed in a way that can't be unpacked.") from error
        except Exception as error:  # zipfile and its decompressors raise of many kinds over damage
            raise ImageError(
                "unreadable", f"The file can't be unpacked: {str(error) or type(error).__name__}."
            ) from error

    @abstractmethod
    def _read(self, file: FileRef) -> tuple[bytes, FileRef]:
        """Read a member. Raises ImageError, KeyError where there is none, or whatever damage makes of it."""


class Zip(_Packed):
    """A zip file."""

    _open: tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which opens the file itself."""
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def walk(self, sieve: Sieve) -> Iterator[FileRef]:
        """Yield the pictures. Raises AgewatchError where the directory at the zip's end can't be read."""
        self._open = None  # the file may have changed since
        _, members = self._opened()
        for path in sorted(members):
            if sieve.keeps_at(path, is_regular=not stat.S_ISLNK(members[path].external_attr >> 16)):
                yield _in_zip(path, members[path])

    def _read(self, file: FileRef) -> tuple[bytes, FileRef]:
        opened, members = self._opened()
        member = members[file.path]
        if member.flag_bits & _ENCRYPTED:
            raise ImageError("denied", "The file is encrypted: unpack the archive with its password first.")
        if member.file_size > MAX_BYTES:
            raise too_large(member.file_size)
        with opened.open(member) as inside:
            return inside.read(MAX_BYTES), _in_zip(file.path, member)  # it gives out no more than it claims

    def _opened(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        if self._open is None:
            try:
                opened = zipfile.ZipFile(self.path)
            except Exception as error:  # as above
                raise AgewatchError(
                    f"The directory of {self.path} can't be read: the file was not copied to its end, or is damaged."
                    " Copy it again, or mend it with `zip -FF`."
                ) from error
            found = ((_path(_raw_name(member)), member) for member in opened.infolist() if not member.is_dir())
            self._open = opened, {path: member for path, member in found if path}
        return self._open


class _Place(NamedTuple):
    """Where a member of a tar lies, its size, and its date."""

    offset: int
    size: int
    mtime_ns: int | None
    is_regular: bool


class Tar(_Packed):
    """A plain tar file, whose headers are gone through once; where each member lies travels to other processes."""

    _file: BinaryIO | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places: dict[str, _Place] = {}
        self._state: tuple[int, int] | None = None  # of the file when it was gone through

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which opens the file itself."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def walk(self, sieve: Sieve) -> Iterator[FileRef]:
        """Yield the pictures, of a torn tar those before the tear. Raises AgewatchError where it can't be read."""
        sieve.damage = self._go_through()
        for path in sorted(self._places):
            place = self._places[path]
            if sieve.keeps_at(path, is_regular=place.is_regular):
                yield FileRef(path, place.size, place.mtime_ns)

    def _read(self, file: FileRef) -> tuple[bytes, FileRef]:
        if self._file is None:
            self._file = self.path.open("rb")
        if self._state != _state(self._file):
            self._go_through()
        place = self._places[file.path]
        if place.size > MAX_BYTES:
            raise too_large(place.size)
        data = os.pread(self._file.fileno(), place.size, place.offset)
        if len(data) < place.size:
            raise ImageError("truncated", "The archive ends within the file.")
        return data, FileRef(file.path, place.size, place.mtime_ns)

    def _go_through(self) -> str | None:
        """Find where all members lie; say in a sentence why not all of them were found."""
        try:
            self._file = self.path.open("rb")
            self._state = _state(self._file)
            opened = tarfile.open(fileobj=self._file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        except (OSError, tarfile.TarError) as error:
            raise AgewatchError(f"{self.path} can't be read: {error}.") from error
        self._places, before = {}, -1
        try:
            while (member := opened.next()) is not None and before < opened.offset:  # a negative size leads back
                before = opened.offset
                opened.members = []  # type: ignore[attr-defined]  # it would keep them all
                if path := _path(member.name.encode(errors="surrogateescape")):
                    self._note(path, member)
            self._file.seek(opened.offset)
            is_whole = not any(self._file.read(_BLOCK) or b"!")
        except (tarfile.TarError, OSError, ValueError):
            is_whole = False
        return None if is_whole else "The tar is torn or damaged: what lies behind the damage is not counted."

    def _note(self, path: str, member: tarfile.TarInfo) -> None:
        if member.islnk():  # the same file once more
            target = self._places.get(_path(member.linkname.encode(errors="surrogateescape")))
            if target is not None:
                self._places[path] = target
        elif not member.isdir():
            seconds = member.mtime if math.isfinite(member.mtime) else 0
            is_plain = member.isreg() and member.sparse is None
            self._places[path] = _Place(member.offset_data, member.size, fitting(int(seconds * 10**9)), is_plain)


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _state(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _in_zip(path: str, member: zipfile.ZipInfo) -> FileRef:
    try:
        seconds = calendar.timegm(member.date_time)
    except ValueError:  # month 0
        seconds = 0
    return FileRef(path, member.file_size, stamped(seconds, member.CRC))


def _raw_name(member: zipfile.ZipInfo) -> bytes:
    """A member's name as it stands in the zip: not all programs say that they write UTF-8."""
    return member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437").split(b"\0")[0]


def _path(name: bytes) -> str:
    """A member's name as a path in the archive, without what stands for the folder that it is in, as `./` does."""
    return encode_path(b"/".join(part for part in name.split(b"/") if part not in (b"", b".")))
