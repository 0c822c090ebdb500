"""TIFFs that Pillow can't read, or reads wrongly: over 8 bits, floats, alpha beside CMYK, a thumbnail that is first.

Pillow opens 16-bit pictures in which white is zero as negatives, takes 12 bits for 16, takes the thumbnail in a first
directory for the picture, and where no tag says which end is white it takes zero. What it reads well is left to it, as
it is faster.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageChops

from agewatch.errors import ImageError
from agewatch.estimator import raw

SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 4, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _CMYK: 4}  # samples a pixel of what is read here
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_REDUCED = 1  # NewSubfileType's first bit: a smaller version of another picture of the file
_PREMULTIPLIED, _ALPHA = 1, 2  # ExtraSamples: associated alpha, and unassociated
_SIGNED, _FLOAT = 2, 3  # SampleFormat
_JPEG, _FAX = 7, (2, 3, 4)  # Compression
_BY_PILLOW = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)  # those that its libtiff has
_PLANES_APART = 2  # PlanarConfiguration
_TOPS = (1.0, 255.0, 65535.0)
"""What programs write for white in floats, where no tag tells."""
_SCALED_AT_ONCE = 2**22  # samples, which bounds the memory
_OVERSHOOT = 1.1  # scaling and sharpening leave a few pixels beyond white
_PHOTOMETRIC, _ORIENTATION, _MAKE, _MODEL, _EXIF, _PROFILE = 262, 274, 271, 272, 34665, 34675

Values = npt.NDArray[Any]
T = TypeVar("T")

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it writes lines about damage; the rows say it better


@dataclass(frozen=True, slots=True)
class Tiff:
    """A picture as it is stored, of mode L, RGB or CMYK, or a RAW's preview; and what the tags say.

    `exif` is by tifffile's names.
    """

    image: Image.Image | raw.Preview
    orientation: int
    profile: bytes
    make: str
    model: str
    exif: dict[str, Any]


def read(data: bytes, admit: Callable[[tuple[int, int], int, int], None]) -> Tiff | None:
    """Read a TIFF's main picture, None where it is left to Pillow; `admit` is asked before about its size,
    the bytes of a stored pixel, and its colours.

    The main picture is the first that is no smaller version of another, else the largest; a camera RAW's is its
    preview. Raises ImageError with code
    `unsupported` for kinds that are not read, `truncated` where data are missing; damage raises whatever it raises.
    """
    try:
        file = tifffile.TiffFile(BytesIO(data))
        is_raw = raw.is_raw(file, data)
        page = None if is_raw else _main(file)
    except Exception:  # a directory that it can't read: perhaps Pillow can
        return None
    with file:
        if is_raw:
            assert file.pages is not None
            return _with_tags(raw.read(file, data), file.pages.first)
        if page is None:
            return None
        admit(
            (page.imagewidth, page.imagelength),
            page.samplesperpixel * (page.bitspersample + 7) // 8,
            _COLOURS.get(_photometric(page), 3),
        )
        return _with_tags(_decode(page, data), page)


def _with_tags(image: Image.Image | raw.Preview, page: tifffile.TiffPage) -> Tiff:
    return Tiff(
        image,
        _told(page, _ORIENTATION, int, 1),
        _told(page, _PROFILE, bytes, b""),
        _told(page, _MAKE, str, ""),
        _told(page, _MODEL, str, ""),
        _told(page, _EXIF, dict, {}),
    )


def _told(page: tifffile.TiffPage, tag: int, kind: type[T], otherwise: T) -> T:
    """What a tag says, where it is of the kind that it should be: damaged metadata cost no picture its row."""
    try:
        told = page.tags.valueof(tag, otherwise)
    except Exception:  # it is read only now
        return otherwise
    return told if isinstance(told, kind) else otherwise


def _main(file: tifffile.TiffFile) -> tifffile.TiffPage | None:
    assert file.pages is not None  # it was just opened
    first = file.pages.first
    if not first.subfiletype & _REDUCED:
        return None if _is_plain(first) else first
    pages = raw.pages_of(file)
    whole = [page for page in pages if not page.subfiletype & _REDUCED]
    return whole[0] if whole else max(pages, key=lambda page: page.imagewidth * page.imagelength)


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Tell whether Pillow reads a page right: up to 8 bits, and no sample beside the colours but alpha.

    One whose directory lacks where the pixels are is left to it, too.
    """
    if not page.dataoffsets:
        return True
    if page.bitspersample > 8 or page.sampleformat in (_SIGNED, _FLOAT):
        return False
    if _PHOTOMETRIC not in page.tags or page.compression not in _BY_PILLOW:
        return False
    extra = page.samplesperpixel - {_RGB: 3, _CMYK: 4, _YCBCR: 3, _LAB: 3}.get(page.photometric, 1)
    return extra == 0 or (extra == 1 and page.photometric in (_RGB, _PALETTE))


