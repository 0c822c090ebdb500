"""Bytes -> upright RGB array, or an ImageError that says exactly why not."""

import warnings
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
import pillow_heif
import simplejpeg
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from agewatch.errors import ImageError
from agewatch.estimator import bmp, endings, exif, tiff

RGB = npt.NDArray[np.uint8]
"""Array of shape (height, width, 3), 0..255, sRGB."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF")
MAX_DECODING_BYTES = 5_400_000_000
"""Pictures whose decoding may take more memory are refused by their header: so much a worker, for a moment."""
BYTES_A_PIXEL = {"WEBP": 30.0, "AVIF": 26.0}
"""Peak memory of decoding, where it is not 22: with alpha, turned, or with a profile, whichever costs most.

Measured by benchmarks/decode_memory.py. TIFFs of more than 8 bits cost their own samples besides.
"""
_BYTES_A_PIXEL = 22.0

_SIGNATURES = (
    b"\xff\xd8", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"BM",
)  # fmt: skip
_HEIF_BRANDS = frozenset(
    {b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"avif", b"avis", b"miaf"}
)
_USUAL_GAMMA, _GAMMA_MARGIN = 1 / 2.2, 0.05  # of PNG's gAMA: nearer ones libpng leaves as they are, too
_D50 = 5000  # kelvin: the white of TIFF's CIE L*a*b* (TIFF 6.0, section 23)
_DATE_TIME_ORIGINAL, _OFFSET_TIME_ORIGINAL, _EXIF_IFD = 0x9003, 0x9011, 0x8769
_MAKE, _MODEL = 0x010F, 0x0110
_SUBFILE_TYPE, _REDUCED = 254, 1
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
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
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**27  # a profile may have megabytes
Image.MAX_IMAGE_PIXELS = None  # max_pixels replaces Pillow's warning with a refusal


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
            if data.startswith(tiff.SIGNATURES) and (found := tiff.read(data, _refuse_deep)) is not None:
                return _of_tiff(found)
            if data.startswith(bmp.SIGNATURE) and (image := bmp.read(data, _refuse_large_bmp)) is not None:
                return Picture(_to_rgb(image, 1), image.width, image.height, None, None)
            return _by_pillow(endings.with_marker(data), min_side)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError("too_large", "The picture does not fit into memory.") from error
        except Exception as error:  # decoders answer damaged bytes with any exception there is
            if (bare := endings.without_metadata(data)) is not None:
                return decode(bare, min_side=min_side)
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


def max_pixels(form: str | None, stored: int = 0) -> int:
    """How many pixels a picture of a format, by Pillow's name, may have; of a deep TIFF with the bytes of each."""
    return int(MAX_DECODING_BYTES / (BYTES_A_PIXEL.get(form or "", _BYTES_A_PIXEL) + stored))


def _refuse_bombs(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise ImageError(
            "too_large",
            f"The picture claims {width} x {height} pixels; the limit of its kind is {most // 10**6} million.",
        )


def _refuse_deep(size: tuple[int, int], stored: int) -> None:
    _refuse_bombs(size, max_pixels("TIFF", stored))


def _refuse_large_bmp(size: tuple[int, int]) -> None:
    _refuse_bombs(size, max_pixels("BMP"))


def _refuse_unusual(image: Image.Image) -> None:
    """Refuse a TIFF of the kinds that Pillow reads wrongly; it is here only because `tiff` could make nothing of it."""
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and (image.mode.startswith(("I", "F")) or tags.get(_SUBFILE_TYPE, 0) & _REDUCED):
        raise ImageError("unreadable", "The file begins like a picture, but its directory is damaged.")


def _by_pillow(data: bytes, min_side: int | None) -> Picture:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        _refuse_bombs(image.size, max_pixels(image.format))
        _refuse_unusual(image)
        endings.check(image, data)
        orientation = _orientation(image)
        width, height = image.size if orientation not in _ON_ITS_SIDE else image.size[::-1]
        rgb = _turbo(image, data, orientation, min_side)
        told = _told(image)
        return Picture(_to_rgb(image, orientation) if rgb is None else rgb, width, height, *told)


def _of_tiff(found: tiff.Tiff) -> Picture:
    found.image.info = {"icc_profile": found.profile}
    rgb = _to_rgb(found.image, found.orientation)
    taken = exif.captured_at(found.exif.get("DateTimeOriginal"), found.exif.get("OffsetTimeOriginal"))
    return Picture(rgb, rgb.shape[1], rgb.shape[0], taken, exif.camera(found.make, found.model))


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
    """How the picture comes from its decoder, 1..8 as in EXIF; 1 where that is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns it while loading
    if image.format == "AVIF":  # its container says how it is turned, which Pillow tells as EXIF; XMP has no say
        image.info.pop("xmp", None)
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; the pixels may be whole
        return 1
    return int(orientation) if orientation in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, orientation: int) -> RGB:
    profile, curve = image.info.get("icc_profile"), _curve(image)
    if orientation in _TRANSPOSE:
        image = image.transpose(_TRANSPOSE[orientation])
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.mode == "LAB":
        image = _to_srgb(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB", _D50)).tobytes())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if curve is not None:
            image = image.point([*curve * 3, *range(256)])
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode in ("P", "1", "LA") or curve is not None:
        image = image.convert("RGB")
        image = image if curve is None else image.point(curve * 3)
    if profile:
        image = _to_srgb(image, profile)
    return np.ascontiguousarray(image.convert("RGB"), dtype=np.uint8)


def _curve(image: Image.Image) -> list[int] | None:
    """What makes a PNG's samples sRGB, where its gAMA chunk says that they are stored otherwise and nothing overrules
    it (PNG specification, section 13.13); None where they are near enough.
    """
    gamma = image.info.get("gamma")
    if not gamma or abs(gamma / _USUAL_GAMMA - 1) <= _GAMMA_MARGIN or {"icc_profile", "srgb"} & image.info.keys():
        return None
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    stored = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    curve: list[int] = (255 * stored).round().astype(int).tolist()
    return curve


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, as PNG has it, onto 8: 65535 / 255 = 257; its transparent level, if it has one, on white."""
    values: npt.NDArray[np.float32] = np.asarray(image, dtype=np.float32) / np.float32(257)
    seen = values.clip(0, 255).round().astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        seen[np.asarray(image) == clear] = 255
    return Image.fromarray(seen)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert by the embedded ICC profile; a profile that is broken or of other channels is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return image if converted is None else converted


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
