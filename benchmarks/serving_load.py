"""A server to try, clients that speak HTTP by hand, and pictures that would stop it."""

import asyncio
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from agewatch.processes import LOOPBACK, free_ports

ROOT = Path(__file__).parents[1]
READY_SECONDS = 240.0


@dataclass
class Server:
    """`agewatch serve` in a home and with a store of its own."""

    home: Path
    store: Path
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def token(self) -> str:
        """As the key file has it."""
        told = json.loads((self.home / "serve" / str(self.port) / "key_file.json").read_bytes())
        return str(told["inference"]["key"])

    def processes(self, kind: str = "") -> list[psutil.Process]:
        """The door and what it started: all, or those of a kind (java, worker, looker)."""
        sign = {"java": "java-runtime", "worker": "model_service", "looker": "spawn_main"}.get(kind, "")
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [each for each in [root, *root.children(recursive=True)] if sign in " ".join(_words(each))]
        return []

    def model(self) -> Any:
        """The id of the model that answers."""
        return httpx.get(f"http://{LOOPBACK}:{self.port}/readyz", trust_env=False).json()["model"]

    def memory_mb(self) -> float:
        """Of all its processes together, what they share counted by shares."""
        return sum(each.memory_full_info().pss for each in self.processes()) / 1e6

    def cpu_seconds(self) -> float:
        """Of all its processes so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self.processes())

    def listening(self) -> list[int]:
        """The TCP ports that its processes listen on, as this machine's network shows them."""
        told = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
        pids = {each.pid for each in self.processes()}
        lines = [line.split() for line in told.splitlines() if any(f"pid={pid}," in line for pid in pids)]
        return sorted(int(line[3].rsplit(":", 1)[1]) for line in lines)


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Server]:
    """Start a server in a folder, which keeps its home and its store, and end it by force."""
    home, store, [port] = folder / "home", folder / "store", free_ports(1)
    if not store.exists():
        shutil.copytree(ROOT / "model_store", store)
    env = {**os.environ, "AGEWATCH_HOME": str(home), "AGEWATCH_MODEL_STORE": str(store), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "agewatch", "serve", "--port", str(port), *options]
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    server = Server(home, store, port, process)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while b"\nready" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.2)
        yield server
    finally:
        for each in server.processes():
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        process.wait()


@dataclass
class Told:
    """What clients were told: (seconds, status or the connection's end, the answer) each."""

    answers: list[tuple[float, str, Any]] = field(default_factory=list)

    def counts(self) -> str:
        """How often each status, as text."""
        found = Counter(status for _, status, _ in self.answers)
        return ", ".join(f"{count} x {status}" for status, count in sorted(found.items()))

    def seconds(self, share: float) -> float:
        """A quantile of the seconds of those that were answered 200."""
        found = sorted(seconds for seconds, status, _ in self.answers if status == "200")
        return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")


class Client:
    """One connection that is opened anew where it ends."""

    def __init__(self, server: Server, told: Told) -> None:
        self._port, self._token, self._told = server.port, server.token, told
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, picture: bytes, **headers: str) -> Any:
        """Send a picture and return what was answered; a broken connection is an answer too."""
        started, status = time.perf_counter(), "no answer"
        told: Any = None
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(LOOPBACK, self._port)
            reader, writer = self._streams
            writer.write(request(picture, self._token, **headers))
            code, content, closes = await answer(reader)
            if closes:
                self.close()
            told, status = json.loads(content), str(code)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.close()
            status = type(error).__name__
        self._told.answers.append((time.perf_counter() - started, status, told))
        return told

    def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def request(picture: bytes, token: str, **headers: str) -> bytes:
    """A request's bytes."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /predictions/agewatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}"
    return f"{head}Content-Length: {len(picture)}\r\n\r\n".encode() + picture


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """An answer's status and body, and whether the connection ends after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length: ")[1].split(b"\r")[0])
    return int(head[9:12]), await reader.readexactly(length), b"connection: close" in head


async def crowd(server: Server, pictures: Sequence[bytes], clients: int, seconds: float) -> Told:
    """So many clients that send pictures one after the other; who is asked to come again does so after a second."""
    told, until = Told(), time.perf_counter() + seconds

    async def one(start: int) -> None:
        client = Client(server, told)
        for turn in range(start, sys.maxsize):
            if time.perf_counter() >= until:
                break
            await client.send(pictures[turn % len(pictures)])
            if told.answers[-1][1] != "200":
                await asyncio.sleep(1)
        client.close()

    await asyncio.gather(*(one(97 * index) for index in range(clients)))
    return told


def bomb_jpeg(side: int = 12_000, scans: int = 6_000) -> bytes:
    """A progressive JPEG whose last scan comes again and again: 1.8 MB, and minutes to decode."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def bomb_png(side: int = 13_000) -> bytes:
    """A black PNG of 169 megapixels in half a megabyte."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
