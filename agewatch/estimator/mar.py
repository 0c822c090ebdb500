"""A model file as the zip that it is: what may be in one, and how its members are read.

What is in none that agewatch made is refused by name before anything is unpacked.
"""

import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agewatch.errors import ModelError

MOST_MEMBERS = 1_000
MOST_BYTES = 4 * 2**30
"""Of all members together, unpacked."""
MOST_RATIO = 100
"""A member of more than `_SMALL` bytes may be so many times as large as it is packed: weights hardly shrink."""
_SMALL = 2**24


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a model file whose directory holds nothing that is refused. Raises ModelError, also for what the body meets.

    Refused are names that lead out of a folder or stand twice, links, and bombs by what they say of themselves.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (found := _unsound(archive.infolist())) is not None:
                raise ModelError(f"The model {path} is refused, and nothing of it was unpacked: {found}.")
            yield archive
    except FileNotFoundError as error:
        raise ModelError(f"There is no model at {path}.") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"The model {path} can't be read: {error}.") from error


def read(path: Path, name: str) -> bytes:
    """The bytes of a member of a model file, or of the folder it was unpacked to. Raises ModelError."""
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with opened(path) as archive:
            return archive.read(name)
    except FileNotFoundError as error:
        raise ModelError(f"There is no model at {path}.") from error
    except KeyError as error:
        raise ModelError(f"{path} holds no {name}: it is no agewatch model.") from error
    except OSError as error:
        raise ModelError(f"The model {path} can't be read: {error}.") from error


def _unsound(members: list[zipfile.ZipInfo]) -> str | None:
    """What is wrong with the members, as the end of a sentence; None where nothing is."""
    if len(members) > MOST_MEMBERS:
        return f"it has {len(members):,} members, more than {MOST_MEMBERS:,}"
    for member in members:
        name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
        parts = name.removesuffix("/").split("/")
        if not name.isprintable() or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
            return f"its member {name!r} would not lie in its folder"
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"its member {name!r} is a link or a device"
        if member.file_size > max(_SMALL, MOST_RATIO * member.compress_size):
            return f"its member {name!r} would be {member.file_size:,} bytes of {member.compress_size:,}"
    if (total := sum(member.file_size for member in members)) > MOST_BYTES:
        return f"it would be {total:,} bytes"
    for name, times in Counter(member.orig_filename.removesuffix("/") for member in members).most_common(1):
        if times > 1:
            return f"its member {name!r} stands in it {times} times"
    return None
