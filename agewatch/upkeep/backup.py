"""One file that holds all of a home that can't be made again, and the home that is made of it.

A plain tar, as what it holds is compressed already. Of the predictions table it takes the data files of one version and
the log up to it, byte by byte: both are never changed once written, so a run may go on writing, and neither memory nor
room is needed for a copy; the order of commits, which tells the latest mode, is kept, and a table written anew would
lose it. Rows of earlier versions are not in it.
"""

import fcntl
import os
import re
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from pydantic import BaseModel, ConfigDict

from agewatch import __version__
from agewatch.errors import AgewatchError, UsageError
from agewatch.files import lock, now, replacing
from agewatch.release.store import POINTER_FILE
from agewatch.scoring.beside import FOLDER, SUMMARIES
from agewatch.scoring.predictions import LOCK_FILE, archives, open_table
from agewatch.settings import Settings

FORMAT = 1
"""Of the file; raised whenever an older agewatch could no longer restore it."""
HEAD, MANIFEST = "agewatch-backup.json", "manifest.json"
"""The first and the last member: what the file is, and what must be in it."""
TABLE, STORE, LEDGER, TRAIN, SCHEDULE = "predictions", "store", "nights/ledger.sqlite", "train", "prefect.yaml"
"""What the members' names begin with, or are."""
RECORDS = frozenset({".json", ".md", ".csv"})
"""Suffixes of what a training run's folder holds of records; the rest is large."""
RECORD_BYTES = 2**20
_LOG_FILE = re.compile(r"(\d{20})\.(json|checkpoint\..+)")  # by the Delta protocol; `_last_checkpoint` is only a hint
_TRIES = 5


class Head(BaseModel):
    """The first member of a backup."""

    model_config = ConfigDict(extra="ignore")

    format: int
    agewatch: str
    made_at: str


class Manifest(BaseModel):
    """The last member of a backup: the table's version, and each file's size in bytes and BLAKE2b-256 in hex."""

    model_config = ConfigDict(extra="forbid")

    table_version: int
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Kept:
    """What a backup holds: names of archives, how many model files, files in all, and the size of FILE in bytes."""

    file: str
    archives: list[str]
    models: int
    files: int
    bytes: int


