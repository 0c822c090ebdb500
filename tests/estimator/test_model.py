import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agewatch.errors import ModelError
from agewatch.estimator.model import AgeModel, band_quantiles, conformity, estimate
from agewatch.estimator.spec import PREPROCESSING_REVISION, Band, Calibration, Labels, Spec


def changed(model: AgeModel, **spec: object) -> AgeModel:
    return dataclasses.replace(model, spec=dataclasses.replace(model.spec, **spec))


def test_a_model_survives_saving(model_folder: Path, tmp_path: Path) -> None:
    model = AgeModel.load(model_folder)
    model.save(tmp_path)
    again = AgeModel.load(tmp_path)
    assert again == model
    assert again.id == model.id
    assert model.id.startswith("agewatch-0@")
    assert len(model.hash12) == 12


def test_the_hash_covers_what_changes_an_age_and_nothing_else(model_folder: Path) -> None:
    model = AgeModel.load(model_folder)
    assert changed(model, version="7", metrics={"mae": 1.0}, git_commit="x", data_hash="y").hash12 == model.hash12
    scale = dataclasses.replace(model.spec.preprocessing, chip_scale=1.2)
    assert changed(model, preprocessing=scale).hash12 != model.hash12
    assert changed(model, calibration=Calibration()).hash12 != model.hash12
    assert changed(model, labels=Labels(0, 110)).hash12 != model.hash12
    assert dataclasses.replace(model, weights=model.weights + b"\0").hash12 != model.hash12


def test_another_preprocessing_revision_is_refused(model_folder: Path) -> None:
    content = json.loads(AgeModel.load(model_folder).spec.to_json())
    content["preprocessing"]["revision"] += 1
    with pytest.raises(ModelError, match=f"revision {PREPROCESSING_REVISION + 1}"):
        Spec.from_json(json.dumps(content))
    content["preprocessing"] |= {"revision": PREPROCESSING_REVISION, "aligned": True}
    with pytest.raises(ModelError, match="aligned"):
        Spec.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{}", '{"name": 1}', "[]"])
def test_a_damaged_description_is_a_sentence(text: str) -> None:
    with pytest.raises(ModelError, match="damaged"):
        Spec.from_json(text)


def test_no_model_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        AgeModel.load(tmp_path / "missing.mar")
    (tmp_path / "text.mar").write_text("no zip")
    with pytest.raises(ModelError, match="can't be read"):
        AgeModel.load(tmp_path / "text.mar")


def test_weights_of_another_architecture_are_refused(model_folder: Path) -> None:
    model = AgeModel.load(model_folder)
    with pytest.raises(ModelError, match="do not fit"):
        changed(model, labels=Labels(0, 50)).network()
    with pytest.raises(ModelError, match="do not fit"):
        dataclasses.replace(model, weights=model.weights[:1000]).network()


def one_hot(*ages: int) -> np.ndarray:
    return np.eye(101, dtype=np.float32)[list(ages)]


def test_age_is_the_expectation_and_lies_in_its_interval() -> None:
    two_peaks = ((one_hot(20) + 3 * one_hot(60)) / 4).astype(np.float32)
    for quantile in (0.0, 0.3, 0.9, 1.0):
        found = estimate(two_peaks, ["crop"], Labels(), Calibration(0.9, (Band(0, 100, 500, quantile),)))
        assert found.age[0] == pytest.approx(50)
        assert found.low[0] <= found.age[0] <= found.high[0]
    everything = estimate(two_peaks, ["crop"], Labels(), Calibration())
    assert (everything.low[0], everything.high[0]) == (0, 100)


def test_a_larger_quantile_gives_a_wider_interval_and_bands_differ() -> None:
    years = np.arange(101)
    bell = np.exp(-((years - 40) ** 2) / 50)[None].astype(np.float32)
    bell /= bell.sum()
    narrow, wide = (estimate(bell, ["crop"], Labels(), Calibration(0.9, (Band(0, 100, 500, q),))) for q in (0.5, 0.95))
    assert wide.low[0] < narrow.low[0] < 40 < narrow.high[0] < wide.high[0]
    bands = Calibration(0.9, (Band(0, 39, 500, 0.0), Band(40, 100, 500, 0.95)))
    assert estimate(bell, ["crop"], Labels(), bands).high[0] == wide.high[0]
    assert estimate(bell, ["crop"], Labels(), bands).low[0] > narrow.low[0]
    assert band_quantiles(Labels(), bands, "crop")[39:41].tolist() == pytest.approx([0.0, 0.95])


def test_each_face_has_the_interval_of_its_mode() -> None:
    bells = np.exp(-((np.arange(101) - 40) ** 2) / 50)[None].repeat(2, axis=0).astype(np.float32)
    bells /= bells.sum(axis=1, keepdims=True)
    bands = Calibration(0.9, (Band(0, 100, 500, 0.5, "crop"), Band(0, 100, 500, 0.95, "detect")))
    found = estimate(bells, ["detect", "crop"], Labels(), bands)
    assert found.age[0] == found.age[1]
    assert found.low[0] < found.low[1] < found.high[1] < found.high[0]


def test_conformity_is_zero_at_the_median_and_one_far_away() -> None:
    scores = conformity(one_hot(30))
    assert scores[0, 30] == 0
    assert scores[0, 29] == scores[0, 31] == 1


shapes = st.lists(st.floats(0, 1, width=32), min_size=101, max_size=101).filter(lambda parts: sum(parts) > 0.1)


@given(shapes, st.floats(0, 1), st.floats(0, 1))
def test_an_interval_holds_its_age_and_grows_with_the_quantile(parts: list[float], one: float, other: float) -> None:
    distribution = (np.array(parts, np.float64) / sum(parts)).astype(np.float32)[None]
    low, high = sorted([one, other])
    narrow, wide = (
        estimate(distribution, ["crop"], Labels(), Calibration(0.9, (Band(0, 100, 500, quantile),)))
        for quantile in (low, high)
    )
    for found in (narrow, wide):
        assert 0 <= found.low[0] <= found.age[0] <= found.high[0] <= 100
    assert wide.low[0] <= narrow.low[0] <= narrow.high[0] <= wide.high[0]
