from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from estimates import CROPS, labelled_faces, simulated
from scipy import stats

from agewatch.estimator.model import estimate
from agewatch.estimator.spec import Labels, Mode
from agewatch.labelled.calibration import MIN_BAND_FACES, MIN_MODE_FACES, calibrate, covered
from agewatch.labelled.metrics import MIN_SLICE_FACES, balanced_mae, measure, risk_coverage, slices, worst_slice
from agewatch.labelled.tables import as_markdown, as_records, from_records


def test_metrics_of_known_errors() -> None:
    found = measure("x", np.array([10.0, 20.0, 30.0, 40.0]), np.array([13.0, 20.0, 30.0, 30.0]))
    assert (found.n, found.mae, found.bias, found.cs5) == (4, pytest.approx(3.25), pytest.approx(1.75), 0.75)
    assert found.rmse == pytest.approx(np.sqrt(109 / 4))
    assert found.mae_low <= found.mae <= found.mae_high
    assert "| x | 4 | 3.25 |" in as_markdown([found])


def test_the_confidence_interval_covers_at_its_rate() -> None:
    """At 95 %, the share of 400 draws has a deviation of 1.1 points: neither 90 % nor 99 % would pass."""
    random = np.random.default_rng(0)
    true_mae = np.sqrt(2 / np.pi)
    found = [measure("x", random.normal(size=200), np.zeros(200)) for _ in range(400)]
    hits = sum(each.mae_low <= true_mae <= each.mae_high for each in found)
    assert 0.92 <= hits / len(found) <= 0.98


def test_intervals_hold_their_coverage_overall_and_by_age() -> None:
    calibration = calibrate(*simulated(4000, 1), CROPS * 4000, Labels())
    assert all(band.n >= MIN_BAND_FACES for band in calibration.bands)
    assert [band.low for band in calibration.bands][1:] == [band.high + 1 for band in calibration.bands][:-1]
    probabilities, ages = simulated(8000, 2)
    found = estimate(probabilities, CROPS * len(ages), Labels(), calibration)
    assert covered(found.low, found.high, ages, Labels()).mean() >= 0.89
    for low in range(0, 100, 20):
        inside = (ages >= low) & (ages < low + 20)
        assert covered(found.low, found.high, ages, Labels())[inside].mean() >= 0.87
    assert (found.high - found.low).mean() < 50


def test_few_calibration_faces_give_one_honest_band() -> None:
    probabilities, ages = simulated(5, 1)
    [band] = calibrate(probabilities, ages, CROPS * 5, Labels()).bands
    assert (band.low, band.high, band.n, band.quantile, band.mode) == (0, 100, 5, 1.0, None)


@pytest.mark.parametrize(("n_detect", "apart"), [(MIN_MODE_FACES, True), (MIN_MODE_FACES - 1, False)])
def test_a_mode_with_faces_enough_has_intervals_of_its_own(n_detect: int, apart: bool) -> None:
    random = np.random.default_rng(4)
    modes: list[Mode] = ["detect"] * n_detect + ["crop"] * 1500
    errors = random.normal(0, np.where(np.array(modes) == "detect", 15, 4))
    ages = random.integers(40, 60, len(modes))
    bells = np.exp(-((np.arange(101) - (ages + errors)[:, None]) ** 2) / (2 * 10**2))
    probabilities = (bells / bells.sum(axis=1, keepdims=True)).astype(np.float32)
    calibration = calibrate(probabilities, ages, modes, Labels())
    assert {band.mode for band in calibration.bands} == ({"detect", "crop"} if apart else {None})
    found = estimate(probabilities, modes, Labels(), calibration)
    inside = covered(found.low, found.high, ages, Labels())
    assert (inside[:n_detect].mean() >= 0.9) == apart
    assert inside[n_detect:].mean() >= 0.9


def test_ages_above_the_bins_count_as_their_end() -> None:
    probabilities = np.eye(101, dtype=np.float32)[[100, 100]]
    [band] = calibrate(probabilities, np.array([105.0, 100.0]), CROPS * 2, Labels()).bands
    assert band.n == 2
    assert covered(np.array([99.0]), np.array([100.0]), np.array([116.0]), Labels()).all()


