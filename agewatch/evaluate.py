"""Metrics of age estimates, over all faces and by slices, and the calibration of their intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from agewatch.model import Band, Calibration, Floats, Labels, conformity

COVERAGE = Calibration.coverage
"""Share of true ages that intervals are made to hold."""
MIN_BAND_FACES = 200
"""Neighbouring decades are merged until a band holds so many calibration faces."""
MIN_SLICE_FACES = 30
"""A slice with fewer faces is shown, but is never called the worst one."""
CHILD = 13
"""Ages below are called children where ethnicity and age are crossed."""
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000
_FACE_SIZES = (24, 48, 96, 192)  # pixels of the box height
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.5)

Years = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


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


def slices(frame: pd.DataFrame) -> list[Slice]:
    """Measure every group of `members`; `frame` has what that needs, and `predicted` (years).

    With columns low, high (years) and covered (bool) the slices have coverage and width too.
    """
    return [_slice(dimension, value, frame[inside]) for dimension, value, inside in members(frame)]


def worst_slice(frame: pd.DataFrame) -> Slice | None:
    """The slice of at least MIN_SLICE_FACES faces with the largest MAE; None where there is none."""
    absolute = np.abs(frame["predicted"].to_numpy(np.float64) - frame["age"])
    large = [group for group in members(frame) if group[2].sum() >= MIN_SLICE_FACES]
    if not large:
        return None
    dimension, value, inside = max(large, key=lambda group: absolute[group[2]].mean())
    return _slice(dimension, value, frame[inside])


def balanced_mae(frame: pd.DataFrame) -> float:
    """Mean of the MAE of the true decades (80 and over together), each counted alike, years."""
    absolute = (frame["predicted"] - frame["age"]).abs()
    return float(absolute.groupby(_decade(frame["age"])).mean().mean())


def risk_coverage(frame: pd.DataFrame) -> list[Risk]:
    """What is gained by leaving out the faces with the widest intervals (El-Yaniv & Wiener, JMLR 2010)."""
    widths = (frame["high"] - frame["low"]).to_numpy(np.float64)
    order = np.argsort(widths, kind="stable")
    absolute = np.abs((frame["predicted"] - frame["age"]).to_numpy(np.float64))[order]
    counts = {share: max(1, round(share * len(frame))) for share in _SHARES}
    return [Risk(share, n, float(absolute[:n].mean()), float(widths[order][n - 1])) for share, n in counts.items()]


def members(frame: pd.DataFrame) -> Iterator[tuple[str, str, Mask]]:
    """Yield dimension, value and mask (n,) of every group that is not empty.

    Columns used: source, age (true, years), sex, ethnicity, mode, box_h (pixels, used in mode `detect`), sharpness.
    """
    groups: dict[str, tuple[pd.Series[Any], Sequence[str] | None]] = {
        "source": (frame["source"], None),
        "age": (_decade(frame["age"]), None),
        "sex": (frame["sex"], None),
        "ethnicity": (frame["ethnicity"], None),
        "ethnicity and age": (_ethnicity_and_age(frame), None),
        "face size": _binned(frame["box_h"].where(frame["mode"] == "detect"), _FACE_SIZES, _size_names()),
        "sharpness": _quarters(frame["sharpness"]),
    }
    for dimension, (values, order) in groups.items():
        for value in order or sorted(values.dropna().unique()):
            inside = (values == value).to_numpy(bool)
            if inside.any():
                yield dimension, str(value), inside


def calibrate(probabilities: Floats, ages: Years, labels: Labels) -> Calibration:
    """Label-conditional split-conformal quantiles (Vovk, 2012) by decade of the true age.

    probabilities: (n, bins) of faces that neither training nor selection saw. ages: (n,), clipped to the bins.
    Neighbouring decades are merged until a band has MIN_BAND_FACES faces, or only one band is left.
    """
    bins = np.clip(np.rint(ages).astype(int), labels.lowest, labels.highest) - labels.lowest
    scores = conformity(probabilities)[np.arange(len(bins)), bins]
    bands = [
        Band(low, high, int(inside.sum()), _conformal_quantile(scores[inside]))
        for low, high in _bands(bins + labels.lowest, labels)
        if (inside := (bins + labels.lowest >= low) & (bins + labels.lowest <= high)).any()
    ]
    return Calibration(COVERAGE, tuple(bands))


def coverage_share(low: Years, high: Years, ages: Years, labels: Labels) -> float:
    """Share of true ages, 0..1, that lie in their interval (n,); ages above the bins' range count as its end."""
    return float(covered(low, high, ages, labels).mean())


def covered(low: Years, high: Years, ages: Years, labels: Labels) -> Mask:
    """Which true ages (n,) lie in their interval; ages above the bins' range count as its end."""
    clipped = np.clip(ages, labels.lowest, labels.highest)
    inside: Mask = (low <= clipped) & (clipped <= high)
    return inside


def conformal_rank(n: int) -> int:
    """The rank, from 1, of the score of n that is the quantile; n + 1 where n is too small for COVERAGE."""
    return int(np.ceil((n + 1) * COVERAGE))