def _photometric(page: tifffile.TiffPage) -> int:
    """What the samples mean; where no tag tells, what libtiff takes them for."""
    if _PHOTOMETRIC in page.tags:
        return int(page.photometric)
    if page.samplesperpixel >= 3:
        return _RGB
    return _WHITE_IS_ZERO if page.compression in _FAX else _BLACK_IS_ZERO


def _decode(page: tifffile.TiffPage, data: bytes) -> Image.Image:
    photometric = _photometric(page)
    by_jpeg = photometric == _YCBCR and page.compression == _JPEG  # whose decoder gives RGB
    colours = 3 if by_jpeg else _COLOURS.get(photometric)
    if colours is None or page.dtype is None or page.imagedepth != 1 or not 0 <= page.samplesperpixel - colours <= 4:
        raise ImageError("unsupported", "TIFF of this kind is not read: its samples are not grey, RGB or CMYK.")
    if page.dtype.kind not in "uif":
        raise ImageError("unsupported", "TIFF of complex numbers is not read.")
    _require_data(page, colours, len(data))
    values = page.asarray(maxworkers=1)
    if page.planarconfig == _PLANES_APART and page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    seen = _eight_bits(values[:, :, :colours], page)
    if photometric == _WHITE_IS_ZERO:
        seen = 255 - seen
    image = Image.fromarray(seen[:, :, 0] if colours == 1 else seen, _MODES[colours])
    if page.samplesperpixel > colours and page.extrasamples:
        return _on_white(image, _eight_bits(values[:, :, colours], page), page.extrasamples[0])
    return image


def _require_data(page: tifffile.TiffPage, colours: int, size: int) -> None:
    """Raise ImageError where a strip or tile of a colour lies beyond the end; planes beyond the colours may lack."""
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if page.planarconfig == _PLANES_APART:
        parts = parts[: len(parts) * colours // page.samplesperpixel]
    if not parts or any(not count or start + count > size for start, count in parts):
        raise ImageError("truncated", "The picture's data end early.")


def _on_white(image: Image.Image, alpha: npt.NDArray[np.uint8], kind: int) -> Image.Image:
    """Lay a picture onto white by its first extra sample, where that is alpha."""
    white = Image.new(image.mode, image.size, 0 if image.mode == "CMYK" else "white")
    if kind == _ALPHA:
        return Image.composite(image, white, Image.fromarray(alpha))
    if kind == _PREMULTIPLIED:
        around = Image.composite(Image.new(image.mode, image.size), white, Image.fromarray(alpha))
        return ImageChops.add(image, around)
    return image


def _eight_bits(values: Values, page: tifffile.TiffPage) -> npt.NDArray[np.uint8]:
    """Samples on 0..255: integers by their BitsPerSample, floats by their tags, else by what most of them reach."""
    low, high = 0.0, float(2**page.bitspersample - 1)
    if values.dtype.kind == "i":
        most = (high - 1) / 2
        if values.min(initial=0) >= 0:
            high = _reached(values, [*(top for top in _TOPS[1:] if top < most), most])
        elif _is_mislabelled(values):
            values = values.view(values.dtype.str.replace("i", "u"))
        else:
            low, high = -most - 1, most
    elif values.dtype.kind == "f":
        np.nan_to_num(values, copy=False, posinf=0, neginf=0)
        low, high = _range(values, page)
    if (low, high) == (0.0, 255.0) and values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    seen = np.empty(values.shape, np.uint8)
    rows = max(1, _SCALED_AT_ONCE // values[0].size)
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float32)
        block -= np.float32(low)
        block *= np.float32(255 / max(high - low, 1e-30))
        seen[start : start + rows] = block.clip(0, 255).round()
    return seen


def _range(values: Values, page: tifffile.TiffPage) -> tuple[float, float]:
    told = [page.tags.valueof(name) for name in ("SMinSampleValue", "SMaxSampleValue")]
    if None not in told:
        low, high = (float(np.ravel(each)[0]) for each in told)
        if high > low:
            return low, high
    return 0.0, _reached(values, _TOPS)


def _reached(values: Values, tops: Sequence[float]) -> float:
    """What white is by the values alone: the least of the usual tops that most of them stay below."""
    most = float(np.quantile(_some_rows(values), 0.999))
    return next((top for top in tops if most <= top * _OVERSHOOT), most)


def _is_mislabelled(values: Values) -> bool:
    """Tell whether samples that are called signed are none, as many programs write bytes: neighbours then jump less,
    for the contrast that there is.
    """
    signed = _some_rows(values)
    unsigned = signed.view(signed.dtype.str.replace("i", "u"))
    jumps, others = (np.abs(np.diff(each.astype(np.float64), axis=1)).sum() for each in (signed, unsigned))
    return bool(others * signed.std() <= jumps * unsigned.std())


def _some_rows(values: Values) -> Values:
    return values[:: max(1, values.shape[0] // 512)]
