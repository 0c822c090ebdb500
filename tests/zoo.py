"""Odd files by name, each with the status it must get; the good ones all show the same four quadrants."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from pictures import encoded
from PIL import Image, ImageCms
from pillow_heif import HeifFile

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
GREYS = ((76,) * 3, (150,) * 3, (29,) * 3, (255,) * 3)
SIZE = (64, 32)


@dataclass(frozen=True)
class Odd:
    """A file: its bytes, the status it must get and, where that is no refusal, its colours (None: not compared)."""

    data: bytes
    status: str = "no_face"
    colours: tuple[tuple[int, int, int], ...] | None = (RED, GREEN, BLUE, WHITE)


def quadrants(scale: int = 1) -> Image.Image:
    """Red, green / blue, white: every turn and mirror of it looks different."""
    image = Image.new("RGB", SIZE)
    for colour, corner in zip((RED, GREEN, BLUE, WHITE), ((0, 0), (32, 0), (0, 16), (32, 16)), strict=True):
        image.paste(colour, (*corner, corner[0] + 32, corner[1] + 16))
    return image.resize((SIZE[0] * scale, SIZE[1] * scale), Image.Resampling.NEAREST)


def zoo() -> dict[str, Odd]:
    """Every odd file."""
    return _jpegs() | _pngs() | _others() | _mislabelled() | _refused()


def _jpegs() -> dict[str, Odd]:
    def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
        return encoded(image or quadrants(), "JPEG", **{"quality": 95, **options})

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "baseline.jpg": Odd(jpeg(subsampling=0)),
        "subsampled.jpg": Odd(jpeg(subsampling=2)),
        "progressive.jpg": Odd(jpeg(progressive=True)),
        "optimised.jpg": Odd(jpeg(optimize=True)),
        "restarts.jpg": Odd(jpeg(restart_marker_blocks=2)),
        "grey.jpg": Odd(jpeg(quadrants().convert("L")), colours=GREYS),
        "cmyk.jpg": Odd(jpeg(quadrants().convert("CMYK"))),
        "srgb-profile.jpg": Odd(jpeg(icc_profile=srgb)),
        "broken-profile.jpg": Odd(jpeg(icc_profile=b"no profile")),
        "damaged-exif.jpg": Odd(jpeg(exif=exif(1).tobytes()[:-6] + b"\xff" * 6)),
        "comment.jpg": Odd(jpeg(comment=b"a comment")),
        "junk-after-the-end.jpg": Odd(jpeg() + b"\0" * 1000),
        "twelve-megapixels.jpg": Odd(jpeg(quadrants(64))),
        "UPPER.JPG": Odd(jpeg()),
        "no-suffix": Odd(jpeg()),
        "suffix.jpeg": Odd(jpeg()),
        "suffix.jfif": Odd(jpeg()),
        "broken-exif.jpg": Odd(jpeg(exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
    }
    for orientation in range(1, 9):
        files[f"orientation-{orientation}.jpg"] = Odd(jpeg(turned(quadrants(4), orientation), exif=exif(orientation)))
    files["orientation-6-large.jpg"] = Odd(jpeg(turned(quadrants(50), 6), exif=exif(6)))
    return files


def exif(orientation: int) -> Image.Exif:
    """EXIF that says how a picture is stored."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it under an EXIF orientation."""
    how = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    return image.transpose(how[orientation]) if orientation in how else image


def _pngs() -> dict[str, Odd]:
    transparent = quadrants().convert("RGBA")
    transparent.putpixel((0, 0), (0, 0, 0, 0))
    sheer = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    deep = Image.fromarray(np.full(SIZE[::-1], 32896, np.uint16))
    palette = quadrants().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    return {
        "rgb.png": Odd(encoded(quadrants())),
        "palette.png": Odd(encoded(palette)),
        "palette-transparent.png": Odd(encoded(palette, transparency=palette.getpixel((40, 20)))),
        "alpha.png": Odd(encoded(transparent)),
        "sheer.png": Odd(encoded(sheer), colours=(WHITE,) * 4),
        "grey.png": Odd(encoded(quadrants().convert("L")), colours=GREYS),
        "grey-alpha.png": Odd(encoded(quadrants().convert("LA")), colours=GREYS),
        "bilevel.png": Odd(encoded(quadrants().convert("L").point(lambda v: v > 128 and 255).convert("1")),
                           colours=((0,) * 3, WHITE, (0,) * 3, WHITE)),
        "sixteen-bit.png": Odd(encoded(deep), colours=((128,) * 3,) * 4),
        "interlaced.png": Odd(_interlaced_png()),
        "turned.png": Odd(encoded(turned(quadrants(), 8), exif=exif(8))),
        "animated.png": Odd(encoded(quadrants(), save_all=True, append_images=[Image.new("RGB", SIZE)])),
        "one-pixel.png": Odd(encoded(Image.new("RGB", (1, 1), RED)), colours=None),
        "thin.png": Odd(encoded(Image.new("RGB", (5000, 1), RED)), colours=None),
        "wrong-checksum-of-a-comment.png": Odd(_bad_comment(encoded(quadrants())), "no_face"),
    }  # fmt: skip


