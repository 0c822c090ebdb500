"""The lane with real pictures: runs where AGEWATCH_DATA names the folder that holds them."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from agewatch.estimator.spec import Mode
from agewatch.release.store import resolve
from agewatch.scoring import predictions
from agewatch.scoring.score import Summary, score_archive
from agewatch.scoring.scorer import Execution
from agewatch.settings import Settings
from agewatch.sources import door

DATA = Path(os.environ.get("AGEWATCH_DATA", ""))
pytestmark = pytest.mark.skipif("AGEWATCH_DATA" not in os.environ, reason="AGEWATCH_DATA names no folder of pictures")


def scored(root: Path, folder: Path, mode: Mode = "detect") -> tuple[Summary, list[dict[str, Any]]]:
    model = resolve(None, Settings().model_store)
    how = Execution(folder / "cache")
    summary = score_archive(root, model_path=model, table=folder / "table", how=how, mode=mode)
    return summary, predictions.read(folder / "table", pc.field("archive") == root.name).to_pylist()


def test_photographs_as_they_come(tmp_path: Path) -> None:
    summary, rows = scored(DATA / "photos", tmp_path)
    found = {file.path for file in door.find(door.at(DATA / "photos")).files}
    assert {row["path"] for row in rows} == found
    assert len(found) == summary.found
    by_path = Counter(row["path"] for row in rows)
    for path in ("skimage/coffee.png", "skimage/chelsea.png", "skimage/rocket.jpg"):
        [row] = [row for row in rows if row["path"] == path]
        assert row["status"] == "no_face"
    assert by_path["faceapi_demo/human_samples.jpg"] >= 5
    assert by_path["deepface_tests/selfie-many-people.jpg"] > 5
    again, _ = scored(DATA / "photos", tmp_path)
    assert (again.scored, again.skipped, again.engine) == (0, summary.found, None)


def test_portraits_all_have_a_face_and_an_age(tmp_path: Path) -> None:
    summary, rows = scored(DATA / "archive_portraits", tmp_path)
    assert len({row["path"] for row in rows}) == summary.found == 1500
    assert summary.no_face + sum(summary.refused.values()) <= 3
    assert all(0 <= row["age_low"] <= row["age"] <= row["age_high"] <= 100 for row in rows if row["status"] == "ok")
