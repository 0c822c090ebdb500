"""A gallery: one folder with a page that needs no network, and the sheets of faces beside it."""

import base64
import hashlib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from agewatch.errors import GoneError, TableError, UsageError
from agewatch.files import lock, now, write_text
from agewatch.gallery import choose, sheets
from agewatch.gallery.choose import MOST_OTHERS, Chosen, Sort
from agewatch.scoring import archives, predictions
from agewatch.scoring.beside import name_of
from agewatch.scoring.predictions import Key, Rows
from agewatch.scoring.scorer import Execution
from agewatch.settings import Settings
from agewatch.sources import door

MARK = ".agewatch-gallery"
"""A folder that holds this file is a gallery, which a newer one may replace."""
_SHEETS = "sheets-"
_FIRST = {
    "age": "the youngest", "uncertainty": "those with the widest interval", "size": "the largest",
    "newest": "the newest", "difference": "those on which the two models differ most",
}  # fmt: skip

_templates = Environment(loader=PackageLoader("agewatch.gallery", ""), autoescape=True, undefined=StrictUndefined)


@dataclass(frozen=True)
class Gallery:
    """The page, what it shows and of how much, and how many faces could not be drawn."""

    page: Path
    faces: int
    of: int
    faceless: int
    refused: int
    lost: int


def default_folder(archive: str) -> Path:
    """Where an archive's gallery lies unless told; it goes with the archive."""
    return Settings().home / "galleries" / name_of(archive)


def make(
    table: Path, keys: Sequence[Key], out: Path, how: Execution, *, statuses: Sequence[str] = (),
    sort: Sort = "newest", with_gone: bool = False, compare: bool = False,
) -> Gallery:  # fmt: skip
    """Write OUT/index.html and its sheets, of the rows of one archive's keys; nothing outside OUT is written.

    With `compare`, the two keys' ages stand side by side. The sheets are drawn first: a run that is killed leaves the
    page that was there, and the next one clears up. Raises UsageError where OUT lies in an archive or holds other
    things, GoneError where the archive is not there, TableError where there is nothing to show or another run writes to
    OUT, OSError where it can't be written.
    """
    source = door.at(predictions.archives(table)[keys[0].archive])
    read = [_rows(table, key, statuses, with_gone) for key in keys]
    first, other = (read[0], read[1]) if compare else (pa.concat_tables(read), None)
    chosen = choose.choose(first, sort, other=other)
    sheets.number(chosen.rows)
    archives.require_outside(table, out)
    try:
        source.require_there()
    except UsageError as error:
        raise GoneError(f"The archive '{keys[0].archive}' is gone: {error} Its last gallery is kept.") from error
    with _folder(out) as (folder, drawn):
        lost = sheets.draw(chosen.rows, source, drawn, how)
        for sheet in drawn.iterdir():
            sheet.chmod(0o600)
        write_text(folder / "index.html", _page(chosen, keys, lost, drawn.name, compare))
        (folder / "index.html").chmod(0o600)
        for older in folder.glob(f"{_SHEETS}*"):
            if older != drawn:
                shutil.rmtree(older)
    return Gallery(folder / "index.html", chosen.faces_shown, chosen.faces, chosen.faceless, chosen.refused, len(lost))


def _rows(table: Path, key: Key, statuses: Sequence[str], with_gone: bool) -> pa.Table:
    return predictions.read(table, key.where & choose.where_status(statuses, with_gone), choose.COLUMNS)


@contextmanager
def _folder(out: Path) -> Iterator[tuple[Path, Path]]:
    """Take a folder for a gallery; yield it, and a new one in it for the sheets, which goes where the body raises."""
    folder = out.resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{out} is no folder.")
    if folder.is_dir() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise UsageError(f"{out} holds other things than a gallery: name an empty or a new folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    held = lock(folder / MARK, exclusive=True)
    if held is None:
        raise TableError(f"{out} can't be written to.")
    drawn = folder / f"{_SHEETS}{secrets.token_hex(4)}"
    try:
        (folder / MARK).chmod(0o600)
        drawn.mkdir(mode=0o700)
        yield folder, drawn
    except BaseException:
        shutil.rmtree(drawn, ignore_errors=True)
        raise
    finally:
        held.close()


def _page(chosen: Chosen, keys: Sequence[Key], lost: dict[int, str], drawn: str, compare: bool) -> str:
    script = (Path(__file__).parent / "gallery.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    models = [key.model for key in keys]
    data = {
        "sheets": drawn, "side": sheets.SIDE, "across": sheets.ACROSS, "models": models, "compare": compare,
        "rows": _data(chosen.rows, lost, models, compare),
    }  # fmt: skip
    return _templates.get_template("gallery.html.jinja").render(
        archive=keys[0].archive, models=models, compare=compare, made=now(), chosen=chosen, first=_FIRST[chosen.sort],
        others=len(chosen.rows) - chosen.faces_shown, most_others=MOST_OTHERS, script=script, script_hash=digest,
        statuses=Counter(row["status"] for row in chosen.rows), data=json.dumps(data, ensure_ascii=False),
    )  # fmt: skip


def _data(rows: Rows, lost: dict[int, str], models: list[str], compare: bool) -> list[list[Any]]:
    """What the page's script reads of each row: path, face, status, model, cell, sentence, ages, the other's ages."""
    ages = ["age", "age_low", "age_high", *(["other_age", "other_age_low", "other_age_high"] if compare else [])]
    return [
        [
            row["path"], row["face"], row["status"], models.index(row["model"]), row["cell"],
            lost.get(row["cell"], row["error"]), *(row[age] and round(row[age], 1) for age in ages),
        ]
        for row in rows
    ]  # fmt: skip
