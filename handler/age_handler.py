"""TorchServe handler: the same images, faces, model and engine as batch scoring, one answer a request.

TorchServe wants exactly one class in this module; it needs neither a base class nor an import of TorchServe.
"""

import inspect
import logging
import math
import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from agewatch.errors import ImageError, UsageError
from agewatch.estimator.engine import Precision, open_engine
from agewatch.estimator.explain import explain, overlay
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.images import RGB
from agewatch.estimator.memory import BUDGET_GB, room_of_one
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Mode

CHIPS_AT_ONCE = 64
"""At most so many faces go through the network at once; it bounds memory, not the batch."""

_STATUS = {"too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "unsupported": HTTPStatus.UNSUPPORTED_MEDIA_TYPE}

_PNG = "image/png"

Answer = tuple[HTTPStatus, dict[str, Any] | bytes, list[tuple[RGB, Mode]]]
"""Status, JSON object or PNG, and the chips, with their mode, whose ages it still waits for."""

logger = logging.getLogger(__name__)


class AgeHandler:
    """Answers `PUT/POST /predictions/agewatch` with a picture's faces; a bad one harms no other of its batch.

    The mode (detect, the default, or crop) is the header `Faces`, as TorchServe drops the query string of
    /predictions. `?faces=` where it is passed on (/agewatch/predict), or a form's field `faces`, goes first.

    With the header `Chips`, one mode a chip with commas between, the body is no picture but chips that were cut before,
    uint8 of shape (n, size, size, 3): so asks the door of `agewatch serve`, which looks at pictures itself.

    `/explanations/agewatch`, which TorchServe tells by a header `explain`, says of one chip why it has its age: years a
    cell, or where the header `Accept` wants that, a PNG.
    """

    def initialize(self, context: Any) -> None:
        """Open the model that TorchServe unpacked. Raises ModelError where it can't be opened.

        The environment may set AGEWATCH_HOME (its cache/ keeps the converted network), AGEWATCH_PRECISION, and
        AGEWATCH_MEMORY_GB, which here is of one worker: `agewatch serve` gives each its fixed part of the budget.
        """
        folder = Path(context.system_properties["model_dir"])
        cache = Path(os.environ.get("AGEWATCH_HOME", folder)) / "cache"
        precision = cast(Precision, os.environ.get("AGEWATCH_PRECISION", "auto"))
        self._model = AgeModel.load(folder)
        self._engine = open_engine(self._model, cache=cache, precision=precision)
        self._detector = YuNet()
        self._room = room_of_one(float(os.environ.get("AGEWATCH_MEMORY_GB") or BUDGET_GB))
        logger.info("%s on %s, code from %s", self._model.id, self._engine.name, inspect.getfile(AgeModel))

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any] | bytes]:
        """Return one JSON object a request, in order, and set each one's HTTP status."""
        answers = [self._read(row, context.get_all_request_header(index)) for index, row in enumerate(data)]
        try:
            ages = self._ages([chip for _, _, chips in answers for chip in chips])
            for _, body, chips in answers:
                if chips and isinstance(body, dict):
                    body["faces"] = [{**face, **next(ages)} for face in body["faces"]]
        except Exception:  # TorchServe would answer the whole batch, refusals too, with 503
            logger.exception("The network failed on a batch of %d pictures.", len(data))
            answers = [_failed() if chips else (status, body, chips) for status, body, chips in answers]
        for index, (status, body, _) in enumerate(answers):
            context.set_response_status(int(status), status.phrase, index)
            context.set_response_content_type(index, "application/json" if isinstance(body, dict) else _PNG)
        logger.info("Batch of %d: %s", len(data), " ".join(str(int(status)) for status, _, _ in answers))
        return [body for _, body, _ in answers]

    def _read(self, row: dict[str, Any], headers: dict[str, Any]) -> Answer:
        """Decode one picture and cut its chips; only these are kept, so one picture is held at a time."""
        try:
            if (modes := _header(headers, "chips")) is not None:
                return self._cut_before(row, modes, headers)
            if _header(headers, "explain") == "True":
                raise UsageError("An explanation is asked of chips, with the header `Chips`.")
            mode = _mode(row, headers)
            seen = look(_picture(row), self._detector if mode == "detect" else None, self._model.spec.cut, self._room)
        except ImageError as error:
            return _refused(_STATUS.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY), error.code, str(error))
        except UsageError as error:
            return _refused(HTTPStatus.BAD_REQUEST, error.code, str(error))
        except Exception:  # TorchServe would answer the whole batch with 503
            logger.exception("A picture failed.")
            return _failed()
        body = {"model": self._model.id, "mode": mode, "engine": self._engine.name, **seen.content()}
        return HTTPStatus.OK, body, [(chip, mode) for chip in seen.chips]

    def _cut_before(self, row: dict[str, Any], modes: str, headers: dict[str, Any]) -> Answer:
        """The chips of a body, or why its first has its age. Raises UsageError where it holds others than announced."""
        names, body, shape = modes.split(","), row.get("body", b""), self._model.spec.cut.shape
        if not isinstance(body, bytes | bytearray) or len(body) != len(names) * math.prod(shape):
            raise UsageError(f"The body does not hold {len(names)} chips of {shape[0]} x {shape[1]} pixels.")
        chips = np.frombuffer(body, np.uint8).reshape(-1, *shape)
        if _header(headers, "explain") == "True":
            found = explain(chips[0], self._model, self._engine)
            wants_png = _PNG in (_header(headers, "accept") or "")
            return HTTPStatus.OK, overlay(found) if wants_png else found.content(), []
        waiting = [(chip, _checked(name)) for chip, name in zip(chips, names, strict=True)]
        told = {"model": self._model.id, "engine": self._engine.name, "faces": [{}] * len(waiting)}
        return HTTPStatus.OK, told, waiting

    def _ages(self, waiting: list[tuple[RGB, Mode]]) -> Iterator[dict[str, float]]:
        for start in range(0, len(waiting), CHIPS_AT_ONCE):
            chips, modes = zip(*waiting[start : start + CHIPS_AT_ONCE], strict=True)
            ages = self._model.estimate(self._engine(np.stack(chips)), modes)
            for age, low, high in zip(ages.age, ages.low, ages.high, strict=True):
                yield {"age": float(age), "age_low": float(low), "age_high": float(high)}


def _header(headers: dict[str, Any], name: str) -> str | None:
    # Headers come spelt as the client did; a form's fields appear among them as dicts.
    return next((text for key, text in headers.items() if key.lower() == name and isinstance(text, str)), None)


def _mode(row: dict[str, Any], headers: dict[str, Any]) -> Mode:
    mode = row.get("faces", _header(headers, "faces") or "detect")
    return _checked(mode.decode(errors="replace") if isinstance(mode, bytes | bytearray) else str(mode))


def _checked(mode: str) -> Mode:
    if mode not in get_args(Mode):
        raise UsageError(f"faces is detect or crop, not {mode!r}.")
    return cast(Mode, mode)


def _picture(row: dict[str, Any]) -> bytes:
    """The picture's bytes: TorchServe calls a plain body `body`, and a form's field by its name."""
    value = row.get("body", row.get("data"))
    if isinstance(value, str):  # a text/* body, decoded by TorchServe; its content is judged like any other
        return value.encode()
    if not isinstance(value, bytes | bytearray):  # a parsed JSON body, or a form without the field `data`
        raise ImageError("unsupported", "The request carries no picture: send its bytes as the body.")
    return bytes(value)


def _refused(status: HTTPStatus, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message}}, []


def _failed() -> Answer:
    return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, "failed", "The picture could not be processed.")
