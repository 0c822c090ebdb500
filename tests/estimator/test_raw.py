"""Camera RAW is read by its full-size preview, turned once; its thumbnail is never taken for the picture."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pictures import ASTRONAUT, encoded
from PIL import Image
from quarters import PICTURE, TURNED, deep, matches, written
from raws import MAKERS, dng

from agewatch.errors import ImageError
from agewatch.estimator.images import decode
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution

LYING = Image.fromarray(PICTURE).resize((640, 480))
Maker = Callable[..., bytes]


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert str(refused.value).endswith(".")
    return refused.value.code


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    found.get_ifd(0x8769)[0x9003] = "1999:01:01 00:00:00"
    return found


def as_stored(orientation: int) -> Image.Image:
    upright = LYING if orientation < 5 else LYING.resize((480, 640))
    return Image.fromarray(np.ascontiguousarray(TURNED[orientation](np.asarray(upright))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_preview_is_turned_once_as_the_raw_says(make: Maker, orientation: int) -> None:
    upright = np.asarray(LYING if orientation < 5 else LYING.resize((480, 640)))
    matches(make(as_stored(orientation), (640, 480), orientation), upright, tolerance=16)
    matches(make(as_stored(orientation), (640, 480), orientation, exif(orientation)), upright, tolerance=16)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_time_and_camera_are_the_raws_and_the_rendition_is_told(make: Maker) -> None:
    picture = decode(make(LYING, (640, 480), 1, exif(1)))
    assert picture.captured_at == datetime(2021, 6, 7, 6, 9, 10, tzinfo=UTC)
    assert picture.camera is not None
    assert picture.camera.split()[0] in ("Maker", "NIKON", "SONY", "Canon")
    assert picture.rendition == "preview"


def test_a_preview_that_is_stored_upright_is_left_so() -> None:
    standing = LYING.resize((480, 640))
    for orientation in (6, 8):
        matches(dng(standing, (640, 480), orientation), np.asarray(standing), tolerance=16)


def test_a_preview_tells_its_own_orientation_where_the_raw_says_nothing() -> None:
    upright = np.asarray(LYING.resize((480, 640)))
    matches(dng(as_stored(6), (640, 480), None, exif(6)), upright, tolerance=16)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_without_a_preview_of_full_size_it_is_unsupported(make: Maker) -> None:
    assert refusal(make(None, (640, 480))) == "unsupported"
    assert refusal(make(LYING.resize((160, 120)), (640, 480))) == "unsupported"
    assert refusal(make(LYING, (2000, 1500))) == "unsupported"


def test_a_preview_on_which_faces_are_looked_for_as_on_a_larger_one_is_full_size() -> None:
    picture = decode(dng(LYING.resize((1616, 1080)), (3000, 2000)))
    assert (picture.width, picture.height) == (1616, 1080)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_one_that_ends_early_is_truncated_though_its_preview_may_be_whole(make: Maker) -> None:
    data = make(LYING, (640, 480))
    for share in (0.3, 0.6, 0.9):
        assert refusal(data[: int(len(data) * share)]) in ("truncated", "unreadable")
    preview = encoded(LYING, "JPEG", quality=95)
    zeros = data.replace(preview, preview[: len(preview) // 2] + bytes(len(preview) - len(preview) // 2))
    assert refusal(zeros) == "truncated"


def test_a_tiff_goes_on_being_read_as_one() -> None:
    picture = decode(written(deep(PICTURE), photometric="rgb"))
    assert picture.rendition is None
    matches(written(PICTURE, photometric="rgb", extratags=[(271, "s", 0, "NIKON", True)]), PICTURE)


def test_without_libraw_raw_is_refused_with_a_sentence() -> None:
    """As in a server's environment that lacks the package: everything else goes on."""
    script = (
        "import sys; sys.modules['rawpy'] = None\n"
        "from agewatch.estimator.images import decode\n"
        "try: decode(sys.stdin.buffer.read())\n"
        "except Exception as error: print(error.code, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=dng(LYING, (640, 480)), capture_output=True, check=True)
    assert done.stdout.startswith(b"unsupported Camera RAW is not read here")


def test_rawpy_is_loaded_only_for_raw() -> None:
    script = "import sys, agewatch.estimator.faces; print('rawpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


def test_rows_of_raw_and_jpeg_2000(tmp_path: Path, model_folder: Path, cache: Path) -> None:
    """Each maker's RAW, named by any suffix, is a row of its own with `rendition`; a JP2 is an ordinary picture."""
    face = Image.open(ASTRONAUT).convert("RGB")
    archive = tmp_path / "archive"
    archive.mkdir()
    for suffix, make in MAKERS.items():
        stored = Image.fromarray(np.ascontiguousarray(TURNED[6](np.asarray(face))))
        (archive / f"face.{suffix.upper()}").write_bytes(make(stored, face.size, 6))
    (archive / "named.tif").write_bytes(dng(face, face.size))
    (archive / "thumbnail.nef").write_bytes(MAKERS["nef"](None, face.size))
    (archive / "face.jp2").write_bytes(encoded(face, "JPEG2000"))
    (archive / "face.j2k").write_bytes(encoded(face, "JPEG2000", no_jp2=True))
    score_archive(archive, model_path=model_folder, table=tmp_path / "table", how=Execution(cache, 1))
    rows = {row["path"]: row for row in predictions.read(tmp_path / "table").to_pylist()}
    assert rows.pop("thumbnail.nef")["status"] == "unsupported"
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {path for path, row in rows.items() if row["rendition"] is None} == {"face.jp2", "face.j2k"}
    assert {row["rendition"] for row in rows.values()} == {None, "preview"}
    assert len({(row["width"], row["height"], round(row["box_x"] / 9)) for row in rows.values()}) == 1
