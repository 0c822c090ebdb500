"""How copies of pictures are damaged in tests, and pictures of every format to damage."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from pictures import encoded
from PIL import Image

Random = np.random.Generator

NOTE = "Whoever reads this reads metadata. " * 8
"""What every picture says beside its pixels, where its format lets it say anything."""


def _exif(picture: Image.Image) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x010E] = NOTE  # ImageDescription
    return {"exif": exif.tobytes()}


def _tiled(picture: Image.Image) -> bytes:
    file = BytesIO()
    tifffile.imwrite(
        file, np.asarray(picture), photometric="rgb", tile=(64, 64), compression="deflate", description=NOTE,
        metadata=None,
    )  # fmt: skip
    return file.getvalue()


FORMATS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "JPEG": ("jpg", lambda image: encoded(image, "JPEG", **_exif(image))),
    "JPEG, progressive": ("jpg", lambda image: encoded(image, "JPEG", progressive=True, **_exif(image))),
    "PNG": ("png", lambda image: encoded(image, "PNG", **_exif(image))),
    "GIF": ("gif", lambda image: encoded(image, "GIF", comment=NOTE.encode()[:255])),
    "WebP, lossy": ("webp", lambda image: encoded(image, "WEBP", **_exif(image))),
    "WebP, lossless": ("webp", lambda image: encoded(image, "WEBP", lossless=True, **_exif(image))),
    "TIFF, uncompressed": ("tif", lambda image: encoded(image, "TIFF", tiffinfo={0x010E: NOTE})),
    "TIFF, LZW": ("tif", lambda image: encoded(image, "TIFF", compression="tiff_lzw", tiffinfo={0x010E: NOTE})),
    "TIFF, deflate, tiled": ("tif", _tiled),
    "BMP": ("bmp", lambda image: encoded(image, "BMP")),
    "HEIC": ("heic", lambda image: encoded(image, "HEIF", **_exif(image))),
    "AVIF": ("avif", lambda image: encoded(image, "AVIF", **_exif(image))),
}
"""A suffix and an encoder for each format."""


def of_every_format(picture: Image.Image) -> dict[str, bytes]:
    """A picture as a file of each format, by the format's name."""
    return {name: encode(picture) for name, (_, encode) in FORMATS.items()}


def _cut(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(1, _pixels_end(data)))]


def _cut_at_the_end(data: bytes, random: Random) -> bytes:
    return data[: -int(random.integers(1, max(2, len(data) // 10)))]


def _header_only(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(1, 33))]


def _zeroed_tail(data: bytes, random: Random) -> bytes:
    start = int(random.integers(1, _pixels_end(data)))
    return data[:start] + bytes(len(data) - start)


def _pixels_end(data: bytes) -> int:
    """Before the end of what the pixels need: nine tenths, or where metadata begin that are last."""
    note = data.find(NOTE.encode()[:100]) - 100  # behind what says that they are metadata
    return max(2, min(len(data) * 9 // 10, note if note > len(data) // 2 else len(data)))


def _zeroed_middle(data: bytes, random: Random) -> bytes:
    start, length = _place(data, random)
    return data[:start] + bytes(length) + data[start + length :]


def _flipped_bits(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for place in random.integers(0, len(data), random.integers(1, 20)):
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _random_bytes(data: bytes, random: Random) -> bytes:
    start, length = _place(data, random)
    return data[:start] + random.bytes(length) + data[start + length :]


def _swapped_blocks(data: bytes, random: Random) -> bytes:
    """Two blocks in each other's places, as by a file system that mixed them up."""
    length = int(random.integers(1, max(2, len(data) // 4)))
    first = int(random.integers(0, max(1, len(data) // 2 - length)))
    second = int(random.integers(len(data) // 2, max(len(data) // 2 + 1, len(data) - length)))
    one, other = data[first : first + length], data[second : second + length]
    between = data[first + length : second]
    return data[:first] + other + between + one + data[second + length :]


def _doubled_header(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(1, max(2, len(data) // 2)))] + data


def _written_over(data: bytes, random: Random) -> bytes:
    """A piece of the first half over another piece of it."""
    changed = bytearray(data)
    start, to, length = (int(random.integers(1, max(2, len(data) // 2))) for _ in range(3))
    changed[to : to + length] = data[start : start + length]
    return bytes(changed)


def _appended(data: bytes, random: Random) -> bytes:
    return data + random.bytes(int(random.integers(1, 4096)))


def _damaged_note(data: bytes, random: Random) -> bytes:
    """Random bytes in the middle of the metadata's text, which is somewhere in every format but BMP."""
    at = data.find(NOTE.encode()[:100])
    if at < 0:
        return data
    length = int(random.integers(1, 100))
    return data[:at] + random.bytes(length) + data[at + length :]


def _place(data: bytes, random: Random) -> tuple[int, int]:
    """Where a piece of up to a quarter of the data starts, and its length."""
    start = int(random.integers(0, len(data)))
    return start, min(int(random.integers(1, max(2, len(data) // 4))), len(data) - start)


KINDS: dict[str, Callable[[bytes, Random], bytes]] = {
    "cut": _cut,
    "cut at the end": _cut_at_the_end,
    "header only": _header_only,
    "zeroed tail": _zeroed_tail,
    "zeroed middle": _zeroed_middle,
    "flipped bits": _flipped_bits,
    "random bytes": _random_bytes,
    "swapped blocks": _swapped_blocks,
    "doubled header": _doubled_header,
    "written over": _written_over,
    "garbage appended": _appended,
    "damaged metadata": _damaged_note,
    "wrong suffix": lambda data, random: data,
    "empty": lambda data, random: b"",
}
"""What is done to a file's bytes; a wrong suffix is its name's affair."""
