"""How copies of pictures are damaged in tests, and pictures of every format to damage."""

import numpy as np
from pictures import encoded
from PIL import Image

FORMS = {
    "jpg": "JPEG",
    "png": "PNG",
    "gif": "GIF",
    "webp": "WEBP",
    "tif": "TIFF",
    "bmp": "BMP",
    "heic": "HEIF",
    "avif": "AVIF",
}
KINDS = 4


def damaged(data: bytes, kind: int, random: np.random.Generator) -> bytes:
    """Cut short, bits flipped, the header of one place written over another, or (kind 3) zeros from some place on."""
    if kind == 3:
        start = int(random.integers(1, len(data) * 9 // 10))
        return data[:start] + bytes(len(data) - start)
    if kind == 0:
        return data[: random.integers(1, len(data))]
    changed = bytearray(data)
    if kind == 1:
        for place in random.integers(0, len(data), random.integers(1, 20)):
            changed[place] ^= 1 << int(random.integers(8))
        return bytes(changed)
    start, to, length = (int(random.integers(1, max(2, len(data) // 2))) for _ in range(3))
    changed[to : to + length] = data[start : start + length]
    return bytes(changed)


def of_every_form(picture: Image.Image) -> dict[str, bytes]:
    """A picture as a file of each format, by suffix."""
    return {suffix: encoded(picture, form) for suffix, form in FORMS.items()}
