"""What stands before every request: the token, before a byte of the body is read, and the bounds; then one log line."""

import asyncio
import hmac
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agewatch.serving.metrics import REFUSALS, REQUESTS, UNDER_WAY
from agewatch.serving.refusal import Refusal, overloaded, unavailable

MOST_CONNECTIONS = 4096
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/agewatch/ready"})
"""What is answered without a token: whether it lives, whether it is ready, and with which model."""

Log = Callable[[dict[str, object]], None]


class Gate:
    """An ASGI application around another; `connections` says how many there are now."""

    def __init__(self, app: ASGIApp, token: str, connections: Callable[[], int], log: Log, open_metrics: bool) -> None:
        self._app, self._token, self._connections, self._log = app, token.encode(), connections, log
        self._open = OPEN_PATHS | ({"/metrics"} if open_metrics else set())
        self.under_way = 0
        self.is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, refused = time.perf_counter(), 0, None

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        told: dict[str, object] = {}
        scope["agewatch"] = told
        try:
            refused = self._refusal(scope)
            if refused is None:
                await self._pass(scope, receive, sent)
            else:
                await refused.response()(scope, receive, sent)
        finally:
            code = str(refused.code if refused else told.pop("code", ""))
            path = scope["path"] if status not in (401, 404) else "other"  # a stranger's paths would fill the memory
            REQUESTS.labels(path, str(status)).inc()
            if code:
                REFUSALS.labels(code).inc()
            line = {"method": scope["method"], "path": path, "status": status, "ms": _ms(started)}
            self._log(line | ({"code": code} if code else {}) | told)

    async def drained(self, seconds: float) -> None:
        """Refuse what comes from now on, and wait until what is under way is answered, at most so long."""
        self.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.under_way:
                    await asyncio.sleep(0.05)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.under_way += 1
        UNDER_WAY.set(self.under_way)
        try:
            await self._app(scope, receive, send)
        finally:
            self.under_way -= 1
            UNDER_WAY.set(self.under_way)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if scope["path"] not in self._open and not self._has_token(scope):
            return Refusal(401, "unauthorized", "The token is missing or wrong.", {"WWW-Authenticate": "Bearer"})
        if self.is_draining:
            refused = unavailable("The server stops.", 5)
        elif self._connections() > MOST_CONNECTIONS:
            refused = overloaded("Too many connections are open.")
        else:
            return None
        refused.headers["Connection"] = "close"
        return refused

    def _has_token(self, scope: Scope) -> bool:
        told = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(told) != 1:
            return False
        scheme, _, token = told[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


def _ms(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 1)
