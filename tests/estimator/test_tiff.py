"""TIFFs as scanners and laboratories write them, and orientation in every format: each pixel where it belongs."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import encoded
from PIL import Image
from quarters import COLOURS, GREY, PICTURE, SIDE, TURNED, deep, matches, written

from agewatch.errors import ImageError
from agewatch.estimator.images import decode


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits", "zstd"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_sixteen_bits_a_colour(compression: str | None, planes: str) -> None:
    values = deep(PICTURE) if planes == "contig" else deep(PICTURE).transpose(2, 0, 1)
    matches(written(values, photometric="rgb", planarconfig=planes, compression=compression), PICTURE)


@pytest.mark.parametrize("values", [GREY, deep(GREY), deep(GREY).astype(np.uint32) * 65537], ids=["8", "16", "32"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_with_either_end_white(values: np.ndarray, photometric: str) -> None:
    most = np.iinfo(values.dtype).max
    matches(written(most - values if photometric == "miniswhite" else values, photometric=photometric), GREY)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_by_what_most_of_them_reach(top: float) -> None:
    values = GREY.astype(np.float32) / 255 * top
    values[0, 0], values[0, 1], values[0, 2] = 1.2 * top, np.nan, -0.1 * top
    matches(written(values, photometric="minisblack"), GREY)
    colours = PICTURE.astype(np.float32) / 255 * top
    matches(written(colours, photometric="rgb", compression="deflate", predictor=3), PICTURE)


def test_floats_are_scaled_by_their_tags() -> None:
    values = GREY.astype(np.float32) / 255 * 40 + 10
    tags = [(340, "f", 1, 10.0, True), (341, "f", 1, 50.0, True)]
    matches(written(values, photometric="minisblack", extratags=tags), GREY)


def test_twelve_bits_are_twelve_bits() -> None:
    values = (GREY.astype(int) * 4095 // 255).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], axis=1)
    pixels = packed.astype(np.uint8).tobytes()
    height, width = GREY.shape
    entries = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*entries, (279, len(pixels))])
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    matches(head + pixels + struct.pack("<H", len(entries) + 1) + directory + bytes(4), GREY)


def test_cmyk_with_and_without_alpha() -> None:
    ink = 255 - np.concatenate([PICTURE, np.full((*PICTURE.shape[:2], 1), 255, np.uint8)], axis=2)
    alpha = np.full((*PICTURE.shape[:2], 1), 255, np.uint8)
    alpha[:, : PICTURE.shape[1] // 2] = 0
    cut_out = PICTURE.copy()
    cut_out[:, : PICTURE.shape[1] // 2] = 255
    for values in (ink, deep(ink)):
        matches(written(values, photometric="separated"), PICTURE)
    matches(
        written(np.concatenate([ink, alpha], axis=2), photometric="separated", extrasamples=["unassalpha"]), cut_out
    )
    values = np.concatenate([ink, alpha], axis=2)
    matches(written(values, photometric="separated", extrasamples=["unspecified"]), PICTURE)
    values = np.concatenate([deep(PICTURE), deep(alpha)], axis=2)
    matches(written(values, photometric="rgb", extrasamples=["unassalpha"]), cut_out)


@pytest.mark.parametrize("main", ["second page", "inner directory", "inner directory, JPEG"])
def test_a_thumbnail_that_is_first_is_not_the_picture(main: str) -> None:
    file = BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        inner = main != "second page"
        small = PICTURE[::8, ::8]
        tiff.write(small, photometric="rgb", subfiletype=1, metadata=None, subifds=1 if inner else None)
        jpeg = {"compression": "jpeg", "compressionargs": {"level": 95}} if main.endswith("JPEG") else {}
        tiff.write(PICTURE, photometric="rgb", metadata=None, subfiletype=0, **jpeg)
    matches(file.getvalue(), PICTURE, tolerance=12)


def test_further_pages_are_not_the_picture() -> None:
    file = BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(deep(PICTURE), photometric="rgb", metadata=None)
        tiff.write(np.zeros((500, 500, 3), np.uint16), photometric="rgb", metadata=None)
    matches(file.getvalue(), PICTURE)


@pytest.mark.parametrize(
    ("values", "options", "code"),
    [
        (deep(GREY), {"photometric": "cfa"}, "unsupported"),
        (GREY.astype(np.complex64), {"photometric": "minisblack"}, "unsupported"),
        (np.zeros((8, 40, 40), np.uint16), {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 16)},
         "unsupported"),
    ],
    ids=["raw", "complex", "volume"],
)  # fmt: skip
def test_what_is_no_picture_is_unsupported(values: np.ndarray, options: dict[str, Any], code: str) -> None:
    if options["photometric"] == "cfa":
        tags = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]
        options = options | {"extratags": tags}
    with pytest.raises(ImageError) as refused:
        decode(written(values, **options))
    assert refused.value.code == code


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_torn_one_is_truncated(keep: float) -> None:
    data = written(np.random.default_rng(0).integers(0, 65535, (64, 64, 3), np.uint16), photometric="rgb")
    with pytest.raises(ImageError) as refused:
        decode(data[: int(len(data) * keep)])
    assert refused.value.code == "truncated"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "HEIF", "AVIF"])
def test_every_format_is_turned_once(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](PICTURE))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(form, {})
    if form in ("HEIF", "AVIF"):  # their encoders write the tag as a transformation of the pixels
        options = {"quality": 95}
    matches(encoded(Image.fromarray(stored), form, exif=exif.tobytes(), **options), PICTURE, tolerance=16)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["8 bits", "8 bits, LZW", "8 bits, JPEG", "16 bits", "floats", "1 bit, G4", "palette"])
def test_every_kind_of_tiff_is_turned_once(kind: str, orientation: int) -> None:
    tag = [(274, "H", 1, orientation, True)]
    colours, grey = (np.ascontiguousarray(TURNED[orientation](each)) for each in (PICTURE, GREY[:, :, None]))
    if kind == "palette":
        image = Image.fromarray(colours).quantize(8)
        matches(encoded(image, "TIFF", tiffinfo={274: orientation}), PICTURE, tolerance=10)
    elif kind == "1 bit, G4":
        black_and_white = Image.fromarray((grey[:, :, 0] > 128).astype(np.uint8) * 255).convert("1")
        data = encoded(black_and_white, "TIFF", compression="group4", tiffinfo={274: orientation})
        matches(data, (GREY > 128).astype(np.uint8) * 255)
    else:
        values = {"16 bits": deep(colours), "floats": colours.astype(np.float32) / 255}.get(kind, colours)
        how = {"8 bits, LZW": {"compression": "lzw"}, "8 bits, JPEG": {"compression": "jpeg"}}.get(kind, {})
        matches(written(values, photometric="rgb", extratags=tag, **how), PICTURE, tolerance=16)


def test_what_exif_says_is_read_of_deep_ones_too() -> None:
    tags = [(271, "s", 0, "Maker", True), (272, "s", 0, "Camera 1", True)]
    assert decode(written(deep(PICTURE), photometric="rgb", extratags=tags)).camera == "Maker Camera 1"


@pytest.mark.parametrize(
    "tag",
    [
        (274, "s", 0, "six", True), (274, "H", 1, 99, True), (34675, "s", 0, "text", True),
        (271, "B", 4, (255, 254, 0, 1), True), (34665, "I", 1, 99_999_999, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("values", [PICTURE, deep(PICTURE)], ids=["8", "16"])
def test_odd_tags_cost_no_picture_its_row(values: np.ndarray, tag: tuple[Any, ...]) -> None:
    matches(written(values, photometric="rgb", extratags=[tag]), PICTURE)


def test_signed_samples_are_shifted() -> None:
    matches(written((GREY.astype(int) - 128).astype(np.int8), photometric="minisblack"), GREY)
    matches(written((deep(GREY).astype(int) - 32768).astype(np.int16), photometric="minisblack"), GREY)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bytes_that_are_called_signed_are_read_as_bytes(dtype: type) -> None:
    height, width = GREY.shape
    ramp = np.linspace(0, np.iinfo(dtype).max, width).astype(dtype)[None, :].repeat(height, axis=0)
    for values in (ramp, np.where(ramp > ramp.max() // 2, ramp.max(), 0).astype(dtype)):
        signed = values.view(values.dtype.str.replace("u", "i"))
        matches(written(signed, photometric="minisblack"), values >> (0 if dtype is np.uint8 else 8))


@pytest.mark.parametrize(("dtype", "top"), [(np.int8, 127), (np.int16, 32767), (np.int32, 255), (np.int32, 65535)])
def test_signed_samples_without_a_sign_are_scaled_by_what_most_of_them_reach(dtype: type, top: int) -> None:
    matches(written((GREY / 255 * top).astype(dtype), photometric="minisblack"), GREY)


@pytest.mark.parametrize("compression", ["webp", "png", "jpeg2000", "jpegxl", "lzma"])
def test_compressions_that_are_rare(compression: str) -> None:
    matches(written(PICTURE, photometric="rgb", compression=compression), PICTURE, tolerance=16)


@pytest.mark.parametrize("values", [PICTURE, deep(PICTURE)], ids=["8", "16"])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_colours_that_are_multiplied_by_alpha_are_not_multiplied_again(values: np.ndarray, kind: str) -> None:
    alpha = np.full((*values.shape[:2], 1), np.iinfo(values.dtype).max // 2, values.dtype)
    colours = values // 2 if kind == "assocalpha" else values
    data = written(np.concatenate([colours, alpha], axis=2), photometric="rgb", extrasamples=[kind])
    matches(data, (PICTURE.astype(int) + 255) // 2)


def test_a_palette_with_alpha() -> None:
    indices = np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(SIDE, axis=0).repeat(SIDE + 8, axis=1)
    alpha = np.full_like(indices, 255)
    alpha[:SIDE, : SIDE + 8] = 0
    table = np.zeros((3, 256), np.uint16)
    table[:, :4] = deep(COLOURS.reshape(4, 3)).T
    expected = PICTURE.copy()
    expected[:SIDE, : SIDE + 8] = 255
    data = written(
        np.stack([indices, alpha], axis=2), photometric="minisblack", extrasamples=["unassalpha"],
        extratags=[(320, "H", table.size, table.ravel().tolist(), True)],
    )  # fmt: skip
    matches(changed(data, 262, 3), expected)


def changed(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF in which a tag (SHORT, of one value) says something else."""
    entry = struct.pack("<HHI", tag, 3, 1)
    place = data.index(entry) + len(entry)
    return data[:place] + struct.pack("<H", value) + data[place + 2 :]


