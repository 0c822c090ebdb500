"""A row's file -> its face as a small JPEG without metadata, to be shown in a page of ours."""

import hashlib
from contextlib import suppress

import cv2

from agewatch.errors import ImageError
from agewatch.estimator.faces import DECODED_SIDE, Face, cut_chip
from agewatch.estimator.images import RGB, Picture, decode
from agewatch.estimator.memory import Room
from agewatch.estimator.spec import Cut
from agewatch.scoring.scorer import one_pictures_misfortune
from agewatch.sources.source import FileRef, Source

SIDE = 160
"""Pixels."""
_SCALE = 1.3
"""The side over the height of the face's box, so that hair and chin are seen."""
_QUALITY = 85


def thumbnail(
    source: Source, path: str, content_hash: str | None, face: Face, side: int = SIDE, room: Room | None = None
) -> bytes | None:
    """A face of an archive's file as a square JPEG, its `box` in upright pixels of the whole picture, as in the table.

    None where the file is gone, holds another content than the row's, or can't be read.
    """
    with suppress(ImageError):
        shown = picture(source, path, content_hash, room)
        with one_pictures_misfortune():
            return jpeg(cut(shown, face, side))
    return None


def picture(source: Source, path: str, content_hash: str | None, room: Room | None = None) -> Picture:
    """Decode a row's file, a large JPEG at a fraction. `path` is the table's, `room` what decoding may take.

    What another content hides is not decoded: only what was scored before is known to be harmless. Raises ImageError.
    """
    data, _ = source.read(FileRef(path))
    if hashlib.blake2b(data, digest_size=32).hexdigest() != content_hash:
        raise ImageError("vanished", "The file holds another picture now.")
    with one_pictures_misfortune():
        return decode(data, min_side=DECODED_SIDE, room=room)


def cut(shown: Picture, face: Face, side: int = SIDE) -> RGB:
    """Cut a face of the table, in upright pixels of the whole picture, as a square of shape (side, side, 3)."""
    return cut_chip(shown.rgb, face.scaled(shown.rgb.shape[1] / shown.width), Cut(side, _SCALE))


def jpeg(rgb: RGB) -> bytes:
    """Encode pixels, and nothing else."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1].tobytes()
