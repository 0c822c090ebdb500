"""What is kept of an archive beside its rows, in the table's own folder: it travels with the table and ends with it."""

from pathlib import Path
from urllib.parse import quote

FOLDER = "_agewatch"
"""In the table's folder; readers and cleaners of Delta tables pass over names that begin so."""
SUMMARIES = "summaries.parquet"
"""A cache in an archive's folder: deleted, it comes back equal."""


def folder_of(table: Path, archive: str) -> Path:
    """The folder of what is kept of an archive; it need not exist."""
    return table / FOLDER / name_of(archive)


def name_of(archive: str) -> str:
    """An archive's name as one folder's name."""
    name = quote(archive, safe=" ")
    return name.replace(".", "%2E") if set(name) == {"."} else name  # "." and ".." would lead out