def without(data: bytes, tag: int) -> bytes:
    """A little-endian TIFF whose first directory lacks a tag."""
    [start] = struct.unpack_from("<I", data, 4)
    [count] = struct.unpack_from("<H", data, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    entries = [data[at : at + 12] for at in places if not data[at:].startswith(struct.pack("<H", tag))]
    directory = struct.pack("<H", count - 1) + b"".join(entries) + data[start + 2 + 12 * count :][:4] + bytes(12)
    return data[:start] + directory + data[start + len(directory) :]


@pytest.mark.parametrize("values", [GREY, deep(GREY), PICTURE], ids=["grey of 8", "grey of 16", "colours"])
def test_where_no_tag_says_what_is_white_it_is_not_zero(values: np.ndarray) -> None:
    data = written(values, photometric="rgb" if values.ndim == 3 else "minisblack")
    matches(without(data, 262), GREY if values.ndim == 2 else PICTURE)


def test_a_plane_beyond_the_colours_may_lack() -> None:
    data = written(
        np.stack([deep(GREY), deep(GREY)]), photometric="minisblack", planarconfig="separate",
        extrasamples=["unspecified"],
    )  # fmt: skip
    with tifffile.TiffFile(BytesIO(data)) as file:
        second = file.pages.first.tags[279].valueoffset + 2  # StripByteCounts, SHORTs, a strip a plane
    matches(data[:second] + bytes(2) + data[second + 2 :], GREY)
