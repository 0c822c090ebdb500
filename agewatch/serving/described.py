"""The words of the OpenAPI description: bodies, parameters and answers of the door's addresses."""

import base64
from datetime import datetime
from io import BytesIO
from typing import Any

from PIL import Image
from pydantic import BaseModel

from agewatch.estimator.spec import Mode

ABOUT = "Estimates the age of every face in a picture. All but health wants the header `Authorization: Bearer TOKEN`."
METADATA = {
    "name": "agewatch",
    "platform": "torchserve",
    "inputs": [{"name": "picture", "datatype": "BYTES", "shape": [1]}],
    "outputs": [{"name": "faces", "datatype": "BYTES", "shape": [-1]}],
}


class Face(BaseModel):
    """A face: box (x, y, w, h) in upright pixels, the detector's confidence, its quality, as the predictions table has
    it, and years: estimate, 90 % interval."""

    box: tuple[float, float, float, float]
    score: float | None
    brightness: float
    contrast: float
    sharpness: float
    age: float
    age_low: float
    age_high: float


class Prediction(BaseModel):
    """The faces of a picture, largest first, which model estimated them, and what EXIF says (UTC)."""

    model: str
    mode: Mode
    engine: str
    width: int
    height: int
    captured_at: datetime | None
    camera: str | None
    rendition: str | None
    faces: list[Face]


class Explanation(BaseModel):
    """How a face's estimate (years) changes where a cell of the square `area` (left, top, side; pixels) is hidden."""

    model: str
    mode: Mode
    engine: str
    width: int
    height: int
    faces: int
    face: int
    area: tuple[int, int, int]
    age: float
    years: list[list[float]]


class Said(BaseModel):
    """A code for programs and a sentence for people."""

    code: str
    message: str


class Refused(BaseModel):
    """Why there is no answer."""

    error: Said


def _grey() -> str:
    file = BytesIO()
    Image.new("RGB", (16, 16), "grey").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


_MODE: dict[str, Any] = {"type": "string", "enum": ["detect", "crop"]}
_PARAMETERS = [
    {"name": "faces", "in": "query", "schema": _MODE, "description": "crop: the picture is one face."},
    {"name": "Faces", "in": "header", "schema": _MODE, "description": "The same as a header."},
    {"name": "Model", "in": "header", "schema": {"type": "string"},
     "description": "Answer only by the model with this id; 409 where another one is served."},
]  # fmt: skip
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "faces": _MODE},
    "required": ["file"],
}
_JSON = {
    "type": "object",
    "properties": {"image": {"type": "string", "format": "byte", "description": "Base64."}, "faces": _MODE},
    "required": ["image"],
}
PREDICT: dict[str, Any] = {
    "parameters": _PARAMETERS,
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": _BINARY,
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": _JSON, "example": {"image": _grey(), "faces": "crop"}},
        },
    },
}
EXPLAIN = PREDICT | {
    "parameters": [
        *_PARAMETERS,
        {"name": "face", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 9999},
         "description": "Which face; 0, the largest, by default."},
    ]
}  # fmt: skip
_WHY = {
    400: "The request contradicts itself.", 401: "The token is missing or wrong.", 404: "There is no such address.",
    405: "The address knows other methods.", 409: "Another model answers than `Model` names.",
    413: "The body or the picture is too large.", 415: "The content is no picture.",
    422: "The picture is damaged, empty, or its decoder failed.", 429: "Too much is under way: come again.",
    500: "The server failed.", 503: "No model answers now: come again.",
}  # fmt: skip
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": why, "model": Refused} for status, why in _WHY.items()
}
ANSWERS: dict[str, dict[int | str, dict[str, Any]]] = {
    "predictions": {200: {"description": "The faces.", "model": Prediction}},
    "explanations": {
        200: {"description": "Years a cell, or a PNG.", "model": Explanation, "content": {"image/png": {}}}
    },
}
