"""Held-out pictures of people whose age is known, as they are and as a worse camera would give them, really scored.

AGEWATCH_DATA names the folders that the tracked model was trained from; pictures are those of its reference.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from agewatch import api
from agewatch.estimator.model import read_reference
from agewatch.estimator.spec import Mode
from agewatch.scoring import predictions
from agewatch.scoring.predictions import Key

Change = Callable[[Image.Image], Image.Image]
CHANGES: dict[str, tuple[Change, int]] = {
    "as they are": (lambda picture: picture, 95),
    "dark": (lambda picture: ImageEnhance.Brightness(picture).enhance(0.4), 95),
    "blurred": (lambda picture: picture.filter(ImageFilter.GaussianBlur(2)), 95),
    "JPEG 10": (lambda picture: picture, 10),
    "half size": (lambda picture: ImageOps.scale(picture, 0.5), 95),
    "slightly bright": (lambda picture: ImageEnhance.Brightness(picture).enhance(1.25), 95),
    "slightly blurred": (lambda picture: picture.filter(ImageFilter.GaussianBlur(1)), 95),
    "JPEG 30": (lambda picture: picture, 30),
    "grey": (lambda picture: picture.convert("L").convert("RGB"), 95),
    "bright": (lambda picture: ImageEnhance.Brightness(picture).enhance(1.6), 95),
}
"""What is done to a picture, and the JPEG quality it is saved with."""


@cache
def scored(change: str, mode: Mode = "detect") -> pd.DataFrame:
    """Rows of the predictions table with `source` and `age_true`: the largest face of each file that has one."""
    known = _known()
    with tempfile.TemporaryDirectory() as home:
        archive, table = Path(home) / "archive", Path(home) / "table"
        for path in known.index:
            _changed(Path(os.environ["AGEWATCH_DATA"]) / path, archive / path, *CHANGES[change])
        summary = api.score_archive(archive, predictions=table, faces=mode, max_refused=1)
        where = Key(summary.archive, summary.model, summary.mode).where
        rows: pd.DataFrame = predictions.read(table, where).to_pandas()
    # Whoever else is in the picture has an age that nobody knows.
    return rows[rows["face"] == 0].merge(known, left_on="path", right_index=True)


def _known() -> pd.DataFrame:
    """Source and true age of each picture of the model's reference, by its path below AGEWATCH_DATA."""
    rows: pd.DataFrame = pq.read_table(pa.BufferReader(read_reference(api.model_file(None)))).to_pandas()
    rows = rows.assign(path=rows["archive"] + "/" + rows["path"], source=rows["archive"]).drop_duplicates("path")
    known: pd.DataFrame = rows.set_index("path")[["source", "age_true"]]
    return known


def _changed(old: Path, new: Path, change: Change, quality: int) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(old) as picture:
        change(ImageOps.exif_transpose(picture).convert("RGB")).save(new.with_suffix(".jpg"), quality=quality)
