"""HEIC as phones write it, of tiles: one coded tile that every place of a grid shows, however large (ISO/IEC 23008-12).

An encoder would need minutes and many gigabytes for 200 megapixels.
"""

import struct
from io import BytesIO

from PIL import Image

TILE = 1024
"""Pixels. Phones have 512; libheif opens at most a thousand tiles."""


def tiled(tile: Image.Image, columns: int, rows: int) -> bytes:
    """A HEIC of columns x rows equal tiles of TILE x TILE pixels."""
    file = BytesIO()
    tile.resize((TILE, TILE)).save(file, "HEIF", quality=50)
    coded = file.getvalue()
    place = coded.index(b"hvcC") - 4
    decoder = coded[place : place + int.from_bytes(coded[place : place + 4])]
    media = coded[coded.index(b"mdat") + 4 :]
    items = range(2, columns * rows + 2)
    grid = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, columns * TILE, rows * TILE)
    properties = decoder + _size(TILE, TILE) + _size(columns * TILE, rows * TILE)
    shown = b"".join(struct.pack(">HBBB", item, 2, 0x81, 2) for item in items)
    parts = [
        _box(b"hdlr", bytes(8) + b"pict" + bytes(13)),
        _box(b"pitm", bytes(4) + struct.pack(">H", 1)),
        _box(
            b"iinf",
            bytes(4)
            + struct.pack(">H", len(items) + 1)
            + _entry(1, b"grid")
            + b"".join(_entry(n, b"hvc1") for n in items),
        ),
        _box(b"iref", bytes(4) + _box(b"dimg", struct.pack(f">HH{len(items)}H", 1, len(items), *items))),
        _box(
            b"iprp",
            _box(b"ipco", properties)
            + _box(b"ipma", bytes(4) + struct.pack(">I", len(items) + 1) + struct.pack(">HBB", 1, 1, 3) + shown),
        ),
        _box(b"idat", grid),
    ]
    kind = _box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    length = len(kind) + 12 + sum(map(len, parts)) + 8 + 8 + 16 * (len(items) + 1)
    places = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))
    places += b"".join(struct.pack(">HHHHII", item, 0, 0, 1, length + 8, len(media)) for item in items)
    where = _box(b"iloc", b"\1\0\0\0" + b"\x44\0" + struct.pack(">H", len(items) + 1) + places)
    return kind + _box(b"meta", bytes(4) + b"".join(parts) + where) + _box(b"mdat", media)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _entry(item: int, kind: bytes) -> bytes:
    return _box(b"infe", b"\2\0\0\0" + struct.pack(">HH", item, 0) + kind + b"\0")


def _size(width: int, height: int) -> bytes:
    return _box(b"ispe", bytes(4) + struct.pack(">II", width, height))
