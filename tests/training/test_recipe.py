from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agewatch.errors import UsageError
from agewatch.training.recipe import TrainConfig


def read(tmp_path: Path, content: str) -> TrainConfig:
    (tmp_path / "r.toml").write_text(content)
    return TrainConfig.from_toml(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("epochs = 0", "epochs = 0: Input should be greater than or equal to 1"),
        ("epochs = 2.0", "epochs = 2.0: .* valid integer"),
        ("epochs = true", "epochs = True: .* valid integer"),
        ("members = 0", "members = 0: .* equal to 1"),
        ("batch_size = -1", "batch_size = -1: .* equal to 1"),
        ("image_size = 0", "image_size = 0: .* equal to 1"),
        ("patience = 0", "patience = 0: .* equal to 1"),
        ("small_size = 31", "small_size = 31: .* equal to 32"),
        ("small_size = '64'", "small_size = '64': .* valid integer"),
        ("learning_rate = 0", "learning_rate = 0: .* greater than 0"),
        ("learning_rate = 'fast'", "'fast': .* valid number"),
        ("learning_rate = true", "True: .* valid number"),
        ("layer_decay = -0.5", "greater than 0"),
        ("label_sigma = 0.0", "greater than 0"),
        ("weight_decay = nan", "nan: .* finite number"),
        ("ema_decay = -0.1", "equal to 0"),
        ("source_power = inf", "inf: .* finite number"),
        ("seed = -1", "equal to 0"),
        ("pretrained = 1", "pretrained = 1: .* valid boolean"),
        ("backbone = 5", "backbone = 5: .* valid string"),
        ("serve = 5", "valid string"),
        ("kwargs = 'same'", "valid dictionary"),
        ("mean = 0.5", "valid tuple"),
        ("mean = [0.5, 0.5]", "mean.2 = .* required"),
        ("std = [0.5, 0.5, 0.0]", "std.2 = 0.0: .* greater than 0"),
        ("epoch = 3", "epoch = 3: Unexpected"),
        ("epochs =", "can't be used"),
    ],
)
def test_an_impossible_recipe_is_wrong_usage(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read(tmp_path, line)


def test_a_recipe_that_is_no_text_or_not_there_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\nepochs = 3\n")
    for name in ("latin.toml", "none.toml"):
        with pytest.raises(UsageError, match=f"{name} can't be used"):
            TrainConfig.from_toml(tmp_path / name)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"small_size": 31}, {"std": (1.0, 1.0, 0.0)}, {"seed": 1.5}])
def test_a_recipe_made_in_code_is_checked_too(wrong: dict[str, Any]) -> None:
    for make in (TrainConfig, partial(replace, TrainConfig())):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            make(**wrong)


def test_what_is_possible_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, "small_size = 32\nlearning_rate = 1\nsource_power = 0\nmean = [0, 0.5, 1]\nserve = 'SVR'\n")
    assert found == TrainConfig(small_size=32, learning_rate=1, source_power=0, mean=(0, 0.5, 1), serve="SVR")
    for tracked in sorted(Path(__file__).parents[2].glob("model_store/*.toml")):
        TrainConfig.from_toml(tracked)
