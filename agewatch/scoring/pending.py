"""What of a place is to be scored, told while it is being listed."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from agewatch.scoring import anew, baseline
from agewatch.scoring.known import STATUSES, Keys, Known, Mask, States, is_same, path_keys
from agewatch.scoring.predictions import Key
from agewatch.sources.ahead import Ahead, Files
from agewatch.sources.source import FileRef

Again = Literal["nothing", "refused", "all"]
"""What is scored although the table holds it: nothing, the refused files, or all."""

SHARD_FILES = 256
"""Files a commit: small enough to lose little when killed, large enough that commits cost little."""
_LEAST_FILES = 16
_SHARDS_A_WORKER = 8
_EPOCH = date(1970, 1, 1).toordinal()

Nights = npt.NDArray[np.int32]


@dataclass
class Pending:
    """Sorts the files of a listing into what the table has rows of, `known`, and what is to be scored.

    Where that `is_limited`, files that only older models scored are told apart: those of the baseline are scored with
    the others, the rest `later`. `found` files were listed so far, `files` of them are to be scored; both grow until
    the listing is over.
    """

    listing: Ahead
    known: Known
    table: Path
    key: Key
    again: Again
    is_limited: bool
    workers: int
    found: int = 0
    files: int = 0
    _keys: list[Keys] = field(default_factory=list)
    _now: deque[Files] = field(default_factory=deque)
    # With the nights in which they arrived: the baseline's, and the others.
    _first: list[tuple[Files, Nights]] = field(default_factory=list)
    _later: list[tuple[Files, Nights]] = field(default_factory=list)
    _older: Known | None = None
    _baseline: baseline.Baseline | None = None

    def now(self) -> Iterator[list[FileRef]]:
        """Hand out shards of what is scored whatever it takes, in order; an empty one where listing takes its time.

        So whoever waits for work gets to do other things. Raises what listing does.
        """
        while True:
            waiting = sum(map(len, self._now))
            for files in self.listing.take(wait=waiting < self._size()):
                self._take_in(files)
            if self.listing.is_over:
                self._now.extend(files for files, _ in self._first)
                self._first.clear()
                if not self._now:
                    return
            yield self._cut()

    def later(self) -> Iterator[list[FileRef]]:
        """Hand out shards of what may be left for another run, what arrived last first, within a night by path."""
        if self._later:
            nights = np.concatenate([nights for _, nights in self._later])
            files = Files.joined([files for files, _ in self._later])
            self._later.clear()
            files = files.where(np.argsort(-nights, kind="stable"))
            for start in range(0, len(files), self._size()):
                yield files.refs(start, start + self._size())

    def found_keys(self) -> Keys:
        """Those of all files of the listing, sorted."""
        found = np.concatenate([np.empty(0, np.int64), *self._keys])
        self._keys.clear()
        found.sort()
        return found

    def is_anew(self, paths: list[str]) -> Mask:
        """Which files only older models scored, which have not changed since."""
        return np.zeros(len(paths), bool) if self._older is None else self._older.find(path_keys(paths))[0]["is_found"]

    def faces(self) -> int:
        """All that the table holds, also of files that are gone, and those of the listing by older models."""
        return self.known.faces + (0 if self._older is None else self._older.tally(but=self.known)[1])

    def tally(self) -> tuple[Counter[str], int]:
        """Files of the listing by their status, and their faces, by the table's rows, some of them of older models."""
        statuses, faces = self.known.tally()
        if self._older is not None:
            older = self._older.tally(but=self.known)
            statuses, faces = statuses + older[0], faces + older[1]
        return statuses, faces

    def _size(self) -> int:
        """Files a shard: enough for all workers to have some turns at what is known to be there."""
        return max(_LEAST_FILES, min(SHARD_FILES, self.files // (self.workers * _SHARDS_A_WORKER) + 1))

    def _cut(self) -> list[FileRef]:
        """A shard of what is waiting; nothing as long as that is too little, and more may come."""
        size, shard = self._size(), list[FileRef]()
        if sum(map(len, self._now)) < size and not self.listing.is_over:
            return shard
        while self._now and len(shard) < size:
            files = self._now.popleft()
            wanted = size - len(shard)
            shard += files.refs(0, wanted)
            if len(files) > wanted:
                self._now.appendleft(files.beyond(wanted))
        return shard

    def _take_in(self, files: Files) -> None:
        keys = path_keys(files.paths)
        states, is_known = self.known.find(keys)
        self.known.note(keys)
        self._keys.append(keys)
        self.found += len(files)
        is_left = ~(is_known & self._is_scored(files, states))
        left, fresh = files.where(is_left), ~is_known[is_left]
        self.files += len(left)
        if self.is_limited and fresh.any():
            left = self._without_later(left, keys[is_left], fresh)
        if len(left):
            self._now.append(left)

    def _is_scored(self, files: Files, states: States) -> Mask:
        """Which files the rows stand for, by their size and times."""
        ok, no_face, too_large = map(STATUSES.index, ("ok", "no_face", "too_large"))
        status = states["status"]
        # What was not read comes again: `denied`, `vanished`, a bad disk.
        is_scored: Mask = is_same(files, states) & (states["is_read"] | (status == too_large))
        if self.again == "refused":
            is_scored &= (status == ok) | (status == no_face)
        return np.zeros_like(is_scored) if self.again == "all" else is_scored

    def _without_later(self, files: Files, keys: Keys, fresh: Mask) -> Files:
        """Put aside what older models scored, where `fresh` files have no rows of this one, but for the baseline's."""
        if self._older is None:
            self._older = anew.by_older_models(self.table, self.key, self.known)
            if len(self._older):
                self._baseline = baseline.of_archive(self.table, self.key.archive, self.key.mode)
        states, is_held = self._older.find(keys)
        is_anew = fresh & is_held & self._is_scored(files, states)
        self._older.note(keys[is_anew])
        is_first = np.zeros(len(files), bool)
        if self._baseline is not None:
            first, last = (day.toordinal() - _EPOCH for day in (self._baseline.first, self._baseline.until))
            is_first = is_anew & (states["night"] >= first) & (states["night"] <= last)
        for some, which in ((self._first, is_first), (self._later, is_anew & ~is_first)):
            if which.any():
                some.append((files.where(which), states["night"][which]))
        return files.where(~is_anew)
