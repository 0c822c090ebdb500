"""How small a face is still found, at which MIN_SCORE and WORKING_SIDE, and how often a face is seen where none is.

Real faces of AGEWATCH_DATA are shrunk and pasted into a canvas of noise twice the size that the detector works on, so
that it shrinks them as it does any photograph. Pictures in which it finds no face at full size are left out.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import skimage
from results import table, write_section

from agewatch.estimator import faces
from agewatch.estimator.faces import YuNet
from agewatch.estimator.images import RGB, decode
from agewatch.sources import door

SIDES = (12, 16, 20, 24, 28, 32, 40, 48)
"""Heights of the pasted faces, in pixels of the copy that the detector sees."""
SCORES = (0.5, 0.6, 0.7, 0.8)
WORKING_SIDES = (640, 960, 1280)
FACES = 480
"""Faces a height and source."""
SOURCES = ("archive_portraits", "archive_faces")
COLUMNS, ROWS = 4, 3
"""Faces across and down a canvas."""
TWELVE_MEGAPIXELS = 4000
"""Longer side of a picture of 12 million pixels."""
FACELESS = (
    "brick", "cell", "chelsea", "chessboard_RGB", "clock_motion", "coffee", "color", "grass", "gravel", "horse",
    "hubble_deep_field", "ihc", "logo", "microaneurysms", "moon", "motorcycle_left", "page", "phantom", "retina",
    "rocket", "text",
)  # fmt: skip

Box = tuple[float, float, float, float]


def main() -> None:
    """Measure, print, and write the section of RESULTS.md."""
    data = Path(os.environ["AGEWATCH_DATA"])
    used = f"agewatch uses WORKING_SIDE {faces.WORKING_SIDE} and MIN_SCORE {faces.MIN_SCORE}."
    faces.MIN_SCORE = min(SCORES)  # the detections above a higher score are the same ones
    write_section(
        "Small faces",
        f"Written by `make bench`. {used}\n\nShare of faces found (overlap over 0.5), by their height in pixels of the"
        f" copy that the detector works on; {FACES} of each source a height:\n\n{_by_height(data)}\n\nDetections in the"
        " photographs of `photos` (groups and crowds, no truth known), false ones in pictures without a face, and CPU"
        f" milliseconds a picture of 1920x1440 pixels:\n\n{_by_working_side(data)}\n",
    )


def _by_height(data: Path) -> str:
    rows = []
    for source in SOURCES:
        known, detector = list(_known(data / source)), YuNet()
        scores = [_scores(detector, known, side) for side in SIDES]
        for least in SCORES:
            shares = [f"{np.mean(np.array(found) >= least):.1%}" for found in scores]
            rows.append([source, str(least), *shares])
    return table(["faces of", "least score", *(f"{side} px" for side in SIDES)], rows)


def _by_working_side(data: Path) -> str:
    photos = [decode(door.at(data / "photos").read(file)[0]).rgb for file in door.find(door.at(data / "photos")).files]
    large: list[RGB] = [np.asarray(cv2.resize(rgb, (1920, 1440)), np.uint8) for rgb in photos[:20]]
    rows = []
    for working_side in WORKING_SIDES:
        faces.WORKING_SIDE = working_side
        detector = YuNet()
        detector(large[0])
        started = time.process_time()
        for rgb in large:
            detector(rgb)
        cost = 1000 * (time.process_time() - started) / len(large)
        found, false = (np.array([f.score for rgb in some for f in detector(rgb)]) for some in (photos, _faceless()))
        smallest = 40 * TWELVE_MEGAPIXELS / working_side
        rows += [
            [str(working_side), str(least), str(sum(found >= least)), str(sum(false >= least)), f"{cost:.1f}",
             f"{smallest:.0f} px"]
            for least in SCORES
        ]  # fmt: skip
    header = ["working side", "least score", "detections", "false", "ms a picture", "40 px are, in 12 megapixels"]
    return table(header, rows)


def _known(root: Path) -> Iterator[tuple[RGB, Box]]:
    """Pictures and their one face, as the detector sees it at full size."""
    detector, kept = YuNet(), 0
    for file in door.find(door.at(root)).files:
        rgb = decode(door.at(root).read(file)[0]).rgb
        seen = detector(rgb)
        if len(seen) == 1:
            yield rgb, seen[0].box
            kept += 1
        if kept == FACES:
            return


def _scores(detector: YuNet, known: list[tuple[RGB, Box]], side: int) -> list[float]:
    """The score of every pasted face, 0 where it was missed."""
    draw = np.random.default_rng(side)
    cell = 2 * faces.WORKING_SIDE // COLUMNS
    scores: list[float] = []
    for start in range(0, len(known), COLUMNS * ROWS):
        canvas = draw.integers(96, 160, (cell * ROWS, cell * COLUMNS, 3), np.uint8)
        truths: list[Box] = []
        for number, (rgb, box) in enumerate(known[start : start + COLUMNS * ROWS]):
            factor = 2 * side / box[3]
            small = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            height, width = small.shape[:2]
            left = number % COLUMNS * cell + int(draw.integers(0, cell - width + 1))
            top = number // COLUMNS * cell + int(draw.integers(0, cell - height + 1))
            canvas[top : top + height, left : left + width] = small
            x, y, w, h = (value * factor for value in box)
            truths.append((x + left, y + top, w, h))
        seen = detector(canvas)
        scores += [max((f.score or 0.0 for f in seen if _overlap(f.box, truth) > 0.5), default=0.0) for truth in truths]
    return scores


def _faceless() -> Iterator[RGB]:
    """Pictures without a face, whole and as enlarged quarters."""
    for name in FACELESS:
        [path] = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
        rgb = decode(path.read_bytes()).rgb
        middle, centre = rgb.shape[0] // 2, rgb.shape[1] // 2
        yield rgb
        for rows in (slice(middle), slice(middle, None)):
            for columns in (slice(centre), slice(centre, None)):
                yield np.asarray(cv2.resize(rgb[rows, columns], None, fx=3, fy=3), np.uint8)


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(across, 0) * max(down, 0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


if __name__ == "__main__":
    main()
