"""A working directory with a model store, as flows and `agewatch up` find it."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from models import tiny_model
from PIL import Image

from agewatch.release import store
from agewatch.release.package import package
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution


def noise(folder: Path, count: int, seed: int, brightness: int = 128) -> None:
    """Write different 64 px pictures around a brightness, 0..255."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        coarse = random.normal(brightness, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(coarse).resize((64, 64)).save(folder / f"{seed}-{index:03d}.png")


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose reference rows are its own on generated faces."""
    folder = tmp_path_factory.mktemp("model")
    noise(folder / "held_out", 120, seed=1)
    run, table = tiny_model(folder / "run"), folder / "table"
    cache = folder / "cache"
    score_archive(folder / "held_out", model_path=run, table=table, how=Execution(cache, 1), mode="crop")
    rows = predictions.read(table)
    pq.write_table(rows.append_column("age_true", rows["age"]), run / "reference.parquet")
    return package(run, version="1", store=folder / "store")


@pytest.fixture
def desk(tmp_path: Path, mar: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model store, whose current model is the tiny one."""
    models = tmp_path / "model_store"
    models.mkdir()
    shutil.copy(mar, models)
    shutil.copytree(mar.parents[1] / "cache", tmp_path / ".agewatch" / "cache")  # converting takes seconds
    store.promote(models, models / mar.name)
    monkeypatch.chdir(tmp_path)
    for name in ("AGEWATCH_HOME", "AGEWATCH_MODEL_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def statuses(desk: Path) -> dict[str, str]:
    """Status by path of all rows in a desk's table."""
    rows = predictions.read(desk / ".agewatch" / "predictions")
    assert len(rows) == len(set(rows["path"].to_pylist())), "these archives have one face a file"
    return dict(zip(rows["path"].to_pylist(), rows["status"].to_pylist(), strict=True))
