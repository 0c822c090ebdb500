import csv
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from faces_drawn import write_age_folders

from agewatch.errors import LabelError, UsageError
from agewatch.estimator.model import AgeModel, read_reference, read_splits
from agewatch.estimator.spec import Member
from agewatch.scoring import predictions
from agewatch.scoring.content import hash_key
from agewatch.training.recipe import TrainConfig
from agewatch.training.train import CANDIDATES, Trained, train

SMALL = TrainConfig(backbone="test_efficientnet", image_size=64, epochs=2, batch_size=16, learning_rate=8e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "drawn"
    write_age_folders(folder, ages=list(range(0, 100, 10)), each=12)
    return folder


def silent(_line: str) -> None:
    pass


def run_of(
    data: Path, run: Path, config: TrainConfig, start: Path | None = None, log: Callable[[str], None] = silent
) -> Trained:
    return train([data], run=run, config=config, cache=run.parent / "cache", start=start, workers=1, log=log)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run_of(data, tmp_path_factory.mktemp("run"), SMALL)


def test_a_run_leaves_a_model_that_opens_and_its_comparison(trained: Trained) -> None:
    model = AgeModel.load(trained.model_folder)
    assert [row.name for row in trained.tables["all"]] == ["median age", *CANDIDATES]
    assert all(row.cost_ms and row.megabytes for row in trained.tables["all"][1:])
    assert model.spec.metrics["served"] == trained.chosen
    assert trained.tables["all"] == trained.tables["drawn"]
    by_name = {row.name: row for row in trained.tables["all"]}
    assert by_name["ridge on frozen embeddings"].mae < by_name["median age"].mae  # brightness tells the age
    assert {row.n for row in by_name.values()} == {model.spec.metrics["faces"]["test"]}
    assert model.spec.calibration.bands
    assert model.spec.data_hash
    assert "| CNN |" in (trained.run / "comparison.md").read_text()
    curve = list(csv.DictReader((trained.run / "member-0" / "curve.csv").open()))
    assert [row["epoch"] for row in curve] == ["1", "2"]


def test_faces_parquet_holds_features_and_splits(trained: Trained) -> None:
    faces = pd.read_parquet(trained.run / "faces.parquet")
    assert len(faces) == 120
    assert {"path", "age", "box_x", "landmarks", "face_score", "brightness", "split", "reason"} <= set(faces.columns)
    assert set(faces["split"]) == {"train", "validation", "calibration", "test"}
    assert set(faces["mode"]) == {"crop"}


def test_the_reference_is_the_models_own_rows_on_held_out_pictures(trained: Trained) -> None:
    reference = pq.read_table(io.BytesIO(read_reference(trained.model_folder)))
    assert reference.column_names == [*predictions.SCHEMA.names, "age_true"]
    faces = pd.read_parquet(trained.run / "faces.parquet").set_index("path")
    held_out = faces[faces["split"].isin(["test", "calibration"])]
    both = reference.to_pandas()
    assert all(set(rows["path"]) == set(held_out.index) for _, rows in both.groupby("mode"))
    assert set(both.loc[both["mode"] == "detect", "status"]) == {"no_face"}  # nobody's face is drawn
    rows = both[both["mode"] == "crop"].set_index("path")
    assert rows["age_true"].to_dict() == faces.loc[rows.index, "age"].to_dict()
    assert set(rows["model"]) == {AgeModel.load(trained.model_folder).id}
    test = faces.loc[rows.index, "split"] == "test"
    errors = (rows["age"] - rows["age_true"])[test].abs().mean()
    served = next(row for row in trained.tables["all"] if row.name == trained.chosen)
    assert errors == pytest.approx(served.mae, abs=0.01)


def test_the_model_knows_the_split_of_every_picture(trained: Trained) -> None:
    splits = pd.read_parquet(io.BytesIO(read_splits(trained.model_folder) or b"")).set_index("key")["split"]
    faces = pd.read_parquet(trained.run / "faces.parquet")
    assert [splits[hash_key(digest)] for digest in faces["content_hash"]] == faces["split"].tolist()


def test_an_interrupted_run_ends_like_an_undisturbed_one(data: Path, trained: Trained, tmp_path: Path) -> None:
    """Which is to say too: the same seed and data give the same model."""

    def interrupt(line: str) -> None:
        if line.startswith("epoch 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(data, tmp_path / "run", SMALL, log=interrupt)
    lines: list[str] = []
    again = run_of(data, tmp_path / "run", SMALL, log=lines.append)
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 2/2"]
    calm = {row.name: row.mae for row in trained.tables["all"]}
    assert {row.name: row.mae for row in again.tables["all"]} == pytest.approx(calm, abs=0.01)


def test_another_run_in_the_same_folder_is_refused(data: Path, trained: Trained) -> None:
    with pytest.raises(UsageError, match="another training run"):
        run_of(data, trained.run, TrainConfig(epochs=9))


def test_training_continues_from_a_model_file(data: Path, trained: Trained, tmp_path: Path) -> None:
    config = TrainConfig(backbone="ignored", epochs=1, batch_size=16, serve="CNN")
    again = run_of(data, tmp_path / "run", config, start=trained.model_folder)
    before, after = (AgeModel.load(folder) for folder in (trained.model_folder, again.model_folder))
    assert after.spec.members == (Member("test_efficientnet", 64),)
    assert after.weights != before.weights
    assert read_splits(again.model_folder) == read_splits(trained.model_folder)


@pytest.mark.parametrize("serve", ["linear SVR on frozen embeddings", "ensemble"])
def test_whichever_candidate_is_served_is_the_one_that_was_measured(data: Path, tmp_path: Path, serve: str) -> None:
    trained = run_of(data, tmp_path / "run", replace(SMALL, members=2, epochs=1, serve=serve))
    model = AgeModel.load(trained.model_folder)
    reference = pd.read_parquet(io.BytesIO(read_reference(trained.model_folder)))
    test = pd.read_parquet(trained.run / "faces.parquet").query("split == 'test'")["path"]
    rows = reference[(reference["mode"] == "crop") & reference["path"].isin(test)]
    measured = next(row for row in trained.tables["all"] if row.name == serve)
    assert (rows["age"] - rows["age_true"]).abs().mean() == pytest.approx(measured.mae, abs=0.01)
    assert trained.chosen == serve
    assert model.spec.calibration.bands


def test_what_can_not_be_trained_is_said_before_any_work(data: Path, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no candidate 'best'"):
        run_of(data, tmp_path / "run", replace(SMALL, serve="best"))
    with pytest.raises(UsageError, match=r"can't be built: Unknown model \(resnet1\)"):
        run_of(data, tmp_path / "run", replace(SMALL, backbone="resnet1"))
    with pytest.raises(UsageError, match="can't be made"):
        run_of(data, data / "000" / "000.png" / "run", SMALL)
    write_age_folders(tmp_path / "other" / "all", ages=[10], each=1)
    with pytest.raises(UsageError, match="'all' would be mixed up"):
        run_of(tmp_path / "other" / "all", tmp_path / "run", SMALL)
    silent = shutil.copytree(trained.model_folder, tmp_path / "silent")
    (silent / "splits.parquet").unlink()
    with pytest.raises(UsageError, match="does not say which pictures it learnt from"):
        run_of(data, tmp_path / "run", SMALL, start=silent)


def test_shuffled_labels_teach_nothing(tmp_path: Path) -> None:
    """A leak anywhere between labels and held-out faces would show as an error below the median's."""
    write_age_folders(tmp_path / "drawn", ages=list(range(0, 100, 5)), each=25)
    paths = sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.png"))
    ages = np.random.default_rng(0).permutation([int(path[:3]) for path in paths])
    lines = [f"{path},{age}" for path, age in zip(paths, ages, strict=True)]
    config = replace(SMALL, epochs=3)
    honest = run_of(tmp_path / "drawn", tmp_path / "honest", config).tables["all"]
    (tmp_path / "drawn.csv").write_text("\n".join(["path,age", *lines]))
    shuffled = run_of(tmp_path / "drawn", tmp_path / "shuffled", config).tables["all"]
    median, *candidates = shuffled
    assert all(row.mae > 0.85 * median.mae for row in candidates), shuffled
    assert min(row.mae for row in honest[1:]) < 0.5 * median.mae, honest


def test_too_few_faces_are_said(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "few", ages=[10, 20], each=5)
    with pytest.raises(LabelError, match="too few"):
        run_of(tmp_path / "few", tmp_path / "run", SMALL)


@pytest.mark.parametrize(("backbone", "reason"), [("test_efficientnet", "on the Hub"), ("efficientnet_b6", "exist")])
def test_weights_that_timm_can_not_get_are_said(data: Path, tmp_path: Path, backbone: str, reason: str) -> None:
    """One that it would have to download without a network, and one of which nobody has published any."""
    (tmp_path / "recipe.toml").write_text(f"backbone = '{backbone}'\npretrained = true\n")
    done = subprocess.run(
        [sys.executable, "-m", "agewatch", "train", str(data), "--recipe", "recipe.toml"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(rf"agewatch: timm can't get the weights of {backbone} here: .*{reason}.*\n", done.stderr)
    assert not (tmp_path / ".agewatch").exists()
