"""Faces to draw archives from: what the tracked model makes of held-out pictures of people whose age is known."""

from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from lives import Floats

from agewatch.estimator.model import read_reference
from agewatch.release.store import resolve
from agewatch.settings import Settings


@cache
def adults() -> dict[str, Floats]:
    """The measures of adults (18 and over) as the sums of nights know them, each of shape (faces,)."""
    rows = _rows()
    rows = rows[rows["age_true"] >= 18]
    interval, sharpness = rows["age_high"] - rows["age_low"], np.log2(rows["sharpness"])
    measures = rows.assign(age_interval=interval, sharpness=sharpness)
    names = ("age", "age_interval", "face_score", "brightness", "contrast", "sharpness")
    return {name: measures[name].to_numpy(np.float64) for name in names}


@cache
def children() -> Floats:
    """The estimated ages of children under 13."""
    rows = _rows()
    return np.asarray(rows.loc[rows["age_true"] < 13, "age"], np.float64)


@cache
def adult_errors() -> Floats:
    """How far the estimates of adults are from their ages, years, each of shape (faces,)."""
    rows = _rows()
    rows = rows[rows["age_true"] >= 18]
    return np.asarray(np.abs(rows["age"].to_numpy(np.float64) - rows["age_true"].to_numpy(np.float64)))


@cache
def _rows() -> pd.DataFrame:
    """Rows of the model's reference: pictures that it was not trained on, in mode detect."""
    reference = pq.ParquetFile(pa.BufferReader(read_reference(resolve(None, Settings().model_store)))).read(
        use_threads=False
    )
    rows: pd.DataFrame = reference.to_pandas()
    kept: pd.DataFrame = rows[(rows["status"] == "ok") & (rows["mode"] == "detect")]
    return kept
