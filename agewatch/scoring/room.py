"""One budget of memory for all workers of a run: large pictures wait until there is room for them.

The room is cut into units, and each is a byte of an unnamed file that whoever holds the unit has locked: the kernel
frees the locks of a process that dies, however it does, and nothing is left on the disk. Who is gathering units also
locks the gate, so that nobody waits half way for somebody who waits half way.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from io import FileIO
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from agewatch.estimator.memory import OWN_BYTES, Room, for_pictures

UNIT = 64_000_000
"""Bytes. Locking all units of the default budget takes a tenth of a millisecond."""
SLACK_BYTES = 128_000_000
"""What decoders took beyond what they are charged: 0.02 GB over the budget were seen with bilevel TIFF (G4)."""
_GATE, _FIRST = 0, 1
_POLL_SECONDS = 0.05


class SharedRoom(Room):
    """The room that so many workers have together; each has `OWN_BYTES` of it for itself, and never waits for these.

    It can be given to a process only while that starts.
    """

    def __init__(self, budget_gb: float, workers: int) -> None:
        all_of_it = for_pictures(budget_gb, workers + 1)
        self._units = max(int(budget_gb * 1e9) // 2, all_of_it - SLACK_BYTES) // UNIT
        self._open(self._make())

    def _make(self) -> FileIO:
        return FileIO(os.memfd_create("agewatch-room"), "r+")

    def __getstate__(self) -> tuple[int, Any]:
        """What goes to a process that starts: the file's descriptor goes with it."""
        return self._units, reduction.DupFd(self._file.fileno())

    def __setstate__(self, state: tuple[int, Any]) -> None:
        """Open it in the process that has started."""
        self._units, descriptor = state
        self._open(FileIO(descriptor.detach(), "r+"))

    def _open(self, file: FileIO) -> None:
        super().__init__(self._units * UNIT + OWN_BYTES)
        self._file = file
        self._held: list[int] = []

    @contextmanager
    def picture(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Give back afterwards what was taken for a picture meanwhile; `waiting` is called as long as it must wait."""
        self._waiting = waiting
        try:
            yield
        finally:
            if self._held:
                ctypes.CDLL(None).malloc_trim(0)  # else freed memory may stay with this process
            self._held.clear()
            lockf(self._file, LOCK_UN)

    def expect(self, file_bytes: int) -> None:
        """Take room for a file's bytes before they are read; who did so keeps the gate until its picture has room."""
        super().expect(file_bytes)
        self._gather(file_bytes)

    def take(self, size: tuple[int, int], need: int) -> None:
        """Take room for a picture, or wait for it. Raises ImageError where it alone is more than there is."""
        super().take(size, need)
        self._gather(need)
        lockf(self._file, LOCK_UN, 1, _GATE)

    def _gather(self, need: int) -> None:
        wanted = -(-(need - OWN_BYTES) // UNIT)
        if wanted <= len(self._held):
            return
        while not self._lock(_GATE):
            self._wait()
        while True:
            free = (unit for unit in range(_FIRST, _FIRST + self._units) if unit not in self._held)
            while len(self._held) < wanted and (unit := next((unit for unit in free if self._lock(unit)), None)):
                self._held.append(unit)
            if len(self._held) >= wanted:
                return
            self._wait()

    def _wait(self) -> None:
        time.sleep(_POLL_SECONDS)
        self._waiting()

    def _lock(self, byte: int) -> bool:
        with suppress(BlockingIOError, PermissionError):  # whichever the system says of a lock that is held
            lockf(self._file, LOCK_EX | LOCK_NB, 1, byte)
            return True
        return False


class RoomOfMachine(SharedRoom):
    """The room of workers that start apart: those of one machine share a file by its name."""

    def __init__(self, budget_gb: float, workers: int, file: Path) -> None:
        self._name = file
        super().__init__(budget_gb, workers)

    def _make(self) -> FileIO:
        return FileIO(os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
