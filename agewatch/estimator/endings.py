"""Whether a picture's file ends where it should: half copied files that decoders take for whole ones."""

import re
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Literal

from PIL import Image

from agewatch.errors import ImageError

ZEROS = 64
"""More zero bytes where compressed data should end: that part of the file was never written."""
_JPEG, _JPEG_END, _PNG = b"\xff\xd8", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # that a segment follows, or the end; none within coded data
_FRAMES, _PROGRESSIVE, _SCAN = (0xC0, 0xC1, 0xC2), 0xC2, 0xDA
_CODED_ZEROS = 2  # may end the pixels of a whole JPEG
_GIF, _GIF_END = b"GIF8", b";"
_NEEDED = (b"tRNS", b"eXIf")
_CHECKED_CHUNKS = (b"IHDR", b"PLTE", b"IDAT")
_OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # TIFF 6.0: of strips, of tiles


def check(image: Image.Image, data: bytes) -> None:
    """Look for a missing end where decoders overlook it: no end marker, or checksums that they ignore.

    Raises ImageError with code `truncated`, or `unreadable` where a PNG's checksum is wrong.
    """
    if image.format == "PNG":
        _check_png(data)
    elif (image.format == "WEBP" and _is_webp_unfinished(data)) or (
        image.format in ("HEIF", "AVIF") and _is_heif_unfinished(image, data)
    ):
        raise truncated()


def with_marker(data: bytes) -> bytes:
    """A JPEG without its end marker, given one: then decoders miss only what is missing of its pixels.

    Not where it ends in zeros, which would pass for pixels. Raises ImageError with code `truncated` where whole scans
    are missing, which decoders overlook.
    """
    if data.startswith(_JPEG) and not data.endswith(_JPEG_END) and _zeros_at_end(data) <= _CODED_ZEROS:
        if _lacks_scans(data):
            raise truncated()
        return data + _JPEG_END
    return data


