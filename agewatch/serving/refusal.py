"""What the door says where it gives no ages: one JSON object with a code and a sentence."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from agewatch.errors import ImageError

_OF_PICTURES = {"too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "unsupported": HTTPStatus.UNSUPPORTED_MEDIA_TYPE}


class Refusal(Exception):  # noqa: N818 it is an answer
    """A request that is answered without ages: status, code, a sentence for a person, and further headers."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    def response(self) -> Response:
        """The answer."""
        body = json.dumps({"error": {"code": self.code, "message": self.message}})
        return Response(body, self.status, self.headers, "application/json")


def of_picture(error: ImageError) -> Refusal:
    """A picture that can't be read."""
    return Refusal(_OF_PICTURES.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY), error.code, str(error))


def usage(message: str) -> Refusal:
    """A request that contradicts itself or asks for what there is not."""
    return Refusal(HTTPStatus.BAD_REQUEST, "usage", message)


def unavailable(message: str, seconds: float) -> Refusal:
    """Nobody can answer now; it may be tried again after so many seconds."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", message, {"Retry-After": str(max(1, round(seconds)))})


def overloaded(message: str, seconds: float = 1) -> Refusal:
    """More is under way than the door takes."""
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "overloaded", message, {"Retry-After": str(max(1, round(seconds)))})