def _others() -> dict[str, Odd]:
    black = Image.new("RGB", SIZE)
    deep = Image.fromarray(np.full(SIZE[::-1], 32896, np.uint16))
    return {
        "still.gif": Odd(encoded(quadrants(), "GIF")),
        "animated.gif": Odd(encoded(quadrants(), "GIF", save_all=True, append_images=[black])),
        "lossy.webp": Odd(encoded(quadrants(4), "WEBP", quality=95)),
        "lossless.webp": Odd(encoded(quadrants(), "WEBP", lossless=True)),
        "alpha.webp": Odd(encoded(Image.new("RGBA", SIZE, (9, 9, 9, 0)), "WEBP", lossless=True), colours=(WHITE,) * 4),
        "animated.webp": Odd(encoded(quadrants(), "WEBP", lossless=True, save_all=True, append_images=[black])),
        "plain.tif": Odd(encoded(quadrants(), "TIFF")),
        "lzw.tiff": Odd(encoded(quadrants(), "TIFF", compression="tiff_lzw")),
        "deflate.tiff": Odd(encoded(quadrants(), "TIFF", compression="tiff_adobe_deflate")),
        "jpeg.tiff": Odd(encoded(quadrants(4), "TIFF", compression="jpeg", quality=95)),
        "pages.tiff": Odd(encoded(quadrants(), "TIFF", save_all=True, append_images=[black])),
        "thirty-two-bit.tiff": Odd(
            encoded(Image.fromarray(np.full(SIZE[::-1], 128, np.int32)), "TIFF"), colours=((128,) * 3,) * 4
        ),
        "sixteen-bit.tiff": Odd(encoded(deep, "TIFF"), colours=((128,) * 3,) * 4),
        "cmyk.tiff": Odd(encoded(quadrants().convert("CMYK"), "TIFF")),
        "plain.bmp": Odd(encoded(quadrants(), "BMP")),
        "palette.bmp": Odd(encoded(quadrants().quantize(8), "BMP")),
        "plain.heic": Odd(encoded(quadrants(4), "HEIF", quality=95)),
        "padded-exif.heic": Odd(encoded(quadrants(4), "HEIF", quality=95, exif=exif(1).tobytes() + bytes(4000))),
        "padded-exif-of-a-second.heic": Odd(_two_with_padding()),
        "flat-below.webp": Odd(encoded(_flat_below(), "WEBP", quality=100, method=0), colours=None),
        "flat.webp": Odd(encoded(Image.new("RGB", (3000, 2000), "white"), "WEBP", quality=1), colours=(WHITE,) * 4),
        "turned.heic": Odd(encoded(turned(quadrants(4), 6), "HEIF", quality=95, exif=exif(6).tobytes())),
        "plain.avif": Odd(encoded(quadrants(4), "AVIF", quality=95)),
        "turned.avif": Odd(encoded(turned(quadrants(4), 3), "AVIF", quality=95, exif=exif(3).tobytes())),
    }


def _two_with_padding() -> bytes:
    """A HEIC of two pictures, the second with EXIF that ends in zeros, which stand at the end of the file."""
    pictures, file = HeifFile(), io.BytesIO()
    for padding in (0, 500):
        image = quadrants(4)
        image.info["exif"] = exif(1).tobytes() + bytes(padding)
        pictures.add_from_pillow(image)
    pictures.save(file, quality=95)
    return file.getvalue()


def _flat_below() -> Image.Image:
    """Noise above, white below, which libwebp's fastest method codes as thousands of zeros."""
    pixels = np.full((1200, 800, 3), 255, np.uint8)
    pixels[:100] = np.random.default_rng(0).integers(0, 256, (100, 800, 3))
    return Image.fromarray(pixels)


