import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faces_drawn import write_age_folders
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch.errors import AgewatchError
from agewatch.estimator.faces import Face, YuNet
from agewatch.estimator.images import RGB
from agewatch.labelled import extraction
from agewatch.labelled.extraction import extract
from agewatch.labelled.sources import Labelled, read_sources


def drawn(tmp_path: Path, each: int = 3) -> list[Labelled]:
    write_age_folders(tmp_path / "data", ages=[20], each=each)
    return read_sources([tmp_path / "data"])


def extracted(labelled: list[Labelled], cache: Path, size: int = 32) -> tuple[pd.DataFrame, RGB]:
    return extract(labelled, size=size, chip_scale=1.03, workers=1, cache=cache, progress=None)


def test_progress_is_told_about_every_2000_pictures_and_at_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    extract(
        drawn(tmp_path, each=1) * 2100, size=32, chip_scale=1.03, workers=1, cache=tmp_path / "cache",
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1984, 2100), (2100, 2100)]


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


def test_a_worker_that_dies_is_a_sentence(tmp_path: Path) -> None:
    ended = threading.Event()

    def kill_the_workers() -> None:
        while not ended.wait(0.05):
            for child in active_children():
                child.kill()

    killer = threading.Thread(target=kill_the_workers)
    killer.start()
    try:
        with pytest.raises(AgewatchError, match="died after 0 of 3"):
            extracted(drawn(tmp_path), tmp_path / "cache")
    finally:
        ended.set()
        killer.join()
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_the_detector_raises_is_a_pictures_misfortune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that fails on one picture: which picture does that to YuNet is not known."""
    for name in ("a", "b", "c"):
        (tmp_path / "data" / "030").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "030" / f"{name}.png").write_bytes(ASTRONAUT.read_bytes())
    (tmp_path / "data" / "030" / "odd.png").write_bytes(encoded(Image.new("RGB", (65, 64), "white")))
    labelled = read_sources([tmp_path / "data"])
    finds = YuNet.__call__

    def fail_on_the_odd_one(self: YuNet, rgb: RGB) -> list[Face]:
        if rgb.shape[1] == 65:
            raise MemoryError
        return finds(self, rgb)

    monkeypatch.setattr(YuNet, "__call__", fail_on_the_odd_one)
    monkeypatch.setattr(extraction, "_detector", YuNet(), raising=False)
    monkeypatch.setattr(extraction, "_chips", np.zeros((4, 32, 32, 3), np.uint8), raising=False)
    assert extraction.mode_of(labelled[0].source, labelled) == "detect"
    records = [extraction._extract((index, item, "detect", 1.03)) for index, item in enumerate(labelled)]
    assert [record["reason"] for record in records] == [None, None, None, "decoder_failed"]


def test_of_two_that_build_one_folder_the_first_wins_and_a_torn_one_makes_room(tmp_path: Path) -> None:
    labelled = drawn(tmp_path)
    _, chips = extracted(labelled, tmp_path / "cache")
    [folder] = (tmp_path / "cache").iterdir()
    inode = folder.stat().st_ino
    extraction._build(folder, labelled, chips.shape, 1.03, 1, None)
    assert folder.stat().st_ino == inode
    (folder / "extracted.parquet").write_bytes(b"")
    extraction._build(folder, labelled, chips.shape, 1.03, 1, None)
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
