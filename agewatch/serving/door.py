"""The door: the ASGI application that listens, and what each of its addresses answers."""

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

import agewatch
from agewatch.errors import ImageError
from agewatch.estimator.spec import Mode
from agewatch.serving import described
from agewatch.serving.ages import Ages, answer, explanation
from agewatch.serving.asked import face_told, modes_told, one_mode, picture_of
from agewatch.serving.backends import Backends
from agewatch.serving.looking import Lookers
from agewatch.serving.metrics import REGISTRY
from agewatch.serving.refusal import Refusal, of_picture, overloaded
from agewatch.serving.torchserve import MODEL_NAME

MOST_REQUEST_BYTES = 64 * 2**20
"""Of one body; TorchServe's own 6.5 MB is less than many camera files."""
MOST_BYTES = 256 * 2**20
"""Of all bodies that are under way."""
MOST_WAITING = 256
"""So many whole requests wait or are worked on; further ones are asked to come again."""
What = Callable[[Request, Ages, bytes, Mode], Awaitable[Response]]
_CODES = {401: "unauthorized", 404: "not_found", 405: "method"}


class Bounds:
    """What is under way: bytes of bodies, and whole requests."""

    def __init__(self) -> None:
        self._bytes = self._requests = 0

    @contextmanager
    def body(self) -> Iterator["Body"]:
        """A body's share, given back at the end."""
        body = Body(self)
        try:
            yield body
        finally:
            self._bytes -= body.counted

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests that wait. Raises Refusal where there is none."""
        if self._requests >= MOST_WAITING:
            raise overloaded(f"{MOST_WAITING} requests wait already.")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def take(self, count: int) -> None:
        """Count bytes. Raises Refusal where they are too many with all others."""
        if self._bytes + count > MOST_BYTES:
            raise overloaded("The bodies of all requests together are too large.")
        self._bytes += count


class Body:
    """A body that is read; what it holds is counted."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds, self.counted = bounds, 0

    async def read(self, request: Request) -> bytes:
        """All of it. Raises Refusal where it is too large, ClientDisconnect where its client is gone."""
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > MOST_REQUEST_BYTES:
            raise _too_large()
        parts = []
        async for part in request.stream():
            if self.counted + len(part) > MOST_REQUEST_BYTES:
                raise _too_large()
            self._bounds.take(len(part))
            self.counted += len(part)
            parts.append(part)
        return b"".join(parts)


def _too_large() -> Refusal:
    most = f"{MOST_REQUEST_BYTES // 2**20} MB"
    return Refusal(413, "too_large", f"The request's body is over {most}.")


def application(lookers: Lookers, backends: Backends) -> FastAPI:
    """The application, to stand behind the gate."""
    app = FastAPI(title="agewatch", version=agewatch.__version__, description=described.ABOUT, docs_url=None,
                  redoc_url=None, responses=described.REFUSALS)  # fmt: skip
    bounds = Bounds()

    async def picture_asked(request: Request, what: What) -> Response:
        told = modes_told(request)
        one_mode(told)
        pinned = request.headers.get("model")
        backends.now(pinned)  # before a body that nobody could look at
        with bounds.body() as body:
            content = await body.read(request)
            with bounds.place():
                async with backends.using(pinned) as ages:
                    picture, more = picture_of(request.headers.get("content-type", ""), content)
                    return await what(request, ages, picture, one_mode([*told, *more]))

    async def predicted(_: Request, ages: Ages, picture: bytes, mode: Mode) -> Response:
        return _json(await answer(lookers, ages, picture, mode))

    async def explained(request: Request, ages: Ages, picture: bytes, mode: Mode) -> Response:
        accept = request.headers.get("accept", "*/*")
        content, kind = await explanation(lookers, ages, picture, mode, face_told(request), accept)
        return Response(content, media_type=kind)

    async def predict(request: Request) -> Response:
        """Estimate the age of every face in a picture."""
        return await picture_asked(request, predicted)

    async def explain(request: Request) -> Response:
        """Say why a face has its age: how the estimate changes where a part of the face is hidden."""
        return await picture_asked(request, explained)

    for path, endpoint, extra in (
        ("predictions", predict, described.PREDICT),
        ("explanations", explain, described.EXPLAIN),
    ):
        for method in ("POST", "PUT"):
            app.add_api_route(
                f"/{path}/{MODEL_NAME}", endpoint, methods=[method], openapi_extra=extra,
                operation_id=f"{endpoint.__name__}_{method.lower()}", responses=described.ANSWERS[path],
            )  # fmt: skip
    _add_health(app, backends)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What the server counts, for Prometheus."""
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    _add_refusals(app)
    return app


def _add_health(app: FastAPI, backends: Backends) -> None:
    """Addresses that say how it is, ours and those of KServe's version 2."""

    @app.get("/healthz")
    @app.get("/v2/health/live", operation_id="live")
    async def healthz() -> Response:
        """The door lives."""
        return _json({"live": True})

    @app.get("/readyz")
    @app.get("/v2/health/ready", operation_id="ready")
    @app.get(f"/v2/models/{MODEL_NAME}/ready", operation_id="model_ready")
    async def readyz() -> Response:
        """Whether a prediction was answered lately, by which model, and why another one does not answer."""
        told = {"name": MODEL_NAME, "ready": backends.is_ready, "model": backends.model, "problem": backends.problem}
        return _json(told, HTTPStatus.OK if backends.is_ready else HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/v2")
    async def server() -> Response:
        """The server's metadata."""
        return _json({"name": "agewatch", "version": agewatch.__version__, "extensions": []})

    @app.get(f"/v2/models/{MODEL_NAME}")
    async def model() -> Response:
        """The model's metadata."""
        return _json(described.METADATA | {"versions": [backends.model]})


def _add_refusals(app: FastAPI) -> None:
    async def refusal(request: Request, error: Any) -> Response:
        found = error if isinstance(error, Refusal) else of_picture(error)
        request.scope["agewatch"]["code"] = found.code
        return found.response()

    async def of_http(request: Request, error: Any) -> Response:
        code, headers = _CODES.get(error.status_code, "usage"), error.headers
        if "Allow" in (headers or {}) and request.url.path.endswith(f"ions/{MODEL_NAME}"):
            headers = {"Allow": "POST, PUT"}  # Starlette names those of the first of two routes
        return await refusal(request, Refusal(error.status_code, code, f"{error.detail}.", headers))

    async def gone(_: Request, __: Any) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def failed(request: Request, _: Any) -> Response:
        return await refusal(request, Refusal(500, "failed", "The picture could not be processed."))

    app.add_exception_handler(Refusal, refusal)
    app.add_exception_handler(ImageError, refusal)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)


def _json(told: Any, status: int = HTTPStatus.OK) -> Response:
    return Response(json.dumps(told), status, media_type="application/json")