def backup(settings: Settings, file: Path, schedule: Path) -> Kept:
    """Write one file (0600) with the table, what lies beside it, the model store, the ledger and the schedule.

    Runs may go on meanwhile. A file of that name is replaced at once, or stays as it was. Raises UsageError where
    the file can't be one, TableError where there is no table or it is being made anew, AgewatchError where the file
    can't be written.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(f"{file} can't be written: {'it is a folder' if file.is_dir() else 'its folder is missing'}.")
    sweep(file)
    table = settings.predictions
    open_table(table)
    held = lock(table / LOCK_FILE, exclusive=False)  # against `archives remove`, which replaces the table
    try:
        for left in reversed(range(_TRIES)):
            try:
                manifest = _write(settings, file, schedule)
                break
            except FileNotFoundError:  # the log was tidied up meanwhile: a newer version stands complete
                if not left:
                    raise
    except sqlite3.Error as error:
        raise AgewatchError(f"The ledger can't be read, so nothing was backed up: {error}.") from error
    except OSError as error:
        told = error.strerror or str(error)
        raise AgewatchError(f"The backup {file} can't be written: {told}. What was there is as it was.") from error
    finally:
        if held is not None:
            held.close()
    models = sum(name.startswith(f"{STORE}/") and name.endswith(".mar") for name in manifest.files)
    return Kept(str(file), sorted(archives(table)), models, len(manifest.files), file.stat().st_size)


def record_files(run: Path) -> list[Path]:
    """The small records in a training run's folder: configuration, comparison, curves, the model's description."""
    return [
        path
        for path in sorted(run.rglob("*"))
        if path.suffix in RECORDS and path.is_file() and path.stat().st_size <= RECORD_BYTES
    ]


def _write(settings: Settings, file: Path, schedule: Path) -> Manifest:
    version, table = _table_files(settings.predictions)
    files: dict[str, tuple[int, str]] = {}
    with aside(file) as content, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_bytes(tar, HEAD, Head(format=FORMAT, agewatch=__version__, made_at=now()).model_dump_json().encode())
        pointer = settings.model_store / POINTER_FILE
        if pointer.is_file():  # before the models, so that the one it names is among them
            files[f"{STORE}/{POINTER_FILE}"] = _add_bytes(tar, f"{STORE}/{POINTER_FILE}", pointer.read_bytes())
        ledger = settings.home / LEDGER
        if ledger.is_file():
            files[LEDGER] = _add_bytes(tar, LEDGER, _ledger(ledger))
        if schedule.is_file():
            files[SCHEDULE] = _add_bytes(tar, SCHEDULE, schedule.read_bytes())
        for name, path in _others(settings):
            files[name] = _add_file(tar, name, path)
        for path in table:
            name = f"{TABLE}/{path.relative_to(settings.predictions).as_posix()}"
            files[name] = _add_file(tar, name, path)
        manifest = Manifest(table_version=version, files=files)
        _add_bytes(tar, MANIFEST, manifest.model_dump_json().encode())
    return manifest


def _table_files(table: Path) -> tuple[int, list[Path]]:
    """The version of a table that is current now, with the data files and the log that make it."""
    held = open_table(table)
    version, log = held.version(), table / "_delta_log"
    named = ((path, _LOG_FILE.fullmatch(path.name)) for path in sorted(log.iterdir()))
    commits = [path for path, match in named if match and int(match[1]) <= version]
    return version, [*commits, *(table / name for name in held.get_add_actions()["path"].to_pylist())]


def _others(settings: Settings) -> Iterator[tuple[str, Path]]:
    """What lies beside the table, the model store, and the records of training runs; no caches, no locks."""
    for path in _visible(settings.predictions / FOLDER):
        if path.name != SUMMARIES and path.suffix != ".lock":
            yield f"{TABLE}/{path.relative_to(settings.predictions).as_posix()}", path
    for path in _visible(settings.model_store):
        name = path.relative_to(settings.model_store).as_posix()
        if name != POINTER_FILE:
            yield f"{STORE}/{name}", path
    for path in record_files(settings.home / TRAIN):
        yield f"{TRAIN}/{path.relative_to(settings.home / TRAIN).as_posix()}", path


def _visible(folder: Path) -> Iterator[Path]:
    """Regular files below a folder; what is written aside has a name that begins with a dot."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _ledger(file: Path) -> bytes:
    """The ledger as it is at one moment, by SQLite's own online backup. Raises sqlite3.Error."""
    place = f"{file.resolve().as_uri()}?mode=rw"  # a reader alone could not undo what a killed writer began
    with closing(sqlite3.connect(place, uri=True, timeout=60)) as live, closing(sqlite3.connect(":memory:")) as copy:
        live.backup(copy)
        return copy.serialize()


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, str]:
    return _add(tar, tarfile.TarInfo(name), BytesIO(content), len(content))


def _add_file(tar: tarfile.TarFile, name: str, path: Path) -> tuple[int, str]:
    with path.open("rb") as content:
        state, info = os.fstat(content.fileno()), tarfile.TarInfo(name)
        info.mtime = state.st_mtime
        return _add(tar, info, content, state.st_size)


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, content: BinaryIO, size: int) -> tuple[int, str]:
    """Add a member and return its size and hash."""
    info.size, info.mode = size, 0o600
    source = Hashing(content)
    tar.addfile(info, cast(BinaryIO, source))
    return size, source.digest.hexdigest()


class Hashing:
    """Reads from a file and hashes what was read."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self.digest = blake2b(digest_size=32)

    def read(self, size: int = -1) -> bytes:
        """As of the file."""
        found = self._content.read(size)
        self.digest.update(found)
        return found


@contextmanager
def aside(file: Path) -> Iterator[BinaryIO]:
    """Open what takes a file's place at the end, private, and locked so that it is not swept meanwhile."""
    with replacing(file) as path:
        path.touch(0o600)
        with path.open("wb") as content:
            fcntl.flock(content, fcntl.LOCK_EX)
            yield content


def sweep(file: Path) -> None:
    """Delete what `aside` left beside a file when its process was killed."""
    form = re.compile(rf"\.{re.escape(file.name)}-[0-9a-f]{{8}}")
    for left in file.parent.iterdir():
        if form.fullmatch(left.name):
            with suppress(OSError), left.open("rb") as content:
                fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
