"""Rows of one archive -> a file in MegaDetector's format 1.6, which viewers of boxes read (Timelapse, AddaxAI).

The format: https://lila.science/megadetector-output-format. Boxes are of the upright picture, as its own are. Viewers
show a category's name at its box, so it says the age, by tens of years; the age itself stands beside the box, in keys
that the format leaves free.
"""

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from agewatch.files import now
from agewatch.scoring.predictions import SCHEMA
from agewatch.sources.source import decode_path

ESTIMATES = "Ages are a model's estimates, in years, with an interval made to hold nine true ages in ten."
_COLUMNS = (
    "path", "face", "status", "error", "width", "height", "box_x", "box_y", "box_w", "box_h", "face_score", "age",
    "age_low", "age_high", "model",
)  # fmt: skip
_SCHEMA = pa.schema([SCHEMA.field(name) for name in _COLUMNS])
_OLDEST = 100
_BATCH = 4096


def write(file: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write the file and return how many rows it holds; each file of the archive stands once, by its path."""
    rows = pa.Table.from_batches([batch.select(_COLUMNS) for batch in batches], _SCHEMA).sort_by(
        [("path", "ascending"), ("face", "ascending")]
    )
    one_by_one = (row for batch in rows.to_batches(_BATCH) for row in batch.to_pylist())
    tens: set[int] = set()
    with file.open("w", encoding="utf-8") as out:
        out.write('{"images": [')
        for number, (path, found) in enumerate(groupby(one_by_one, key=lambda row: row["path"])):
            out.write(",\n" if number else "\n")
            json.dump(_image(path, list(found), tens), out, ensure_ascii=False)
        models = sorted(rows["model"].unique().to_pylist())
        info = {
            "format_version": "1.6", "detector": ", ".join(models), "detection_completion_time": now(),
            "detector_metadata": {"ages": ESTIMATES},
        }  # fmt: skip
        categories = {str(ten // 10 + 1): _name(ten) for ten in sorted(tens)}
        out.write(f'],\n"detection_categories": {json.dumps(categories)},\n"info": {json.dumps(info)}}}\n')
    return len(rows)


def _image(path: str, rows: list[dict[str, Any]], tens: set[int]) -> dict[str, Any]:
    """What the format says of one file; the tens of years of its faces are added to `tens`."""
    named = {"file": _readable(path)}
    if rows[0]["error"] is not None:
        return named | {"failure": rows[0]["error"], "detections": None}
    detections = []
    for row in rows:
        if row["status"] == "ok":
            ten = min(int(row["age"]) // 10 * 10, _OLDEST)
            tens.add(ten)
            detections.append(
                {
                    "category": str(ten // 10 + 1),
                    "conf": 1.0 if row["face_score"] is None else _short(row["face_score"]),
                    "bbox": inside(row),
                    **{name: _short(row[name]) for name in ("age", "age_low", "age_high")},
                }
            )
    return named | {"detections": detections}


def inside(row: dict[str, Any]) -> list[float]:
    """The part of a row's box that lies in its upright picture: left, top, width and height, as shares of 0 to 1."""
    width, height = row["width"], row["height"]
    left, right = (min(max(edge / width, 0), 1) for edge in (row["box_x"], row["box_x"] + row["box_w"]))
    top, bottom = (min(max(edge / height, 0), 1) for edge in (row["box_y"], row["box_y"] + row["box_h"]))
    return [round(value, 6) for value in (left, top, right - left, bottom - top)]


def _name(ten: int) -> str:
    return f"face, estimated {ten} years or more" if ten == _OLDEST else f"face, estimated {ten} to {ten + 9} years"


def _readable(path: str) -> str:
    """A path as the file system has it, where it is UTF-8; else as the table has it."""
    try:
        return decode_path(path).decode()
    except UnicodeDecodeError:
        return path


def _short(value: float) -> float:
    """A float32 in its shortest decimal form."""
    return float(str(np.float32(value)))
