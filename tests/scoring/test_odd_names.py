"""An archive in a folder whose name is not UTF-8."""

import os
from pathlib import Path

import pyarrow.compute as pc

from agewatch.scoring import predictions
from agewatch.scoring.score import Summary, score_archive
from agewatch.scoring.scorer import Execution


def test_a_root_that_is_not_utf8_is_scored(archive: Path, tmp_path: Path, model_folder: Path, cache: Path) -> None:
    odd = archive.rename(os.fsdecode(os.fsencode(tmp_path / "odd") + b"\xff"))

    def run(root: Path) -> Summary:
        return score_archive(root, model_path=model_folder, table=tmp_path / "table", how=Execution(cache, 1))

    assert (run(odd).archive, run(odd).skipped) == (r"odd\xff", 6)
    assert len(predictions.read(tmp_path / "table", pc.field("archive") == r"odd\xff")) == 6
