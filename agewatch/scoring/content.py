"""What is known of contents, each told by 64 bits of its hash: which the table holds, and since when.

Among ten million contents two have the same 64 bits with a chance of 3 in a million (birthday bound, n^2 / 2^65).
"""

from collections.abc import Iterable, Iterator, Mapping
from ctypes import c_uint64
from datetime import UTC, datetime, timedelta
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_DIGITS = 16  # hexadecimal, of 64 bits
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Keys = npt.NDArray[np.uint64]


def hash_key(content_hash: str) -> int:
    """The first 64 bits of a content hash: enough to guess that it is known, the table tells for certain."""
    return int(content_hash[:_DIGITS], 16)


def hash_keys(content_hashes: pa.Array) -> Keys:
    """The `hash_key` of each of many content hashes, none of them null."""
    digits = pc.utf8_slice_codeunits(content_hashes, 0, _DIGITS).to_pylist()
    return np.frombuffer(bytes.fromhex("".join(digits)), ">u8").astype(np.uint64)


class SharedKeys:
    """A set of `hash_key`s that the processes of a machine share instead of holding a copy each.

    To share it they get it while they start; it has no name on the disk, so nothing is left of it. A process elsewhere
    gets a copy.
    """

    def __init__(self, keys: Keys | Iterable[int]) -> None:
        found = np.sort(keys if isinstance(keys, np.ndarray) else np.fromiter(keys, np.uint64))
        self._held: Any = RawArray(c_uint64, len(found))
        self._sorted[:] = found

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process."""
        return {"_held": self._held if get_spawning_popen() is not None else np.array(self._sorted)}

    def __contains__(self, key: int) -> bool:
        held, wanted = self._sorted, np.uint64(key)
        place = int(np.searchsorted(held, wanted))
        return place < len(held) and bool(held[place] == wanted)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def _sorted(self) -> Keys:
        return np.frombuffer(memoryview(self._held), np.uint64) if len(self._held) else np.empty(0, np.uint64)


class Holders:
    """Which file holds a content, in 60 bytes a file and those of its path."""

    COLUMNS = ("path", "content_hash")

    def __init__(self, rows: Iterable[pa.RecordBatch]) -> None:
        read = [batch.filter(pc.is_valid(batch["content_hash"])) for batch in rows]
        self._paths = pa.chunked_array([batch["path"] for batch in read], pa.string())
        keys = np.concatenate([np.empty(0, np.uint64), *(hash_keys(batch["content_hash"]) for batch in read)])
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def of(self, content_hash: str) -> str | None:
        """The path of a file that seems to hold a content; the table tells for certain."""
        place = int(np.searchsorted(self._keys, np.uint64(key := hash_key(content_hash))))
        is_there = place < len(self._keys) and self._keys[place] == key
        return str(self._paths[int(self._order[place])]) if is_there else None


class Arrivals:
    """When an archive first held each content, in 16 bytes a content; what could not be read is told by its path.

    Arrival belongs to the content, not to a row: another model or mode, a copy, or a touched file is none. Where a
    table is older than its column `arrived_at`, a content arrived when it was first scored.
    """

    COLUMNS = ("path", "content_hash", "arrived_at", "scored_at")

    def __init__(self, rows: Iterable[pa.RecordBatch], *, now: datetime) -> None:
        self._now = now
        self._unread: dict[str, int] = {}
        self._later: dict[int, int] = {}
        keys, times = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for batch_keys, batch_times in self._read(rows):
            keys.append(batch_keys)
            times.append(batch_times)
        order = np.argsort(every := np.concatenate(keys), kind="stable")
        self._keys, first = np.unique(every[order], return_index=True)
        ordered = np.concatenate(times)[order]
        self._times = np.minimum.reduceat(ordered, first) if len(first) else ordered

    def learn(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Take in rows that another run wrote meanwhile."""
        for keys, times in self._read(rows):
            for key, time in zip(keys.tolist(), times.tolist(), strict=True):
                self._later[key] = min(time, self._later.get(key, time))

    def of(self, row: Mapping[str, Any]) -> datetime:
        """When the content of a row arrived: now, where the archive never held it."""
        if (digest := row.get("content_hash")) is None:
            return self._time(self._unread.get(row["path"]))
        key = hash_key(digest)
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        if place < len(self._keys) and self._keys[place] == key:
            return self._time(int(self._times[place]))
        return self._time(self._later.get(key))

    def _time(self, microseconds: int | None) -> datetime:
        return self._now if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)

    def _read(self, rows: Iterable[pa.RecordBatch]) -> Iterator[tuple[Keys, npt.NDArray[np.int64]]]:
        """Yield keys and times, in microseconds, of rows with a content; note those without by their path."""
        for batch in rows:
            arrived = pc.coalesce(batch["arrived_at"], batch["scored_at"]).cast(pa.int64())
            is_read = pc.is_valid(batch["content_hash"])
            unread = pc.invert(is_read)
            pairs = zip(batch["path"].filter(unread).to_pylist(), arrived.filter(unread).to_pylist(), strict=True)
            for path, time in pairs:
                self._unread[path] = min(time, self._unread.get(path, time))
            yield hash_keys(batch["content_hash"].filter(is_read)), arrived.filter(is_read).to_numpy()
