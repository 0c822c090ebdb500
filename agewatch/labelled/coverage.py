"""What coverage the calibration promises for new faces: exact limits by band, and the floor that every decade keeps."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from agewatch.estimator.spec import Calibration, Labels
from agewatch.labelled.metrics import Slice, Years, conformal_rank

LIMIT = 0.01
"""Each limit of a coverage is passed by chance so often: the 99 % lower and the 99 % upper limit."""
FLOOR, FLOOR_FACES = 0.85, 100
"""Coverage that no true decade with so many faces goes below by more than two binomial standard deviations."""


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
