"""A picture of four quarters, each of another colour: every turn of it and every wrong sample shows."""

from io import BytesIO
from typing import Any

import numpy as np
import tifffile

from agewatch.estimator.images import decode

SIDE = 32
COLOURS = np.array([[[230, 20, 20], [20, 200, 20]], [[20, 20, 210], [240, 230, 40]]], np.uint8)
"""Red, green, blue, yellow, from the upper left by rows."""
PICTURE = COLOURS.repeat(SIDE, axis=0).repeat(SIDE + 8, axis=1)
GREY = np.array([[0, 90], [170, 255]], np.uint8).repeat(SIDE, axis=0).repeat(SIDE + 8, axis=1)
TURNED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image[:, ::-1].transpose(1, 0, 2),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image[::-1].transpose(1, 0, 2),
}
"""How an upright picture is stored so that the tag makes it upright again; each undoes what EXIF 2.32, 4.6.4 says."""


def written(values: np.ndarray, **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return file.getvalue()


def middles(rgb: np.ndarray) -> np.ndarray:
    """The colours in the middles of the four quarters."""
    height, width = rgb.shape[:2]
    return rgb[[height // 4, 3 * height // 4]][:, [width // 4, 3 * width // 4]].astype(int)


def matches(data: bytes, expected: np.ndarray, tolerance: int = 3) -> None:
    picture = decode(data)
    assert (picture.width, picture.height) == (expected.shape[1], expected.shape[0])
    wanted = middles(expected if expected.ndim == 3 else expected[:, :, None].repeat(3, axis=2))
    assert np.abs(middles(picture.rgb) - wanted).max() <= tolerance


def deep(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint16) * 257
