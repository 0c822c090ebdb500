"""The door's log: one line a request, as text or JSON, in a file whose size is bounded."""

import json
import logging
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

from agewatch.files import now

LogFormat = Literal["text", "json"]
MOST_BYTES, KEPT = 4 * 2**20, 2
NAME = "door.log"


class _Quiet(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 its name in logging
        """A full disk costs log lines, not answers."""


def open_log(folder: Path, form: LogFormat) -> Callable[[dict[str, Any]], None]:
    """Open a folder's log; what is returned writes a line of what it is given, and when. Raises OSError."""
    handler = _Quiet(folder / NAME, maxBytes=MOST_BYTES, backupCount=KEPT, encoding="utf-8")
    log = logging.Logger(NAME)
    log.addHandler(handler)
    uvicorn = logging.getLogger("uvicorn.error")  # of a client that sends no HTTP it has much to say
    uvicorn.setLevel(logging.ERROR)
    uvicorn.propagate = False
    uvicorn.handlers = [handler]

    def write(told: dict[str, Any]) -> None:
        line = {"at": now()} | told
        log.info("%s", json.dumps(line) if form == "json" else " ".join(str(value) for value in line.values()))

    return write
