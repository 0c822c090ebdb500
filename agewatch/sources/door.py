"""The one door to an archive's bytes: from what a person or the table calls a place to what lists and reads it."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from agewatch.sources.bucket import Bucket
from agewatch.sources.folder import Folder
from agewatch.sources.packed import packed
from agewatch.sources.source import Listing, Sieve, Source
from agewatch.sources.storage import url_of

_URI = "file://"


def at(place: Path | str) -> Source:
    """The source at a place, which need not be there: a folder, a zip or tar file, a URL, or a root of the table's.

    Raises UsageError where the place is a file of another kind, or no URL as it should be.
    """
    text = os.fspath(place)
    if (url := url_of(text)) is not None:
        return Bucket(url)
    if text.startswith(_URI):  # of a path that is no UTF-8
        text = os.fsdecode(unquote_to_bytes(text.removeprefix(_URI)))
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # a root of the table's, which is UTF-8, where the system's names are ASCII
        text = os.fsdecode(text.encode())
    path = Path(text)
    return packed(path) if path.is_file() else Folder(path)


def find(source: Source, exclude: Sequence[str] = ()) -> Listing:
    """List the pictures of a source, sorted by path; `exclude` adds to what is litter, see `source.Sieve`.

    Raises UsageError where there is no such place, AgewatchError where it can't be listed.
    """
    source.require_there()
    sieve = Sieve(exclude)
    files = sorted(source.walk(sieve), key=lambda file: file.path)
    return Listing(files, dict(sieve.ignored.most_common()), sorted(sieve.unlisted), sieve.nested, sieve.damage)
