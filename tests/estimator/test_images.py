import io
import zlib
from datetime import UTC, datetime

import numpy as np
import pytest
from pictures import encoded, torn
from PIL import Image, ImageCms

from agewatch.errors import ImageError
from agewatch.estimator.images import decode, quality

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants() -> Image.Image:
    """Red, green / blue, white: every turn and mirror of it looks different."""
    image = Image.new("RGB", (64, 32))
    for colour, corner in zip((RED, GREEN, BLUE, WHITE), ((0, 0), (32, 0), (0, 16), (32, 16)), strict=True):
        image.paste(colour, (*corner, corner[0] + 32, corner[1] + 16))
    return image


def corners(data: bytes) -> list[tuple[int, ...]]:
    rgb = decode(data).rgb
    height, width = rgb.shape[:2]
    points = [
        (height // 4, width // 4),
        (height // 4, -width // 4),
        (-height // 4, width // 4),
        (-height // 4, -width // 4),
    ]
    return [tuple(int(value) for value in rgb[point]) for point in points]


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "HEIF", "AVIF", "JPEG"])
def test_every_format_gives_the_same_colours(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form in ("HEIF", "AVIF", "JPEG") else {}
    found = corners(encoded(quadrants(), form, **options))
    assert np.abs(np.array(found) - [RED, GREEN, BLUE, WHITE]).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_exif_orientations_come_upright(orientation: int) -> None:
    stored_as = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    image = quadrants() if stored_as is None else quadrants().transpose(stored_as)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    assert corners(data) == [RED, GREEN, BLUE, WHITE]
    assert decode(data).rgb.shape == (32, 64, 3)


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_where_the_container_turns_a_picture_xmp_does_not_turn_it_again(form: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff tiff:Orientation="1"/></x:xmpmeta>'
    data = encoded(quadrants(), form, quality=95, xmp=xmp).replace(b'Orientation="1"', b'Orientation="3"')
    assert b'Orientation="3"' in data
    assert np.abs(np.array(corners(data)) - [RED, GREEN, BLUE, WHITE]).max() <= 12


def test_alpha_is_composited_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert decode(encoded(image)).rgb.min() == 255
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert decode(encoded(half)).rgb[0, 0].tolist() == pytest.approx([255, 127, 127], abs=1)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    levels = np.array([[0, 32896, 65535]], np.uint16)
    rgb = decode(encoded(Image.fromarray(levels), "PNG")).rgb
    assert rgb[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_a_transparent_level_of_sixteen_bits_is_white() -> None:
    levels = np.array([[0, 32896, 32897, 65535]], np.uint16)
    rgb = decode(encoded(Image.fromarray(levels), "PNG", transparency=32896)).rgb
    assert rgb[0, :, 0].tolist() == [0, 255, 128, 255]


@pytest.mark.parametrize(
    ("gamma", "mode", "seen"),
    [(100_000, "L", 188), (100_000, "RGBA", 188), (55_556, "P", 146), (45_455, "L", 128), (0, "L", 128)],
)
def test_a_png_that_says_how_light_is_stored_is_brought_to_srgb(gamma: int, mode: str, seen: int) -> None:
    chunk = b"gAMA" + gamma.to_bytes(4)

    def told(data: bytes) -> list[int]:
        after = 33  # signature and header
        length, checksum = (4).to_bytes(4), zlib.crc32(chunk).to_bytes(4)
        return list(decode(data[:after] + length + chunk + checksum + data[after:]).rgb[4, 4])

    assert told(encoded(Image.new("L", (8, 8), 128).convert(mode))) == pytest.approx([seen] * 3, abs=1)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert told(encoded(Image.new("RGB", (8, 8), (128,) * 3), icc_profile=srgb)) == [128] * 3


def test_cmyk_jpeg_and_palette_png_keep_their_colours() -> None:
    cmyk = encoded(Image.new("RGB", (32, 32), RED).convert("CMYK"), "JPEG", quality=95)
    assert decode(cmyk).rgb[16, 16].tolist() == pytest.approx(RED, abs=8)
    assert corners(encoded(quadrants().convert("P"))) == [RED, GREEN, BLUE, WHITE]


def test_an_icc_profile_is_converted_to_srgb() -> None:
    lab = ImageCms.createProfile("LAB", 6500)
    lightness = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (255, 128, 128)])
    data = encoded(lightness, "TIFF", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    assert decode(data).rgb.min() >= 250


def test_a_broken_icc_profile_is_no_refusal() -> None:
    assert corners(encoded(quadrants(), "PNG", icc_profile=b"nonsense")) == [RED, GREEN, BLUE, WHITE]


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).rgb[8, 8].tolist() == list(RED)


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as found:
        decode(data)
    assert str(found.value).endswith(".")
    return found.value.code


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "HEIF"])
def test_a_torn_picture_is_refused(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    assert refusal(torn(encoded(noise, form))) in ("truncated", "unreadable")


def test_a_jpeg_that_ends_early_is_truncated_even_by_little() -> None:
    data = encoded(quadrants().resize((512, 512)), "JPEG")
    assert refusal(data[:-40]) == "truncated"
    assert refusal(data[: len(data) // 3]) == "truncated"


def test_a_progressive_jpeg_may_lack_its_end_marker_but_no_scan() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    data = encoded(noise, "JPEG", progressive=True)
    assert (decode(data[:-2]).rgb == decode(data).rgb).all()
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for after in scans[1:]:
        before = data.rindex(b"\xff\xc4", 0, after) if b"\xff\xc4" in data[after - 300 : after] else after
        assert {refusal(data[:cut]) for cut in (before, before + 5, after, after + 5)} == {"truncated"}


@pytest.mark.parametrize("progressive", [False, True])
def test_what_stands_behind_a_jpegs_end_does_not_count(progressive: bool) -> None:
    data = encoded(quadrants(), "JPEG", quality=95, progressive=progressive)
    for behind in (torn(encoded(quadrants(), "JPEG")), b"\xff\xc2\0\x11\x08" + bytes(range(1, 99)), b"film" * 999):
        assert (decode(data + behind).rgb == decode(data).rgb).all()


def test_a_gif_that_ends_in_its_header_is_truncated() -> None:
    data = encoded(quadrants(), "GIF")
    assert {refusal(data[:cut]) for cut in (13, 20, len(data) // 2)} == {"truncated"}


def test_no_picture_is_unsupported_and_no_bytes_are_empty() -> None:
    assert refusal(b"just a text") == "unsupported"
    assert refusal(b"%PDF-1.7 and so on") == "unsupported"
    assert refusal(b"") == "empty"
    assert refusal(b"\x89PNG\r\n\x1a\n and then nonsense") == "unreadable"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    header = bytearray(encoded(Image.new("L", (1, 1)), "BMP"))
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    assert refusal(bytes(header)) == "too_large"


def test_the_time_of_capture_is_utc() -> None:
    def taken(offset: str | None) -> datetime | None:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = "2020:05:01 12:30:00"
        if offset:
            exif.get_ifd(0x8769)[0x9011] = offset
        return decode(encoded(quadrants(), "JPEG", exif=exif)).captured_at

    assert taken(None) == datetime(2020, 5, 1, 12, 30, tzinfo=UTC)
    assert taken("+02:00") == datetime(2020, 5, 1, 10, 30, tzinfo=UTC)
    assert decode(encoded(quadrants())).captured_at is None


@pytest.mark.parametrize(
    ("date", "offset", "expected"),
    [
        ("2020:05:01 12:30:00.25", None, "2020-05-01T12:30:00.250000+00:00"),
        ("2020-05-01T12:30:00", None, "2020-05-01T12:30:00+00:00"),
        ("2020-05-01T12:30:00+02:00", None, "2020-05-01T10:30:00+00:00"),
        ("2020:05:01 12:30:00", "+0200", "2020-05-01T10:30:00+00:00"),
        ("2020:05:01 12:30:00", "-05", "2020-05-01T17:30:00+00:00"),
        ("2020:05:01 12:30:00Z", "", "2020-05-01T12:30:00+00:00"),
        ("2020:05:01 12:30:00", "+99:00", "2020-05-01T12:30:00+00:00"),
        ("2020:05:01 12:30:00", "+23:99", "2020-05-01T12:30:00+00:00"),
        ("2020:05:01 12:30:00", "nonsense", "2020-05-01T12:30:00+00:00"),
        ("0001:01:01 00:00:00", "+14:00", None),
        ("9999:12:31 23:59:59", "-12:00", None),
        ("2020:13:01 12:30:00", None, None),
        ("    :  :     :  :  ", None, None),
        ("0000:00:00 00:00:00", None, None),
    ],
)
def test_dates_as_programs_write_them(date: str, offset: str | None, expected: str | None) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = date
    if offset is not None:
        exif.get_ifd(0x8769)[0x9011] = offset
    found = decode(encoded(quadrants(), "JPEG", exif=exif)).captured_at
    assert (found and found.isoformat()) == expected


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION ", "NIKON D810\0", "NIKON CORPORATION NIKON D810"),
        ("", "Pixel 9", "Pixel 9"),
        ("Apple", None, "Apple"),
        ("  ", "\n", None),
        (None, None, None),
    ],
)
def test_the_camera_is_its_make_and_model(make: str | None, model: str | None, camera: str | None) -> None:
    exif = Image.Exif()
    for tag, text in ((0x010F, make), (0x0110, model)):
        if text is not None:
            exif[tag] = text
    assert decode(encoded(quadrants(), "JPEG", exif=exif)).camera == camera


def test_quality_of_known_chips() -> None:
    flat = quality(np.full((32, 32, 3), 51, np.uint8))
    assert (flat.brightness, flat.contrast, flat.sharpness) == pytest.approx((0.2, 0, 0), abs=1e-6)
    board = np.indices((32, 32)).sum(axis=0)[..., None].repeat(3, 2) % 2 * 255
    sharp = quality(board.astype(np.uint8))
    assert (sharp.brightness, sharp.contrast) == pytest.approx((0.5, 0.5))
    assert sharp.sharpness > 1
    buffer = io.BytesIO()
    Image.fromarray(board.astype(np.uint8)).resize((8, 8)).resize((32, 32)).save(buffer, "PNG")
    assert quality(decode(buffer.getvalue()).rgb).sharpness < sharp.sharpness


def test_a_jpeg_that_lacks_only_its_end_marker_is_whole_and_one_that_lacks_pixels_is_truncated() -> None:
    for mode, options in (("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)).convert(mode)
        data = encoded(noise, "JPEG", quality=90, **options)
        assert data.endswith(b"\xff\xd9")
        whole = decode(data).rgb
        assert np.array_equal(decode(data[:-2]).rgb, whole)
        assert np.array_equal(decode(data[:-1]).rgb, whole)
        for cut in (len(data) - 60, len(data) * 3 // 4, len(data) // 2):
            for half in (data[:cut], data[:cut] + bytes(len(data) - cut)):
                with pytest.raises(ImageError) as refused:
                    decode(half)
                assert refused.value.code == "truncated", (mode, options, cut)


def with_chunk(png: bytes, kind: bytes, content: bytes, *, sound: bool) -> bytes:
    checksum = zlib.crc32(kind + content) if sound else 12345
    return png[:33] + len(content).to_bytes(4) + kind + content + checksum.to_bytes(4) + png[33:]


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
        (b"iCCP", b"profile\0\0 no zlib at all"),
        (b"zTXt", b"text\0\0" + zlib.compress(b"a" * 200_000_000)),
        (b"iTXt", b"\xff" * 50),
        (b"tEXt", b"text\0" + b"a" * 2_000_000),
        (b"eXIf", b"no EXIF"),
        (b"pHYs", b"x"),
        (b"abCd", b"of no known kind"),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) and len(value) == 4 else "",
)
def test_metadata_never_costs_a_png_its_pixels(kind: bytes, content: bytes, sound: bool) -> None:
    png = encoded(quadrants())
    assert np.array_equal(decode(with_chunk(png, kind, content, sound=sound)).rgb, decode(png).rgb)


def test_a_film_named_as_a_picture_is_unsupported() -> None:
    film = (20).to_bytes(4) + b"ftypisom" + bytes(4) + b"mp42" + (8).to_bytes(4) + b"mdat"
    with pytest.raises(ImageError) as refused:
        decode(film)
    assert refused.value.code == "unsupported"
