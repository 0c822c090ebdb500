"""Why this age: how the estimate of a face changes where a part of it is hidden.

By occlusion (Zeiler and Fergus, ECCV 2014) with the engine that gave the age. Integrated gradients (captum, 32 steps)
find a known region as well, at twice the time, and need torch in every worker (benchmarks/RESULTS.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from agewatch.errors import AgewatchError, UsageError
from agewatch.estimator.engine import Engine
from agewatch.estimator.faces import Face, chip_square
from agewatch.estimator.images import RGB
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Cut, Floats

NO_FACE = "No face was found in the picture."
CELLS = 8
"""A face is divided into so many cells a side."""
_BLUR = 1 / 8  # of the side: what is hidden keeps its colour, so that no edge is added to the face
_LEAST_YEARS = 1.0  # full colour at least: what moves an age by less is not shown as if it mattered
_SIDE = 480  # of an overlay, pixels
_OLDER, _YOUNGER = (215, 48, 39), (69, 117, 180)  # told apart without red and green, too


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a face has its age (years).

    `years` has shape (CELLS, CELLS), rows from the top: how the estimate changes where a cell of the chip is hidden; -3
    says that what is seen there makes the face look 3 years older.
    """

    age: float
    years: Floats
    chip: RGB

    def content(self) -> dict[str, Any]:
        """As JSON has it; years to a hundredth."""
        return {"age": self.age, "years": [[round(float(cell), 2) for cell in row] for row in self.years]}


def explain(chip: RGB, model: AgeModel, engine: Engine) -> Explanation:
    """Explain the age of a face by its chip (size, size, 3)."""
    ages = model.ages(engine(np.concatenate([chip[None], _hidden(chip)])))
    return Explanation(float(ages[0]), (ages[1:] - ages[0]).reshape(CELLS, CELLS), chip)


def place(faces: Sequence[Face], face: int, cut: Cut) -> dict[str, Any]:
    """Which of a picture's faces is explained, number 0 being the largest, as JSON has it.

    `faces` is how many there are, `area` the square (left, top, side; upright pixels) that its cells divide, which may
    reach over the picture's edge. Raises AgewatchError where there is no face, UsageError where none has this number.
    """
    if not faces:
        raise AgewatchError(NO_FACE)
    if not 0 <= face < len(faces):
        last = len(faces) - 1
        raise UsageError(
            f"There is no face {face} in the picture: its faces are 0{f' to {last}' if last else ' alone'}."
        )
    return {"faces": len(faces), "face": face, "area": list(chip_square(faces[face], cut))}


def overlay(found: Explanation) -> bytes:
    """A PNG of the face: red where what is seen makes it look older, blue where younger, and how much at most."""
    face = np.asarray(Image.fromarray(found.chip).convert("L").resize((_SIDE, _SIDE)), np.float32)[:, :, None]
    years = cv2.resize(found.years, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)[:, :, None]
    most = max(float(np.abs(found.years).max()), _LEAST_YEARS)
    colour = np.where(years < 0, np.array(_OLDER, np.float32), np.array(_YOUNGER, np.float32))
    strength = 0.75 * np.abs(years) / most
    image = Image.fromarray((face * (1 - strength) + colour * strength).round().clip(0, 255).astype(np.uint8))
    legend = f"{found.age:.0f} years. Hidden, red parts take off up to {-min(found.years.min(), 0):.1f}"
    legend += f" and blue parts add up to {max(found.years.max(), 0):.1f}."
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, _SIDE - 22, _SIDE, _SIDE], fill="white")
    draw.text((6, _SIDE - 18), legend, fill="black", font_size=14)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _hidden(chip: RGB) -> RGB:
    """The chip (size, size, 3) once a cell, with that cell blurred away: (CELLS * CELLS, size, size, 3)."""
    size = len(chip)
    blurred = cv2.GaussianBlur(chip, (0, 0), size * _BLUR)
    edges = np.linspace(0, size, CELLS + 1).round().astype(int)
    chips: RGB = np.repeat(chip[None], CELLS * CELLS, axis=0)
    for index in range(CELLS * CELLS):
        row, column = divmod(index, CELLS)
        cell = slice(edges[row], edges[row + 1]), slice(edges[column], edges[column + 1])
        chips[index][cell] = blurred[cell]
    return chips
