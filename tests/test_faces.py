import numpy as np
import pytest
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch.faces import Detector, Face, cut_chip, whole_picture
from agewatch.images import decode, quality
from agewatch.model import PREPROCESSING_REVISION


def astronaut(scale: float = 1.0) -> np.ndarray:
    image = Image.open(ASTRONAUT).convert("RGB")
    return np.asarray(image.resize([round(side * scale) for side in image.size]))


def test_the_astronaut_has_one_face_where_it_is() -> None:
    [face] = Detector()(astronaut())
    x, y, w, h = face.box
    assert 160 < x + w / 2 < 280
    assert 60 < y + h / 2 < 180
    assert face.score is not None
    assert 0.8 < face.score <= 1
    assert face.landmarks is not None
    assert all(x < px < x + w and y < py < y + h for px, py in face.landmarks)


def test_a_large_picture_gives_the_same_face_in_its_own_pixels() -> None:
    [small], [large] = Detector()(astronaut()), Detector()(astronaut(4))
    assert np.array(large.box) / 4 == pytest.approx(np.array(small.box), abs=6)


def test_no_face_in_a_grey_picture_and_largest_first() -> None:
    assert Detector()(np.full((300, 200, 3), 128, np.uint8)) == []
    two = np.zeros((600, 900, 3), np.uint8)
    two[:256, :256] = astronaut(0.5)
    two[88:, 388:] = astronaut()
    large, small = Detector()(two)
    assert large.box[3] > 1.5 * small.box[3]
    assert large.box[0] > 388


def test_chips_at_every_edge_are_padded_squares() -> None:
    rgb = np.zeros((50, 80, 3), np.uint8)
    rgb[:, :40] = 255
    for x, y in ((-30.0, -30.0), (70.0, 40.0), (-200.0, 10.0), (30.0, 300.0)):
        chip = cut_chip(rgb, Face((x, y, 40, 40), score=0.9), scale=1.0, size=32)
        assert chip.shape == (32, 32, 3)
        assert chip.mean() == pytest.approx(255 if x < 0 else 0 if x > 60 else 127, abs=70)


def test_a_detected_chip_is_centred_and_scaled_by_the_box_height() -> None:
    rgb = np.zeros((100, 100, 3), np.uint8)
    rgb[30:70, 30:70] = 255
    tight = cut_chip(rgb, Face((35, 30, 30, 40), score=0.9), scale=1.0, size=40)
    wide = cut_chip(rgb, Face((35, 30, 30, 40), score=0.9), scale=2.0, size=40)
    assert tight.min() == 255
    assert wide.mean() == pytest.approx(255 / 4, rel=0.02)


def test_crop_mode_keeps_the_whole_picture_unstretched() -> None:
    rgb = np.zeros((100, 50, 3), np.uint8)
    rgb[:50] = 200
    chip = cut_chip(rgb, whole_picture(rgb), scale=1.03, size=20)
    assert chip[:9].mean() == 200
    assert chip[11:].mean() == 0


def test_golden_chip_guards_the_preprocessing_revision() -> None:
    """A change of these figures changes every age: raise PREPROCESSING_REVISION with them."""
    assert PREPROCESSING_REVISION == 1
    rgb = decode(encoded(Image.fromarray(astronaut()))).rgb
    chip = cut_chip(rgb, Face((177.4, 61.2, 90.0, 120.0), score=0.9), scale=1.03, size=64)
    cells = chip.astype(float).reshape(4, 16, 4, 16, 3).mean(axis=(1, 3, 4))
    assert cells == pytest.approx(np.array(GOLDEN_CELLS), abs=0.5)
    measured = quality(chip)
    assert (measured.brightness, measured.contrast, measured.sharpness) == pytest.approx(GOLDEN_QUALITY, abs=1e-3)


GOLDEN_CELLS = [
    [94.43, 132.87, 133.46, 52.40],
    [102.88, 181.23, 169.07, 75.59],
    [187.51, 186.99, 162.73, 153.09],
    [40.83, 185.30, 142.92, 195.10],
]
GOLDEN_QUALITY = (0.55546, 0.25104, 0.01893)
