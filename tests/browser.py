"""Opens a page in headless Chromium with the network cut off and says what went wrong on it."""

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

_FLAGS = [
    "--headless", "--remote-debugging-port=0", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,1600",
]  # fmt: skip
_START_SECONDS = 120
_ANSWER_SECONDS = 120
_PHONE = 500


@dataclass
class Page:
    """What a reader of the page would see, and what failed while it was drawn."""

    text: str
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def open_page(
    path: Path, profile: Path, screenshot: Path, *, drawn: str, act: str = "0", saved: Path | None = None
) -> Page:
    """Open the file offline, wait until the script expression `drawn` is true, and take a screenshot.

    Then the script `act` uses the page, until it has saved the file `saved`. Raises TimeoutError where Chromium does
    not start, or the page is not drawn or nothing is saved in time.
    """
    with opened(profile) as session:
        if saved is not None:
            session.allow_saving(saved.parent)
        page = session.visit(path.absolute().as_uri(), screenshot, drawn)
        session.act(act, saved)
        return page


@contextmanager
def opened(profile: Path) -> Iterator["Session"]:
    """Run Chromium and yield one tab of it. Raises TimeoutError where it does not start."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = ["chromium", *_FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with connect(_page_address(profile), max_size=None, open_timeout=_ANSWER_SECONDS) as socket:
            yield Session(socket)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


def _page_address(profile: Path) -> str:
    """The debugger's address of the one open page. Chromium writes its free port into the profile folder."""
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        lines = port_file.read_text().splitlines() if port_file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.1)
    raise TimeoutError("Chromium did not start.")


class Session:
    """One tab, spoken to in the Chrome DevTools Protocol."""

    def __init__(self, socket: Connection) -> None:
        self._socket = socket
        self._next = 0
        self._session: str | None = None
        self._page = Page("")

    def visit(self, address: str, screenshot: Path, drawn: str) -> Page:
        """Open a page with the network cut off, wait until it is drawn, and take a picture of it."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self._call(f"{domain}.enable")
        cut = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self._call("Network.emulateNetworkConditions", **cut)
        self._call("Page.navigate", url=address)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self.value(f"document.readyState === 'complete' && Boolean({drawn})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The page was not drawn: {drawn}; problems: {self._page.problems}")
            time.sleep(0.2)
        self.shoot(screenshot)
        self._page.text = str(self.value("document.body.innerText"))
        return self._page

    def shoot(self, screenshot: Path, *, beyond: bool = True) -> None:
        """Take a picture of the whole page, or of what is seen without scrolling."""
        picture = self._call("Page.captureScreenshot", captureBeyondViewport=beyond)["data"]
        screenshot.write_bytes(base64.b64decode(picture))

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Make the tab so many pixels large, a phone's where it is narrow, and dark or light."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < _PHONE}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def allow_saving(self, folder: Path) -> None:
        """Let the page save files there."""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def act(self, script: str, saved: Path | None) -> None:
        """Run a script, until it has saved a file where one is named."""
        self.value(script)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while saved is not None and not saved.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"The page saved no {saved.name}; problems: {self._page.problems}")
            self.value("0")
            time.sleep(0.2)

    def value(self, script: str) -> Any:
        """What a script expression, or the promise that it is, comes to on the page."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        return self._call("Runtime.evaluate", **asked)["result"].get("value")

    def _call(self, method: str, **params: Any) -> Any:
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=_ANSWER_SECONDS))
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise RuntimeError(f"Chromium refused {method}: {answer['error']}")
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self._page.requests.append(params["request"]["url"])
        is_error_log = event == "Log.entryAdded" and params["entry"]["level"] == "error"
        is_error_call = event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert")
        if event in ("Network.loadingFailed", "Runtime.exceptionThrown") or is_error_log or is_error_call:
            self._page.problems.append(f"{event}: {json.dumps(params)[:2000]}")
