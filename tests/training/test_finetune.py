from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from faces_drawn import drawn_face

from agewatch.estimator.images import decode
from agewatch.estimator.network import AgeNetwork
from agewatch.estimator.spec import Member, Preprocessing, Spec
from agewatch.labelled.dataset import Faces
from agewatch.training import finetune
from agewatch.training.augment import augment
from agewatch.training.finetune import epoch_order, fit, soft_labels
from agewatch.training.recipe import TrainConfig


def faces(side: int = 32) -> Faces:
    ages = np.arange(40) * 90 // 40
    drawn = [cv2.resize(decode(drawn_face(int(age), seed)).rgb, (side, side)) for seed, age in enumerate(ages)]
    splits = np.where(np.arange(40) % 4 == 0, "validation", "train")
    return Faces(pd.DataFrame({"source": "drawn", "age": ages, "split": splits}), np.stack(drawn))


def started() -> AgeNetwork:
    torch.manual_seed(0)
    return AgeNetwork(Spec("agewatch", "0", (Member("test_efficientnet", 32),), Preprocessing((0.5,) * 3, (0.5,) * 3)))


def test_soft_labels_are_distributions_around_the_age() -> None:
    years = torch.arange(101.0)
    soft = soft_labels(torch.tensor([30.0, 0.0, 116.0]), years, sigma=2.0)
    assert soft.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert soft.argmax(dim=1).tolist() == [30, 0, 100]
    assert float(soft[0] @ years) == pytest.approx(30, abs=1e-3)


def test_sources_are_drawn_by_the_root_of_their_size_and_each_face_about_equally_often() -> None:
    table = pd.DataFrame({"source": ["large"] * 900 + ["small"] * 100, "age": 30, "split": "train"})
    order = epoch_order(Faces(table, np.zeros((1, 1, 1, 3), np.uint8)), np.arange(1000), 0.5, np.random.default_rng(0))
    times = np.bincount(order, minlength=1000)
    assert times[:900].sum() == 750
    assert set(times[:900]) == {0, 1}
    assert times[900:].sum() == 250
    assert set(times[900:]) == {2, 3}


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 8.0])
def test_an_epoch_has_no_fewer_faces_than_the_split_and_some_of_every_source(power: float) -> None:
    table = pd.DataFrame({"source": ["a"] * 700 + ["b"] * 296 + ["c"] * 4, "age": 30, "split": "train"})
    data = Faces(table, np.zeros((1, 1, 1, 3), np.uint8))
    order = epoch_order(data, np.arange(1000), power, np.random.default_rng(0))
    assert 1000 <= len(order) <= 1002
    assert set(table["source"].to_numpy()[order]) == {"a", "b", "c"}


def test_an_epoch_that_is_a_row_longer_than_the_split_keeps_to_the_schedule(tmp_path: Path) -> None:
    data = faces()
    data.table["source"] = ["a"] * 19 + ["b"] * 21
    split = data.rows("train")
    assert len(epoch_order(data, split, 0.5, np.random.default_rng(0))) == len(split) + 1 == 31
    config = TrainConfig(epochs=2, batch_size=31, learning_rate=1e-3)
    fit(started(), data, config, seed=0, run=tmp_path, log=lambda _line: None)


def test_training_ends_when_validation_no_longer_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([9.0, 7.0, 8.0, 7.5, 3.0])
    monkeypatch.setattr(finetune, "_mae", lambda *_: next(errors))
    lines: list[str] = []
    config = TrainConfig(epochs=9, patience=2, batch_size=16)
    fit(started(), faces(), config, seed=0, run=tmp_path, log=lines.append)
    assert pd.read_csv(tmp_path / "curve.csv")["validation_mae"].tolist() == [9.0, 7.0, 8.0, 7.5]
    assert "training ends" in lines[-1]


def test_the_network_is_left_as_it_was_at_its_best_epoch(tmp_path: Path) -> None:
    network, data = started(), faces()
    config = TrainConfig(epochs=4, batch_size=16, learning_rate=8e-3)
    fit(network, data, config, seed=0, run=tmp_path, log=lambda _line: None)
    rows = data.rows("validation")
    with torch.inference_mode():
        ages = (network(torch.from_numpy(data.chips[rows])) @ network.years).numpy()
    best = pd.read_csv(tmp_path / "curve.csv")["validation_mae"].min()
    assert np.abs(ages - data.ages(rows)).mean() == pytest.approx(best, abs=0.5)  # bf16 in training, f32 here


def test_epochs_on_small_chips_are_judged_on_whole_ones(tmp_path: Path) -> None:
    network, judged = started(), []
    # Training calls the member in the network, so that this sees validation only.
    network.register_forward_pre_hook(lambda _network, inputs: judged.append(inputs[0].shape[1]))
    config = TrainConfig(epochs=2, batch_size=16, learning_rate=1e-3, small_size=32)
    fit(network, faces(48), config, seed=0, run=tmp_path, log=lambda _line: None)
    assert pd.read_csv(tmp_path / "curve.csv")["size"].tolist() == [32, 48]
    assert judged == [48, 48]


def test_augmented_chips_differ_but_are_plausible_photographs_of_the_same() -> None:
    chip = faces().chips[20]
    random = np.random.default_rng(0)
    copies = [augment(chip, random, size=48) for _ in range(50)]
    assert {copy.shape for copy in copies} == {(48, 48, 3)}
    assert {copy.dtype for copy in copies} == {np.dtype(np.uint8)}
    assert len({copy.tobytes() for copy in copies}) == 50
    assert np.mean(copies) == pytest.approx(chip.mean(), abs=25)
