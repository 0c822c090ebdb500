import csv
import io
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from faces_drawn import write_age_folders

from agewatch import predictions
from agewatch.errors import LabelError, UsageError
from agewatch.finetune import soft_labels
from agewatch.model import AgeModel, read_reference
from agewatch.train import TrainConfig, Trained, train

SMALL = TrainConfig(backbone="test_efficientnet", image_size=64, epochs=2, batch_size=16, learning_rate=2e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "drawn"
    write_age_folders(folder, ages=list(range(0, 100, 10)), each=12)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train([data], run=tmp_path_factory.mktemp("run"), config=SMALL, log=lambda _line: None)


def test_a_run_leaves_a_model_that_opens_and_its_comparison(trained: Trained) -> None:
    model = AgeModel.load(trained.model_folder)
    assert [row.name for row in trained.tables["all"]] == [
        "median age", "ridge on frozen embeddings", "linear SVR on frozen embeddings", "CNN", "mean of SVR and CNN",
    ]  # fmt: skip
    assert trained.tables["all"] == trained.tables["drawn"]
    by_name = {row.name: row for row in trained.tables["all"]}
    assert by_name["ridge on frozen embeddings"].mae < by_name["median age"].mae  # brightness tells the age
    assert {row.n for row in by_name.values()} == {model.spec.metrics["faces"]["test"]}
    assert model.spec.calibration.bands
    assert model.spec.data_hash
    assert "| CNN |" in (trained.run / "comparison.md").read_text()
    curve = list(csv.DictReader((trained.run / "curve.csv").open()))
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
    cnn = next(row for row in trained.tables["all"] if row.name == "CNN")
    assert errors == pytest.approx(cnn.mae, abs=0.01)


def test_an_interrupted_run_ends_like_an_undisturbed_one(data: Path, trained: Trained, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("epoch 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([data], run=tmp_path / "run", config=SMALL, log=interrupt)
    lines: list[str] = []
    again = train([data], run=tmp_path / "run", config=SMALL, log=lines.append)
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 2/2"]
    calm = {row.name: row.mae for row in trained.tables["all"]}
    assert {row.name: row.mae for row in again.tables["all"]} == pytest.approx(calm, abs=0.01)


def test_another_run_in_the_same_folder_is_refused(data: Path, trained: Trained) -> None:
    with pytest.raises(UsageError, match="another training run"):
        train([data], run=trained.run, config=TrainConfig(epochs=9), log=lambda _line: None)


def test_training_continues_from_a_model_file(data: Path, trained: Trained, tmp_path: Path) -> None:
    config = TrainConfig(backbone="ignored", epochs=1, batch_size=16)
    again = train([data], run=tmp_path / "run", config=config, start=trained.model_folder, log=lambda _line: None)
    model = AgeModel.load(again.model_folder)
    assert model.spec.members == AgeModel.load(trained.model_folder).spec.members
    assert model.weights != AgeModel.load(trained.model_folder).weights


def test_too_few_faces_are_said(tmp_path: Path) -> None:
    write_age_folders(tmp_path / "few", ages=[10, 20], each=5)
    with pytest.raises(LabelError, match="too few"):
        train([tmp_path / "few"], run=tmp_path / "run", config=SMALL, log=lambda _line: None)


def test_a_recipe_with_unknown_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("epoch = 3\n")
    with pytest.raises(UsageError, match="epoch"):
        TrainConfig.from_toml(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text("epochs = 3\nmean = [0.1, 0.2, 0.3]\n")
    assert TrainConfig.from_toml(tmp_path / "r.toml") == TrainConfig(epochs=3, mean=(0.1, 0.2, 0.3))


def test_soft_labels_are_distributions_around_the_age() -> None:
    years = torch.arange(101.0)
    soft = soft_labels(torch.tensor([30.0, 0.0, 116.0]), years, sigma=2.0)
    assert soft.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert soft.argmax(dim=1).tolist() == [30, 0, 100]
    assert float(soft[0] @ years) == pytest.approx(30, abs=1e-3)
