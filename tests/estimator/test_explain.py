"""Why an age: a model that looks at one region only is found to look there."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pictures import ASTRONAUT
from PIL import Image

from agewatch.errors import AgewatchError, UsageError
from agewatch.estimator.engine import Engine, open_engine
from agewatch.estimator.explain import CELLS, explain, overlay, place
from agewatch.estimator.faces import Seen, YuNet, look
from agewatch.estimator.images import RGB
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Cut, Floats


@pytest.fixture(scope="module")
def seen() -> Seen:
    return look(ASTRONAUT.read_bytes(), YuNet(), Cut(192, 1.03))


class LooksAt:
    """A network whose age is the contrast of one region of the chip."""

    name = "synthetic"

    def __init__(self, rows: slice, columns: slice) -> None:
        self.region = rows, columns

    def __call__(self, chips: RGB) -> Floats:
        contrast = np.array([chip[self.region].std() for chip in chips])
        found = np.zeros((len(chips), 101), np.float32)
        found[np.arange(len(chips)), contrast.clip(0, 100).round().astype(int)] = 1
        return found


@pytest.mark.parametrize(("row", "column"), [(1, 4), (3, 2), (4, 5), (6, 3)])
def test_the_one_region_that_an_answer_depends_on_is_found(
    model_folder: Path, seen: Seen, row: int, column: int
) -> None:
    cell = 192 // CELLS
    engine: Engine = LooksAt(slice(row * cell, (row + 2) * cell), slice(column * cell, (column + 2) * cell))
    found = explain(seen.chips[0], AgeModel.load(model_folder), engine)
    inside = np.zeros((CELLS, CELLS), bool)
    inside[row : row + 2, column : column + 2] = True
    assert found.age > 10
    assert inside[np.unravel_index(np.abs(found.years).argmax(), found.years.shape)]
    assert not found.years[~inside].any(), "hiding what it does not look at changes nothing"
    assert (found.years[inside] < 0).sum() >= 3, "less contrast, fewer years"


def test_the_map_lies_over_the_face_and_an_overlay_shows_it(model_folder: Path, cache: Path) -> None:
    model = AgeModel.load(model_folder)
    engine = open_engine(model, cache=cache, precision="f32")
    seen = look(ASTRONAUT.read_bytes(), YuNet(), model.spec.cut)
    found = explain(seen.chips[0], model, engine)
    told = place(seen.faces, 0, model.spec.cut) | found.content()
    assert told["age"] == pytest.approx(float(model.ages(engine(seen.chips[0][None]))[0]), abs=1e-3)
    assert np.array(told["years"]).shape == (CELLS, CELLS)
    left, top, side = told["area"]
    x, y, w, h = seen.faces[0].box
    assert left <= x
    assert top <= y
    assert left + side >= x + w
    assert abs(side - h * model.spec.cut.scale) <= 1
    reddest = replace(found, years=np.where(np.eye(CELLS) > 0, -9, 0).astype(np.float32))
    pixels = np.asarray(Image.open(BytesIO(overlay(reddest))), np.int64)
    redness = pixels[..., 0] - pixels[..., 2]
    assert redness[30, 30] > 80 > 20 > abs(redness[30, 400])


def test_a_face_that_is_not_there_is_said(seen: Seen) -> None:
    with pytest.raises(UsageError, match="There is no face 1 in the picture: its faces are 0 alone"):
        place(seen.faces, 1, Cut(192, 1.03))
    with pytest.raises(UsageError, match="There is no face -1 in the picture: its faces are 0 to 2"):
        place(seen.faces * 3, -1, Cut(192, 1.03))
    with pytest.raises(AgewatchError, match="No face was found"):
        place([], 0, Cut(192, 1.03))
