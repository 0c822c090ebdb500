"""Chips of many requests -> their ages: what waits goes to TorchServe together, and once more where it was lost."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from agewatch.errors import UsageError
from agewatch.estimator.explain import NO_FACE, place
from agewatch.estimator.faces import Face
from agewatch.estimator.spec import Mode
from agewatch.serving.looking import Lookers
from agewatch.serving.metrics import DECODE, DETECT, FACES, FORWARD, QUEUE
from agewatch.serving.refusal import Refusal, unavailable, usage
from agewatch.serving.torchserve import CHIPS_AT_ONCE, TorchServe, answer_of

AWAY_SECONDS = 20.0
"""So long chips wait for a worker that is started again."""
_TRIES = 2
_WORTH_A_CALL = 4  # with fewer requests a call beside another is not worth its cost
_PAUSE_SECONDS = 0.1
_JSON = "application/json"
_LOST = "The batch was lost with its worker twice."


@dataclass
class _Waiting:
    chips: bytes
    modes: Sequence[Mode]
    answer: "asyncio.Future[list[dict[str, Any]]]"


class Ages:
    """Asks one TorchServe, in so many calls at once as it has workers, each with all that waits, up to CHIPS_AT_ONCE.

    So a lone request never waits for company, and under load company is there.
    """

    def __init__(self, backend: TorchServe, calls: int) -> None:
        self.backend = backend
        self.answered_at = time.monotonic()
        """When it last gave an age, by the monotonic clock."""
        self._calls = calls
        self._waiting: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def of(self, chips: bytes, modes: Sequence[Mode]) -> list[dict[str, Any]]:
        """The ages of chips, as REST gives them. Raises Refusal where TorchServe is away or fails."""
        size, parts = len(chips) // len(modes), []
        for start in range(0, len(modes), CHIPS_AT_ONCE):
            end = start + CHIPS_AT_ONCE
            part = _Waiting(chips[start * size : end * size], modes[start:end], asyncio.Future())
            self._waiting.append(part)
            parts.append(part)
            self._call()
        return [age for ages in await asyncio.gather(*(part.answer for part in parts)) for age in ages]

    def _call(self) -> None:
        if len(self._under_way) < (self._calls if len(self._waiting) >= _WORTH_A_CALL else 1) and self._waiting:
            task = asyncio.create_task(self._answer_batch())
            self._under_way.add(task)
            task.add_done_callback(self._go_on)

    def _go_on(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._call()

    async def _answer_batch(self) -> None:
        batch = self._next()
        started = time.perf_counter()
        try:
            chips = b"".join(part.chips for part in batch)
            ages = await self._ask(chips, [mode for part in batch for mode in part.modes])
        except BaseException as error:  # cancelled, too: nobody may wait for ever
            found = error if isinstance(error, Refusal) else unavailable("The server stops.", 1)
            for part in batch:
                if not part.answer.done():
                    part.answer.set_exception(found)
            if not isinstance(error, Exception):
                raise
            return
        self.answered_at = time.monotonic()
        FORWARD.observe(time.perf_counter() - started)
        for part in batch:
            mine, ages = ages[: len(part.modes)], ages[len(part.modes) :]
            if not part.answer.done():  # its client may be gone
                part.answer.set_result(mine)

    def _next(self) -> list[_Waiting]:
        batch = [self._waiting.popleft()]
        room = CHIPS_AT_ONCE - len(batch[0].modes)
        while self._waiting and len(self._waiting[0].modes) <= room:
            batch.append(self._waiting.popleft())
            room -= len(batch[-1].modes)
        return batch

    async def _ask(self, chips: bytes, modes: Sequence[Mode]) -> list[dict[str, Any]]:
        response = await self.asked("predictions", chips, modes)
        faces: list[dict[str, Any]] = answer_of(response).get("faces", [])
        if response.status_code != HTTPStatus.OK or len(faces) != len(modes):
            raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "failed", "The faces could not be estimated.")
        return faces

    async def asked(self, what: str, chips: bytes, modes: Sequence[Mode], accept: str = "*/*") -> httpx.Response:
        """Ask TorchServe, and once more where the call was lost with its worker. Raises Refusal where it is away."""
        deadline = time.monotonic() + AWAY_SECONDS
        lost = 0
        while True:
            try:
                response = await self.backend.ask(what, chips, modes, accept)
            except httpx.TransportError:
                if not self.backend.is_alive:
                    raise unavailable("The model's server is started again.", 5) from None
                lost += 1
            else:
                if not _is_lost(response):
                    return response
                lost += response.status_code != HTTPStatus.SERVICE_UNAVAILABLE
            if lost >= _TRIES or time.monotonic() > deadline:
                raise unavailable(_LOST if lost >= _TRIES else "No worker is there yet.", 5)
            await asyncio.sleep(_PAUSE_SECONDS)


def _is_lost(response: httpx.Response) -> bool:
    """Whether TorchServe itself refused: without a worker 503, with one that died 507; the handler says a code."""
    return response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and "error" not in answer_of(response)


async def answer(lookers: Lookers, ages: Ages, picture: bytes, mode: Mode) -> dict[str, Any]:
    """The JSON object for a picture. Raises ImageError, Refusal."""
    asked = time.perf_counter()
    seen = await lookers.look(picture, mode, ages.backend.model.spec.cut)
    QUEUE.observe(max(0.0, time.perf_counter() - asked - seen.decode_seconds - seen.detect_seconds))
    DECODE.observe(seen.decode_seconds)
    if mode == "detect":
        DETECT.observe(seen.detect_seconds)
    found = await ages.of(seen.chips, [mode] * len(seen.faces)) if seen.faces else []
    FACES.inc(len(found))
    faces = [face | age for face, age in zip(seen.faces, found, strict=True)]
    return _told(ages, mode) | seen.content | {"faces": faces}


async def explanation(
    lookers: Lookers, ages: Ages, picture: bytes, mode: Mode, face: int, accept: str
) -> tuple[bytes, str]:
    """Why one face of a picture has its age: a body and its content type. Raises as `answer`."""
    cut = ages.backend.model.spec.cut
    seen = await lookers.look(picture, mode, cut)
    if not seen.faces:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "no_face", NO_FACE)
    try:
        which = place([Face(tuple(found["box"]), found["score"]) for found in seen.faces], face, cut)
    except UsageError as error:
        raise usage(str(error)) from error
    size = len(seen.chips) // len(seen.faces)
    response = await ages.asked("explanations", seen.chips[face * size : (face + 1) * size], [mode], accept)
    if response.status_code != HTTPStatus.OK:
        raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "failed", "The face could not be explained.")
    if (kind := response.headers.get("content-type", _JSON)) != _JSON:
        return response.content, kind
    told = _told(ages, mode) | {"width": seen.content["width"], "height": seen.content["height"]}
    return json.dumps(told | which | answer_of(response)).encode(), _JSON


def _told(ages: Ages, mode: Mode) -> dict[str, Any]:
    return {"model": ages.backend.model.id, "mode": mode, "engine": ages.backend.engine}
