"""A new model over the same pictures: by how much its ages differ, and what it has not scored yet. No drift."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from scipy.stats import t

from agewatch.scoring import predictions
from agewatch.scoring.anew import Left
from agewatch.scoring.baseline import Baseline
from agewatch.scoring.predictions import Key
from monitoring.windows import Window, within

_MOST_FACES = 50_000


@dataclass(frozen=True, slots=True)
class ModelChange:
    """The paired difference, new less old, of the ages of the baseline's faces that both models have rows of, in years.

    `low` and `high` are its 95 % interval over faces; `largest_years` is the largest difference of a face.
    """

    old: str
    new: str
    n_faces: int
    years: float
    low: float
    high: float
    largest_years: float


def since_the_last(table: Path, key: Key, baseline: Window) -> ModelChange | None:
    """Compare with the model whose rows of this archive and mode are the newest but for this one's; None without one.

    Faces are those of the same content and number. Raises TableError where the table can't be read.
    """
    old = _before(table, key)
    if old is None:
        return None
    where = predictions.arrived(baseline.first, baseline.until) & (pc.field("status") == "ok")
    where &= predictions.some(baseline.n_faces, _MOST_FACES)
    columns = ["path", "content_hash", "face", "age"]
    new_rows, old_rows = (
        predictions.read(table, Key(key.archive, model, key.mode).where & where, columns).to_pandas()
        for model in (key.model, old)
    )
    pairs = new_rows.merge(old_rows, on=columns[:3], suffixes=("", "_old")).dropna()
    if len(pairs) < 2:
        return None
    moved = (pairs["age"].astype(float) - pairs["age_old"].astype(float)).to_numpy()
    mean, error = float(moved.mean()), float(moved.std(ddof=1) / np.sqrt(len(moved)))
    half = float(t.ppf(0.975, len(moved) - 1)) * error
    return ModelChange(old, key.model, len(moved), mean, mean - half, mean + half, float(np.abs(moved).max()))


def judged(cells: pd.DataFrame, still: Left, baseline: Baseline | None) -> tuple[pd.DataFrame, int]:
    """Of an archive's sums by the new model what can be judged: nights of which it scored all, and the baseline's.

    With it, how many files of the baseline still stand by an older model: where there are any, nothing can be judged.
    """
    whole = ~cells["night"].isin([pd.Timestamp(night) for night in still.nights])
    if baseline is None:
        return cells, 0
    lacking = sum(n for night, n in still.nights.items() if baseline.first <= night <= baseline.until)
    return cells[whole | within(cells["night"], baseline)], lacking


def _before(table: Path, key: Key) -> str | None:
    where = (pc.field("archive") == key.archive) & (pc.field("mode") == key.mode) & (pc.field("model") != key.model)
    rows = predictions.read(table, where, ["model", "scored_at"])
    newest = rows.group_by("model").aggregate([("scored_at", "max")]).sort_by("scored_at_max")
    return str(newest["model"][-1].as_py()) if len(newest) else None
