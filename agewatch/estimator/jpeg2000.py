"""JPEG 2000, which Pillow decodes by OpenJPEG: what its boxes and markers say beyond what Pillow reads of them.

Boxes and markers are those of ISO/IEC 15444-1, annexes A and I.
"""

from dataclasses import dataclass
from math import ceil

from PIL import Image

from agewatch.errors import ImageError
from agewatch.estimator import endings

SIGNATURES = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_SIZ, _COD, _TILE_PART, _END = b"\xff\x51", b"\xff\x52", b"\xff\x90", b"\xff\xd9"
_READ_SPACES = (12, 15, 16, 17, 18)  # CMYK, black and white, sRGB, grey, sYCC
_BY_NUMBER, _BY_PROFILE = 1, (2, 3)  # methods of the box colr
_ALPHA = (1, 2)  # types of a channel in the box cdef
_EXIF = b"JpgTiffExif->JP2"
"""The UUID under which Exiv2 and ExifTool write EXIF."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a file says: its bytes with an end marker, the bits of each component, how often its size can be halved.

    `profile` (ICC) and `exif` are empty where there is none. `has_alpha` is None in a bare codestream, which can't say.
    """

    data: bytes
    depths: tuple[int, ...]
    halvings: int
    profile: bytes = b""
    exif: bytes = b""
    has_alpha: bool | None = None


def read(data: bytes) -> Told:
    """Look through a file's boxes and markers.

    Raises ImageError with code `truncated` where a tile, or the end of one, is missing, `unsupported` where its colours
    are of a kind that is not read, `unreadable` where it is damaged.
    """
    if data.startswith(SIGNATURES[1]):
        depths, most, missing = _codestream(memoryview(data))
        return Told(data + _END[2 - missing :], depths, most)
    header = stream = None
    exif = b""
    for kind, content, _ in endings.boxes(data):
        if kind == b"jp2h":
            header = content
        elif kind == b"uuid" and bytes(content[:16]) == _EXIF:
            exif = bytes(content[16:])
        elif kind == b"jp2c":
            stream = stream or content
    if header is None or stream is None:
        raise endings.truncated()
    depths, most, missing = _codestream(stream)
    whole = data + _END[2 - missing :]
    parts = [(kind, content) for kind, content, _ in endings.boxes(bytes(header))]
    return Told(whole, depths, most, _profile(parts), exif, _has_alpha(parts))


def halvings(told: Told, size: tuple[int, int], wanted: int) -> int:
    """How often a picture's size can be halved on decoding, at most as often as wanted.

    Pillow rounds the size that comes of it, OpenJPEG rounds it up: where these differ, decoding fails.
    """
    possible = range(min(wanted, told.halvings), 0, -1)
    return next((n for n in possible if all(-(-side >> n) == side + (1 << n - 1) >> n for side in size)), 0)


def mend(image: Image.Image, told: Told) -> Image.Image:
    """A decoded picture with samples of fewer than 8 bits on 0..255, and without a fourth component that is no alpha.

    Pillow shifts such samples up, so that white of 1 bit is 128.
    """
    if min(told.depths) < 8 and len(image.getbands()) == len(told.depths):
        tops = [((1 << depth) - 1) << (8 - depth) if depth < 8 else 255 for depth in told.depths]
        image = image.point([min(255, round(value * 255 / top)) for top in tops for value in range(256)])
    if told.has_alpha is False and image.mode in ("LA", "RGBA"):
        image = image.convert(image.mode[:-1])
    return image


def _codestream(stream: memoryview) -> tuple[tuple[int, ...], int, int]:
    """The bits of each component, how often the size can be halved, and how much of the end marker is missing."""
    depths: tuple[int, ...] = ()
    place, tiles, most, is_shifted = 2, 0, 0, False
    while (marker := bytes(stream[place : place + 2])) != _TILE_PART:
        length = _number(stream, place + 2, 2)
        if marker == _SIZ:
            right, bottom, x, y, across, down, left, top = (_number(stream, place + 6 + 4 * n, 4) for n in range(8))
            count = _number(stream, place + 38, 2)
            depths = tuple((_number(stream, place + 40 + 3 * n, 1) & 0x7F) + 1 for n in range(count))
            is_shifted = bool(x or y)
            tiles = ceil((right - left) / max(across, 1)) * ceil((bottom - top) / max(down, 1))
        elif marker == _COD:
            most = _number(stream, place + 9, 1)
        if marker[0] != 0xFF or length < 2:
            raise ImageError("unreadable", "The picture is damaged: its header makes no sense.")
        place += 2 + length
    if not 1 <= len(depths) <= 4:
        raise ImageError("unsupported", f"JPEG 2000 of {len(depths)} components is not read.")
    return depths, 0 if is_shifted else most, _missing(stream, place, tiles)


def _missing(stream: memoryview, place: int, tiles: int) -> int:
    """How many bytes of the end marker are missing. Raises ImageError where a tile is, or a part of one."""
    found: set[int] = set()
    while bytes(stream[place : place + 2]) == _TILE_PART:
        found.add(_number(stream, place + 4, 2))
        length = _number(stream, place + 6, 4)
        # The last part may leave its length open: then only the marker tells that it is whole.
        place = place + length if length else len(bytes(stream).rstrip(b"\0")) - 2
    rest = bytes(stream[place : place + 2])
    if place > len(stream) or len(found) < tiles or not _END.startswith(rest):
        raise endings.truncated()
    return 2 - len(rest)


def _number(stream: memoryview, place: int, length: int) -> int:
    if place + length > len(stream):
        raise endings.truncated()
    return int.from_bytes(stream[place : place + length])


def _profile(header: list[tuple[bytes, memoryview]]) -> bytes:
    """The ICC profile of the first colour box. Raises ImageError where the colours are of a kind that is not read."""
    colours = next((content for kind, content in header if kind == b"colr"), memoryview(bytes(3)))
    if colours[0] == _BY_NUMBER and (space := int.from_bytes(colours[3:7])) not in _READ_SPACES:
        raise ImageError("unsupported", f"JPEG 2000 in the colour space {space} is not read.")
    return bytes(colours[3:]) if colours[0] in _BY_PROFILE else b""


def _has_alpha(header: list[tuple[bytes, memoryview]]) -> bool:
    """Tell whether a component is alpha: what is not said to be is of unknown use (annex I.5.3.6)."""
    channels = next((content for kind, content in header if kind == b"cdef"), b"")
    kinds = [int.from_bytes(channels[place : place + 2]) for place in range(4, len(channels), 6)]
    return any(kind in _ALPHA for kind in kinds)
