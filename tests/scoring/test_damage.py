"""Damaged copies by the hundred, and by ten thousand in `make soak`: none crashes, none touches its neighbours."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damage import KINDS, damaged, of_every_form
from pictures import seven_faces
from PIL import Image

from agewatch.errors import REFUSAL_CODES
from agewatch.scoring import predictions
from agewatch.scoring.score import Limits, Summary, score_archive
from agewatch.scoring.scorer import Execution

COPIES = 10_000 if "AGEWATCH_SOAK" in os.environ else 300


def test_damaged_copies_beside_good_files(tmp_path: Path, model_folder: Path, cache: Path) -> None:
    random = np.random.default_rng(7)
    good = tmp_path / "good"
    good.mkdir()
    faces = seven_faces()
    for name, data in faces.items():
        (good / name).write_bytes(data)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    face = Image.open(good / "portrait.png").convert("RGB")
    whole = list(of_every_form(face).items())
    half_zeros = set()
    for number in range(COPIES):
        suffix, data = whole[number % len(whole)]
        kind = int(random.integers(KINDS))
        (mixed / f"{number:05}.{suffix}").write_bytes(damaged(data, kind, random))
        if kind == 3 and suffix not in ("tif", "bmp"):  # these are uncompressed: zeros are black
            half_zeros.add(f"{number:05}.{suffix}")
        if number % (COPIES // 7) == 0 and number // (COPIES // 7) < 7:
            name = sorted(faces)[number // (COPIES // 7)]
            (mixed / name).write_bytes((good / name).read_bytes())

    def score(folder: Path) -> Summary:
        table = tmp_path / f"{folder.name}-table"
        return score_archive(folder, model_path=model_folder, table=table, how=Execution(cache), limits=Limits(1))

    summary, alone = score(mixed), score(good)
    rows = predictions.read(tmp_path / "mixed-table").to_pylist()
    assert summary.found == COPIES + alone.found == len({row["path"] for row in rows})
    statuses = Counter(row["status"] for row in rows)
    print(dict(statuses), f"{summary.seconds:.0f} s")
    assert set(statuses) <= {"ok", "no_face", *REFUSAL_CODES}
    assert "decoder_failed" not in statuses
    assert sum(summary.refused.values()) > COPIES / 4
    assert not half_zeros & {row["path"] for row in rows if row["status"] in ("ok", "no_face")}
    kept = {row["path"]: row for row in rows if row["path"] in faces}
    calm = {row["path"]: row for row in predictions.read(tmp_path / "good-table").to_pylist()}
    assert kept.keys() == calm.keys()
    for path, row in calm.items():
        for name in ("age", "age_low", "age_high", "box_x", "face_score", "brightness"):
            assert kept[path][name] == pytest.approx(row[name], abs=0.01)
        assert (kept[path]["status"], kept[path]["content_hash"]) == (row["status"], row["content_hash"])
