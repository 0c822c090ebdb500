"""Camera RAW as DNG, CR2, NEF and ARW lay it out, small: a thumbnail first, a preview, and samples behind filters.

Layouts by the DNG specification 1.6 and, of the makers' own, by ExifTool's tables of their tags.
"""

import struct
from collections.abc import Mapping

import imagecodecs
import numpy as np
from pictures import encoded
from PIL import Image

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}


class _Tiff:
    """A little-endian TIFF that grows: `put` appends bytes, `directory` appends tags, both answer where."""

    def __init__(self, head: bytes = b"") -> None:
        self.data = bytearray(b"II*\0" + bytes(4) + head)

    def put(self, content: bytes) -> int:
        self.data += bytes(len(self.data) % 2)
        place = len(self.data)
        self.data += content
        return place

    def directory(self, tags: Mapping[int, tuple[int, object]], following: int = 0) -> int:
        entries = []
        for tag, (kind, value) in sorted(tags.items()):
            if isinstance(value, str):
                value = value.encode() + b"\0"
            if not isinstance(value, bytes):
                numbers = value if isinstance(value, list) else [value]
                value = struct.pack(f"<{len(numbers)}{'BBHI'[kind - 1]}", *numbers)
            count = len(value) // _SIZES[kind]
            field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", self.put(value))
            entries.append(struct.pack("<HHI", tag, kind, count) + field)
        return self.put(struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", following))

    def done(self, first: int) -> bytes:
        self.data[4:8] = struct.pack("<I", first)
        return bytes(self.data)


def _samples(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(500, 3000, size[::-1], np.uint16)


def _behind_filters(tiff: _Tiff, size: tuple[int, int]) -> dict[int, tuple[int, object]]:
    content = _samples(size).tobytes()
    return {
        254: (4, 0), 256: (4, size[0]), 257: (4, size[1]), 258: (3, 16), 259: (3, 1), 262: (3, 32803),
        273: (4, tiff.put(content)), 277: (3, 1), 278: (4, size[1]), 279: (4, len(content)), 284: (3, 1),
        33421: (3, [2, 2]), 33422: (1, [0, 1, 1, 2]),
    }  # fmt: skip


def _about(tiff: _Tiff, make: str, model: str, orientation: int | None) -> dict[int, tuple[int, object]]:
    exif = tiff.directory({0x9003: (2, "2021:06:07 08:09:10"), 0x9011: (2, "+02:00")})
    told = {271: (2, make), 272: (2, model), 34665: (4, exif)}
    return told if orientation is None else told | {274: (3, orientation)}


def _thumbnail(tiff: _Tiff) -> dict[int, tuple[int, object]]:
    """A grey one of 160x120, as uncompressed RGB: whoever is shown it was shown the wrong picture."""
    content = bytes([128]) * (160 * 120 * 3)
    return {
        254: (4, 1), 256: (4, 160), 257: (4, 120), 258: (3, [8, 8, 8]), 259: (3, 1), 262: (3, 2),
        273: (4, tiff.put(content)), 277: (3, 3), 278: (4, 120), 279: (4, len(content)), 284: (3, 1),
    }  # fmt: skip


def _jpeg(image: Image.Image, exif: Image.Exif | None) -> bytes:
    if exif is None:
        return encoded(image, "JPEG", quality=95)
    data = encoded(image, "JPEG", quality=95, exif=exif)
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[20:]  # cameras write EXIF first, and no JFIF


def dng(preview: Image.Image | None, size: tuple[int, int], orientation: int | None = 1,
        exif: Image.Exif | None = None) -> bytes:  # fmt: skip
    """Adobe's DNG: thumbnail, then the samples and a JPEG as inner directories."""
    tiff = _Tiff()
    inner = [tiff.directory(_behind_filters(tiff, size))]
    if preview is not None:
        content = _jpeg(preview, exif)
        inner.append(tiff.directory({
            254: (4, 1), 256: (4, preview.width), 257: (4, preview.height), 258: (3, [8, 8, 8]), 259: (3, 7),
            262: (3, 6), 273: (4, tiff.put(content)), 277: (3, 3), 278: (4, preview.height), 279: (4, len(content)),
        }))  # fmt: skip
    about = _about(tiff, "Maker", "Maker One", orientation)
    version = {50706: (1, [1, 4, 0, 0]), 50708: (2, "Maker One"), 330: (4, inner if len(inner) > 1 else inner[0])}
    return tiff.done(tiff.directory(_thumbnail(tiff) | about | version))


def nef(preview: Image.Image | None, size: tuple[int, int], orientation: int | None = 1,
        exif: Image.Exif | None = None) -> bytes:  # fmt: skip
    """Nikon's: thumbnail, then a JPEG and the samples as inner directories."""
    tiff = _Tiff()
    inner = []
    if preview is not None:
        content = _jpeg(preview, exif)
        inner.append(tiff.directory({254: (4, 1), 259: (3, 6), 513: (4, tiff.put(content)), 514: (4, len(content))}))
    inner.append(tiff.directory(_behind_filters(tiff, size)))
    about = _about(tiff, "NIKON CORPORATION", "NIKON D810", orientation)
    return tiff.done(tiff.directory(_thumbnail(tiff) | about | {330: (4, inner if len(inner) > 1 else inner[0])}))


def arw(preview: Image.Image | None, size: tuple[int, int], orientation: int | None = 1,
        exif: Image.Exif | None = None) -> bytes:  # fmt: skip
    """Sony's: a JPEG first, the samples as its inner directory, a thumbnail second."""
    tiff = _Tiff()
    inner = tiff.directory(_behind_filters(tiff, size))
    small = _jpeg(Image.new("RGB", (160, 120), "grey"), None)
    second = tiff.directory({254: (4, 1), 259: (3, 6), 513: (4, tiff.put(small)), 514: (4, len(small))})
    tags = {254: (4, 1), 259: (3, 6), 330: (4, inner), 50740: (1, [0, 0, 0, 0])}
    tags |= _about(tiff, "SONY", "ILCE-7M3", orientation)
    if preview is not None:
        content = _jpeg(preview, exif)
        tags |= {513: (4, tiff.put(content)), 514: (4, len(content))}
    return tiff.done(tiff.directory(tags, second))


def cr2(preview: Image.Image | None, size: tuple[int, int], orientation: int | None = 1,
        exif: Image.Exif | None = None) -> bytes:  # fmt: skip
    """Canon's: a JPEG first, a thumbnail second, a small RGB third, the samples as lossless JPEG fourth."""
    tiff = _Tiff(b"CR\2\0" + bytes(4))
    content = imagecodecs.ljpeg_encode(_samples(size), bitspersample=14)
    fourth = tiff.directory({
        256: (3, size[0]), 257: (3, size[1]), 258: (3, 16), 259: (3, 6), 273: (4, tiff.put(content)), 277: (3, 1),
        279: (4, len(content)),
    })  # fmt: skip
    tiff.data[12:16] = struct.pack("<I", fourth)
    third = tiff.directory(_thumbnail(tiff), fourth)
    small = _jpeg(Image.new("RGB", (160, 120), "grey"), None)
    second = tiff.directory({513: (4, tiff.put(small)), 514: (4, len(small))}, third)
    tags = _about(tiff, "Canon", "Canon EOS 5D Mark III", orientation) | {256: (3, size[0]), 257: (3, size[1])}
    if preview is not None:
        content = _jpeg(preview, exif)
        tags |= {258: (3, [8, 8, 8]), 259: (3, 6), 273: (4, tiff.put(content)), 279: (4, len(content))}
    return tiff.done(tiff.directory(tags, second))


MAKERS = {"dng": dng, "nef": nef, "arw": arw, "cr2": cr2}
