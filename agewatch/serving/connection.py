"""One client's connection: what uvicorn leaves open is bounded here, that is slow heads, slow bodies, and idling."""

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn.server import ServerState

PATIENCE_SECONDS = 15.0
"""So long a request may take to arrive, and a second more for each LEAST_BYTES of it."""
LEAST_BYTES = 50_000
LINGER_SECONDS = 5.0
"""So long what is still sent is read and dropped after a refusal; a client that were cut at once might not read it."""
HEAD_BYTES = 64 * 1024
IDLE_SECONDS = 60
_LOOK_SECONDS = 1.0


class Connection(HttpToolsProtocol):
    """HTTP/1.1 on one connection; requests that come at once are answered in their order, which uvicorn sees to."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count: a connection that says nothing is one that says it slowly."""
        self._expect()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Count what came, and refuse a head without end."""
        self._received += len(data)
        super().data_received(data)
        if self._in_head and self._received > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._expect()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request's last byte."""
        self._is_expected = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the door's own form, and close."""
        body = json.dumps({"error": {"code": "usage", "message": msg}}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def look(self) -> None:
        """Once a second: end the connection where its request takes too long to arrive."""
        if not self._is_expected or self.flow.read_paused:  # it is we who don't read
            return
        self._seconds += _LOOK_SECONDS
        is_answered = self.cycle is not None and self.cycle.response_complete and not self._in_head
        self._lingers += _LOOK_SECONDS if is_answered else 0
        if self._lingers > LINGER_SECONDS or self._seconds > PATIENCE_SECONDS + self._received / LEAST_BYTES:
            self.transport.abort()

    def _expect(self) -> None:
        self._is_expected = self._in_head = True
        self._received, self._seconds, self._lingers = 0, 0.0, 0.0


async def watch(state: "ServerState") -> None:
    """Look at all connections every second, for ever."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        for connection in list(cast("set[Any]", state.connections)):
            connection.look()
