"""Intervals fitted to one archive hold on its other faces, in a model file of its own that nothing uses by itself."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faces_drawn import drawn_face

from agewatch import api
from agewatch.errors import LabelError
from agewatch.estimator.model import AgeModel
from agewatch.labelled.calibration import conformal_limits, covered
from agewatch.release.recalibrate import LEAST_FACES, distributions, recalibrate
from agewatch.scoring import predictions


def test_a_recalibration_holds_on_faces_not_used_and_is_not_made_current(
    model_folder: Path, cache: Path, home: Path, tmp_path: Path
) -> None:
    root, store = tmp_path / "Oak Street", tmp_path / "store"
    root.mkdir()
    ages = np.random.default_rng(0).integers(5, 90, 500)
    for number, age in enumerate(ages):
        (root / f"{number}.png").write_bytes(drawn_face(int(age), number))
    api.score_archive(root, model=model_folder, predictions=tmp_path / "t", faces="crop", workers=1)
    rows = predictions.read(tmp_path / "t", columns=["path", "face", "content_hash"]).to_pandas()
    number = rows["path"].str.removesuffix(".png").astype(int)
    faces = rows.assign(age=ages[number].astype(float)).iloc[np.argsort(number.to_numpy())]
    used, others = faces[:150], faces[150:]

    def made(some: pd.DataFrame, model: Path) -> "AgeModel":
        found = recalibrate(some, model, root, "crop", name="Oak Street", store=store, cache=cache)
        assert found.n == len(some) - found.lost
        return AgeModel.load(found.file)

    (root / "0.png").write_bytes(drawn_face(50, 9999))
    (root / "1.png").unlink()
    model = made(used, model_folder)
    assert model.spec.version == "0-Oak-Street-1"
    assert model.spec.metrics["recalibrated"]["n"] == 148
    assert model.hash12 != AgeModel.load(model_folder).hash12
    assert not (store / "current.json").exists()
    found, true = distributions(others, model, root, "crop", cache)
    estimated = model.estimate(found, ["crop"] * len(true))
    low, _ = conformal_limits(148, len(true))
    assert covered(estimated.low, estimated.high, true, model.spec.labels).mean() >= low
    assert made(used, store / "agewatch-0-Oak-Street-1.mar").spec.version == "0-Oak-Street-2"


def test_too_few_labels_are_told(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    faces = pd.DataFrame({"path": ["a.png"] * 99, "content_hash": "0", "face": 0, "age": 30.0})
    with pytest.raises(LabelError, match=f"99 labelled faces are too few: .* at least {LEAST_FACES}"):
        recalibrate(faces, model_folder, tmp_path, "crop", name="a", store=tmp_path / "store", cache=cache)
    many = pd.concat([faces] * 2)
    with pytest.raises(LabelError, match="0 labelled faces are too few, 198 of their pictures"):
        recalibrate(many, model_folder, tmp_path, "crop", name="a", store=tmp_path / "store", cache=cache)