def _mislabelled() -> dict[str, Odd]:
    return {
        "png-named.jpg": Odd(encoded(quadrants())),
        "jpeg-named.png": Odd(encoded(quadrants(), "JPEG", quality=95)),
        "gif-named.webp": Odd(encoded(quadrants(), "GIF")),
        "webp-named.tiff": Odd(encoded(quadrants(), "WEBP", lossless=True)),
        "heic-named.jpg": Odd(encoded(quadrants(4), "HEIF", quality=95)),
        "tiff-named.bmp": Odd(encoded(quadrants(), "TIFF")),
        'space quote\' "x" 😀.png': Odd(encoded(quadrants())),
    }


def _refused() -> dict[str, Odd]:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (120, 160, 3), np.uint8))
    files = {
        "empty.jpg": Odd(b"", "empty"),
        "empty": Odd(b"", "empty"),
        "text.jpg": Odd(b"a text", "unsupported"),
        "page.png": Odd(b"<!DOCTYPE html><p>404", "unsupported"),
        "drawing.jpg": Odd(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported"),
        "paper.tiff": Odd(b"%PDF-1.7\n", "unsupported"),
        "packed.bmp": Odd(b"PK\x03\x04" + bytes(60), "unsupported"),
        "random.webp": Odd(random.bytes(5000), "unsupported"),
        "zeros.jpg": Odd(bytes(5000), "unsupported"),
        "signature-only.jpg": Odd(b"\xff\xd8\xff", "truncated"),
        "signature-only.png": Odd(b"\x89PNG\r\n\x1a\n", "unreadable"),
        "film.heic": Odd(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"film" * 25, "unsupported"),
        "bomb.png": Odd(_png_header(100_000, 100_000), "too_large"),
        "bomb.bmp": Odd(_bmp_header(60_000, 60_000), "too_large"),
        "nearly-whole.jpg": Odd(encoded(noise, "JPEG")[:-20], "truncated"),
        "half-and-an-end-marker.jpg": Odd(encoded(noise, "JPEG")[:9000] + b"\xff\xd9", "truncated"),
        "half-of-a-progressive.jpg": Odd(encoded(noise, "JPEG", progressive=True)[:9000] + b"\xff\xd9", "truncated"),
        "half-of-a-grey.jpg": Odd(encoded(noise.convert("L"), "JPEG")[:4000] + b"\xff\xd9", "truncated"),
    }
    for form in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF"):
        whole = encoded(noise, form)
        files[f"half-of-{form.lower()}"] = Odd(whole[: len(whole) // 2], "truncated")
    packed: dict[str, dict[str, Any]] = {
        "JPEG": {}, "PNG": {}, "GIF": {}, "WEBP": {}, "HEIF": {}, "AVIF": {}, "TIFF": {"compression": "tiff_lzw"},
    }  # fmt: skip
    for form, options in packed.items():
        whole = encoded(noise, form, **options)
        files[f"zeros-end-{form.lower()}"] = Odd(whole[: len(whole) // 2] + bytes(len(whole) // 2), "truncated")
    files["half-of-lzw.tiff"] = Odd(encoded(noise, "TIFF", compression="tiff_lzw")[:20_000], "truncated")
    files["flipped.png"] = Odd(_flipped(encoded(noise)), "unreadable")
    files["planes.tiff"] = Odd(_planes_of_sixteen_bits(), "no_face", None)
    return files


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(100)))


def _bmp_header(width: int, height: int) -> bytes:
    header = bytearray(encoded(Image.new("L", (1, 1)), "BMP"))
    header[18:26] = struct.pack("<ii", width, height)
    return bytes(header)


def _interlaced_png() -> bytes:
    """Adam7, which Pillow reads and does not write (W3C PNG specification, section 8)."""
    pixels = np.asarray(quadrants())
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    lines = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 1)
    content = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def _flipped(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0x10
    return bytes(damaged)


def _planes_of_sixteen_bits() -> bytes:
    """A TIFF that is PlanarConfiguration 2, of 3 x 16 bits (TIFF 6.0): its only strip a plane."""
    width, height = SIZE
    plane = bytes(2 * width * height)
    after = 8 + 2 + 12 * 9 + 4
    bits, starts, counts = after, after + 6, after + 18
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, starts),
        (277, 3, 1, 3), (279, 4, 3, counts), (284, 3, 1, 2),
    ]  # fmt: skip
    data = after + 30
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    places = struct.pack("<3H3I3I", 16, 16, 16, *(data + index * len(plane) for index in range(3)), *[len(plane)] * 3)
    return b"II*\0" + struct.pack("<I", 8) + directory + places + plane * 3


def _bad_comment(png: bytes) -> bytes:
    comment = bytearray(_chunk(b"tEXt", b"Comment\0hello"))
    comment[-1] ^= 0xFF
    file = io.BytesIO(png)
    return file.read(33) + bytes(comment) + file.read()
