"""Faces -> JPEG sheets of SIDE-pixel squares, ACROSS in a row and a column, drawn by worker processes.

A browser that shows thousands of faces opens some hundred files instead of thousands, and only those in view.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from simplejpeg import decode_jpeg

from agewatch.errors import ImageError
from agewatch.estimator.faces import Face
from agewatch.estimator.images import RGB
from agewatch.estimator.memory import Room
from agewatch.scoring import pool
from agewatch.scoring.predictions import Rows
from agewatch.scoring.scorer import Execution, one_pictures_misfortune
from agewatch.scoring.thumbnails import cut, jpeg, picture
from agewatch.sources.source import Source

SIDE = 128
"""Pixels of a face on a sheet."""
ACROSS = 8
_SHARD = 16
_GREY = 128

Drawn = Mapping[int, bytes | str]
"""By their cells: faces as JPEG, or the sentence that says why there is none."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file of an archive as it was scored, and its faces by the cell that each is drawn in."""

    path: str
    content_hash: str
    bytes: int
    faces: tuple[tuple[int, Face], ...]


def number(rows: Rows) -> None:
    """Give each row its `cell`: rows of one face, of several models, share one; a refused file has -1."""
    cells: dict[tuple[Any, ...], int] = {}
    for row in rows:
        is_drawn = row["status"] in ("ok", "no_face")
        place = [row[side] and round(row[side]) for side in ("box_x", "box_y")]
        row["cell"] = cells.setdefault((row["path"], row["content_hash"], *place), len(cells)) if is_drawn else -1


def items_of(rows: Rows) -> list[Item]:
    """The files of rows with cells, each once; where no face was found, the whole picture is drawn."""
    faces: dict[tuple[str, str, int], dict[int, Face]] = {}
    for row in rows:
        if row["cell"] >= 0:
            file = (row["path"], row["content_hash"], row["bytes"] or 0)
            faces.setdefault(file, {})[row["cell"]] = _face(row)
    return [Item(*file, tuple(found.items())) for file, found in faces.items()]


def _face(row: dict[str, Any]) -> Face:
    if row["status"] != "ok":
        return Face((0.0, 0.0, row["width"], row["height"]))
    return Face((row["box_x"], row["box_y"], row["box_w"], row["box_h"]), row["face_score"])


@dataclass(frozen=True)
class Drawing(pool.Task[Item, Drawn]):
    """Cutting the faces of files out, each file decoded once."""

    source: Source
    room: Room

    def open(self) -> pool.Work[Item, Drawn]:
        """Get ready: nothing is needed."""
        cv2.setNumThreads(1)

        def work(items: Sequence[Item], starts: Callable[[], None]) -> Drawn:
            found: dict[int, bytes | str] = {}
            for item in items:
                starts()
                found |= self._draw(item, starts)
            return found

        return work

    def _draw(self, item: Item, starts: Callable[[], None]) -> Drawn:
        try:
            with self.room.picture(starts), one_pictures_misfortune():
                self.room.expect(item.bytes)
                shown = picture(self.source, item.path, item.content_hash, self.room)
                return {cell: jpeg(cut(shown, face, SIDE)) for cell, face in item.faces}
        except ImageError as refusal:
            return dict.fromkeys((cell for cell, _ in item.faces), str(refusal))

    def give_up(self, item: Item, why: str) -> Drawn:
        """The same sentence for all faces of a file."""
        return dict.fromkeys((cell for cell, _ in item.faces), f"The process that drew the picture {why}.")


def draw(rows: Rows, source: Source, folder: Path, how: Execution) -> dict[int, str]:
    """Draw all cells of rows into folder/0.jpg, folder/1.jpg, ...; return why some are empty, by cell.

    A sheet is written as soon as its last face is there; until then faces wait as JPEG, some 5 kB each. Raises OSError
    where a sheet can't be written, and what `pool.run` raises.
    """
    items = items_of(rows)
    of = {cell: number for number, item in enumerate(items) for cell, _ in item.faces}
    waiting: dict[int, dict[int, bytes | str]] = {}
    lost: dict[int, str] = {}
    done, counts = 0, Counter[str]()
    for drawn in pool.run(Drawing(source, how.room()), pool.shards(items, _SHARD), how.workers):
        for cell, face in drawn.items():
            sheet, place = divmod(cell, ACROSS**2)
            waiting.setdefault(sheet, {})[place] = face
            if isinstance(face, str):
                lost[cell] = face
            if len(waiting[sheet]) == min(ACROSS**2, len(of) - sheet * ACROSS**2):
                (folder / f"{sheet}.jpg").write_bytes(jpeg(_composed(waiting.pop(sheet))))
        done += len({of[cell] for cell in drawn})
        counts["ok"] += len(drawn)
        how.progress(done, len(items), counts)
    return lost


def _composed(faces: Mapping[int, bytes | str]) -> RGB:
    """The faces of one sheet, by place."""
    sheet: RGB = np.full((ACROSS * SIDE, ACROSS * SIDE, 3), _GREY, np.uint8)
    for place, face in faces.items():
        if isinstance(face, bytes):
            top, left = (SIDE * which for which in divmod(place, ACROSS))
            sheet[top : top + SIDE, left : left + SIDE] = decode_jpeg(face)
    return sheet
