"""Labelled pictures for training and evaluation: the layouts in which they come -> one list."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from agewatch.errors import LabelError, UsageError
from agewatch.labelled import late
from agewatch.labelled.rows import refuse_export, rows_of
from agewatch.scoring import predictions
from agewatch.settings import Settings
from agewatch.sources import door
from agewatch.sources.source import FileRef, encode_path
from agewatch.sources.storage import url_of

LABELS = "labels:"
"""A source that begins so is an archive of the predictions table, with the labels that were added to it."""
_TABLE_SUFFIXES = (".csv", ".parquet")
_COLUMNS = ("path", "age", "sex", "ethnicity", "subject")
_MOST_YEARS = 1000  # beyond, a number is no age; impossible ones within are for whoever uses them to judge
_AGE_FOLDER = re.compile(r"\d{1,3}")
# [age]_[gender]_[race]_[datetime] (Zhang et al., CVPR 2017). Some published names lack the race or have an empty field.
_UTKFACE = re.compile(r"(?P<age>\d{1,3})_(?P<sex>\d?)_(?:(?P<ethnicity>\d?)_)?\d{8,} ?(?:\.|$)")
_SEXES = {"0": "male", "1": "female"}
_ETHNICITIES = {"0": "white", "1": "black", "2": "asian", "3": "indian", "4": "others"}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled picture: source folder, path in it (as in the predictions table), age in years, slices, person.

    `subject` names the person within the source, where the source tells.
    """

    source: Path
    file: FileRef
    age: int
    sex: str | None = None
    ethnicity: str | None = None
    subject: str | None = None

    def read(self) -> bytes:
        """The picture's bytes. Raises ImageError as `sources.source.Source.read` does."""
        return _opened(self.source).read(self.file)[0]


_opened = lru_cache(maxsize=8)(door.at)  # an archive of many files is costly to open


def read_sources(sources: Sequence[Path]) -> list[Labelled]:
    """List labelled pictures from several sources, each a folder, a table that ends in .csv or .parquet, or an archive.

    In a folder, a picture's age is the name of the top folder that it lies in, where that is a number of up to three
    digits, else the first field of a file name as UTKFace has them; sex and ethnicity are those of such a name, unless
    its age is not the folder's. Pictures with neither are passed over. A table has columns path and age (years, rounded
    down), optionally sex, ethnicity and subject; paths are relative to the folder of the table's own name without
    suffix where that exists, else to the table's folder. Where such a table lies beside a folder, it is read in the
    folder's place. `labels:ARCHIVE` are the pictures of an archive whose largest face has a label of its own, where the
    settings' table says that they lie. What is named twice is read once. Raises UsageError (nothing there, no name, two
    tables, equal names, folders that can't be listed) or LabelError (malformed, no labels).
    """
    labelled: list[Labelled] = []
    roots: dict[str, Path] = {}
    names = [str(source).removeprefix(LABELS) for source in sources if str(source).startswith(LABELS)]
    others = [source.resolve() for source in sources if not str(source).startswith(LABELS)]
    archives = {_root_of(name): name for name in names}
    for found in dict.fromkeys([*map(_folder_or_table, others), *archives]):
        root = found if found.is_dir() else _root(found)
        if not root.name:
            raise UsageError(f"The folder {root} has no name to tell its pictures by: name one below it.")
        if roots.setdefault(root.name, root) != root:
            raise UsageError(f"Two sources are named {root.name}: rename one, their pictures would be mixed up.")
        if found in archives:
            labelled += _read_labels(archives[found], root)
        else:
            labelled += _read_folder(found) if found == root else _read_table(found, root)
    if not labelled:
        raise LabelError("The sources hold no labelled pictures.")
    return labelled


def _root_of(name: str) -> Path:
    """The folder of an archive. Raises UsageError where the table has no such archive, or its folder is not there."""
    table = Settings().predictions
    known = predictions.archives(table)
    root = known.get(predictions.known_name(table, name))
    if root is None:
        raise UsageError(f"There is no archive '{name}' in the table; it holds {', '.join(sorted(known)) or 'none'}.")
    place = Path(root)
    if url_of(root) is not None:
        raise UsageError(
            f"The pictures of '{name}' lie in object storage: labels are learnt from those of this machine."
        )
    if not place.exists():
        raise UsageError(f"The archive '{name}' is gone: there is nothing at {root}.")
    return place


def _read_labels(name: str, root: Path) -> list[Labelled]:
    table = Settings().predictions
    ages = late.of_largest_faces(table, predictions.known_name(table, name))
    return [Labelled(root, FileRef(path), int(age)) for path, age in sorted(ages.items())]


def _folder_or_table(source: Path) -> Path:
    """What there is to read for a source: a table of its name or beside it, else the folder."""
    if source.suffix.lower() in _TABLE_SUFFIXES and source.exists() and not source.is_dir():
        tables = [source]
    else:
        beside = [source.parent / (source.name + suffix) for suffix in _TABLE_SUFFIXES]
        tables = [table for table in beside if table.exists() and not table.is_dir()]
    if len(tables) > 1:
        raise UsageError(f"Both {tables[0].name} and {tables[1].name} label {source}: name the one to read.")
    if tables and not tables[0].is_file():
        raise UsageError(f"The table {tables[0]} is no regular file.")
    if not tables and not source.is_dir():
        raise UsageError(f"There is no folder, CSV or Parquet file {source}.")
    return tables[0] if tables else source


def _root(table: Path) -> Path:
    folder = table.with_suffix("")
    return (folder if folder.is_dir() else table.parent).resolve()


def _read_folder(source: Path) -> Iterator[Labelled]:
    listing = door.find(door.at(source))
    if listing.unlisted:
        raise UsageError(f"The folder {source / listing.unlisted[0]} can't be listed, so its pictures would be missed.")
    for file in listing.files:
        folders, name = os.path.split(file.path)
        top = folders.split("/")[0]
        fields = _UTKFACE.match(name)
        named = int(fields["age"]) if fields else None
        age = int(top) if _AGE_FOLDER.fullmatch(top) else named
        if age is None:
            continue
        told = fields.groupdict("") if fields and named == age else {}
        yield Labelled(source, file, age, _SEXES.get(told.get("sex", "")), _ETHNICITIES.get(told.get("ethnicity", "")))


def _read_table(table: Path, root: Path) -> Iterator[Labelled]:
    rows = rows_of(table, _COLUMNS, lambda names: _require_columns(table, names))
    return (_labelled(root, row, f"{table}, {where}") for where, row in rows)


def _require_columns(table: Path, names: Iterable[str]) -> None:
    if not {"path", "age"} <= set(names):
        raise LabelError(f"{table} needs the columns path and age.")
    refuse_export(table, names)


def _labelled(root: Path, row: Mapping[str, object], where: str) -> Labelled:
    age, path = _text(row["age"]), row["path"]
    try:
        years = float(age or "")
    except ValueError:
        years = np.nan
    if not abs(years) <= _MOST_YEARS:
        raise LabelError(f"{where}: '{age or ''}' is no age.")
    if not isinstance(path, str) or not path or "\0" in path:
        raise LabelError(f"{where}: {'the path is empty' if not path else f'{path!r} is no path'}.")
    file = FileRef(encode_path(os.fsencode(path)))
    sex, ethnicity, subject = (_text(row.get(name)) for name in ("sex", "ethnicity", "subject"))
    return Labelled(root, file, int(np.floor(years)), sex, ethnicity, subject)


def _text(value: object) -> str | None:
    """A cell as text; None for an empty one. Persons may be numbers."""
    return None if value is None or value == "" or value != value else str(value)