def without_metadata(data: bytes) -> bytes | None:
    """A PNG with only what its pixels need, and EXIF, which turns them; None where it has nothing else.

    What is left out may be damaged, or large, and cost the picture its pixels. Chunks whose names begin with a capital
    are those that decoders need (PNG specification, section 5.4).
    """
    if not data.startswith(_PNG):
        return None
    place, kept = len(_PNG), [_PNG]
    while place + 12 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4])
        is_sound = zlib.crc32(memoryview(data)[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if kind[:1].isupper() or (is_sound and kind in _NEEDED):
            kept.append(data[place:end])
        place = end
    bare = b"".join(kept)
    return bare if len(bare) < len(data) else None


def brands(data: bytes) -> set[bytes]:
    """What an ISO base media file says that it is: its major and compatible brands (ISO/IEC 14496-12, 4.3)."""
    content = data[8 : min(int.from_bytes(data[:4]), 1024)]
    return {content[start : start + 4] for start in range(0, len(content), 4)}


def is_cut(data: bytes) -> bool:
    """Tell whether a picture that can't be decoded lacks its end, by what its container says."""
    if _zeros_at_end(data) > ZEROS:
        return True
    if data.startswith(_JPEG):
        return not data.rstrip(b"\0").endswith(_JPEG_END)
    if data.startswith(_GIF):
        return not data.rstrip(b"\0").endswith(_GIF_END)
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    if data[4:8] == b"ftyp":
        return any(kind in (b"ftyp", b"meta", b"mdat") and not complete for kind, _, complete in boxes(data))
    return data.startswith((b"II", b"MM")) and _is_tiff_cut(data)


def truncated() -> ImageError:
    """Make the error for a picture without its end."""
    return ImageError("truncated", "The picture's data end early.")


def _lacks_scans(data: bytes) -> bool:
    """Tell whether a JPEG without an end leaves out a component, or bits of its coefficients (ITU-T T.81, B.2 and G.1).

    Behind its end there may be anything: the film of a moving photograph, for one.
    """
    missing: dict[int, set[int]] = {}  # by component, the coefficients that are not there to the last bit
    frame = 0
    for kind, content in _segments(data):
        if kind == _JPEG_END[1]:
            return False
        if kind in _FRAMES:
            frame, missing = kind, {component: set(range(64)) for component in content[6::3]}
        elif kind == _SCAN and content and len(content) == 4 + 2 * content[0]:
            first, last, bits = content[-3:] if frame == _PROGRESSIVE else (0, 63, 0)
            for component in content[1:-3:2]:
                missing.get(component, set()).difference_update(range(first, last + 1) if not bits & 15 else ())
    return any(missing.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and content of a JPEG's segments; of one that is cut, what is there."""
    place = len(_JPEG)
    while (found := _MARKER.search(data, place)) is not None:
        length = int.from_bytes(data[found.end() : found.end() + 2])
        place = found.end() + max(length, 2)
        yield found[0][1], data[found.end() + 2 : place]


def _check_png(data: bytes) -> None:
    """Compare the checksums of the chunks that matter, up to the end marker (PNG specification, section 5)."""
    place = 8
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        if kind == b"IEND":
            return
        end = place + 8 + int.from_bytes(data[place : place + 4])
        checksum = int.from_bytes(data[end : end + 4])
        if kind in _CHECKED_CHUNKS and zlib.crc32(memoryview(data)[place + 4 : end]) != checksum:
            if end + 4 > len(data) or is_cut(data):
                break
            raise ImageError("unreadable", "The picture is damaged: a checksum in it is wrong.")
        place = end + 4
    raise truncated()


def _is_webp_unfinished(data: bytes) -> bool:
    """Tell whether the first frame ends in zeros that its decoder can do without; what is flat may need thousands."""
    kind, frame = _webp_frame(memoryview(data))
    zeros = _zeros_at_end(frame)
    return zeros > ZEROS and _decodes(kind, frame[: len(frame) - zeros // 2])


def _is_heif_unfinished(image: Image.Image, data: bytes) -> bool:
    """Tell whether the media data end in zeros, more than any metadata among them ends in."""
    zeros = max((_zeros_at_end(content) for kind, content, _ in boxes(data) if kind == b"mdat"), default=0)
    return zeros > ZEROS and zeros > _padding(image)


def _padding(image: Image.Image) -> int:
    """Zeros that end the EXIF or XMP of any of a file's pictures: these may stand behind what is coded."""
    first, most = image.tell(), 0
    for frame in range(getattr(image, "n_frames", 1) if image.format == "HEIF" else 1):
        image.seek(frame)
        most = max(most, *(_zeros_at_end(image.info.get(name) or b"") for name in ("exif", "xmp")))
    image.seek(first)
    return most


def _webp_frame(data: memoryview, start: int = 12) -> tuple[bytes, memoryview]:
    """The kind, `VP8 ` or `VP8L`, and the coded bytes of a WebP's first frame (RFC 9649)."""
    while start + 8 <= len(data):
        kind = bytes(data[start : start + 4])
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        content = data[start + 8 : start + 8 + length]
        if kind == b"ANMF":
            return _webp_frame(content, 16)
        if kind in (b"VP8 ", b"VP8L"):
            return kind, content
        start += 8 + length + length % 2
    raise truncated()


def _decodes(kind: bytes, frame: memoryview) -> bool:
    """Tell whether a frame can be decoded as a WebP file of its own."""
    content = b"WEBP" + kind + len(frame).to_bytes(4, "little") + bytes(frame) + bytes(len(frame) % 2)
    try:
        with Image.open(BytesIO(b"RIFF" + len(content).to_bytes(4, "little") + content), formats=["WEBP"]) as image:
            image.load()
    except Exception:  # a decoder raises anything
        return False
    return True


def boxes(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield kind, content and completeness of the outermost boxes of HEIF, AVIF and JP2 (ISO/IEC 14496-12, 4.2)."""
    place = 0
    while place + 8 <= len(data):
        length, header = int.from_bytes(data[place : place + 4]), 8
        if length == 1:
            length, header = int.from_bytes(data[place + 8 : place + 16]), 16
        end = len(data) if length == 0 else place + max(length, header)
        yield data[place + 4 : place + 8], memoryview(data)[place + header : end], end <= len(data)
        place = end


def _is_tiff_cut(data: bytes) -> bool:
    """Tell whether a TIFF's directory, a strip or a tile lies beyond the end of the file (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    directory = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[directory : directory + 2], order)
    if int.from_bytes(data[2:4], order) == 42 and directory + 2 + 12 * entries > len(data):
        return True
    try:
        with Image.open(BytesIO(data), formats=["TIFF"]) as image:
            tags = dict(image.tag_v2)  # type: ignore[attr-defined]
            ends = [
                start + count
                for starts, counts in _OFFSETS_AND_COUNTS
                for start, count in zip(tags.get(starts, ()), tags.get(counts, ()), strict=False)
            ]
    except Exception:  # damaged tags raise anything; that it can't be decoded is known already
        return False
    return max(ends, default=0) > len(data)


def _zeros_at_end(data: bytes | memoryview) -> int:
    """Count the zero bytes that end the data."""
    return len(data) - len(bytes(data).rstrip(b"\0")) if len(data) and not data[-1] else 0
