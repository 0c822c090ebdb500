"""A listing that goes on in a thread while what it has found is worked on, in columns: 70 bytes a file that waits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agewatch.sources.source import FileRef, Sieve, Source

NONE = np.iinfo(np.int64).min
"""Stands for a number that is not known; no size or time of a file is it (`source.fitting`)."""
MOST_FILES = 16_384
_SECONDS = 1.0
"""What was found in so long, or so many files, is handed on together, so a listing that is over sooner whole."""


@dataclass(frozen=True, slots=True)
class Files:
    """Some files of a listing: their paths, and by file (n, 3) size, mtime_ns and ctime_ns, or NONE."""

    paths: pa.Array
    numbers: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def of(cls, files: Sequence[FileRef]) -> "Files":
        """Make columns of files."""
        columns = (
            [file.bytes for file in files], [file.mtime_ns for file in files], [file.ctime_ns for file in files]
        )  # fmt: skip
        numbers = [pa.array(column, pa.int64()).fill_null(NONE).to_numpy() for column in columns]
        return cls(pa.array([file.path for file in files], pa.string()), np.column_stack(numbers))

    @classmethod
    def joined(cls, parts: Sequence["Files"]) -> "Files":
        """All files of some, in their order."""
        return cls(pa.concat_arrays([part.paths for part in parts]), np.concatenate([part.numbers for part in parts]))

    def where(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "Files":
        """Some of them, by a mask or by their places in the order wanted."""
        if which.dtype == bool:
            if which.all():
                return self
            which = np.flatnonzero(which)
        return Files(self.paths.take(pa.array(which)), self.numbers[which])

    def beyond(self, start: int) -> "Files":
        """Those from a place on, without a copy."""
        return Files(self.paths[start:], self.numbers[start:])

    def refs(self, start: int, stop: int) -> list[FileRef]:
        """Some of them as scoring takes them."""
        numbers = self.numbers[start:stop].tolist()
        told = ((None if number == NONE else number for number in row) for row in numbers)
        return [FileRef(path, *row) for path, row in zip(self.paths[start:stop].to_pylist(), told, strict=True)]


class Ahead:
    """The pictures of a source as they are found, while it is listed; `sieve` tells of the rest when that is over.

    Raises UsageError where there is no such place or `exclude` is malformed, AgewatchError where it can't be listed:
    here, or from `take` where it fails on the way. As a context it is given up at its end.
    """

    def __init__(self, source: Source, exclude: Sequence[str] = ()) -> None:
        source.require_there()
        self.sieve = Sieve(exclude)
        files = source.walk(self.sieve)
        self._found: SimpleQueue[tuple[Files, bool] | BaseException] = SimpleQueue()  # and whether these are the last
        self._is_stopped = self.is_over = False
        first = list(islice(files, 1))  # here, so that a place that can't be listed at all is said at once
        self._thread = Thread(target=self._walk, args=(chain(first, files),), daemon=True)

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True

    def take(self, *, wait: bool) -> Iterator[Files]:
        """Yield what has been found since; where that is nothing, wait for about a second. Raises what listing does."""
        if self._thread.ident is None:  # not before, as what is found is kept until it is taken
            self._thread.start()
        while not self.is_over:
            try:
                found = self._found.get(block=wait, timeout=_SECONDS)
            except Empty:
                return
            wait = False
            if isinstance(found, BaseException):
                raise found
            files, self.is_over = found
            yield files

    def _walk(self, files: Iterator[FileRef]) -> None:
        try:
            some: list[FileRef] = []
            ends = monotonic() + _SECONDS
            for file in files:
                some.append(file)
                if len(some) == MOST_FILES or monotonic() > ends:
                    self._found.put((Files.of(some), False))
                    some, ends = [], monotonic() + _SECONDS
                if self._is_stopped:
                    return
            self._found.put((Files.of(some), True))
        except BaseException as error:  # whatever it is, it is raised where it is waited for
            self._found.put(error)
