"""Write a `prefect.yaml` for folders of the user's own."""

import json
import os
import re
from datetime import time
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jinja2 import Environment, PackageLoader, StrictUndefined

from agewatch.errors import UsageError
from agewatch.files import write_text
from agewatch.nights.schedule import FILE, archive_of

EXAMPLE = {"archive": "archive"}, ["labelled"]
"""Archives and labelled pictures of the file that the repository holds."""


def write(
    archives: list[Path], *, labelled: list[Path], at: time, timezone: str | None, file: Path = FILE
) -> dict[str, Path]:
    """Write the file for nights at a time of day, and return the archives by name.

    An archive is a folder, by whose name it is known, or `NAME=FOLDER`.
    `timezone` is an IANA name; None is this machine's. A file that is there is replaced only where nobody has changed
    it since it came with the repository. Raises UsageError where a folder is not there, two archives would have one
    name, the time zone is unknown, or the file is somebody's.
    """
    pairs = [_named(str(told)) for told in archives]
    named = dict(pairs)
    if len(named) < len(pairs):
        twice = next(name for name in named if [name for name, _ in pairs].count(name) > 1)
        raise UsageError(f"Two archives would be named {twice}: name one of them, as NAME=FOLDER.")
    for folder in named.values():
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder}.")
        if inside := next((other for other in named.values() if other in folder.parents), None):
            raise UsageError(f"{folder} lies in {inside}: its pictures would be scored and counted twice.")
    for source in labelled:
        if not source.exists() and not str(source).startswith("labels:"):
            raise UsageError(f"There are no labelled pictures at {source}.")
    zone = timezone or local_timezone()
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UsageError(f"{zone!r} is no time zone: name one such as Europe/Berlin.") from error
    if file.exists() and file.read_text(encoding="utf-8") != example():
        raise UsageError(f"{file} is there already: change it by hand, or move it away first.")
    folders = {name: str(folder) for name, folder in named.items()}
    write_text(file, _rendered(folders, [_source(source) for source in labelled], at, zone))
    return named


def _source(told: Path) -> str:
    """Labelled pictures as a flow takes them: `labels:ARCHIVE` stands for labels of an archive."""
    return str(told) if str(told).startswith("labels:") else str(told.resolve())


def _named(told: str) -> tuple[str, Path]:
    name, sign, folder = told.partition("=")
    if sign and name and not Path(told).exists():
        return archive_of(folder, name), Path(folder).resolve()
    return archive_of(told, None), Path(told).resolve()


def example() -> str:
    """The file that the repository holds."""
    return _rendered(*EXAMPLE, time(1), "UTC")


def local_timezone() -> str:
    """This machine's time zone as an IANA name; UTC where it can't be told."""
    told = os.environ.get("TZ", "").removeprefix(":")
    linked = os.path.realpath("/etc/localtime").partition("zoneinfo/")[2]
    for name in (told, linked.removeprefix("posix/")):
        try:
            return ZoneInfo(name).key if name else "UTC"
        except (ZoneInfoNotFoundError, ValueError, OSError):
            continue
    return "UTC"


def _rendered(archives: dict[str, str], labelled: list[str], at: time, timezone: str) -> str:
    environment = Environment(  # noqa: S701  it writes YAML, whose strings are JSON here
        loader=PackageLoader("agewatch", "nights"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["tojson"] = lambda said: json.dumps(said, ensure_ascii=False)
    # Prefect's names hold none of these; a number keeps what is left apart.
    names = [re.sub("[/%&<>]", "-", name) for name in archives]
    names = [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]
    return environment.get_template("prefect.yaml.jinja").render(
        nights=[(f"night-{name}", *each) for name, each in zip(names, archives.items(), strict=True)],
        labelled=labelled, hour=at.hour, minute=at.minute, timezone=timezone,
    )  # fmt: skip
