"""The reports on a loopback address, for the links on Prefect's page: a browser follows no `file://` from there.

The address holds a secret, as other users of the machine could read the pages otherwise.
"""

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agewatch.files import write_json
from agewatch.nights.status import PAGES
from agewatch.processes import LOOPBACK

_ADDRESS = "pages-address.json"  # kept, so that the links of earlier nights go on opening


class _Pages(SimpleHTTPRequestHandler):
    """Files below a folder, under an address that begins with the secret; no listings."""

    def __init__(self, *arguments: Any, secret: str, **named: Any) -> None:
        self._secret = f"/{secret}/"
        super().__init__(*arguments, **named)

    def send_head(self) -> Any:
        """Answer only below the secret, with a path that is then relative to the folder."""
        if not secrets.compare_digest(self.path[: len(self._secret)].encode(), self._secret.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        self.path = self.path[len(self._secret) - 1 :]
        return super().send_head()

    def list_directory(self, path: Any) -> None:  # noqa: ARG002  the base class's signature
        """Refuse: what lies beside a report is not asked for."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, *_said: Any) -> None:
        """Say nothing: the terminal is `up`'s."""


@contextmanager
def shown(home: Path, reports: Path, api: str) -> Iterator[str]:
    """Show what lies below `reports` while the body runs; yields the address.

    The home keeps it for flows, and beside it that of Prefect's API for alerts.
    """
    file = home / PAGES
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    port, secret = _address(file.with_name(_ADDRESS))
    handler = partial(_Pages, secret=secret, directory=str(reports))
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError:  # somebody else has the port by now
        server = ThreadingHTTPServer((LOOPBACK, 0), handler)
    write_json(file.with_name(_ADDRESS), {"port": server.server_port, "secret": secret})
    file.with_name(_ADDRESS).chmod(0o600)
    url = f"http://{LOOPBACK}:{server.server_port}/{secret}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 5.0}, daemon=True)
    thread.start()
    try:
        write_json(file, {"url": url, "api": api})
        file.chmod(0o600)
        yield url
    finally:
        file.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()


def _address(file: Path) -> tuple[int, str]:
    """The port and the secret of the time before; 0, which is any port, and a new secret, where there was none."""
    try:
        told = json.loads(file.read_text())
        return int(told["port"]), str(told["secret"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, secrets.token_urlsafe(16)
