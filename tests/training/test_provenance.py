import json
from pathlib import Path

import pytest

from agewatch.errors import UsageError
from agewatch.estimator.spec import Member, Preprocessing, Spec
from agewatch.training.provenance import claim
from agewatch.training.recipe import TrainConfig

SPEC = Spec("agewatch", "0", (Member("test_efficientnet", 32),), Preprocessing((0.5,) * 3, (0.5,) * 3))


def test_a_run_belongs_to_one_configuration(tmp_path: Path) -> None:
    for _ in range(2):
        claim(tmp_path, TrainConfig(), SPEC, None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["epochs"] == TrainConfig().epochs
    with pytest.raises(UsageError, match="another training run"):
        claim(tmp_path, TrainConfig(epochs=9), SPEC, None)


@pytest.mark.parametrize("torn", [b"", b'{"config": ', b"[]", b"\xff"])
def test_a_torn_configuration_is_said(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "config.json").write_bytes(torn)
    with pytest.raises(UsageError, match=r"config\.json can't be read"):
        claim(tmp_path, TrainConfig(), SPEC, None)
