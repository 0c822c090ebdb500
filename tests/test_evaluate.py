import numpy as np
import pytest

from agewatch.evaluate import MIN_BAND_FACES, as_markdown, calibrate, coverage_share, measure
from agewatch.model import Labels, estimate


def test_metrics_of_known_errors() -> None:
    found = measure("x", np.array([10.0, 20.0, 30.0, 40.0]), np.array([13.0, 20.0, 30.0, 30.0]))
    assert (found.n, found.mae, found.bias, found.cs5) == (4, pytest.approx(3.25), pytest.approx(1.75), 0.75)
    assert found.rmse == pytest.approx(np.sqrt(109 / 4))
    assert found.mae_low <= found.mae <= found.mae_high
    assert "| x | 4 | 3.25 |" in as_markdown([found])


def test_the_confidence_interval_covers_at_its_rate() -> None:
    random = np.random.default_rng(0)
    true_mae = np.sqrt(2 / np.pi)
    hits = 0
    for _ in range(100):
        found = measure("x", random.normal(size=200), np.zeros(200))
        hits += found.mae_low <= true_mae <= found.mae_high
    assert 88 <= hits <= 100


def simulated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces whose distributions are too narrow and, for the young, shifted: calibration has to mend both."""
    random = np.random.default_rng(seed)
    ages = random.integers(0, 101, n)
    centres = ages + random.normal(0, 3 + ages / 10) + (ages < 20) * 4
    years = np.arange(101)
    bells = np.exp(-((years - centres[:, None].clip(0, 100)) ** 2) / (2 * 3**2))
    return (bells / bells.sum(axis=1, keepdims=True)).astype(np.float32), ages


def test_intervals_hold_their_coverage_overall_and_by_age() -> None:
    calibration = calibrate(*simulated(4000, 1), Labels())
    assert all(band.n >= MIN_BAND_FACES for band in calibration.bands)
    assert [band.low for band in calibration.bands][1:] == [band.high + 1 for band in calibration.bands][:-1]
    probabilities, ages = simulated(8000, 2)
    found = estimate(probabilities, Labels(), calibration)
    assert coverage_share(found.low, found.high, ages, Labels()) >= 0.89
    for low in range(0, 100, 20):
        inside = (ages >= low) & (ages < low + 20)
        assert coverage_share(found.low[inside], found.high[inside], ages[inside], Labels()) >= 0.87
    assert (found.high - found.low).mean() < 50


def test_few_calibration_faces_give_one_honest_band() -> None:
    probabilities, ages = simulated(5, 1)
    [band] = calibrate(probabilities, ages, Labels()).bands
    assert (band.low, band.high, band.n, band.quantile) == (0, 100, 5, 1.0)


def test_ages_above_the_bins_count_as_their_end() -> None:
    probabilities = np.eye(101, dtype=np.float32)[[100, 100]]
    [band] = calibrate(probabilities, np.array([105.0, 100.0]), Labels()).bands
    assert band.n == 2
    assert coverage_share(np.array([99.0]), np.array([100.0]), np.array([116.0]), Labels()) == 1
