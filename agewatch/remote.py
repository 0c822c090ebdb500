"""Ask an agewatch server for ages from Python: `Client`, and `AsyncClient` for those who await.

Both send as many pictures at once as the server takes: one more as long as it answers, half as many when it says that
it is overloaded or breaks off (AIMD). They ask again then, with growing and jittered pauses, and never where it refused
a picture. No proxy of the environment is asked, and a token is shown nowhere.
"""

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.from_thread
import httpx
import tenacity
from PIL import Image

from agewatch.errors import REFUSAL_CODES, ImageError, ServeError, UsageError
from agewatch.estimator.spec import Mode
from agewatch.settings import Settings

PATIENCE_SECONDS = 300.0
"""So long a picture is sent again while the server is away or overloaded."""
MOST_AT_ONCE = 64
FIRST_AT_ONCE = 4
_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_LONGEST_PAUSE = 20.0
_FAILURES = 3  # a 500 is the picture's fault, or a worker's that died over it
_AGAIN = (408, 425, 429, 502, 503, 504)


@dataclass(frozen=True)
class Server:
    """A server's address, and where its token comes from: a key file as `serve` writes it, else AGEWATCH_TOKEN.

    A file is read again where its token is refused, as a server that is started anew has another.
    """

    url: str
    key_file: Path | None = None

    def __post_init__(self) -> None:
        url = httpx.URL(self.url)
        if url.scheme not in ("http", "https") or not url.host:
            raise UsageError(f"A server's address is http://HOST:PORT or https://HOST, not {self.url!r}.")
        if url.scheme == "http" and not _is_loopback(url.host):
            raise UsageError(f"Faces and a token would go to {url.host} in the clear: use https.")

    @property
    def port(self) -> int:
        """The port, which the address need not say."""
        url = httpx.URL(self.url)
        return url.port or (443 if url.scheme == "https" else 80)

    def token(self) -> str:
        """The token. Raises UsageError where there is none."""
        if self.key_file is None:
            if (told := Settings().token) is None:
                raise UsageError("The server's token is missing: name its key file, or set AGEWATCH_TOKEN.")
            return told.get_secret_value()
        try:
            return str(json.loads(self.key_file.read_bytes())["inference"]["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it holds no token"
            raise UsageError(f"{self.key_file} can't be read as a server's key file: {why}.") from error


class _Again(Exception):  # noqa: N818 it is no failure yet
    """The server could not answer now; it may have said for how many seconds."""

    def __init__(self, why: str, seconds: float = 0.0, is_failure: bool = False) -> None:
        super().__init__(why)
        self.seconds, self.is_failure = seconds, is_failure


@dataclass
class Window:
    """How many requests may be under way: additive increase, multiplicative decrease, as TCP does it."""

    most: int = MOST_AT_ONCE
    size: float = FIRST_AT_ONCE
    under_way: int = 0
    _sent: int = 0
    _cut_at: int = 0
    _free: anyio.Condition = field(default_factory=anyio.Condition)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[int]:
        """A place among those under way, waited for; its number is told to `shrink`."""
        async with self._free:
            while self.under_way >= int(self.size):
                await self._free.wait()
            self.under_way += 1
            self._sent += 1
            number = self._sent
        try:
            yield number
        finally:
            with anyio.CancelScope(shield=True):
                async with self._free:
                    self.under_way -= 1
                    self._free.notify_all()

    def grow(self) -> None:
        """An answer came: after as many as there are places, all of them in use, there is one more."""
        if self.under_way >= int(self.size):
            self.size = min(self.most, self.size + 1 / self.size)

    def shrink(self, number: int) -> None:
        """Overload was said of a request: halve, once for all that were sent before the last time."""
        if number > self._cut_at:
            self.size, self._cut_at = max(1.0, self.size / 2), self._sent


class AsyncClient:
    """Asks a server, in `async with`. Any number of tasks may ask at once."""

    def __init__(self, server: Server, *, most: int = MOST_AT_ONCE, patience: float = PATIENCE_SECONDS) -> None:
        self._server, self._patience = server, patience
        self.window = Window(most)
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(max_connections=self.window.most, max_keepalive_connections=self.window.most)
        verify = ssl.create_default_context() if self._server.url.startswith("https") else False
        client = httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, trust_env=False, verify=verify)
        self._token = self._server.token()
        self._client = await self._undo.enter_async_context(client)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._undo.aclose()

    async def ask(self, picture: bytes, faces: Mode = "detect") -> Mapping[str, Any]:
        """The server's answer to a picture: model, size, and faces with ages in years; see the README.

        Raises ImageError where it refuses the picture, ServeError where it does not answer within the patience, or
        not as an agewatch server does.
        """
        failures = 0

        def may_go_on(state: tenacity.RetryCallState) -> bool:
            nonlocal failures
            error = state.outcome.exception() if state.outcome else None
            failures += isinstance(error, _Again) and error.is_failure
            return isinstance(error, _Again) and failures < _FAILURES

        trying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(self._patience),
            wait=_pause,
            retry=may_go_on,
            reraise=True,
            sleep=anyio.sleep,
        )
        try:
            return await trying(self._once, picture, faces)
        except _Again as error:
            if error.is_failure:
                raise ImageError("decoder_failed", "The server failed over the picture.") from error
            raise ServeError(f"{self._server.url} did not answer for {self._patience:.0f} seconds: {error}.") from error

    async def describe(self) -> tuple[str, str]:
        """The id of the model that answers, and what it runs on. Raises as `ask`."""
        answer = await self.ask(_grey(), "crop")
        return str(answer["model"]), str(answer["engine"])

    async def _once(self, picture: bytes, faces: Mode) -> Mapping[str, Any]:
        async with self.window.place() as number:
            try:
                answer = _judged(self._server, await self._post(picture, faces))
            except _Again:
                self.window.shrink(number)
                raise
            self.window.grow()
            return answer

    async def _post(self, picture: bytes, faces: Mode) -> httpx.Response:
        url = f"{self._server.url.rstrip('/')}/predictions/agewatch"
        headers = {"Faces": faces, "Content-Type": "application/octet-stream"}
        used = self._token
        try:
            answer = await self._client.post(
                url, content=picture, headers=headers | {"Authorization": f"Bearer {used}"}
            )
        except httpx.TransportError as error:
            raise _Again(str(error) or type(error).__name__) from error
        if answer.status_code == httpx.codes.UNAUTHORIZED and (fresh := self._server.token()) != used:
            self._token = fresh
            raise _Again("the token has changed")
        return answer


