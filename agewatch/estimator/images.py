"""Bytes -> upright RGB array, or an ImageError that says exactly why not."""

import warnings
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO
from typing import Any, cast

import cv2
import pillow_heif
import simplejpeg
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from agewatch.errors import ImageError
from agewatch.estimator import bmp, endings, exif, jpeg2000, memory, raw, tiff
from agewatch.estimator.memory import Room
from agewatch.estimator.pixels import ON_ITS_SIDE, TURNS, to_rgb
from agewatch.estimator.pixels import RGB as RGB

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF", "JPEG2000")
PREVIEW = "preview"
"""The rendition of a camera RAW."""

_SIGNATURES = (
    b"\xff\xd8", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"BM",
    *jpeg2000.SIGNATURES,
)  # fmt: skip
_HEIF_BRANDS = frozenset(
    {b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"avif", b"avis", b"miaf"}
)
_DATE_TIME_ORIGINAL, _OFFSET_TIME_ORIGINAL, _EXIF_IFD = 0x9003, 0x9011, 0x8769
_MAKE, _MODEL = 0x010F, 0x0110
_SUBFILE_TYPE, _REDUCED = 254, 1
_ORIENTATION = 0x0112

Image.init()  # `formats=` below needs every plugin loaded
pillow_heif.register_heif_opener()
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**27  # a profile may have megabytes
Image.MAX_IMAGE_PIXELS = None  # `memory` replaces Pillow's warning with a refusal


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: upright sRGB pixels and, from EXIF, when it was taken (UTC) and the camera's make and model.

    `width` and `height` are of the whole upright picture; `rgb` may have been decoded at a fraction of it. `rendition`
    is `preview` where that was read in the place of a camera's RAW.
    """

    rgb: RGB
    width: int
    height: int
    captured_at: datetime | None
    camera: str | None
    rendition: str | None = None


@dataclass(frozen=True, slots=True)
class _Wish:
    """How a file is to be decoded; `held` is what its bytes take."""

    min_side: int | None
    room: Room
    held: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of a face chip's luma (ITU-R BT.601).

    brightness: mean, 0..1. contrast: standard deviation, 0..0.5. sharpness: variance of the 3x3 Laplacian
    over 255^2, >= 0 (Pech-Pacheco et al., ICPR 2000); comparable only between chips of one size.
    """

    brightness: float
    contrast: float
    sharpness: float


