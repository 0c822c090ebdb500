"""Three drawn faces with a model's own answers: what a server of it must answer, and nobody's pictures."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from agewatch.estimator.engine import open_engine
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.model import AgeModel

ANSWERS = "answers.json"
"""Maps each picture's name to its faces, as REST gives them: box, score, age, age_low, age_high."""
Colour = tuple[int, int, int]
_FACES: dict[str, tuple[Colour, Colour, int]] = {  # colours of skin and hair, side in pixels
    "face-1.png": ((224, 180, 150), (60, 40, 20), 160),
    "face-2.png": ((150, 100, 70), (20, 15, 10), 200),
    "face-3.png": ((240, 200, 180), (200, 200, 200), 320),
}
_GRID = 160  # the drawing's own units


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
