"""BMPs whose colours lie in bits of the file's own choosing (BI_BITFIELDS): Pillow reads only the usual choices."""

import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from agewatch.errors import ImageError

SIGNATURE = b"BM"
_BITFIELDS, _ALPHA_BITFIELDS = 3, 6  # biCompression
_HEADERS = (40, 52, 56, 64, 108, 124)
_USUAL = {
    (32, 0xFF0000, 0xFF00, 0xFF), (32, 0xFF000000, 0xFF0000, 0xFF00), (32, 0xFF, 0xFF00, 0xFF0000),
    (16, 0xF800, 0x7E0, 0x1F), (16, 0x7C00, 0x3E0, 0x1F),
}  # fmt: skip
_MASKS = 54  # where they stand, in the header or after it


def read(data: bytes, admit: Callable[[tuple[int, int], int, int], None]) -> Image.Image | None:
    """Read a picture with unusual masks as RGB or RGBA, None where it is left to Pillow; `admit` is asked before about
    its size, the bytes of a stored pixel, and its colours. Raises ImageError with code `truncated` where pixels are
    missing.
    """
    if len(data) < _MASKS + 16:
        return None
    start, header, width, height, _, bits, packing = struct.unpack_from("<IIiiHHI", data, 10)
    masks = struct.unpack_from("<4I", data, _MASKS)  # red, green, blue, alpha
    if packing not in (_BITFIELDS, _ALPHA_BITFIELDS) or bits not in (16, 32) or header not in _HEADERS:
        return None
    if (bits, *masks[:3]) in _USUAL and packing == _BITFIELDS:
        return None
    if width <= 0 or not height:
        return None
    has_alpha = masks[3] and (header >= 56 or packing == _ALPHA_BITFIELDS)
    used = masks[: 4 if has_alpha else 3]
    admit((width, abs(height)), bits // 8, len(used))
    line = -(-width * bits // 32) * 4
    if len(data) < start + line * abs(height):
        raise ImageError("truncated", "The picture's data end early.")
    stored = np.frombuffer(data, np.uint8, line * abs(height), start).reshape(abs(height), line)
    values = np.ascontiguousarray(stored[:, : width * bits // 8]).view(f"<u{bits // 8}")
    channels = [_channel(values, mask) for mask in used]
    if has_alpha and not channels[3].any():  # written by programs that know no alpha
        channels.pop()
    pixels = np.stack(channels, axis=2)
    return Image.fromarray(pixels if height < 0 else np.ascontiguousarray(pixels[::-1]))


def _channel(values: npt.NDArray[np.unsignedinteger], mask: int) -> npt.NDArray[np.uint8]:
    """The bits of a mask, on 0..255."""
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    seen: npt.NDArray[np.float32] = ((values & values.dtype.type(mask)) >> shift).astype(np.float32) * (255 / most)
    return seen.round().astype(np.uint8)