def decode(data: bytes, *, min_side: int | None = None, room: Room | None = None) -> Picture:
    """Decode the first frame of a picture: upright, colours in sRGB, alpha on white.

    With `min_side`, a JPEG (of 2000, too) may be decoded at 1/2, 1/4 or 1/8 of its size, its longer side staying at
    least that many pixels. `room` is asked before for what decoding takes; by default that is the whole budget. The
    format is judged by content, never by name. Raises ImageError with code `empty`, `unsupported`, `too_large`,
    `truncated` or `unreadable`.
    """
    if not data:
        raise ImageError("empty", "The file has no bytes.")
    wish = _Wish(min_side, room or Room(), len(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of harmless metadata; the row's status says the rest
        try:
            return _decode(data, wish)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError("too_large", "The picture does not fit into memory.") from error
        except Exception as error:  # decoders answer damaged bytes with any exception there is
            if (bare := endings.without_metadata(data)) is not None:
                return decode(bare, min_side=min_side, room=room)
            if isinstance(error, UnidentifiedImageError):
                raise _unidentified(data) from error
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


def _decode(data: bytes, wish: _Wish) -> Picture:
    if data.startswith(jpeg2000.SIGNATURES):
        return _of_jpeg2000(jpeg2000.read(data), wish)

    def admit(size: tuple[int, int], stored: int, colours: int) -> None:
        wish.room.take(size, memory.cost_of_deep(size, stored, colours, wish.held))

    if data.startswith(tiff.SIGNATURES) and (found := tiff.read(data, admit)) is not None:
        return _of_tiff(found, wish)
    if data.startswith(bmp.SIGNATURE) and (image := bmp.read(data, admit)) is not None:
        return Picture(to_rgb(image, 1, None), image.width, image.height, None, None)
    return _by_pillow(endings.with_marker(data), wish)


def _refuse_unusual(image: Image.Image) -> None:
    """Refuse a TIFF of the kinds that Pillow reads wrongly; it is here only because `tiff` could make nothing of it."""
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and (image.mode.startswith(("I", "F")) or tags.get(_SUBFILE_TYPE, 0) & _REDUCED):
        raise ImageError("unreadable", "The file begins like a picture, but its directory is damaged.")


def _by_pillow(data: bytes, wish: _Wish, preview: raw.Preview | None = None) -> Picture:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        # Asked first: Pillow decodes a PNG to look for its EXIF.
        wish.room.take(image.size, memory.cost(image.format, image.mode, image.size, wish.held))
        _refuse_unusual(image)
        endings.check(image, data)  # before the XMP goes, which it looks at
        orientation = _orientation(image)
        if preview is not None:
            orientation = preview.turn_of(image.size) or orientation
        width, height = image.size if orientation not in ON_ITS_SIDE else image.size[::-1]
        rgb = _turbo(image, data, orientation, wish.min_side)
        told = _told(image)
        if rgb is None:
            rgb = to_rgb(image, orientation, image.info.get("icc_profile"))
        return Picture(rgb, width, height, *told)


def _of_tiff(found: tiff.Tiff, wish: _Wish) -> Picture:
    """A TIFF that was read already, or a camera RAW's preview; the file's own tags say when it was taken."""
    taken = exif.captured_at(found.exif.get("DateTimeOriginal"), found.exif.get("OffsetTimeOriginal"))
    told = taken, exif.camera(found.make, found.model)
    if isinstance(found.image, Image.Image):
        rgb = to_rgb(found.image, found.orientation, found.profile)
        return Picture(rgb, rgb.shape[1], rgb.shape[0], *told)
    preview = found.image
    if isinstance(preview.picture, bytes):
        shown = _by_pillow(endings.with_marker(preview.picture), wish, preview)
        return replace(shown, captured_at=taken, camera=told[1], rendition=PREVIEW)
    size = preview.picture.shape[1], preview.picture.shape[0]
    rgb = to_rgb(preview.picture, preview.turn_of(size) or 1, None)
    return Picture(rgb, rgb.shape[1], rgb.shape[0], *told, PREVIEW)


def _of_jpeg2000(told: jpeg2000.Told, wish: _Wish) -> Picture:
    with Image.open(BytesIO(told.data), formats=["JPEG2000"]) as image:
        wish.room.take(image.size, memory.cost(image.format, image.mode, image.size, wish.held))
        if told.exif:
            image.info["exif"] = told.exif
        orientation = _orientation(image)
        width, height = image.size if orientation not in ON_ITS_SIDE else image.size[::-1]
        halvings = jpeg2000.halvings(told, image.size, _halvings(image.size, wish.min_side))
        cast(Any, image).reduce = halvings  # a setter of this format, where others have a method
        image.load()
        rgb = to_rgb(jpeg2000.mend(image, told), orientation, told.profile)
        return Picture(rgb, width, height, *_told(image))


def _halvings(size: tuple[int, int], min_side: int | None) -> int:
    """How often a picture's size may be halved on decoding, its longer side staying at least `min_side`; 3 at most."""
    halvings = 0
    while min_side and halvings < 3 and max(size) >= min_side << halvings + 1:
        halvings += 1
    return halvings


def _turbo(image: Image.Image, data: bytes, orientation: int, min_side: int | None) -> RGB | None:
    """A JPEG, decoded without Pillow's copies and where allowed at a fraction; None where it is left to Pillow.

    Only powers of two: other fractions cost more than they save. Raises ImageError where the data end early, which
    Pillow overlooks before an end marker.
    """
    if image.format not in ("JPEG", "MPO"):
        return None
    factor = 2 ** _halvings(image.size, min_side)
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
    return to_rgb(pixels, orientation, profile) if profile or orientation != 1 else pixels


def _orientation(image: Image.Image) -> int:
    """How the picture comes from its decoder, 1..8 as in EXIF; 1 where that is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns it while loading
    if image.format == "AVIF":  # its container says how it is turned, which Pillow tells as EXIF; XMP has no say
        image.info.pop("xmp", None)
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; the pixels may be whole
        return 1
    return int(orientation) if orientation in TURNS else 1


def _told(image: Image.Image) -> tuple[datetime | None, str | None]:
    """When the picture was taken and by which camera, by its EXIF."""
    try:
        tags = image.getexif()
        inner = tags.get_ifd(_EXIF_IFD)
        date, offset, make, model = (
            inner.get(_DATE_TIME_ORIGINAL), inner.get(_OFFSET_TIME_ORIGINAL), tags.get(_MAKE), tags.get(_MODEL),
        )  # fmt: skip
    except Exception:  # damaged EXIF raises anything; what it says is optional, the pixels are not
        return None, None
    return exif.captured_at(date, offset), exif.camera(make, model)


def _unidentified(data: bytes) -> ImageError:
    is_riff_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    is_heif = data[4:8] == b"ftyp" and bool(_HEIF_BRANDS & endings.brands(data))  # else a film
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
