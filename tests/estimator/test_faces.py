import cv2
import numpy as np
import pytest
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch.estimator.faces import MIN_SCORE, Face, YuNet, _yunet_path, cut_chip, look, whole_picture
from agewatch.estimator.images import decode, quality
from agewatch.estimator.spec import PREPROCESSING_REVISION, Cut


def astronaut(scale: float = 1.0) -> np.ndarray:
    image = Image.open(ASTRONAUT).convert("RGB")
    return np.asarray(image.resize([round(side * scale) for side in image.size]))


def test_the_astronaut_has_one_face_where_it_is() -> None:
    [face] = YuNet()(astronaut())
    x, y, w, h = face.box
    assert 160 < x + w / 2 < 280
    assert 60 < y + h / 2 < 180
    assert face.score is not None
    assert 0.8 < face.score <= 1
    assert face.landmarks is not None
    assert all(x < px < x + w and y < py < y + h for px, py in face.landmarks)


def test_a_large_picture_gives_the_same_face_in_its_own_pixels() -> None:
    [small], [large] = YuNet()(astronaut()), YuNet()(astronaut(4))
    assert np.array(large.box) / 4 == pytest.approx(np.array(small.box), abs=6)


def test_yunet_finds_what_opencvs_own_detector_finds() -> None:
    opencv = cv2.FaceDetectorYN.create(str(_yunet_path()), "", (512, 512), MIN_SCORE)
    _, [row] = opencv.detect(astronaut()[:, :, ::-1].copy())
    [face] = YuNet()(astronaut())
    assert face.box == pytest.approx(row[:4].tolist(), abs=0.01)
    assert np.ravel(face.landmarks) == pytest.approx(row[4:14], abs=0.01)
    assert face.score == pytest.approx(row[14], abs=1e-4)


def test_a_large_jpeg_is_decoded_at_a_fraction_and_its_boxes_are_of_the_whole() -> None:
    large = Image.fromarray(astronaut(6))
    data = encoded(large, "JPEG", quality=90)
    assert decode(data, min_side=1280).rgb.shape == (1536, 1536, 3)
    seen = look(data, YuNet(), Cut(160, 1.03))
    assert (seen.width, seen.height) == (3072, 3072)
    [face], [small] = seen.faces, YuNet()(astronaut())
    assert np.array(face.box) / 6 == pytest.approx(np.array(small.box), abs=6)
    whole = cut_chip(np.asarray(large), face, Cut(160, 1.03))
    assert np.abs(seen.chips[0].astype(int) - whole).mean() < 6


def test_a_small_face_in_a_large_jpeg_gets_its_chip_from_the_whole_picture() -> None:
    canvas = np.full((3000, 4000, 3), 128, np.uint8)
    canvas[1000:1512, 1500:2012] = astronaut()
    data = encoded(Image.fromarray(canvas), "JPEG", quality=95)
    seen = look(data, YuNet(), Cut(160, 1.03))
    [face], [chip] = seen.faces, seen.chips
    assert np.abs(chip.astype(int) - cut_chip(decode(data).rgb, face, Cut(160, 1.03))).max() == 0


def test_no_face_in_a_grey_picture_and_largest_first() -> None:
    assert YuNet()(np.full((300, 200, 3), 128, np.uint8)) == []
    two = np.zeros((600, 900, 3), np.uint8)
    two[:256, :256] = astronaut(0.5)
    two[88:, 388:] = astronaut()
    large, small = YuNet()(two)
    assert large.box[3] > 1.5 * small.box[3]
    assert large.box[0] > 388


def test_small_faces_are_found() -> None:
    """WORKING_SIDE promises 167 pixels in 12 megapixels, and 40 in a picture of its own size.

    At those sizes this clear face would be found by a worse detector too, so it is smaller here.
    """
    portrait = Image.fromarray(astronaut().copy()).crop((130, 20, 330, 240))
    [known] = YuNet()(np.asarray(portrait))
    draw = np.random.default_rng(0)
    for side, (height, width) in ((167, (3000, 4000)), (100, (3000, 4000)), (40, (720, 960)), (24, (720, 960))):
        factor = side / known.box[3]
        small = np.asarray(portrait.resize([round(length * factor) for length in portrait.size]))
        canvas = draw.integers(96, 160, (height, width, 3), np.uint8)
        for number in range(30):
            top, left = number // 6 * height // 5, number % 6 * width // 6
            room = height // 5 - small.shape[0], width // 6 - small.shape[1]
            top, left = top + int(draw.integers(0, room[0])), left + int(draw.integers(0, room[1]))
            canvas[top : top + small.shape[0], left : left + small.shape[1]] = small[:, :: 1 - number % 2 * 2]
        found = YuNet()(canvas)
        assert 0.95 * 30 <= len(found) <= 30, side
        assert all(abs(face.box[3] - side) < side / 4 for face in found)


def test_chips_at_every_edge_are_padded_squares() -> None:
    rgb = np.zeros((50, 80, 3), np.uint8)
    rgb[:, :40] = 255
    for x, y in ((-30.0, -30.0), (70.0, 40.0), (-200.0, 10.0), (30.0, 300.0)):
        chip = cut_chip(rgb, Face((x, y, 40, 40), score=0.9), Cut(32, 1.0))
        assert chip.shape == (32, 32, 3)
        assert chip.mean() == pytest.approx(255 if x < 0 else 0 if x > 60 else 127, abs=70)


def test_a_detected_chip_is_centred_and_scaled_by_the_box_height() -> None:
    rgb = np.zeros((100, 100, 3), np.uint8)
    rgb[30:70, 30:70] = 255
    tight = cut_chip(rgb, Face((35, 30, 30, 40), score=0.9), Cut(40, 1.0))
    wide = cut_chip(rgb, Face((35, 30, 30, 40), score=0.9), Cut(40, 2.0))
    assert tight.min() == 255
    assert wide.mean() == pytest.approx(255 / 4, rel=0.02)


def test_crop_mode_keeps_the_whole_picture_unstretched() -> None:
    rgb = np.zeros((100, 50, 3), np.uint8)
    rgb[:50] = 200
    chip = cut_chip(rgb, whole_picture(rgb), Cut(20, 1.03))
    assert chip[:9].mean() == 200
    assert chip[11:].mean() == 0


def test_golden_chip_guards_the_preprocessing_revision() -> None:
    """A change of these figures changes every age: raise PREPROCESSING_REVISION with them."""
    assert PREPROCESSING_REVISION == 4
    rgb = decode(encoded(Image.fromarray(astronaut()))).rgb
    chip = cut_chip(rgb, Face((177.4, 61.2, 90.0, 120.0), score=0.9), Cut(64, 1.03))
    cells = chip.astype(float).reshape(4, 16, 4, 16, 3).mean(axis=(1, 3, 4))
    assert cells == pytest.approx(np.array(GOLDEN_CELLS), abs=0.5)
    measured = quality(chip)
    assert (measured.brightness, measured.contrast, measured.sharpness) == pytest.approx(GOLDEN_QUALITY, abs=1e-3)


GOLDEN_CELLS = [
    [94.22, 132.73, 133.46, 52.25],
    [102.79, 181.01, 168.72, 75.44],
    [187.49, 186.86, 162.46, 153.06],
    [40.63, 185.10, 142.78, 195.03],
]
GOLDEN_QUALITY = (0.55489, 0.25297, 0.02950)
