"""Metrics of age estimates, over all faces and by slices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

MIN_SLICE_FACES = 30
"""A slice with fewer faces is shown, but is never called the worst one."""
CHILD = 13
"""Ages below are called children where ethnicity and age are crossed."""
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000
_FACE_SIZES = (24, 48, 96, 192)  # pixels of the box height
_SIZE_NAMES = ("under 24 px", "24-47 px", "48-95 px", "96-191 px", "192 px and more")
_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.5)

Years = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Slice:
    """How the estimates do on one group of faces, in years; coverage (0..1) and width are None without intervals.

    The limits are of 95 %: a percentile bootstrap for the MAE, Clopper and Pearson's (1934) for the coverage.
    """

    dimension: str
    value: str
    n: int
    mae: float
    mae_low: float
    mae_high: float
    bias: float
    coverage: float | None = None
    coverage_low: float | None = None
    coverage_high: float | None = None
    width: float | None = None


@dataclass(frozen=True)
class Metrics:
    """How a candidate does on labelled faces; all in years but n and cs5 (share of errors of at most 5 years).

    `cost_ms` is CPU time a face, `megabytes` the size of the weights; None where there is nothing to run.
    """

    name: str
    n: int
    mae: float
    mae_low: float
    mae_high: float
    rmse: float
    bias: float
    cs5: float
    worst: Slice | None = None
    cost_ms: float | None = None
    megabytes: float | None = None


@dataclass(frozen=True)
class Risk:
    """MAE, years, of the `share` (0..1) of the faces with the narrowest intervals; `width` is the widest of them."""

    share: float
    n: int
    mae: float
    width: float


def measure(name: str, predicted: Years, true: Years) -> Metrics:
    """Compare ages of shape (n,); the MAE's 95 % interval is a percentile bootstrap (Efron, 1979) over faces."""
    error = np.asarray(predicted, np.float64) - true
    absolute = np.abs(error)
    low, high = np.quantile(bootstrap_means(absolute, _RESAMPLES), [0.025, 0.975])
    return Metrics(
        name=name,
        n=len(error),
        mae=float(absolute.mean()),
        mae_low=float(low),
        mae_high=float(high),
        rmse=float(np.sqrt((error**2).mean())),
        bias=float(error.mean()),
        cs5=float((absolute <= 5).mean()),
    )


def bootstrap_means(values: Years, resamples: int) -> Years:
    """Means of `resamples` draws with replacement from values (n,); the same draws each time."""
    random = np.random.default_rng(0)
    rows = max(1, _DRAWN_AT_ONCE // len(values))  # bounds the memory, whatever n
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([values[random.integers(0, len(values), (size, len(values)))].mean(axis=1) for size in sizes])


def absolute_errors(frame: pd.DataFrame, estimates: str = "predicted") -> Years:
    """How far a column of estimates is from the column age, years, shape (n,)."""
    errors: Years = np.abs(frame[estimates].to_numpy(np.float64) - frame["age"].to_numpy(np.float64))
    return errors


def slices(frame: pd.DataFrame, dimension: str | None = None) -> list[Slice]:
    """Measure every group of `members`, or of one dimension; `frame` has what that needs, and `predicted` (years).

    With columns low, high (years) and covered (bool) the slices have coverage and width too.
    """
    return [slice_of(*group) for group in members(frame) if dimension in (None, group[0])]


def worst_slice(frame: pd.DataFrame) -> Slice | None:
    """The slice of at least MIN_SLICE_FACES faces with the largest MAE; None where there is none."""
    large = [group for group in members(frame) if len(group[2]) >= MIN_SLICE_FACES]
    return slice_of(*max(large, key=lambda group: absolute_errors(group[2]).mean())) if large else None


def balanced_mae(frame: pd.DataFrame) -> float:
    """Mean of the MAE of the true decades (80 and over together), each counted alike, years."""
    return float(pd.Series(absolute_errors(frame), frame.index).groupby(decade(frame["age"])).mean().mean())


def risk_coverage(frame: pd.DataFrame) -> list[Risk]:
    """What is gained by leaving out the faces with the widest intervals (El-Yaniv & Wiener, JMLR 2010)."""
    widths = (frame["high"] - frame["low"]).to_numpy(np.float64)
    order = np.argsort(widths, kind="stable")
    absolute = absolute_errors(frame)[order]
    counts = {share: max(1, round(share * len(frame))) for share in _SHARES}
    return [Risk(share, n, float(absolute[:n].mean()), float(widths[order][n - 1])) for share, n in counts.items()]


def members(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield dimension, value and rows of every group that is not empty.

    Columns used: source, age (true, years), sex, ethnicity, mode, box_h (pixels, used in mode `detect`), sharpness.
    """
    child = np.where(frame["age"] < CHILD, f", under {CHILD}", f", {CHILD} and over")
    quartiles = frame["sharpness"].quantile([0.25, 0.5, 0.75]).to_list()
    groups = {
        "source": frame["source"],
        "age": decade(frame["age"]),
        "sex": frame["sex"],
        "ethnicity": frame["ethnicity"],
        "ethnicity and age": frame["ethnicity"] + pd.Series(child, frame.index),
        "face size": _binned(frame["box_h"].where(frame["mode"] == "detect"), _FACE_SIZES, _SIZE_NAMES),
        "sharpness": _binned(frame["sharpness"], quartiles, _QUARTERS),
    }
    for dimension, values in groups.items():
        for value, rows in frame.groupby(values, observed=True):
            yield dimension, str(value), rows


def slice_of(dimension: str, value: str, faces: pd.DataFrame) -> Slice:
    """Measure one group of faces: columns predicted, age, and for coverage and width low, high and covered."""
    found = measure(value, faces["predicted"].to_numpy(np.float64), faces["age"].to_numpy(np.float64))
    years = (found.mae, found.mae_low, found.mae_high, found.bias)
    if "covered" not in faces:
        return Slice(dimension, value, found.n, *years)
    hits = int(faces["covered"].sum())
    exact = binomtest(hits, found.n).proportion_ci()
    width = float((faces["high"] - faces["low"]).mean())
    return Slice(dimension, value, found.n, *years, hits / found.n, float(exact.low), float(exact.high), width)


def decade(ages: "pd.Series[Any]") -> "pd.Series[Any]":
    """The name of each age's decade; 80 and over together."""
    decades = ages // 10 * 10
    names: pd.Series[Any] = decades.map(lambda low: "80+" if low >= 80 else f"{low:.0f}-{low + 9:.0f}")
    return names


def _binned(values: "pd.Series[Any]", edges: Sequence[float], names: Sequence[str]) -> "pd.Series[Any]":
    """The name of each value's place among the edges, in their order; none where there is no value."""
    places = np.searchsorted(edges, values.to_numpy(np.float64), side="right")
    named = np.array([*names, None])[np.where(values.notna(), places, -1)]
    return pd.Series(pd.Categorical(named, list(names)), values.index)
