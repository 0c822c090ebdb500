"""Large pictures share one budget of memory: they wait for room, never half way, and who dies gives its share back."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded
from PIL import Image, ImageFile

from agewatch import settings
from agewatch.errors import ImageError, UsageError
from agewatch.estimator.images import decode
from agewatch.estimator.memory import OWN_BYTES, PROCESS_BYTES, Room, cost, for_pictures, room_of_one
from agewatch.scoring import pool, predictions
from agewatch.scoring.room import SharedRoom
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution

SIZE = (1, 1)


@dataclass(frozen=True)
class Taking(pool.Task[int, list[tuple[float, float, int]]]):
    """Takes so many bytes for a tenth of a second, and tells when, and how often it was called while it waited."""

    room: SharedRoom

    def open(self) -> pool.Work[int, list[tuple[float, float, int]]]:
        def work(needs: Sequence[int], starts: Callable[[], None]) -> list[tuple[float, float, int]]:
            found = []
            for need in needs:
                starts()
                calls: list[float] = []
                with self.room.picture(lambda calls=calls: calls.append(0)):
                    if need < 0:
                        self.room.take(SIZE, -need)
                        os.kill(os.getpid(), signal.SIGKILL)
                    self.room.expect(need // 3)
                    self.room.take(SIZE, need)
                    start = time.monotonic()
                    time.sleep(0.1)
                    found.append((start, time.monotonic(), len(calls)))
            return found

        return work

    def give_up(self, item: int, why: str) -> list[tuple[float, float, int]]:
        assert "crashed" in why
        assert item < 0
        return []


def spans(needs: Sequence[int], workers: int, room: SharedRoom) -> list[tuple[float, float, int]]:
    shards = [[need] for need in needs]
    return sorted(span for found in pool.run(Taking(room), shards, workers) for span in found)


def test_pictures_that_do_not_fit_together_wait_for_each_other() -> None:
    room = SharedRoom(2, 3)
    found = spans([room.total * 2 // 3] * 6, 3, room)
    assert len(found) == 6
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    assert any(calls for _, _, calls in found), "who waits says so, or it would count as hanging"


def test_small_pictures_pass_while_a_large_one_is_worked_on() -> None:
    room = SharedRoom(2, 2)
    with room.picture():
        room.take(SIZE, room.total)
        assert [calls for _, _, calls in spans([OWN_BYTES] * 4, 2, room)] == [0] * 4


def test_a_worker_that_dies_gives_its_share_back() -> None:
    room = SharedRoom(2, 2)
    assert len(spans([-room.total, room.total, -room.total, room.total], 2, room)) == 2


def test_a_room_is_given_back_also_after_an_error() -> None:
    room = SharedRoom(2, 2)

    def fail() -> None:
        with room.picture():
            room.take(SIZE, room.total)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(spans([room.total], 1, room)) == 1


def test_what_alone_is_more_than_there_is_is_too_large() -> None:
    room = SharedRoom(2, 2)
    for taking in (lambda: room.take((50_000, 40_000), room.total + 1), lambda: room.expect(room.total + 1)):
        with pytest.raises(ImageError) as refused:
            taking()
        assert refused.value.code == "too_large"
        assert str(refused.value).endswith(".")


def test_the_budget_holds_what_processes_take_before_any_picture() -> None:
    assert for_pictures(6, 3) == 6e9 - 3 * PROCESS_BYTES
    assert for_pictures(6, 65) == 3e9, "many workers leave half of it"
    assert SharedRoom(6, 2).total <= for_pictures(6, 3) + OWN_BYTES
    assert room_of_one(3).total < 3e9


@pytest.mark.parametrize(
    ("form", "mode", "megapixels"),
    [("JPEG", "RGB", 200), ("HEIF", "RGB", 200), ("TIFF", "1", 550), ("TIFF", "L", 550), ("PNG", "L", 600)],
)
def test_phone_pictures_and_large_scans_find_room_on_two_and_more_workers(
    form: str, mode: str, megapixels: int
) -> None:
    for workers in (2, 4, 16):
        size = (megapixels * 1000, 1000)
        Room(SharedRoom(6, workers).total).take(size, cost(form, mode, size, 100_000_000))


def test_a_run_with_little_memory_refuses_what_a_larger_one_reads(
    tmp_path: Path, model_folder: Path, cache: Path
) -> None:
    (tmp_path / "archive").mkdir()
    large = Image.fromarray(np.zeros((13_000, 13_000), np.uint8))
    (tmp_path / "archive" / "scan.png").write_bytes(encoded(large, compress_level=1))
    (tmp_path / "archive" / "small.png").write_bytes(encoded(Image.new("L", (64, 64))))
    found = []
    for memory_gb in (1, 3):
        how = Execution(cache, 2, memory_gb=memory_gb)
        score_archive(
            tmp_path / "archive", model_path=model_folder, table=tmp_path / "table", how=how, again="all", mode="crop"
        )
        found.append({row["path"]: row["status"] for row in predictions.read(tmp_path / "table").to_pylist()})
    assert found == [{"scan.png": "too_large", "small.png": "ok"}, {"scan.png": "ok", "small.png": "ok"}]


def test_the_setting_is_a_number_of_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGEWATCH_MEMORY_GB", "12.5")
    assert settings.Settings().memory_gb == 12.5
    assert settings.Settings(memory_gb=3).memory_gb == 3
    for wrong in ("six", "0", "-1", "nan"):
        monkeypatch.setenv("AGEWATCH_MEMORY_GB", wrong)
        with pytest.raises(UsageError):
            settings.Settings()


def _hold(room: SharedRoom, path: str) -> None:
    with room.picture():
        room.take(SIZE, room.total)
        Path(path).touch()
        time.sleep(60)


def test_a_process_that_is_killed_frees_what_it_held_at_once(tmp_path: Path) -> None:
    room, held = SharedRoom(2, 2), tmp_path / "held"
    process = get_context("spawn").Process(target=_hold, args=(room, str(held)))
    process.start()
    while not held.exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    with room.picture(waiting=lambda: pytest.fail("nobody holds it any more")):
        room.take(SIZE, room.total)


class Loaded(Room):
    """Raises where it is asked for a picture that is decoded already."""

    def take(self, size: tuple[int, int], need: int) -> None:
        assert not LOADS, "memory was taken before there was room for it"


LOADS: list[str] = []


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF", "JPEG2000"])
def test_room_is_asked_for_before_anything_is_decoded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ImageFile.ImageFile.load

    def noted(image: ImageFile.ImageFile) -> object:
        LOADS.append(str(image.format))
        return load(image)

    data = encoded(Image.new("RGB", (64, 64), "red"), form)
    monkeypatch.setattr(ImageFile.ImageFile, "load", noted)
    LOADS.clear()
    decode(data, room=Loaded())
    assert LOADS or form == "JPEG", "the picture was not decoded by Pillow: this test looks at the wrong place"
    LOADS.clear()


def test_large_pictures_are_decoded_by_bands_as_small_ones_are_whole() -> None:
    """Each row says where it is: bands that were swapped or turned would show."""
    rows = np.broadcast_to((np.arange(3000) % 251).astype(np.uint8)[:, None], (3000, 1000))
    for orientation, expected in ((1, rows), (3, rows[::-1, ::-1]), (6, rows[::-1].T), (8, rows[:, ::-1].T)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb = decode(encoded(Image.fromarray(rows.copy()), compress_level=1, exif=exif)).rgb
        assert np.array_equal(rgb[:, :, 0], expected)
