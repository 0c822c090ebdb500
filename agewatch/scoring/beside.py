"""What is kept of an archive beside its rows, in the table's own folder: it travels with the table and ends with it."""

from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

from agewatch.settings import Settings
from agewatch.sources.storage import url_of

FOLDER = "_agewatch"
"""In the table's folder; readers and cleaners of Delta tables pass over names that begin so."""
SUMMARIES = "summaries.parquet"
"""A cache in an archive's folder: deleted, it comes back equal."""


def folder_of(table: Path, archive: str) -> Path:
    """The folder of what is kept of an archive; it need not exist.

    Of a table in object storage it is one of this machine, below the home: it does not travel with the table.
    """
    if (url := url_of(table)) is not None:
        return Settings().home / "tables" / blake2b(url.encode(), digest_size=8).hexdigest() / name_of(archive)
    return table / FOLDER / name_of(archive)


def name_of(archive: str) -> str:
    """An archive's name as one folder's name."""
    name = quote(archive, safe=" ")
    return name.replace(".", "%2E") if set(name) == {"."} else name  # "." and ".." would lead out
