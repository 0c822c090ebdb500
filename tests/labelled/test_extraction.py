import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faces_drawn import write_age_folders
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch.errors import AgewatchError
from agewatch.estimator.images import RGB
from agewatch.estimator.spec import Cut
from agewatch.labelled import extraction
from agewatch.labelled.extraction import extract
from agewatch.labelled.sources import Labelled, read_sources


def drawn(tmp_path: Path, each: int = 3) -> list[Labelled]:
    write_age_folders(tmp_path / "data", ages=[20], each=each)
    return read_sources([tmp_path / "data"])


def extracted(labelled: list[Labelled], cache: Path, size: int = 32) -> tuple[pd.DataFrame, RGB]:
    return extract(labelled, Cut(size, 1.03), workers=1, cache=cache, progress=None)


def test_progress_is_told_about_every_2000_pictures_and_at_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    extract(
        drawn(tmp_path, each=1) * 2100, Cut(32, 1.03), workers=1, cache=tmp_path / "cache",
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(2048, 2100), (2100, 2100)]


def test_a_disk_without_room_for_the_chips_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    labelled = drawn(tmp_path)
    with pytest.raises(AgewatchError, match=r"need 9000.0 GB .* are free"):
        extracted(labelled, tmp_path / "cache", size=1_000_000)
    with at_most_a_file_of(2**20), pytest.raises(AgewatchError, match=r"need 0.0 GB in .*cache, .*: File too large"):
        extracted(labelled, tmp_path / "cache", size=1000)
    assert list((tmp_path / "cache").iterdir()) == []


@contextmanager
def at_most_a_file_of(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_room_of_all_chips_is_taken_at_once(tmp_path: Path) -> None:
    labelled = drawn(tmp_path)
    (tmp_path / "data" / "020" / "001.png").write_bytes(b"")  # its chip is never written
    table, chips = extracted(labelled, tmp_path / "cache", size=512)
    assert table["reason"].tolist() == [None, "empty", None]
    assert not chips[1].any()
    [file] = (tmp_path / "cache").glob("*/chips.npy")
    assert file.stat().st_blocks * 512 >= chips.nbytes


BREAKS = """
import os, signal
import cv2
found = cv2.dnn.NMSBoxes
import PIL.Image
opened = PIL.Image.open
def breaks(*arguments, **options):
    image = opened(*arguments, **options)
    if image.size == (65, 64):
        os.kill(os.getpid(), signal.SIGSEGV)
    if image.size == (66, 64):
        raise MemoryError
    return image
PIL.Image.open = breaks
"""


def test_a_picture_that_crashes_its_decoder_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is among the pictures by which the mode is told, too."""
    folder = tmp_path / "data" / "030"
    folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / f"{name}.png").write_bytes(ASTRONAUT.read_bytes())
    (folder / "crashes.png").write_bytes(encoded(Image.new("RGB", (65, 64), "white")))
    (folder / "huge.png").write_bytes(encoded(Image.new("RGB", (66, 64), "white")))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    table, chips = extracted(read_sources([tmp_path / "data"]), tmp_path / "cache")
    assert table["mode"].tolist() == ["detect"] * 5
    assert table["reason"].tolist() == [None, None, None, "decoder_failed", "too_large"]
    assert table["content_hash"].notna().all()
    assert chips[0].any()
    assert not chips[3].any()


def test_of_two_that_build_one_folder_the_first_wins_and_a_torn_one_makes_room(tmp_path: Path) -> None:
    labelled = drawn(tmp_path)
    _, chips = extracted(labelled, tmp_path / "cache")
    [folder] = (tmp_path / "cache").iterdir()
    inode = folder.stat().st_ino
    extraction._build(folder, labelled, Cut(32, 1.03), 1, None)
    assert folder.stat().st_ino == inode
    (folder / "extracted.parquet").write_bytes(b"")
    extraction._build(folder, labelled, Cut(32, 1.03), 1, None)
    assert folder.stat().st_ino != inode
    assert np.array_equal(extracted(labelled, tmp_path / "cache")[1], chips)
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_folders_of_yesterday_go_and_those_of_today_stay(tmp_path: Path) -> None:
    cache, day = tmp_path / "cache", 24 * 3600
    for name, age in (("chips-old", day + 60), ("building-old", day + 60), ("chips-new", 60), ("other", day + 60)):
        (cache / name / "inside").mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    extracted(drawn(tmp_path), cache)
    [built] = (path.parent.name for path in cache.glob("*/chips.npy"))
    assert {path.name for path in cache.iterdir()} == {built, "chips-new", "other"}