def as_markdown(table: Sequence[Metrics]) -> str:
    """Render a comparison table."""
    head = (
        "| candidate | n | MAE | 95 % CI | RMSE | bias | within 5 years | worst slice | CPU ms a face | MB |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {row.name} | {row.n} | {row.mae:.2f} | {row.mae_low:.2f} to {row.mae_high:.2f} | {row.rmse:.2f}"
        f" | {row.bias:+.2f} | {row.cs5:.1%} | {_worst_text(row.worst)} | {_number(row.cost_ms, 2)}"
        f" | {_number(row.megabytes, 1)} |\n"
        for row in table
    )


def as_records(table: Sequence[Metrics]) -> list[dict[str, Any]]:
    """The comparison table as plain data, for JSON."""
    return [asdict(row) for row in table]


def from_records(records: Sequence[dict[str, Any]]) -> list[Metrics]:
    """The comparison table that `as_records` made plain, also of models made before a column was added."""
    return [Metrics(**(row | {"worst": Slice(**row["worst"]) if row.get("worst") else None})) for row in records]


def slice_figures(part: Slice) -> tuple[str, ...]:
    """A slice's figures as text: n, MAE, its limits, bias, coverage, its limits, width; empty where there is none."""
    years = (f"{part.n:,}", f"{part.mae:.2f}", f"{part.mae_low:.2f} to {part.mae_high:.2f}", f"{part.bias:+.2f}")
    if part.coverage is None:
        return (*years, "", "", "")
    limits = f"{part.coverage_low:.1%} to {part.coverage_high:.1%}"
    return (*years, f"{part.coverage:.1%}", limits, f"{part.width:.1f}")


def _worst_text(worst: Slice | None) -> str:
    return f"{worst.dimension} {worst.value}: {worst.mae:.2f} (n {worst.n})" if worst else ""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _slice(dimension: str, value: str, faces: pd.DataFrame) -> Slice:
    found = measure(value, faces["predicted"].to_numpy(np.float64), faces["age"].to_numpy(np.float64))
    years = (found.mae, found.mae_low, found.mae_high, found.bias)
    if "covered" not in faces:
        return Slice(dimension, value, found.n, *years)
    hits = int(faces["covered"].sum())
    low, high = _clopper_pearson(hits, found.n)
    width = float((faces["high"] - faces["low"]).mean())
    return Slice(dimension, value, found.n, *years, hits / found.n, low, high, width)


def _clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    low = stats.beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return float(low), float(high)


def _decade(ages: "pd.Series[Any]") -> "pd.Series[Any]":
    decades = ages // 10 * 10
    names: pd.Series[Any] = decades.map(lambda low: "80+" if low >= 80 else f"{low:.0f}-{low + 9:.0f}")
    return names


def _ethnicity_and_age(frame: pd.DataFrame) -> "pd.Series[Any]":
    age = np.where(frame["age"] < CHILD, f", under {CHILD}", f", {CHILD} and over")
    names: pd.Series[Any] = frame["ethnicity"] + pd.Series(age, frame.index)
    return names


def _size_names() -> list[str]:
    inner = [f"{low}-{high - 1} px" for low, high in pairwise(_FACE_SIZES)]
    return [f"under {_FACE_SIZES[0]} px", *inner, f"{_FACE_SIZES[-1]} px and more"]


def _quarters(values: "pd.Series[Any]") -> tuple["pd.Series[Any]", list[str]]:
    names = ["lowest quarter", "second quarter", "third quarter", "highest quarter"]
    return _binned(values, values.quantile([0.25, 0.5, 0.75]).to_list(), names)


def _binned(values: "pd.Series[Any]", edges: Sequence[float], names: list[str]) -> tuple["pd.Series[Any]", list[str]]:
    places = np.searchsorted(edges, values.to_numpy(np.float64), side="right").clip(max=len(names) - 1)
    return pd.Series(np.array(names, dtype=object)[places], values.index).where(values.notna()), names


def _conformal_quantile(scores: Floats) -> float:
    """The ceil((n + 1) COVERAGE)-th smallest score; 1, which covers all, where n is too small for it."""
    rank = conformal_rank(len(scores))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


def _bands(ages: npt.NDArray[np.int_], labels: Labels) -> list[tuple[int, int]]:
    """Decades, merged upwards from the youngest until each holds enough faces; a thin rest joins the last band."""
    bands: list[tuple[int, int]] = []
    low = labels.lowest
    for decade in range(labels.lowest, labels.highest + 1, 10):
        high = labels.highest if decade + 10 > labels.highest - 9 else decade + 9
        if ((ages >= low) & (ages <= high)).sum() >= MIN_BAND_FACES:
            bands.append((low, high))
            low = high + 1
        if high == labels.highest:
            break
    if low <= labels.highest:
        bands = [*bands[:-1], (bands[-1][0] if bands else labels.lowest, labels.highest)]
    return bands
