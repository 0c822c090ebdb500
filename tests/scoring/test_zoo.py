from pathlib import Path

import numpy as np
import pytest
from zoo import zoo

from agewatch.estimator.images import decode
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution

ZOO = zoo()
REFUSED = {name for name, odd in ZOO.items() if odd.status not in ("ok", "no_face")}


def corners(data: bytes, min_side: int | None) -> np.ndarray:
    rgb = decode(data, min_side=min_side).rgb
    height, width = rgb.shape[:2]
    down, across = height // 4, width // 4
    return np.array([rgb[down, across], rgb[down, -across], rgb[-down, across], rgb[-down, -across]], int)


@pytest.mark.parametrize("name", sorted(ZOO.keys() - REFUSED))
def test_colours_and_orientation(name: str) -> None:
    odd = ZOO[name]
    for min_side in (None, 1280):
        if odd.colours is None:
            assert decode(odd.data, min_side=min_side).rgb.ndim == 3
        else:
            assert np.abs(corners(odd.data, min_side) - odd.colours).max() <= 16


def test_every_odd_file_gets_its_status(tmp_path: Path, model_folder: Path, cache: Path) -> None:
    assert len(ZOO) >= 60
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name, odd in ZOO.items():
        (folder / name).write_bytes(odd.data)
    summary = score_archive(folder, model_path=model_folder, table=tmp_path / "table", how=Execution(cache))
    rows = predictions.read(tmp_path / "table").to_pylist()
    assert {row["path"]: row["status"] for row in rows} == {name: odd.status for name, odd in ZOO.items()}
    assert len(rows) == summary.found == len(ZOO)
    assert all(bool(row["error"]) == (row["path"] in REFUSED) for row in rows)
    large = next(row for row in rows if row["path"] == "orientation-6-large.jpg")
    assert (large["width"], large["height"]) == (3200, 1600)
