"""Metrics of age estimates, and the calibration of their intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agewatch.model import Band, Calibration, Floats, Labels, conformity

MIN_BAND_FACES = 200
"""Neighbouring decades are merged until a band holds so many calibration faces."""
_RESAMPLES = 2000

Years = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Metrics:
    """How a candidate does on labelled faces; all in years but n and cs5 (share of errors of at most 5 years)."""

    name: str
    n: int
    mae: float
    mae_low: float
    mae_high: float
    rmse: float
    bias: float
    cs5: float


def measure(name: str, predicted: Years, true: Years, *, seed: int = 0) -> Metrics:
    """Compare ages of shape (n,); the MAE's 95 % interval is a percentile bootstrap (Efron, 1979) over faces."""
    error = np.asarray(predicted, np.float64) - true
    absolute = np.abs(error)
    picks = np.random.default_rng(seed).integers(0, len(error), (_RESAMPLES, len(error)))
    low, high = np.quantile(absolute[picks].mean(axis=1), [0.025, 0.975])
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


def calibrate(probabilities: Floats, ages: Years, labels: Labels, *, coverage: float = 0.9) -> Calibration:
    """Label-conditional split-conformal quantiles (Vovk, 2012) by decade of the true age.

    probabilities: (n, bins) of faces that neither training nor selection saw. ages: (n,), clipped to the bins.
    Neighbouring decades are merged until a band has MIN_BAND_FACES faces, or only one band is left.
    """
    bins = np.clip(np.rint(ages).astype(int), labels.lowest, labels.highest) - labels.lowest
    scores = conformity(probabilities)[np.arange(len(bins)), bins]
    bands = [
        Band(low, high, int(inside.sum()), _conformal_quantile(scores[inside], coverage))
        for low, high in _bands(bins + labels.lowest, labels)
        if (inside := (bins + labels.lowest >= low) & (bins + labels.lowest <= high)).any()
    ]
    return Calibration(coverage, tuple(bands))


def coverage_share(low: Years, high: Years, ages: Years, labels: Labels) -> float:
    """Share of true ages, 0..1, that lie in their interval (n,); ages above the bins' range count as its end."""
    clipped = np.clip(ages, labels.lowest, labels.highest)
    return float(((low <= clipped) & (clipped <= high)).mean())


def as_markdown(table: Sequence[Metrics]) -> str:
    """Render a comparison table."""
    head = "| candidate | n | MAE | 95 % CI | RMSE | bias | within 5 years |\n|---|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row.name} | {row.n} | {row.mae:.2f} | {row.mae_low:.2f} to {row.mae_high:.2f} | {row.rmse:.2f}"
        f" | {row.bias:+.2f} | {row.cs5:.1%} |\n"
        for row in table
    )


def as_records(table: Sequence[Metrics]) -> list[dict[str, Any]]:
    """The comparison table as plain data, for JSON."""
    return [asdict(row) for row in table]


def _conformal_quantile(scores: Floats, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest score; 1, which covers all, where n is too small for it."""
    rank = int(np.ceil((len(scores) + 1) * coverage))
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
