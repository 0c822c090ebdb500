from pathlib import Path

import pytest

from agewatch.errors import UsageError
from agewatch.recipe import TrainConfig


def read(tmp_path: Path, content: str) -> TrainConfig:
    (tmp_path / "r.toml").write_text(content)
    return TrainConfig.from_toml(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("epochs = 0", "epochs = 0 is below 1"),
        ("epochs = 2.0", "epochs = 2.0 is no int"),
        ("epochs = true", "epochs = True is no int"),
        ("members = 0", "below 1"),
        ("batch_size = -1", "below 1"),
        ("image_size = 0", "below 1"),
        ("patience = 0", "below 1"),
        ("small_size = 31", "below 32"),
        ("small_size = '64'", r"small_size = '64' is no int \| None"),
        ("learning_rate = 0", "not above 0"),
        ("learning_rate = 'fast'", "'fast' is no float"),
        ("layer_decay = -0.5", "not above 0"),
        ("weight_decay = nan", "nan is no float"),
        ("seed = -1", "below 0"),
        ("pretrained = 1", "1 is no bool"),
        ("backbone = 5", "5 is no str"),
        ("kwargs = 'same'", "is no dict"),
        ("mean = 0.5", "is no tuple"),
        ("mean = [0.5, 0.5]", "is no tuple"),
        ("std = [0.5, 0.5, 0.0]", "not above 0"),
        ("epoch = 3", "epoch"),
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


def test_what_is_possible_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, "small_size = 32\nlearning_rate = 1\nsource_power = 0\nmean = [0, 0.5, 1]\nserve = 'SVR'\n")
    assert found == TrainConfig(small_size=32, learning_rate=1, source_power=0, mean=(0, 0.5, 1), serve="SVR")
    for tracked in sorted(Path(__file__).parents[1].glob("model_store/*.toml")):
        TrainConfig.from_toml(tracked)
