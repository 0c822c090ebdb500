"""BMPs with masks of their own choosing."""

import struct

import numpy as np
import pytest

from agewatch.errors import ImageError
from agewatch.estimator.images import decode

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)


def bmp(masks: tuple[int, ...], bits: int, *, alpha: int = 0, packing: int = 3, upside_down: bool = False) -> bytes:
    """PICTURE, its colours cut to the bits of the masks; the fourth mask, if any, full of `alpha` (0..255)."""
    height, width = PICTURE.shape[:2]
    values = np.zeros((height, width), np.uint64)
    for mask, channel in zip(masks, [*PICTURE.transpose(2, 0, 1), np.full((height, width), alpha)], strict=False):
        shift = (mask & -mask).bit_length() - 1
        most = mask >> shift
        values |= (channel.astype(np.uint64) * most // 255) << np.uint64(shift)
    stored = values if upside_down else values[::-1]
    line = stored.astype(f"<u{bits // 8}").view(np.uint8).reshape(height, -1)
    pixels = np.pad(line, ((0, 0), (0, -line.shape[1] % 4))).tobytes()
    header = 56 if len(masks) == 4 else 40
    told = struct.pack("<IiiHHIIiiII", header, width, -height if upside_down else height, 1, bits, packing, *[0] * 5)
    fields = told + struct.pack(f"<{len(masks)}I", *masks)
    return struct.pack("<2sIHHI", b"BM", 14 + len(fields) + len(pixels), 0, 0, 14 + len(fields)) + fields + pixels


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize(
    ("masks", "bits"),
    [
        ((0xFF00, 0xFF0000, 0xFF000000), 32), ((0x3FF00000, 0xFFC00, 0x3FF), 32), ((0xF00, 0xF0, 0xF), 16),
        ((0xFF0000, 0xFF00, 0xFF), 32), ((0xF800, 0x7E0, 0x1F), 16),
    ],
)  # fmt: skip
def test_colours_in_bits_of_its_own_choosing(masks: tuple[int, ...], bits: int, upside_down: bool) -> None:
    seen = decode(bmp(masks, bits, upside_down=upside_down)).rgb
    coarseness = 255 / min(mask >> ((mask & -mask).bit_length() - 1) for mask in masks)
    assert np.abs(seen.astype(int) - PICTURE).max() <= coarseness + 1


@pytest.mark.parametrize("packing", [3, 6])
def test_alpha_is_laid_on_white_and_where_it_is_nowhere_set_it_is_none(packing: int) -> None:
    masks = (0xFF, 0xFF0000, 0xFF00, 0xFF000000)
    half = decode(bmp(masks, 32, alpha=128, packing=packing)).rgb.astype(int)
    assert np.abs(half - (PICTURE.astype(int) * 128 + 255 * 127) // 255).max() <= 1
    assert (decode(bmp(masks, 32, packing=packing)).rgb == PICTURE).all()


def test_one_that_is_cut_is_truncated_and_one_of_odd_numbers_is_refused() -> None:
    whole = bmp((0xFF00, 0xFF0000, 0xFF000000), 32)
    refused = {}
    for name, data in {
        "cut": whole[:-1],
        "no width": whole[:18] + bytes(4) + whole[22:],
        "huge": whole[:18] + struct.pack("<ii", 90_000, 90_000) + whole[26:],
    }.items():
        with pytest.raises(ImageError) as error:
            decode(data)
        refused[name] = error.value.code
    assert refused == {"cut": "truncated", "no width": "unreadable", "huge": "too_large"}
