"""Bytes -> upright RGB array, or an ImageError that says exactly why not."""

import re
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pillow_heif
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from agewatch.errors import ImageError
from agewatch.estimator import endings

RGB = npt.NDArray[np.uint8]
"""Array of shape (height, width, 3), 0..255, sRGB."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF")
MAX_PIXELS = 180_000_000
"""Larger pictures are refused by their header: decoding takes up to 30 bytes a pixel and worker, 5.4 GB at this limit.

Measured by benchmarks/decode_memory.py: 3 bytes for most JPEGs, 14 to 22 for PNG, 26 and 30 for AVIF and WebP with
alpha.
"""

_SIGNATURES = (
    b"\xff\xd8", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"BM",
)  # fmt: skip
_DATE_TIME_ORIGINAL, _OFFSET_TIME_ORIGINAL, _EXIF_IFD = 0x9003, 0x9011, 0x8769
_MAKE, _MODEL = 0x010F, 0x0110
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION = 258, 284
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
_DATE = re.compile(  # as the standard has it, and as programs write it: ISO 8601, fractions, an offset of its own
    r"(\d{4})[:./-](\d\d)[:./-](\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d+))? ?([+-]\d\d:?\d\d|Z)?"
)
_OFFSET = re.compile(r"(?:([+-])(\d\d)(?::?(\d\d))?|Z)")
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.init()  # `formats=` below needs every plugin loaded
pillow_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS below replaces Pillow's warning with a refusal


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: upright sRGB pixels and, from EXIF, when it was taken (UTC) and the camera's make and model.

    `width` and `height` are of the whole upright picture; `rgb` may have been decoded at a fraction of it.
    """

    rgb: RGB
    width: int
    height: int
    captured_at: datetime | None
    camera: str | None


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of a face chip's luma (ITU-R BT.601).

    brightness: mean, 0..1. contrast: standard deviation, 0..0.5. sharpness: variance of the 3x3 Laplacian
    over 255^2, >= 0 (Pech-Pacheco et al., ICPR 2000); comparable only between chips of one size.
    """

    brightness: float
    contrast: float
    sharpness: float


def decode(data: bytes, *, min_side: int | None = None) -> Picture:
    """Decode the first frame of a picture: upright, colours in sRGB, alpha on white.

    With `min_side`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, its longer side staying at least that
    many pixels. The format is judged by content, never by name. Raises ImageError with code `empty`, `unsupported`,
    `too_large`, `truncated` or `unreadable`.
    """
    if not data:
        raise ImageError("empty", "The file has no bytes.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of harmless metadata; the row's status says the rest
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                _refuse_bombs(image.size)
                _refuse_unusual(image)
                endings.check(image, data)
                orientation = _orientation(image)
                width, height = image.size if orientation not in _ON_ITS_SIDE else image.size[::-1]
                rgb = _turbo(image, data, orientation, min_side)
                captured_at, camera = _captured_at(image), _camera(image)
                return Picture(_to_rgb(image, orientation) if rgb is None else rgb, width, height, captured_at, camera)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise _unidentified(data) from error
        except MemoryError as error:
            raise ImageError("too_large", "The picture does not fit into memory.") from error
        except Exception as error:  # decoders answer damaged bytes with any exception there is
            raise _damaged(error, data) from error


def quality(chip: RGB) -> Quality:
    """Measure brightness, contrast and sharpness of a face chip of shape (size, size, 3)."""
    luma = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(luma)
    _, edges = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return Quality(
        brightness=float(mean[0, 0]) / 255,
        contrast=float(deviation[0, 0]) / 255,
        sharpness=float(edges[0, 0] / 255) ** 2,
    )


def _refuse_bombs(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"The picture claims {width} x {height} pixels; the limit is {MAX_PIXELS // 10**6} million.",
        )


def _refuse_unusual(image: Image.Image) -> None:
    """Refuse a TIFF that Pillow decodes wrongly: more than 8 bits in separate planes (PlanarConfiguration 2)."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR_CONFIGURATION) == 2 and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8 and len(image.getbands()) > 1:
        raise ImageError("unsupported", "TIFF of more than 8 bits in separate planes is not read.")


