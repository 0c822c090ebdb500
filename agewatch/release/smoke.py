"""Three drawn faces with a model's own answers: what a server of it must answer, and nobody's pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from agewatch.errors import ModelError
from agewatch.estimator.engine import open_engine
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.mar import opened, read
from agewatch.estimator.model import AgeModel
from agewatch.files import now, write_json

ANSWERS = "answers.json"
"""Maps each picture's name to its faces, as REST gives them: box, score, age, age_low, age_high."""
Colour = tuple[int, int, int]
_FACES: dict[str, tuple[Colour, Colour, int]] = {  # colours of skin and hair, side in pixels
    "face-1.png": ((224, 180, 150), (60, 40, 20), 160),
    "face-2.png": ((150, 100, 70), (20, 15, 10), 200),
    "face-3.png": ((240, 200, 180), (200, 200, 200), 320),
}
_GRID = 160  # the drawing's own units
FOLDER = "smoke"
"""Of the pictures in a model file, and of the records in a store."""
Served = Literal["f32", "bf16"]
YEARS: dict[Served, float] = {"f32": 0.01, "bf16": 10.0}
"""A served age may lie so far from the model's own, by the precision that it is served in: in bf16 drawn faces, which
no model learnt, lie years off, so that only another model, or none, is found there."""
_INTERVAL_YEARS: dict[Served, float] = {"f32": 1.0, "bf16": 30.0}  # an interval ends at whole years
_BOX_PIXELS = 1.0


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Smoke:
    """What the store keeps of a smoke test: which model, whether a server of it answered as it should, and why not.

    `largest_years` is how far a served age lay from the model's own at most; None where none came. `champion` names the
    gate's decision before it: the model that this one had been compared with; None where there was none.
    """

    model: str
    passed: bool
    reason: str
    tested_at: str
    precision: Served | None = None
    largest_years: float | None = None
    champion: str | None = None


_SMOKE = TypeAdapter(Smoke)


def write(folder: Path, model: AgeModel) -> None:
    """Write the pictures and the model's answers in f32 into a folder."""
    folder.mkdir()
    engine, detector = open_engine(model, cache=folder, engine="torch"), YuNet()
    answers = {}
    for name, (skin, hair, side) in _FACES.items():
        picture = _drawn(skin, hair, side)
        (folder / name).write_bytes(picture)
        seen = look(picture, detector, model.spec.cut)
        ages = model.estimate(engine(np.stack(seen.chips)), ["detect"] * len(seen.chips))
        answers[name] = [
            {
                "box": list(face.box),
                "score": face.score,
                "age": float(age),
                "age_low": float(low),
                "age_high": float(high),
            }
            for face, age, low, high in zip(seen.faces, ages.age, ages.low, ages.high, strict=True)
        ]
    (folder / ANSWERS).write_text(json.dumps(answers, indent=1))


Ask = Callable[[bytes], tuple[int, Mapping[str, Any]]]
"""Sends a picture to a server; its answer is a status and, for 200, the JSON of REST."""


def is_in(mar: Path) -> bool:
    """Whether a model file carries pictures. Raises ModelError where it can't be read."""
    with opened(mar) as archive:
        return f"{FOLDER}/{ANSWERS}" in archive.namelist()


def check(mar: Path, ask: Ask, precision: Served = "f32") -> Smoke:
    """Send the pictures of a model file to where it is served in a precision, and hold the answers to its own.

    Raises ModelError where the file holds no pictures, and what `ask` raises.
    """
    model = AgeModel.load(mar)
    pictures, answers = _held(mar)
    apart: list[float] = []
    wrong: list[str] = []
    for name, expected in answers.items():
        status, answer = ask(pictures[name])
        if status != HTTPStatus.OK or answer.get("model") != model.id:
            wrong.append(f"{name} was answered with {status} by {answer.get('model', 'no model')}")
            continue
        faces = answer["faces"]
        if len(faces) != len(expected):
            wrong.append(f"{len(faces)} faces were found in {name} in place of {len(expected)}")
            continue
        apart += [abs(face["age"] - known["age"]) for face, known in zip(faces, expected, strict=True)]
        if not all(_alike(face, known, precision) for face, known in zip(faces, expected, strict=True)):
            wrong.append(f"{name} has another box or interval")
    largest = max(apart, default=None)
    if largest is not None and largest > YEARS[precision]:
        wrong.append(f"an age is {largest:.2f} years off, where {YEARS[precision]} are allowed")
    passed = not wrong and largest is not None
    reason = f"All {len(answers)} pictures were answered." if passed else f"{'; '.join(wrong) or 'It has no answers'}."
    return Smoke(model.id, passed, reason, now(), precision, largest)


