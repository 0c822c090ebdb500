"""Decoded samples of any kind -> upright sRGB of 8 bits, band by band, so that little lies beside the two."""

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

RGB = npt.NDArray[np.uint8]
"""Array of shape (height, width, 3), 0..255, sRGB."""

ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations, as in EXIF, of pictures that are stored lying on a side."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a stored picture upright, by its orientation."""
_FROM_THE_END = (3, 4, 6, 7)  # the first stored row becomes the last row or column
_BAND_PIXELS = 2**20  # each needs some 20 bytes for a moment
_USUAL_GAMMA, _GAMMA_MARGIN = 1 / 2.2, 0.05  # of PNG's gAMA: nearer ones libpng leaves as they are, too
_D50 = 5000  # kelvin: the white of TIFF's CIE L*a*b* (TIFF 6.0, section 23)


def to_rgb(source: Image.Image | RGB, orientation: int, profile: bytes | None) -> RGB:
    """Make upright sRGB of a picture as it was stored: alpha on white, colours by the embedded ICC profile,
    else by a PNG's gAMA chunk.
    """
    width, height = source.size if isinstance(source, Image.Image) else source.shape[1::-1]
    rows = max(1, _BAND_PIXELS // width)
    if rows >= height:
        return np.ascontiguousarray(_upright(source, orientation, profile))
    on_its_side = orientation in ON_ITS_SIDE
    rgb = np.empty((width, height, 3) if on_its_side else (height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = source.crop((0, top, width, bottom)) if isinstance(source, Image.Image) else source[top:bottom]
        start, end = (height - bottom, height - top) if orientation in _FROM_THE_END else (top, bottom)
        if on_its_side:
            rgb[:, start:end] = _upright(band, orientation, profile)
        else:
            rgb[start:end] = _upright(band, orientation, profile)
    return rgb


def _upright(source: Image.Image | RGB, orientation: int, profile: bytes | None) -> RGB:
    image = source if isinstance(source, Image.Image) else Image.fromarray(source)
    image = _colours(image, profile)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    return np.asarray(image, dtype=np.uint8)


def _colours(image: Image.Image, profile: bytes | None) -> Image.Image:
    curve = _curve(image)
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
    return image.convert("RGB")


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
