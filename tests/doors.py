"""A real server, door and TorchServe, and what tests ask of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pictures import encoded, seven_faces
from PIL import Image
from servers import free_port

from agewatch.serving.server import Served, Wanted, running
from agewatch.serving.torchserve import How

WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def faces() -> dict[str, bytes]:
    return seven_faces()


@pytest.fixture(scope="module")
def mar() -> Path:
    """The tracked starter model."""
    [tracked] = (Path(__file__).parents[1] / "model_store").glob("*.mar")
    return tracked


def wanted(home: Path, mar: Path | None, **more: Any) -> Wanted:
    more = {"model_store": home / "store", "port": free_port()} | more
    return Wanted(How(home, 1), mar=mar, **more)


@pytest.fixture(scope="module")
def served(mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started outside the checkout, so that the worker can import `agewatch` from the .mar alone."""
    home = tmp_path_factory.mktemp("elsewhere")
    with contextlib.ExitStack() as undo:
        with contextlib.chdir(home):
            started = undo.enter_context(running(wanted(home, mar)))
        yield started


def send(served: Served, body: bytes = b"", method: str = "PUT", path: str = "", **headers: str) -> httpx.Response:
    url = f"{served.url}{path}" if path.startswith("/") else f"{served.predictions_url}{path}"
    authorized = {"Authorization": f"Bearer {served.token}"} | headers
    return httpx.request(method, url, content=body, headers=authorized, timeout=WAIT_SECONDS, trust_env=False)


def refused(response: httpx.Response) -> tuple[int, str]:
    assert response.json()["error"]["message"].endswith(".")
    return response.status_code, response.json()["error"]["code"]


def alike(answer: Any, known: Any) -> bool:
    """Whether two answers to one picture say the same, beyond what a batch's size changes."""
    boxes, ages = ([[face[key] for face in told["faces"]] for told in (answer, known)] for key in ("box", "age"))
    return boxes[0] == boxes[1] and bool(ages[0] == pytest.approx(ages[1], abs=1e-3))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def behind(sign: str, *, of: int | None = None) -> list[psutil.Process]:
    """The processes that this one started, or another, whose command line holds a sign."""
    found = []
    for each in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [each] if sign in " ".join(each.cmdline()) else []
    return found


def bomb() -> bytes:
    """A small progressive JPEG that takes minutes to decode: its last scan comes again and again."""
    content = encoded(Image.new("L", (6000, 6000), 128), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * 6000 + b"\xff\xd9"