def test_every_face_is_in_one_group_of_each_dimension_that_it_has() -> None:
    frame = labelled_faces()
    sizes = pd.DataFrame([(part.dimension, part.n) for part in slices(frame)]).groupby(0)[1].sum().to_dict()
    known = int(frame["ethnicity"].notna().sum())
    assert sizes == {
        "source": 2000, "age": 2000, "sex": 2000, "sharpness": 2000, "ethnicity": known, "ethnicity and age": known,
        "face size": 500,  # only where faces were looked for
    }  # fmt: skip
    decades = [part.value for part in slices(frame) if part.dimension == "age"]
    assert decades == [*(f"{low}-{low + 9}" for low in range(0, 80, 10)), "80+"]
    assert [part.n for part in slices(frame) if part.dimension == "sharpness"] == [500] * 4


def test_the_worst_group_is_found_with_its_figures() -> None:
    frame = labelled_faces()
    inside = (frame["ethnicity"] == "black") & (frame["age"] < 13)
    worst = worst_slice(frame)
    assert worst in slices(frame)
    assert worst is not None
    assert (worst.dimension, worst.value, worst.n) == ("ethnicity and age", "black, under 13", inside.sum())
    assert (worst.mae, worst.bias, worst.coverage, worst.width) == (9, 9, 0, 10)
    other = next(part for part in slices(frame) if part.value == "black")
    exact = stats.binomtest(int(frame.loc[frame["ethnicity"] == "black", "covered"].sum()), other.n).proportion_ci()
    assert (other.coverage_low, other.coverage_high) == pytest.approx((exact.low, exact.high))


def test_a_group_of_few_faces_is_shown_but_never_the_worst() -> None:
    frame = labelled_faces()
    small = frame.index[(frame["ethnicity"] == "black") & (frame["age"] < 13)][MIN_SLICE_FACES - 1 :]
    frame = frame.drop(small)
    assert "black, under 13" in [part.value for part in slices(frame)]
    worst = worst_slice(frame)
    assert worst is not None
    assert worst.value != "black, under 13"
    assert worst_slice(frame[:10]) is None


def test_slices_of_estimates_without_intervals_have_no_coverage() -> None:
    bare = slices(labelled_faces().drop(columns=["low", "high", "covered"]))
    assert {(part.coverage, part.width) for part in bare} == {(None, None)}
    assert [part.mae for part in bare] == [part.mae for part in slices(labelled_faces())]


def test_the_balanced_error_counts_rare_decades_as_much_as_common_ones() -> None:
    frame = pd.DataFrame({"age": [5] * 90 + [85] * 5 + [95] * 5, "predicted": [6.0] * 90 + [92.0] * 5 + [102.0] * 5})
    assert balanced_mae(frame) == pytest.approx((1 + 7) / 2)


def test_leaving_out_wide_intervals_leaves_out_the_large_errors() -> None:
    frame = labelled_faces()
    found = risk_coverage(frame)
    assert [risk.share for risk in found] == [1.0, 0.9, 0.8, 0.7, 0.5]
    assert (found[0].n, found[0].mae) == (2000, pytest.approx((frame["predicted"] - frame["age"]).abs().mean()))
    assert (found[1].mae, found[1].width, found[0].width) == (1, pytest.approx(6), pytest.approx(10))


def test_a_comparison_table_survives_json() -> None:
    frame = labelled_faces()
    row = measure("CNN", frame["predicted"].to_numpy(), frame["age"].to_numpy())
    table = [row, replace(row, worst=worst_slice(frame), cost_ms=1.234, megabytes=6.8)]
    assert from_records(as_records(table)) == table
    assert "| ethnicity and age black, under 13: 9.00 (n" in as_markdown(table)
    assert "| 1.23 | 6.8 |" in as_markdown(table)
    before = {key: value for key, value in as_records([row])[0].items() if key not in ("worst", "cost_ms", "megabytes")}
    assert from_records([before]) == [row]
