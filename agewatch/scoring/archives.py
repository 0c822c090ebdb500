"""The archives of a table: listing them, binding one to another folder, erasing one with all that is known of it."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from agewatch.errors import TableError, UsageError
from agewatch.files import lock
from agewatch.scoring import predictions
from agewatch.scoring.beside import FOLDER, name_of
from agewatch.scoring.predictions import (
    BASELINE_PROPERTY,
    LOCK_FILE,
    ROOT_PROPERTY,
    SCHEMA,
    dataset,
    is_remote,
    open_table,
    place,
    plain,
    require_writable,
)
from agewatch.settings import Settings
from agewatch.sources import door
from agewatch.sources.folder import Folder


@dataclass(frozen=True)
class Archive:
    """An archive of a table: its name, its folder, how many paths have rows, and how many of these are gone."""

    name: str
    root: str
    files: int
    gone: int


def entries(table: Path) -> list[Archive]:
    """List a table's archives by name. Raises TableError where there is no table."""
    found = []
    for name, root in sorted(predictions.archives(table).items()):
        rows = predictions.read(table, pc.field("archive") == name, ["path", "gone_at"])
        gone = rows.filter(pc.is_valid(rows["gone_at"]))
        found.append(Archive(name, root, *(len(pc.unique(some["path"])) for some in (rows, gone))))
    return found


def meant(table: Path, name: str | None) -> str:
    """The archive that a person means, by its name or its folder, or the only one, as the table calls it.

    Raises UsageError where there is none or several, TableError where there is no table.
    """
    roots = predictions.archives(table)
    if name is None and len(roots) != 1:
        raise UsageError(f"The table holds {', '.join(sorted(roots)) or 'no archive'}: name the archive.")
    if name is None:
        return next(iter(roots))
    of_folder = [known for known, root in roots.items() if root == door.at(name).root]
    return of_folder[0] if of_folder and name not in roots else _require(table, name)


def around(table: Path, folder: Path) -> dict[str, Path]:
    """The archives in whose folders a folder lies, with these, by name. Raises TableError where there is no table.

    The home may lie in an archive, which passes it over as litter: what is in there lies in none.
    """
    folder, home = folder.resolve(), Settings().home.resolve()
    sources = {name: door.at(root) for name, root in predictions.archives(table).items()}
    folders = {name: source.path for name, source in sources.items() if isinstance(source, Folder)}
    return {
        name: path
        for name, path in folders.items()
        if folder.is_relative_to(path) and not (folder.is_relative_to(home) and home.is_relative_to(path))
    }


def require_outside(table: Path, folder: Path) -> None:
    """Raise UsageError where a folder that pages with faces are to be written to lies in an archive."""
    if around(table, folder):
        raise UsageError(f"{folder} lies in an archive, which would be scored with it: name another.")


def move(table: Path, name: str, place: Path | str) -> Archive:
    """Bind an archive to another place; its rows stay, and files are known by their path in it.

    Raises UsageError where there is no such archive or place, TableError where the table can't be written.
    """
    name = _require(table, name)
    source = door.at(place)
    source.require_there()
    with _told(table):
        held = open_table(table)
        require_writable(table)
        held.alter.set_table_properties({ROOT_PROPERTY + name: source.root}, raise_if_not_exists=False)
    return next(entry for entry in entries(table) if entry.name == name)


def remove(table: Path, name: str, *folders: Path) -> Archive:
    """Erase an archive: its rows, all history in which they stood, its name, what lies beside the table, and folders.

    The table is written anew from the other archives' current rows, so their history ends too. Raises UsageError where
    there is no such archive, TableError where another run uses the table, or where it or a folder can't be erased.
    """
    if is_remote(table):
        raise UsageError("An archive can't be erased from a table in object storage, whose history would stay there.")
    name, table = _require(table, name), table.resolve()  # the table itself, where a link leads to it
    erased = next(entry for entry in entries(table) if entry.name == name)
    with _told(table):
        open_table(table)
        require_writable(table)
        held = lock(table / LOCK_FILE, exclusive=True)
        fresh = table.with_name(f".{table.name}-fresh-{secrets.token_hex(4)}")
        try:
            _copy_others(table, name, fresh)
            _replace(table, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            if held is not None:
                held.close()
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)
    return erased


def _copy_others(table: Path, name: str, fresh: Path) -> None:
    """Write a new table with the current rows and the roots of all archives but one."""
    held = open_table(table)
    own = {ROOT_PROPERTY + name, BASELINE_PROPERTY + name}
    kept = {of: text for of, text in held.metadata().configuration.items() if of not in own}
    others = dataset(held, table).scanner(columns=SCHEMA.names, filter=pc.field("archive") != name).to_reader()
    made = DeltaTable.create(place(fresh), SCHEMA)
    made.alter.set_table_properties(kept, raise_if_not_exists=False)
    write_deltalake(made, others, mode="append")
    for beside in (table / FOLDER).glob("*"):
        if beside.name != name_of(name):
            shutil.copytree(beside, fresh / FOLDER / beside.name)


def _replace(table: Path, fresh: Path) -> None:
    """Put a new table in the place of an old one, and delete that; where anything fails before, the old one stays."""
    old = table.with_name(f".{table.name}-old-{secrets.token_hex(4)}")
    table.rename(old)
    try:
        fresh.rename(table)
    except BaseException:
        old.rename(table)
        raise
    shutil.rmtree(old)


def _require(table: Path, name: str) -> str:
    """The name as the table has it. Raises UsageError where it has no such archive."""
    name, names = predictions.known_name(table, name), predictions.archives(table)
    if name not in names:
        raise UsageError(f"There is no archive '{name}' in the table; it holds {', '.join(sorted(names)) or 'none'}.")
    return name


@contextmanager
def _told(table: Path) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise TableError(f"The table {table} can't be written: {plain(error)}.") from error
