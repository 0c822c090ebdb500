"""A stranger's picture -> faces and chips, in processes that a deadline and a memory limit hold.

The pool of `agewatch.scoring.pool` answers shards and is asked by a loop that may wait. Here one picture is asked about
at a time by an event loop that may not, so these lines stand for it; what they do to a picture is the same.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import struct
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, cast

from agewatch.errors import ImageError, ServeError
from agewatch.estimator.spec import Cut, Mode
from agewatch.processes import end_with_parent, uninterrupted
from agewatch.scoring.pool import core_seconds
from agewatch.scoring.room import SharedRoom

DEADLINE_SECONDS = 10.0
"""A picture that takes longer to decode and to search is `decoder_failed`; its process is ended."""
MOST_DEADLINES = 3
SPARES = 2
"""So many pictures may take long while the others go on as if alone."""
OPEN_SECONDS = 60.0
_SLOW_SECONDS = 0.5
_SLACK_BYTES = 512_000_000  # what a looking process may take beside its room
_TRIES = 2  # a process may also be killed by somebody else
_HEAD = struct.Struct("<IQ")  # bytes of the JSON, bytes of what follows
_STREAM_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a picture found, as REST gives it, its faces still without ages.

    `chips` holds the faces' chips one after the other, uint8 of shape (faces, size, size, 3). The seconds are of
    decoding and of searching.
    """

    content: dict[str, Any]
    chips: bytes
    decode_seconds: float
    detect_seconds: float

    @property
    def faces(self) -> list[dict[str, Any]]:
        """The faces, largest first."""
        found: list[dict[str, Any]] = self.content["faces"]
        return found


class Lookers:
    """So many processes that look at pictures, and spare ones; of one event loop."""

    def __init__(self, workers: int, memory_gb: float, deadline: float = DEADLINE_SECONDS) -> None:
        room = SharedRoom(memory_gb, workers + SPARES)
        self._lookers = [_Looker(room, deadline) for _ in range(workers + SPARES)]
        self._idle: asyncio.LifoQueue[_Looker] = asyncio.LifoQueue()
        self._lane = asyncio.Semaphore(workers)
        self._slow = 0
        self._restarts: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Start all processes and wait for them. Raises ServeError where one does not come up."""
        await asyncio.gather(*(looker.open() for looker in self._lookers))
        for looker in self._lookers:
            self._idle.put_nowait(looker)

    async def look(self, picture: bytes, mode: Mode, cut: Cut) -> Look:
        """Decode a picture, find its faces and cut their chips. Raises ImageError.

        A picture that takes long leaves the lane to the next one, as long as a spare process is there.
        """
        for _ in range(_TRIES):
            with suppress(ConnectionError):
                return await self._look(picture, mode, cut)
        raise ImageError("decoder_failed", "The process that read the picture crashed.")

    async def _look(self, picture: bytes, mode: Mode, cut: Cut) -> Look:
        await self._lane.acquire()
        has_left, timer = False, None

        def leave() -> None:
            nonlocal has_left, timer
            if self._slow < SPARES:
                self._slow, has_left = self._slow + 1, True
                self._lane.release()
            else:
                timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, leave)

        try:
            looker = await self._idle.get()
            timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, leave)
            try:
                return await looker.look(picture, mode, cut)
            finally:
                self._give_back(looker)
        finally:
            if timer is not None:
                timer.cancel()
            if has_left:
                self._slow -= 1
            else:
                self._lane.release()

    def _give_back(self, looker: "_Looker") -> None:
        if looker.is_open:
            self._idle.put_nowait(looker)
            return
        task = asyncio.create_task(self._restart(looker))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, looker: "_Looker") -> None:
        wait = 1.0
        while True:
            try:
                await looker.open()
                break
            except (ServeError, OSError):  # no memory or no descriptor just now
                await asyncio.sleep(wait)
                wait = min(2 * wait, 30.0)
        self._idle.put_nowait(looker)

    def pids(self) -> list[int]:
        """The processes that look, for who measures them."""
        return [looker.process.pid or 0 for looker in self._lookers if looker.process is not None]

    def close(self) -> None:
        """End all processes."""
        for task in self._restarts:
            task.cancel()
        for looker in self._lookers:
            looker.close()


class _Looker:
    """One spawned process and the stream to it."""

    def __init__(self, room: SharedRoom, deadline: float) -> None:
        self._room, self._deadline = room, deadline
        self.process: BaseProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.is_open = False

    async def open(self) -> None:
        ours, its = socket.socketpair()
        try:
            with its, uninterrupted():
                self.process = get_context("spawn").Process(target=_serve, args=(its, self._room), daemon=True)
                self.process.start()
            self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_STREAM_BYTES)
        except OSError:
            ours.close()
            raise
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await _receive(self._reader)
        except (TimeoutError, ConnectionError) as error:
            self.close()
            raise ServeError("A process that looks at pictures can't start.") from error
        self.is_open = True

    async def look(self, picture: bytes, mode: Mode, cut: Cut) -> Look:
        """Ask the process. Raises ImageError, ConnectionError where it died over it."""
        assert self._writer is not None
        watch = _Watch(self.process, self._deadline)
        try:
            for part in _message({"mode": mode, "cut": asdict(cut)}, picture):
                self._writer.write(part)
            await self._writer.drain()
            told, chips = await _receive(self._reader)
            while "waiting" in told:
                watch.begin()
                told, chips = await _receive(self._reader)
        except BaseException as error:  # cancelled, too: what the process still says would answer the next picture
            self.close()
            if watch.hung:
                why = f"The picture took more than {self._deadline:.0f} seconds to decode."
                raise ImageError("decoder_failed", why) from error
            raise
        finally:
            watch.end()
        if "error" in told:
            raise ImageError(*told["error"])
        return Look(chips=chips, **told)

    def close(self) -> None:
        """End the process at once."""
        self.is_open = False
        if self.process is not None:
            self.process.kill()
            self.process = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _Watch:
    """Ends a process that takes too long over a picture: on a core, or MOST_DEADLINES times as long on the clock, as
    others may keep the cores from it. It reads no file, so that nothing else keeps it."""

    def __init__(self, process: BaseProcess | None, deadline: float) -> None:
        assert process is not None
        self._process, self._deadline, self.hung = process, deadline, False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.begin()

    def begin(self) -> None:
        self.end()
        self._started, self._used = self._loop.time(), core_seconds(self._process.pid or 0)
        self._timer = self._loop.call_later(self._deadline, self._judge)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _judge(self) -> None:
        used, passed = core_seconds(self._process.pid or 0), self._loop.time() - self._started
        own = self._deadline if used is None or self._used is None else used - self._used
        if own < self._deadline and passed < MOST_DEADLINES * self._deadline:
            self._timer = self._loop.call_later(max(_SLOW_SECONDS, min(1.0, self._deadline - own)), self._judge)
            return
        self.hung = True
        self._process.kill()


def _message(told: Any, content: bytes = b"") -> tuple[bytes, bytes]:
    head = json.dumps(told).encode()
    return _HEAD.pack(len(head), len(content)) + head, content


async def _receive(reader: asyncio.StreamReader) -> tuple[Any, bytes]:
    """The next message. No pickle: whoever sends it has read a stranger's bytes. Raises ConnectionError."""
    try:
        head, content = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        return json.loads(await reader.readexactly(head)), await reader.readexactly(content)
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("The process ended.") from error


