"""Intervals: how they are calibrated, and what coverage that promises for new faces.

Split-conformal by mode and band of true age; the limits of the coverage are exact, and every decade keeps a floor.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from agewatch.estimator.model import conformity
from agewatch.estimator.spec import Band, Calibration, Floats, Labels, Mode
from agewatch.labelled.metrics import Slice, Years

COVERAGE = Calibration.coverage
"""Share of true ages that intervals are made to hold."""
MIN_BAND_FACES = 200
"""Neighbouring decades are merged until a band holds so many calibration faces."""
MIN_MODE_FACES = 100
"""Modes are calibrated apart where each has so many faces: a coverage of 90 % then spreads by 3 points (Vovk, 2012)."""
LIMIT = 0.01
"""Each limit of a coverage is passed by chance so often: the 99 % lower and the 99 % upper limit."""
FLOOR, FLOOR_FACES = 0.85, 100
"""Coverage that no true decade with so many faces goes below by more than two binomial standard deviations."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BandCoverage:
    """Coverage (0..1) of the faces whose mode and true age are of one calibration band, with its exact limits."""

    band: str
    n_calibration: int
    n: int
    coverage: float
    limit_low: float
    limit_high: float

    @property
    def limits(self) -> str:
        """Both limits as text."""
        return f"{self.limit_low:.1%} to {self.limit_high:.1%}"


def calibrate(probabilities: Floats, ages: Years, modes: Sequence[Mode], labels: Labels) -> Calibration:
    """Split-conformal quantiles by mode and by decade of the true age (Mondrian and label-conditional; Vovk, 2012).

    probabilities: (n, bins) of faces that neither training nor selection saw. ages: (n,), clipped to the bins.
    modes: (n,); apart, as crops and detected faces come from unlike archives: together, the many would hide the few.
    Neighbouring decades are merged until a band has MIN_BAND_FACES faces, or only one band is left.
    """
    years = np.clip(np.rint(ages).astype(int), labels.lowest, labels.highest)
    scores = conformity(probabilities)[np.arange(len(years)), years - labels.lowest]
    counts = Counter(modes)
    apart: list[Mode | None] = [*sorted(counts)]
    if len(counts) < 2 or min(counts.values()) < MIN_MODE_FACES:
        apart = [None]
    bands = []
    for mode in apart:
        faces = np.array([mode in (None, of) for of in modes])
        for low, high in _bands(years[faces], labels):
            if (inside := faces & (years >= low) & (years <= high)).any():
                bands.append(Band(low, high, int(inside.sum()), _conformal_quantile(scores[inside]), mode))
    return Calibration(COVERAGE, tuple(bands))


def covered(low: Years, high: Years, ages: Years, labels: Labels) -> Mask:
    """Which true ages (n,) lie in their interval; ages above the bins' range count as its end."""
    clipped = np.clip(ages, labels.lowest, labels.highest)
    inside: Mask = (low <= clipped) & (clipped <= high)
    return inside


def conformal_rank(n: int) -> int:
    """The rank, from 1, of the score of n that is the quantile; n + 1 where n is too small for COVERAGE."""
    return int(np.ceil((n + 1) * COVERAGE))


def conformal_limits(n_calibration: int, n_test: int) -> tuple[float, float]:
    """The 99 % lower and upper limit of the coverage (0..1) of n_test faces like the calibration faces.

    Exact for the conformal set of one band: the coverage given the calibration is Beta(k, n + 1 - k) with
    k = ceil((n + 1) COVERAGE) (Vovk, 2012), so the number of covered faces is Beta-binomial. The interval is the
    set's hull, which holds at least as much: passing the upper limit means nothing.
    """
    return _limits(_count_law(n_calibration, n_test))


def coverage_by_band(frame: pd.DataFrame, calibration: Calibration, labels: Labels) -> list[BandCoverage]:
    """Coverage in every band of the calibration that has faces, then of `all` of them, with their exact limits.

    The law of `all` is the convolution of the bands' laws. `frame` has columns age, mode and covered.
    """
    ages = frame["age"].clip(labels.lowest, labels.highest)
    inside = frame["covered"].to_numpy(bool)
    found, law = [], np.ones(1)
    for band in calibration.bands:
        place = ages.between(band.low, band.high).to_numpy(bool)
        if band.mode:
            place &= (frame["mode"] == band.mode).to_numpy(bool)
        if n := int(place.sum()):
            limits = conformal_limits(band.n, n)
            name = f"{band.low}-{band.high}" + (f", {band.mode}" if band.mode else "")
            found.append(BandCoverage(name, band.n, n, float(inside[place].mean()), *limits))
            law = np.convolve(law, _count_law(band.n, n))
    if not found:
        return []
    n_calibration, n = sum(band.n_calibration for band in found), sum(band.n for band in found)
    return [*found, BandCoverage("all", n_calibration, n, float(inside.mean()), *_limits(law))]


def floor(n: int) -> float:
    """The coverage, 0..1, below which a decade of n faces has too little of it: two standard deviations below FLOOR."""
    return float(FLOOR - 2 * np.sqrt(FLOOR * (1 - FLOOR) / n))


def too_low(slices: list[Slice]) -> list[Slice]:
    """The true decades of at least FLOOR_FACES faces whose coverage is below their floor."""
    decades = [part for part in slices if part.dimension == "age" and part.n >= FLOOR_FACES]
    return [part for part in decades if part.coverage is not None and part.coverage < floor(part.n)]


def _count_law(n_calibration: int, n_test: int) -> Years:
    """Probability of 0..n_test covered faces; an empty or thin calibration covers all."""
    rank = conformal_rank(n_calibration)
    if rank > n_calibration:
        return np.eye(1, n_test + 1, n_test).ravel()
    counts = np.arange(n_test + 1)
    return np.asarray(stats.betabinom.pmf(counts, n_test, rank, n_calibration + 1 - rank), dtype=np.float64)


def _limits(law: Years) -> tuple[float, float]:
    below, n = np.cumsum(law), len(law) - 1
    return int(np.searchsorted(below, LIMIT)) / n, min(int(np.searchsorted(below, 1 - LIMIT)), n) / n


def _conformal_quantile(scores: Floats) -> float:
    """The ceil((n + 1) COVERAGE)-th smallest score; 1, which covers all, where n is too small for it."""
    rank = conformal_rank(len(scores))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


def _bands(ages: npt.NDArray[np.int_], labels: Labels) -> list[tuple[int, int]]:
    """Decades, merged upwards from the youngest until each holds enough faces; a thin rest joins the last band."""
    bands: list[tuple[int, int]] = []
    low = labels.lowest
    for high in (*range(labels.lowest + 9, labels.highest - 9, 10), labels.highest):
        if ((ages >= low) & (ages <= high)).sum() >= MIN_BAND_FACES:
            bands.append((low, high))
            low = high + 1
    if low <= labels.highest:
        bands = [*bands[:-1], (bands[-1][0] if bands else labels.lowest, labels.highest)]
    return bands
