"""The promise of the intervals: against crepes, an independent implementation, and against simulations."""

import numpy as np
import pandas as pd
import pytest
from crepes import ConformalClassifier
from estimates import CROPS, simulated

from agewatch.estimator.model import band_quantiles, conformity, estimate
from agewatch.estimator.spec import Band, Calibration, Labels
from agewatch.labelled.calibration import (
    COVERAGE,
    calibrate,
    conformal_limits,
    coverage_by_band,
    covered,
    floor,
    too_low,
)
from agewatch.labelled.metrics import Slice

LABELS = Labels()


def test_the_sets_before_the_hull_are_those_of_crepes() -> None:
    probabilities, ages = simulated(3000, 1)
    calibration = calibrate(probabilities, ages, CROPS * len(ages), LABELS)
    assert len(calibration.bands) > 3
    band_of = np.searchsorted([band.low for band in calibration.bands], LABELS.years, side="right") - 1
    scores = conformity(probabilities)[np.arange(len(ages)), ages]
    theirs = ConformalClassifier().fit(scores, bins=band_of[ages])

    new, _ = simulated(300, 2)
    every = conformity(new)
    bins = np.tile(band_of, len(new))
    p_values = theirs.predict_p(every.reshape(-1, 1), bins=bins, smoothing=False).reshape(every.shape)
    own = every <= band_quantiles(LABELS, calibration, "crop")
    # p = 1 - COVERAGE exactly is outside by the definition of the set, and inside in crepes' predict_set.
    assert (own == (p_values > 1 - COVERAGE + 1e-9)).all()
    assert 0.1 < own.mean() < 0.6

    found = estimate(new, CROPS * len(new), LABELS, calibration)
    hull = (found.low[:, None] <= LABELS.years) & (LABELS.years <= found.high[:, None])
    assert (hull >= own).all()


def drawn_coverage(random: np.random.Generator, n_calibration: int, n_test: int) -> int:
    """Faces covered, of n_test, by the quantile of n_calibration scores of the same law."""
    rank = int(np.ceil((n_calibration + 1) * COVERAGE))
    quantile = np.sort(random.random(n_calibration))[rank - 1]
    return int((random.random(n_test) <= quantile).sum())


def test_limits_of_one_band_are_passed_at_their_rate() -> None:
    random = np.random.default_rng(0)
    low, high = conformal_limits(250, 400)
    found = np.array([drawn_coverage(random, 250, 400) for _ in range(20_000)]) / 400
    assert (found < low).mean() < 0.0125
    assert (found <= low).mean() > 0.008
    assert (found > high).mean() < 0.0125
    assert (found >= high).mean() > 0.008


def test_limits_of_all_bands_are_passed_at_their_rate() -> None:
    calibration = Calibration(COVERAGE, (Band(0, 49, 250, 0.9), Band(50, 100, 40, 0.9)))
    sizes = (300, 200)
    frame = pd.DataFrame({"age": np.repeat([20, 110], sizes), "mode": "crop", "covered": np.arange(500) % 10 > 0})
    *bands, everything = coverage_by_band(frame, calibration, LABELS)
    assert [(band.band, band.n_calibration, band.n) for band in bands] == [("0-49", 250, 300), ("50-100", 40, 200)]
    assert (everything.band, everything.n_calibration, everything.n, everything.coverage) == ("all", 290, 500, 0.9)
    assert bands[0].limit_high - bands[0].limit_low < bands[1].limit_high - bands[1].limit_low
    random = np.random.default_rng(1)
    found = np.array([drawn_coverage(random, 250, 300) + drawn_coverage(random, 40, 200) for _ in range(20_000)]) / 500
    assert (found < everything.limit_low).mean() < 0.0125
    assert (found <= everything.limit_low).mean() > 0.008
    assert (found > everything.limit_high).mean() < 0.0125
    assert (found >= everything.limit_high).mean() > 0.008


def test_a_calibration_of_too_few_faces_covers_all() -> None:
    assert conformal_limits(5, 50) == (1, 1)
    assert conformal_limits(0, 50) == (1, 1)
    frame = pd.DataFrame({"age": [3], "mode": ["crop"], "covered": [True]})
    assert coverage_by_band(frame, Calibration(), LABELS) == []


def test_intervals_of_simulated_faces_are_within_the_lower_limits() -> None:
    calibration = calibrate(*simulated(4000, 3), CROPS * 4000, LABELS)
    probabilities, ages = simulated(6000, 4)
    found = estimate(probabilities, CROPS * 6000, LABELS, calibration)
    frame = pd.DataFrame({"age": ages, "mode": "crop", "covered": covered(found.low, found.high, ages, LABELS)})
    for band in coverage_by_band(frame, calibration, LABELS):
        assert band.coverage >= band.limit_low, band


def test_bands_of_a_mode_are_held_against_its_own_faces() -> None:
    calibration = Calibration(COVERAGE, (Band(0, 100, 300, 0.9, "crop"), Band(0, 100, 120, 0.9, "detect")))
    modes = ["crop"] * 40 + ["detect"] * 10
    frame = pd.DataFrame({"age": 30, "mode": modes, "covered": [mode == "crop" for mode in modes]})
    found = [(band.band, band.n, band.coverage) for band in coverage_by_band(frame, calibration, LABELS)]
    assert found == [("0-100, crop", 40, 1.0), ("0-100, detect", 10, 0.0), ("all", 50, 0.8)]


def test_a_decade_is_too_low_two_deviations_below_the_floor() -> None:
    assert floor(100) == pytest.approx(0.85 - 2 * np.sqrt(0.85 * 0.15 / 100))

    def decade(n: int, coverage: float, dimension: str = "age") -> Slice:
        return Slice(dimension, "0-9", n, 1, 1, 1, 0, coverage, 0, 1, 5)

    low = decade(100, floor(100) - 0.01)
    fine = [decade(100, floor(100) + 0.01), decade(99, 0.2), decade(100, 0.2, "sex")]
    assert too_low([low, *fine]) == [low]
