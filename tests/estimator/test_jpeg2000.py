"""JPEG 2000: samples of every depth, alpha, profiles, EXIF; and that what lacks pixels is never shown as a picture."""

import imagecodecs
import numpy as np
import pytest
from pictures import encoded
from PIL import Image, ImageCms
from quarters import GREY, PICTURE, TURNED, matches

from agewatch.errors import ImageError
from agewatch.estimator.images import decode

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))


def jp2(image: Image.Image | np.ndarray, **options: object) -> bytes:
    return encoded(Image.fromarray(image) if isinstance(image, np.ndarray) else image, "JPEG2000", **options)


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4) + kind + content


def with_colours(data: bytes, colours: bytes) -> bytes:
    """A JP2 whose colour box says something else."""
    place = data.index(b"colr") - 4
    header = data.index(b"jp2h") - 4
    length = int.from_bytes(data[place : place + 4])
    changed = data[:place] + box(b"colr", colours) + data[place + length :]
    longer = int.from_bytes(data[header : header + 4]) + len(changed) - len(data)
    return changed[:header] + longer.to_bytes(4) + changed[header + 4 :]


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert str(refused.value).endswith(".")
    return refused.value.code


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 16])
def test_full_range_is_what_the_depth_says(bits: int, codec: str) -> None:
    top = 2**bits - 1
    kind = np.uint8 if bits <= 8 else np.uint16
    for values in (GREY, PICTURE):
        stored = np.round(values / 255 * top).astype(kind)
        shown = np.round(stored.astype(float) / top * 255).astype(np.uint8)
        matches(imagecodecs.jpeg2k_encode(stored, level=0, bitspersample=bits, codecformat=codec), shown)


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}], ids=["jp2", "j2k"])
def test_alpha_is_composited_on_white(options: dict[str, object]) -> None:
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, : GREY.shape[1] // 2] = 0
    cut_out = PICTURE.copy()
    cut_out[:, : GREY.shape[1] // 2] = 255
    matches(jp2(np.dstack([PICTURE, alpha]), **options), cut_out)
    grey = GREY.copy()
    grey[:, : GREY.shape[1] // 2] = 255
    matches(jp2(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]), **options), grey)


def test_a_fourth_component_that_is_not_said_to_be_alpha_is_none() -> None:
    infrared = np.zeros(GREY.shape, np.uint8)
    data = jp2(np.dstack([PICTURE, infrared]))
    matches(data.replace(b"cdef", b"free"), PICTURE)


def test_an_icc_profile_is_converted_to_srgb_and_a_broken_one_is_ignored() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB", 6500)).tobytes()
    lightness = np.dstack([np.full(GREY.shape, value, np.uint8) for value in (255, 128, 128)])
    assert decode(jp2(lightness)).rgb[..., 1].max() == 128
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    matches(with_colours(jp2(PICTURE), b"\2\0\0" + profile), PICTURE)
    matches(with_colours(jp2(PICTURE), b"\2\0\0" + lab[:50]), PICTURE)


def test_colours_of_an_unknown_kind_are_unsupported() -> None:
    assert refusal(with_colours(jp2(PICTURE), b"\1\0\0" + (14).to_bytes(4))) == "unsupported"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_once_and_tells_camera_and_time(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "Maker", "Camera 1"
    exif.get_ifd(0x8769)[0x9003] = "2020:05:01 12:30:00"
    data = jp2(np.ascontiguousarray(TURNED[orientation](PICTURE)))
    data += box(b"uuid", b"JpgTiffExif->JP2" + exif.tobytes().removeprefix(b"Exif\0\0"))
    matches(data, PICTURE)
    picture = decode(data)
    assert picture.camera == "Maker Camera 1"
    assert picture.captured_at is not None


KINDS = {
    "one tile": {},
    "tiles": {"tile_size": (128, 128)},
    "codestream": {"no_jp2": True},
    "codestream of tiles": {"no_jp2": True, "tile_size": (128, 128)},
    "layers": {"irreversible": True, "quality_mode": "rates", "quality_layers": [40, 10, 3]},
    "by position": {"progression": "RPCL", "tile_size": (200, 200)},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_what_lacks_pixels_is_truncated_wherever_it_ends(options: dict[str, object]) -> None:
    data = jp2(NOISE, **options)
    for end in (20, 60, 90, 130, 200, *(len(data) * share // 10 for share in range(1, 10)), len(data) - 3):
        assert refusal(data[:end]) == "truncated", end
        assert refusal(data[:end] + bytes(len(data) - end)) in ("truncated", "unreadable"), end


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_one_that_lacks_only_its_end_marker_is_whole(options: dict[str, object]) -> None:
    data = jp2(NOISE, **options)
    whole = decode(data).rgb
    assert np.array_equal(decode(data[:-1]).rgb, whole)
    assert np.array_equal(decode(data[:-2]).rgb, whole)


def test_a_tile_that_is_not_there_is_noticed() -> None:
    data = jp2(NOISE, no_jp2=True, tile_size=(128, 128))
    last = data.rindex(b"\xff\x90\x00\x0a")
    assert refusal(data[:last] + b"\xff\xd9") == "truncated"


@pytest.mark.parametrize("options", [{}, {"num_resolutions": 2}, {"tile_size": (256, 256)}], ids=["", "two", "tiles"])
@pytest.mark.parametrize("size", [(1000, 800), (1001, 797), (1003, 799), (1007, 805)])
def test_a_large_one_is_decoded_at_a_fraction_where_that_is_enough(
    size: tuple[int, int], options: dict[str, object]
) -> None:
    picture = decode(jp2(Image.fromarray(PICTURE).resize(size), **options), min_side=240)
    assert (picture.width, picture.height) == size
    factor = size[0] / picture.rgb.shape[1]
    assert factor == pytest.approx(size[1] / picture.rgb.shape[0], rel=0.02)
    assert np.abs(picture.rgb[20, 20].astype(int) - PICTURE[0, 0]).max() <= 3
    if size == (1000, 800):
        assert factor == (2 if "num_resolutions" in options else 4)