def failed(mar: Path, reason: str) -> Smoke:
    """The record of a model file with which no server came up."""
    return Smoke(AgeModel.load(mar).id, False, reason, now())


def keep(store: Path, found: Smoke) -> None:
    """Keep a record in a store, in place of an earlier one of the same model. Raises OSError."""
    folder = store / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{found.model}.json", asdict(found))


def of(store: Path, model: str) -> Smoke | None:
    """The record of a model by its id, None where it was not tested. Raises ModelError where it is damaged."""
    file = store / FOLDER / f"{model}.json"
    try:
        return _SMOKE.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's is a ValueError
        raise ModelError(f"The smoke test's record {file} can't be read: {error!r}.") from error


def _held(mar: Path) -> tuple[dict[str, bytes], dict[str, list[dict[str, Any]]]]:
    try:
        answers = json.loads(read(mar, f"{FOLDER}/{ANSWERS}"))
        return {name: read(mar, f"{FOLDER}/{name}") for name in answers}, answers
    except (ModelError, ValueError) as error:
        raise ModelError(f"{mar} holds no pictures for a smoke test: {error}.") from error


def _alike(face: Mapping[str, Any], known: Mapping[str, Any], precision: Served) -> bool:
    """Whether a served face has the box and the interval that the model's own has; its age is held apart."""
    return _near(face["box"], known["box"], _BOX_PIXELS) and all(
        _near([face[end]], [known[end]], _INTERVAL_YEARS[precision] + 1e-6) for end in ("age_low", "age_high")
    )


def _near(some: Sequence[float], others: Sequence[float], most: float) -> bool:
    return all(abs(one - other) <= most for one, other in zip(some, others, strict=True))


def _drawn(skin: Colour, hair: Colour, side: int) -> bytes:
    """A face out of ellipses that the detector takes for one, as PNG."""
    image = Image.new("RGB", (side, side), (150, 170, 190))
    draw, unit = ImageDraw.Draw(image), side / _GRID
    shade = (skin[0] * 3 // 4, skin[1] * 3 // 4, skin[2] * 3 // 4)

    def ellipse(left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
        draw.ellipse([left * unit, top * unit, right * unit, bottom * unit], fill=colour)

    def line(*points: int, colour: Colour, width: int) -> None:
        draw.line([point * unit for point in points], fill=colour, width=round(width * unit))

    ellipse(20, 110, 140, 240, (60, 70, 110))  # shoulders, neck, hair, face
    draw.rectangle([65 * unit, 115 * unit, 95 * unit, 140 * unit], fill=shade)
    ellipse(38, 14, 122, 120, hair)
    ellipse(45, 25, 115, 135, skin)
    for x in (62, 98):  # eyes and brows
        ellipse(x - 11, 66, x + 11, 80, (240, 240, 240))
        ellipse(x - 6, 66, x + 6, 80, (70, 50, 30))
        ellipse(x - 3, 69, x + 3, 77, (10, 10, 10))
        line(x - 13, 58, x + 13, 57, colour=hair, width=4)
    draw.polygon([80 * unit, 72 * unit, 70 * unit, 100 * unit, 90 * unit, 100 * unit], fill=shade)  # nose
    ellipse(69, 92, 91, 104, shade)
    ellipse(62, 109, 98, 121, (150, 60, 60))  # mouth
    line(64, 115, 96, 115, colour=(90, 30, 30), width=2)
    file = BytesIO()
    image.filter(ImageFilter.GaussianBlur(1.5 * unit)).save(file, "PNG")
    return file.getvalue()
