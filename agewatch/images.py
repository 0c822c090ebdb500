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
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from agewatch.errors import ImageError

RGB = npt.NDArray[np.uint8]
"""Array of shape (height, width, 3), 0..255, sRGB."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF")
MAX_PIXELS = 300_000_000
"""Larger pictures are refused by their header: 0.9 GB a picture as RGB, and no camera makes them."""

_SIGNATURES = (
    b"\xff\xd8", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"BM",
)  # fmt: skip
_DATE_TIME_ORIGINAL, _OFFSET_TIME_ORIGINAL, _EXIF_IFD = 0x9003, 0x9011, 0x8769

Image.init()  # `formats=` below needs every plugin loaded
pillow_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS below replaces Pillow's warning with a refusal


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: upright sRGB pixels and, from EXIF, when it was taken (UTC)."""

    rgb: RGB
    captured_at: datetime | None


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of a face chip's luma (ITU-R BT.601).

    brightness: mean, 0..1. contrast: standard deviation, 0..0.5. sharpness: variance of the 3x3 Laplacian
    over 255^2, >= 0 (Pech-Pacheco et al., ICPR 2000); comparable only between chips of one size.
    """

    brightness: float
    contrast: float
    sharpness: float


def decode(data: bytes) -> Picture:
    """Decode the first frame of a picture: upright, colours in sRGB, alpha on white.

    The format is judged by content, never by name. Raises ImageError with code `empty`, `unsupported`,
    `too_large`, `truncated` or `unreadable`.
    """
    if not data:
        raise ImageError("empty", "The file has no bytes.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of harmless metadata; the row's status says the rest
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                _refuse_bombs(image.size)
                captured_at = _captured_at(image)
                image.load()
                return Picture(_to_rgb(image), captured_at)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise _unidentified(data) from error
        except MemoryError as error:
            raise ImageError("too_large", "The picture does not fit into memory.") from error
        except Exception as error:  # decoders answer damaged bytes with any exception there is
            raise _damaged(error) from error


def quality(chip: RGB) -> Quality:
    """Measure brightness, contrast and sharpness of a face chip of shape (size, size, 3)."""
    luma = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(luma)
    _, edges = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_64F))
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


def _to_rgb(image: Image.Image) -> RGB:
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
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
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F" and values.size and np.nanmax(values) <= 1:
        values = values * 255
    elif image.mode != "F" or np.nanmax(values) > 255:
        values = values / 257  # 65535 / 255: the full 16-bit range onto 8 bits
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
        taken = datetime.strptime(str(exif[_DATE_TIME_ORIGINAL]).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:  # damaged EXIF raises anything; the date is optional, the pixels are not
        return None
    offset = re.fullmatch(r"([+-])(\d\d):(\d\d)", str(exif.get(_OFFSET_TIME_ORIGINAL, "")).strip("\0 "))
    if offset and int(offset[2]) < 24:
        shift = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        taken = taken.replace(tzinfo=timezone(shift if offset[1] == "+" else -shift))
        try:
            return taken.astimezone(UTC)
        except OverflowError:  # the year 1 or 9999 moved out of range by its offset
            return None
    return taken.replace(tzinfo=UTC)


def _unidentified(data: bytes) -> ImageError:
    is_riff_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    is_heif = data[4:8] == b"ftyp"
    if data.startswith(_SIGNATURES) or is_riff_webp or is_heif:
        return ImageError("unreadable", "The file begins like a picture, but its header is damaged.")
    return ImageError("unsupported", "The content is none of the picture formats that agewatch reads.")


def _damaged(error: Exception) -> ImageError:
    text = str(error).lower()
    if isinstance(error, EOFError) or any(word in text for word in ("truncated", "end of", "not enough data")):
        return ImageError("truncated", "The picture's data end early.")
    return ImageError("unreadable", f"The picture can't be decoded ({type(error).__name__}).")