def _serve(connection: socket.socket, room: SharedRoom) -> None:
    """In the process: look at one picture after the other until the door is gone."""
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group: the door says when it ends
        signal.signal(number, signal.SIG_IGN)
    from agewatch.estimator.faces import YuNet

    detector = YuNet()
    stream = cast("IO[bytes]", connection.makefile("rwb", buffering=_STREAM_BYTES))
    data_bytes = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    most = data_bytes + room.total + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write a line for every damaged picture
    _send(stream, {"ready": True})
    while head := stream.read(_HEAD.size):
        told_bytes, picture_bytes = _HEAD.unpack(head)
        told = json.loads(stream.read(told_bytes))
        _look(stream, stream.read(picture_bytes), told, detector, room)


def _look(stream: IO[bytes], picture: bytes, told: Any, detector: Any, room: SharedRoom) -> None:
    import numpy as np

    from agewatch.estimator.faces import look

    detect_seconds = 0.0

    def timed(rgb: Any) -> Any:
        nonlocal detect_seconds
        started = time.perf_counter()
        faces = detector(rgb)
        detect_seconds += time.perf_counter() - started
        return faces

    started = time.perf_counter()
    try:
        with room.picture(lambda: _send(stream, {"waiting": True})):
            room.expect(len(picture))
            seen = look(picture, timed if told["mode"] == "detect" else None, Cut(**told["cut"]), room)
    except ImageError as error:
        _send(stream, {"error": [error.code, str(error)]})
        return
    except Exception as error:  # the detector or cv2, over one picture
        _send(stream, {"error": ["decoder_failed", f"The picture can't be worked on ({type(error).__name__})."]})
        return
    seconds = {"decode_seconds": time.perf_counter() - started - detect_seconds, "detect_seconds": detect_seconds}
    chips = np.stack(seen.chips).tobytes() if seen.chips else b""
    _send(stream, {"content": seen.content(), **seconds}, chips)


def _send(stream: IO[bytes], told: Any, content: bytes = b"") -> None:
    stream.writelines(_message(told, content))
    stream.flush()
