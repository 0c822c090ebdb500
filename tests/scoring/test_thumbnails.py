"""Thumbnails show the face of the row, small and without metadata, or nothing."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from pictures import encoded
from PIL import Image

from agewatch.estimator.faces import Face
from agewatch.scoring.thumbnails import SIDE, thumbnail
from agewatch.sources.folder import Folder


def test_the_box_of_the_row_is_cut_whatever_the_files_size_and_turn_and_metadata_stays_behind(tmp_path: Path) -> None:
    """A red face of 400 pixels in a blue picture of 4,000 x 3,000 that EXIF turns; decoded at a fraction."""
    upright = np.full((4000, 3000, 3), (0, 0, 255), np.uint8)
    upright[1000:1400, 2000:2400] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker of secrets"
    data = encoded(Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=90)
    (tmp_path / "a.jpg").write_bytes(data)
    source = Folder(tmp_path)
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    shown = thumbnail(source, "a.jpg", digest, Face((2000, 1000, 400, 400), 0.9))
    assert shown is not None
    assert b"Maker" not in shown
    pixels = np.asarray(Image.open(BytesIO(shown)).convert("RGB")).astype(int)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert (pixels[40:120, 40:120, 0] > 200).all()  # the face fills the middle
    assert (pixels[:10, :10, 2] > 200).all()  # what is around it is seen
    assert thumbnail(source, "a.jpg", "0" * 64, Face((0, 0, 9, 9))) is None  # another content
    assert thumbnail(source, "gone.jpg", digest, Face((0, 0, 9, 9))) is None
