"""Faces of the newest nights, drawn with known chances -> one offline page that asks for their ages.

Its answers are saved by the browser as a CSV that `agewatch labels add` takes. No estimate is shown, as it would sway.
"""

import base64
import hashlib
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from agewatch.errors import ImageError, TableError
from agewatch.estimator.faces import Face
from agewatch.estimator.images import RGB, Picture
from agewatch.labelled import late
from agewatch.scoring import archives, predictions, thumbnails
from agewatch.scoring.predictions import Key
from agewatch.scoring.scorer import one_pictures_misfortune
from agewatch.sources import door
from agewatch.sources.source import Source
from monitoring.page import rendered, script, taken, write_page

DAYS = 7
"""Faces are drawn from those that arrived in so many days up to the newest night, and from more where these are few."""
_CONTEXT_SIDE = 360
_FRAME = (255, 200, 0)


@dataclass(frozen=True)
class Asked:
    """The page, how many faces it asks about, of how many, and how many drawn ones could not be shown."""

    page: Path
    n: int
    of: int
    lost: int


@dataclass(frozen=True)
class _Shown:
    path: str
    face: int
    asked: float
    day: date | None
    chip: str
    context: str


def ask(table: Path, key: Key, n: int, out: Path) -> Asked:
    """Draw n faces that have no label yet and write OUT/index.html; the same rows give the same faces.

    Each unlabelled face of the newest nights has the same chance, n over their number. A picture that is gone, has
    changed or can't be read gives its place to another. Raises TableError where the table has no such face, or none
    that can be shown, UsageError where OUT lies in an archive or holds another's page, OSError where it can't be
    written.
    """
    archives.require_outside(table, out)
    faces = _unlabelled(table, key, n)
    source = door.at(predictions.archives(table)[key.archive])
    chance, shown, lost = min(1.0, n / len(faces)), [], 0
    for row in faces.itertuples():
        try:
            shown.append(_shown(source, row, chance))
        except ImageError:
            lost += 1
        if len(shown) == n:
            break
    if not shown:
        raise TableError(f"None of the {len(faces):,} faces without a label can be shown: are the pictures there?")
    page = rendered("ask.html.jinja", archive=key.archive, faces=shown, **script("ask.js"))
    write_page(taken(out) / "index.html", page)
    return Asked((out / "index.html").absolute(), len(shown), len(faces), lost)


def _unlabelled(table: Path, key: Key, n: int) -> pd.DataFrame:
    """Faces of the newest nights without a label, one row a content and face, in an order drawn by their hashes."""
    names = ["path", "face", "content_hash", "box_x", "box_y", "box_w", "box_h", "face_score", "captured_at"]
    where = key.where & (pc.field("status") == "ok") & pc.field("gone_at").is_null()
    labels = late.read(table, key.archive)
    nights = _nights(predictions.read(table, where, ["arrived_at", "scored_at"]))
    if not len(nights):
        raise TableError(f"The archive '{key.archive}' has no face to ask about.")
    where &= predictions.arrived(_start(nights, n + len(labels)), nights.max())
    rows = predictions.read(table, where, [*names, "arrived_at", "scored_at"])
    faces = rows.select(names).to_pandas().assign(night=_nights(rows)).sort_values(["night", "path"])
    faces = faces.drop_duplicates(["content_hash", "face"])
    known = pd.MultiIndex.from_frame(labels[["content_hash", "face"]])
    faces = faces[~pd.MultiIndex.from_frame(faces[["content_hash", "face"]]).isin(known)]
    if faces.empty:
        raise TableError(f"Every face of '{key.archive}' has a label already.")
    drawn = faces[faces["night"] >= _start(faces["night"].to_numpy(), n)]
    text = f"{nights.max()} " + drawn["content_hash"] + " " + drawn["face"].astype(str)
    ordered: pd.DataFrame = drawn.assign(order=[hashlib.blake2b(one.encode()).digest() for one in text]).sort_values(
        "order"
    )
    return ordered


def _nights(rows: pa.Table) -> npt.NDArray[np.object_]:
    """The night in which each row arrived."""
    return np.array(pc.cast(pc.coalesce(rows["arrived_at"], rows["scored_at"]), pa.date32()).to_pylist(), object)


def _start(nights: npt.NDArray[np.object_], least: int) -> date:
    """The first of the newest DAYS, or an earlier one where so many faces are not in them."""
    newest = np.sort(nights)[::-1]
    start: date = min(newest[0] - timedelta(days=DAYS - 1), newest[min(least, len(newest)) - 1])
    return start


def _shown(source: Source, row: Any, chance: float) -> _Shown:
    """A face as the page shows it. Raises ImageError where its picture can't be read or is another now."""
    box = (float(row.box_x), float(row.box_y), float(row.box_w), float(row.box_h))
    face = Face(box, None if pd.isna(row.face_score) else float(row.face_score))
    with one_pictures_misfortune():
        picture = thumbnails.picture(source, row.path, row.content_hash)
        near, whole = (_uri(rgb) for rgb in (thumbnails.cut(picture, face), _context(picture, face)))
    day = None if pd.isna(row.captured_at) else row.captured_at.date()
    return _Shown(row.path, int(row.face), chance, day, near, whole)


def _context(picture: Picture, face: Face) -> RGB:
    """The picture in small, with a frame around the face where it is not the whole."""
    rgb = picture.rgb
    shrink = min(1.0, _CONTEXT_SIDE / max(rgb.shape[:2]))
    size = tuple(max(1, round(side * shrink)) for side in rgb.shape[1::-1])
    small: RGB = np.array(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
    if face.score is not None:
        x, y, w, h = (round(side) for side in face.scaled(small.shape[1] / picture.width).box)
        cv2.rectangle(small, (x, y), (x + w, y + h), _FRAME, 2)
    return small


def _uri(rgb: RGB) -> str:
    return "data:image/jpeg;base64," + _base64(thumbnails.jpeg(rgb))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
