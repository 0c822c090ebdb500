"""What late labels say of a model's error in an archive: how large it is, where, and whether it rose.

A pure function of labelled faces. What the alarm rests on: docs/drift.md, "Labels".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from agewatch.estimator.model import AgeModel
from agewatch.labelled import late
from agewatch.labelled.calibration import covered
from agewatch.labelled.evaluate import LEARNT_SPLITS, learnt_keys
from agewatch.labelled.metrics import Slice, decade, slice_of
from agewatch.scoring import predictions
from agewatch.scoring.baseline import Accepted
from agewatch.scoring.content import hash_keys
from agewatch.scoring.predictions import Key
from monitoring.evidence import Floats

ALPHA = 0.05
"""Chance that WEEKS labelled weeks in which the error does not change ever say that it rose."""
WEEKS = 150
"""The part of ALPHA of a rise after k labelled weeks goes by 1 / (k + 1), and these parts make up ALPHA in so many."""
MATERIAL = 0.5
"""Years; a smaller rise of the mean error is never said."""
RATIOS = (1.3, 1.6)
"""The alternatives: errors that are so many times as large. They are averaged, and find larger ones as well."""
MOST_YEARS = 40.0
"""For the interval of the mean an error over this counts as this; it needs a bound, and one face in 10,000 has more."""
MOST_FOLDERS = 50
"""So many top folders are measured, those with most labels."""
_GRID, _PARTS = 400, 20  # means that the interval is sought among, every tenth of a year, and in how many parts

Weeks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean error of n faces, years, with a 95 % interval that holds at every look."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class MeasuredError:
    """The error by labels: `mae` of all, or since it rose of those that arrived then, when `before` is the others'.

    `rose` is None where labels of fewer than two weeks can't tell; `since` is the Monday (UTC) of the week in which the
    rise most likely began. `slices` measure all labelled faces, then by month of arrival, top folder and true decade.
    """

    mae: Mean
    rose: bool | None
    since: date | None
    before: Mean | None
    slices: tuple[Slice, ...]


def measure(table: Path, key: Key, model_path: Path, until: date, told: Accepted | None) -> MeasuredError | None:
    """Measure the error of an archive's rows by its labels; None where no face has one.

    Labels that were added, and faces that arrived, after `until` do not count. After `told` the accepted nights are the
    reference, and what arrived before them is left out. Raises TableError where the labels or the table can't be read.
    """
    if late.read(table, key.archive, until).empty:
        return None
    faces = labelled(table, key, model_path, until)
    if told is not None:
        faces = faces[faces["night"].dt.date >= told.first]
    return of(faces, None if told is None else told.until) if len(faces) else None


def labelled(table: Path, key: Key, model_path: Path, until: date, but: Sequence[str] = LEARNT_SPLITS) -> pd.DataFrame:
    """The labelled faces of an archive, one row a content and face, in the order in which labels were added.

    Files of the model's splits `but` are left out, by default all that it learnt from.
    Columns: content_hash, face, age (true), predicted, low, high (years), covered, path, night (of arrival), added_at.
    """
    labels = late.read(table, key.archive, until)
    if len(labels):
        labels = labels[~np.isin(hash_keys(pa.array(labels["content_hash"])), list(learnt_keys(model_path, but)))]
    where = key.where & (pc.field("status") == "ok")
    names = ["content_hash", "face", "path", "age", "age_low", "age_high", "arrived_at", "scored_at"]
    if labels.empty:
        rows = predictions.SCHEMA.empty_table().select(names)
    else:
        rows = predictions.read(table, where & pc.field("content_hash").isin(pa.array(labels["content_hash"])), names)
    night = pc.cast(pc.coalesce(rows["arrived_at"], rows["scored_at"]), pa.date32())
    found = rows.drop_columns(["arrived_at", "scored_at"]).append_column("night", night).to_pandas()
    found = found.rename(columns={"age": "predicted", "age_low": "low", "age_high": "high"})
    found = found.assign(night=pd.to_datetime(found["night"])).sort_values(["night", "path"])
    found = found[found["night"].dt.date <= until].drop_duplicates(["content_hash", "face"])
    joined = labels.merge(found, on=["content_hash", "face"]).sort_values(["added_at", "content_hash"])
    low, high, age = (joined[name].to_numpy(np.float64) for name in ("low", "high", "age"))
    inside = covered(low, high, age, AgeModel.load(model_path).spec.labels)
    return joined.assign(covered=inside).reset_index(drop=True)


def of(faces: pd.DataFrame, accepted_until: date | None = None) -> MeasuredError:
    """Judge labelled faces, at least one, as `labelled` gives them; arrivals up to a day are one reference."""
    errors = np.abs(faces["predicted"].to_numpy(np.float64) - faces["age"].to_numpy(np.float64))
    monday = faces["night"].dt.to_period("W").dt.start_time
    if accepted_until is not None:
        monday = monday.where(faces["night"].dt.date > accepted_until, faces["night"].min())
    weeks = pd.factorize(monday, sort=True)
    by_chance = np.argsort(faces["content_hash"].to_numpy(str), kind="stable")  # so that equal errors have no order
    value, first = rise(errors[by_chance], weeks[0][by_chance])
    is_later = weeks[0] >= first
    has_risen = value >= 1 / ALPHA and errors[is_later].mean() - errors[~is_later].mean() >= MATERIAL
    return MeasuredError(
        mae=mean(errors[is_later] if has_risen else errors),
        rose=bool(has_risen) if len(weeks[1]) > 1 else None,
        since=weeks[1][first].date() if has_risen else None,
        before=mean(errors[~is_later]) if has_risen else None,
        slices=tuple(_slices(faces)),
    )


def rise(errors: Floats, weeks: Weeks) -> tuple[float, int]:
    """The evidence that errors (n,), years, rose, and the week in which they most likely did.

    `weeks` (n,) numbers the labelled weeks from 0 in order. Where all n errors could as well stand in any other order,
    the evidence is of mean 1 whatever their law is, and remains so as labels are added, in any order (Ville: it ever
    passes 1 / ALPHA with a chance of at most ALPHA). It is the likelihood ratio of the ranks alone, where from one week
    on the hazard of errors is 1 / RATIO of what it was (Cox's partial likelihood, 1972; Savage 1956; as a test
    martingale: ter Schure, Pérez-Ortiz, Ly & Grünwald, arXiv 2011.06931), averaged over RATIOS and weeks.
    """
    at_risk = np.arange(len(errors), 0, -1)
    week = weeks[np.argsort(errors, kind="stable")]
    first = np.arange(1, weeks.max() + 1)
    if not len(first):
        return 0.0, 0
    logs = np.empty((len(first), len(RATIOS)))
    for place, number in enumerate(first):
        later = np.cumsum((week >= number)[::-1])[::-1]
        for column, ratio in enumerate(RATIOS):
            lowered = np.log1p((1 / ratio - 1) * later / at_risk).sum()
            logs[place, column] = -later[0] * math.log(ratio) - lowered
    part = 1 / (first + 1) / (1 / np.arange(2, WEEKS + 1)).sum()
    each = np.log(part) + np.logaddexp.reduce(logs, axis=1) - math.log(len(RATIOS))
    return float(np.exp(min(np.logaddexp.reduce(each), 690))), int(first[each.argmax()])


def mean(errors: Floats) -> Mean:
    """The mean of errors (n,), years, in the order in which they were learnt, with its interval.

    The hedged capital interval of Waudby-Smith & Ramdas (2024, doi:10.1093/jrsssb/qkad009, theorem 3): it holds at all
    looks together, for errors up to MOST_YEARS of one mean, whatever their law.
    """
    x = np.minimum(errors, MOST_YEARS) / MOST_YEARS
    count = np.arange(1, len(x) + 1)
    running = (0.5 + np.cumsum(x)) / (count + 1)
    spread = (0.25 + np.cumsum((x - running) ** 2)) / (count + 1)
    bet = np.sqrt(2 * math.log(2 / ALPHA) / (np.r_[0.25, spread[:-1]] * count * np.log1p(count)))
    grid = np.linspace(0, 1, _GRID)
    held = MOST_YEARS * np.concatenate(
        [part[_capital(x, bet, part) < math.log(2 / ALPHA)] for part in np.split(grid, _PARTS)]
    )
    held = held if len(held) else np.full(1, MOST_YEARS * x.mean())
    step = MOST_YEARS / (_GRID - 1)
    return Mean(float(errors.mean()), max(float(held[0]) - step, 0.0), float(held[-1]) + step, len(errors))


def _capital(x: Floats, bet: Floats, means: Floats) -> Floats:
    """The logarithm of what bets on a larger or on a smaller mean have made of 1, whichever is more; of each mean."""
    apart = x - means[:, None]
    up = np.log1p(np.minimum(bet, 0.5 / np.maximum(means, 1e-9)[:, None]) * apart).sum(axis=1)
    down = np.log1p(-np.minimum(bet, 0.5 / np.maximum(1 - means, 1e-9)[:, None]) * apart).sum(axis=1)
    return np.asarray(np.maximum(up, down))


def _slices(faces: pd.DataFrame) -> list[Slice]:
    folder = faces["path"].str.extract(r"^([^/]*)/", expand=False).fillna("")
    largest = folder.value_counts().index[:MOST_FOLDERS]
    groups = {
        "month": faces["night"].dt.strftime("%Y-%m"),
        "folder": folder.where(folder.isin(largest)),
        "age": decade(faces["age"]),
    }
    found = [slice_of("all", "all", faces)]
    for dimension, values in groups.items():
        found += [slice_of(dimension, str(value), rows) for value, rows in faces.groupby(values)]
    return found