class Client:
    """The same for those who do not await, in `with`; any number of threads may ask at once."""

    def __init__(self, server: Server, *, most: int = MOST_AT_ONCE, patience: float = PATIENCE_SECONDS) -> None:
        self._asks = AsyncClient(server, most=most, patience=patience)
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._portal = undo.enter_context(anyio.from_thread.start_blocking_portal())
            undo.enter_context(self._portal.wrap_async_context_manager(self._asks))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def ask(self, picture: bytes, faces: Mode = "detect") -> Mapping[str, Any]:
        """See `AsyncClient.ask`."""
        return self._portal.call(self._asks.ask, picture, faces)

    def describe(self) -> tuple[str, str]:
        """See `AsyncClient.describe`."""
        return self._portal.call(self._asks.describe)


def _judged(server: Server, answer: httpx.Response) -> Mapping[str, Any]:
    """What an answer holds. Raises _Again, ImageError, ServeError."""
    try:
        told = answer.json()
    except ValueError:
        told = {}
    if answer.status_code == httpx.codes.OK and isinstance(told, dict) and {"model", "engine", "faces"} <= told.keys():
        return told
    error = told.get("error") if isinstance(told, dict) else None
    error = error if isinstance(error, dict) else {}
    code, message = error.get("code"), error.get("message", f"it answered {answer.status_code}")
    if answer.status_code in _AGAIN:
        raise _Again(message, _seconds(answer.headers.get("retry-after", "")))
    if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
        raise _Again(message, is_failure=True)
    if code in REFUSAL_CODES:
        raise ImageError(code, message)
    if answer.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        raise ImageError("too_large", "The server takes no pictures of this size.")
    raise ServeError(f"{server.url} does not answer as an agewatch server does: {message}")


def _pause(state: tenacity.RetryCallState) -> float:
    """Up to twice as long each time, by chance, and no shorter than the server said."""
    error = state.outcome.exception() if state.outcome else None
    told = error.seconds if isinstance(error, _Again) else 0.0
    return told + tenacity.wait_random_exponential(multiplier=0.2, max=_LONGEST_PAUSE)(state)


def _seconds(told: str) -> float:
    return min(float(told), _LONGEST_PAUSE) if told.isascii() and told.isdecimal() else 0.0


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _grey() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return file.getvalue()