def _turbo(image: Image.Image, data: bytes, orientation: int, min_side: int | None) -> RGB | None:
    """A JPEG, decoded without Pillow's copies and where allowed at a fraction; None where it is left to Pillow.

    Only powers of two: other fractions cost more than they save. Raises ImageError where the data end early, which
    Pillow overlooks before an end marker.
    """
    if image.format not in ("JPEG", "MPO"):
        return None
    factor = 1
    while min_side and factor < 8 and max(image.size) >= min_side * factor * 2:
        factor *= 2
    try:
        least = {"min_width": -(-image.width // factor), "min_height": -(-image.height // factor)}
        pixels: RGB = simplejpeg.decode_jpeg(data, "CMYK" if image.mode == "CMYK" else "RGB", **least)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise endings.truncated() from error
        return None  # damaged, or only unusual: Pillow decides
    if image.mode != "RGB":
        return None
    profile = image.info.get("icc_profile")
    if profile or orientation != 1:
        fast = Image.fromarray(pixels)
        fast.info = {"icc_profile": profile}
        return _to_rgb(fast, orientation)
    return pixels


def _orientation(image: Image.Image) -> int:
    """How the picture is stored, 1..8 as in EXIF; 1 where that is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; the pixels may be whole
        return 1
    return int(orientation) if orientation in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, orientation: int) -> RGB:
    profile = image.info.get("icc_profile")
    if orientation in _TRANSPOSE:
        image = image.transpose(_TRANSPOSE[orientation])
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode in ("P", "1", "LA"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    return np.ascontiguousarray(image.convert("RGB"), dtype=np.uint8)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values: npt.NDArray[np.float32] = np.asarray(image, dtype=np.float32)
    if image.mode == "F" and np.nanmax(values) <= 1:
        values = values * 255
    elif image.mode.startswith("I;16") or 255 < np.nanmax(values) <= 65535:
        values = values / np.float32(257)  # 65535 / 255: the full 16-bit range onto 8 bits
    elif np.nanmax(values) > 65535:
        values = values / np.float32((2**31 - 1) / 255)
    return Image.fromarray(np.nan_to_num(values).clip(0, 255).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert by the embedded ICC profile; a profile that is broken or of other channels is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return image if converted is None else converted


def _captured_at(image: Image.Image) -> datetime | None:
    """EXIF DateTimeOriginal with its offset, as UTC; UTC is assumed where no offset is given."""
    try:
        exif: dict[int, Any] = dict(image.getexif().get_ifd(_EXIF_IFD))
        told = _DATE.fullmatch(str(exif[_DATE_TIME_ORIGINAL]).strip("\0 "))
        if told is None:
            return None
        year, month, day, hour, minute, second, fraction, own_offset = told.groups()
        offset = _OFFSET.fullmatch(str(exif.get(_OFFSET_TIME_ORIGINAL) or own_offset or "").strip("\0 "))
        microsecond = int((fraction or "0")[:6].ljust(6, "0"))
        date, time = (int(year), int(month), int(day)), (int(hour), int(minute), int(second), microsecond)
        return datetime(*date, *time, tzinfo=_zone(offset)).astimezone(UTC)
    except Exception:  # damaged EXIF raises anything, and years 1 and 9999 overflow; the date is optional
        return None


def _zone(offset: re.Match[str] | None) -> timezone:
    """The zone of `+02:00`, `+0200`, `+02` or `Z`; UTC where none is told, or one of a day and more."""
    hours, minutes = (int(offset[2] or 0), int(offset[3] or 0)) if offset else (0, 0)
    if offset is None or hours >= 24:
        return UTC
    shift = timedelta(hours=hours, minutes=minutes)
    return timezone(-shift if offset[1] == "-" else shift)


def _camera(image: Image.Image) -> str | None:
    """EXIF Make and Model in one line, the make once; None where neither says anything."""
    try:
        exif = image.getexif()
        make, model = (" ".join(_printable(str(exif.get(tag, ""))).split()) for tag in (_MAKE, _MODEL))
    except Exception:  # damaged EXIF raises anything
        return None
    return (model if model.lower().startswith(make.lower()) else f"{make} {model}".strip()) or None


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _unidentified(data: bytes) -> ImageError:
    is_riff_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    is_heif = data[4:8] == b"ftyp"
    if data.startswith(_SIGNATURES) or is_riff_webp or is_heif:
        if endings.is_cut(data):
            return endings.truncated()
        return ImageError(
            "unreadable",
            "The file begins like a picture, but can't be opened: it is damaged or of an unusual kind.",
        )
    return ImageError("unsupported", "The content is none of the picture formats that agewatch reads.")


def _damaged(error: Exception, data: bytes) -> ImageError:
    text = str(error).lower()
    says_so = isinstance(error, EOFError) or any(word in text for word in ("truncated", "end of", "not enough data"))
    if says_so or endings.is_cut(data):
        return endings.truncated()
    return ImageError("unreadable", f"The picture can't be decoded ({type(error).__name__}).")
