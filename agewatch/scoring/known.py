"""What the table knows of files, in columns of 52 bytes a file, each file told by 64 bits of its path.

Two of ten million paths have the same 64 bits with a chance of 3 in a million (birthday bound, n^2 / 2^65); they differ
from process to process, so what one run takes for the other file is put right by the next.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from agewatch.scoring.content import hash_keys
from agewatch.sources.ahead import NONE, Files

STATE = ["path", "status", "bytes", "mtime_ns", "ctime_ns", "content_hash", "gone_at"]
"""Columns of the table that tell what it knows of a file."""
NUMBERS = ("bytes", "mtime_ns", "ctime_ns")
ROW = np.dtype(
    [(name, np.int64) for name in NUMBERS]  # NONE where the table has none
    + [("content", np.uint64), ("faces", np.int32), ("night", np.int32), ("status", np.uint8)]
    + [("is_read", np.bool_), ("is_gone", np.bool_), ("is_found", np.bool_)]
)
"""`content` is the `hash_key` of what was read, `status` a place in STATUSES, `night` the UTC date on which the file
arrived, in days since 1970, where that was asked for. `is_found` says that it was listed in this run."""
STATUSES: list[str] = ["ok", "no_face", "too_large"]
"""Those met so far: a newer agewatch may write others."""

Keys = npt.NDArray[np.int64]
States = npt.NDArray[np.void]
Mask = npt.NDArray[np.bool_]


def path_keys(paths: pa.Array | Iterable[str]) -> Keys:
    """Tell each path by 64 bits, the same within this process."""
    found = paths.to_pylist() if isinstance(paths, pa.Array) else list(paths)
    return np.fromiter(map(hash, found), np.int64, len(found))


def places(keys: Keys, wanted: Keys) -> tuple[npt.NDArray[np.intp], Mask]:
    """Where in sorted keys those wanted stand, and which of them do."""
    if not len(keys):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    order = np.argsort(wanted)  # neighbours are found in the processor's own memory
    at = np.empty(len(wanted), np.intp)
    at[order] = np.searchsorted(keys, wanted[order])
    np.minimum(at, len(keys) - 1, out=at)
    return at, keys[at] == wanted


def count_distinct(keys: Keys) -> int:
    """How many different ones there are; they are left sorted."""
    keys.sort()
    return int(np.count_nonzero(keys[1:] != keys[:-1])) + min(len(keys), 1)


class Known:
    """The state of files by their keys, each once."""

    def __init__(self, batches: Iterable[pa.RecordBatch] = ()) -> None:
        # Sorted by key, each at least twice as long as the next, so that what is written bit by bit is sorted rarely.
        self._levels: list[tuple[Keys, States]] = []
        self.update(*summarise(batches))

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._levels)

    def __contains__(self, path: str) -> bool:
        return bool(self.has(path_keys([path]))[0])

    @property
    def faces(self) -> int:
        """Of all files."""
        return sum(int(states["faces"].sum()) for _, states in self._levels)

    def has(self, wanted: Keys) -> Mask:
        """Which files are known."""
        is_known = np.zeros(len(wanted), bool)
        for keys, _ in self._levels:
            is_known |= places(keys, wanted)[1]
        return is_known

    def find(self, wanted: Keys) -> tuple[States, Mask]:
        """Copies of the states of some files, and which files have one."""
        found, is_known = np.zeros(len(wanted), ROW), np.zeros(len(wanted), bool)
        for keys, states in self._levels:
            at, is_here = places(keys, wanted)
            found[is_here] = states.take(at[is_here])  # many times as fast as [...] here
            is_known |= is_here
        return found, is_known

    def note(self, found: Keys) -> None:
        """Note that files were found."""
        for keys, states in self._levels:
            at, is_here = places(keys, found)
            states["is_found"][at[is_here]] = True

    def tally(self, *, but: "Known | None" = None) -> tuple[Counter[str], int]:
        """How many of the files that were found have each status, and their faces; of those that another lacks."""
        statuses, faces = Counter[str](), 0
        for keys, states in self._levels:
            is_meant = states["is_found"] if but is None else states["is_found"] & ~but.has(keys)
            counts = np.bincount(states["status"][is_meant], minlength=len(STATUSES)).tolist()
            statuses += Counter(dict(zip(STATUSES, counts, strict=True)))
            faces += int(states["faces"][is_meant].sum())
        return statuses, faces

    def contents(self) -> npt.NDArray[np.uint64]:
        """The `hash_key`s of what was read."""
        return np.concatenate(
            [np.empty(0, np.uint64), *(states["content"][states["is_read"]] for _, states in self._levels)]
        )

    def update(self, keys: Keys, rows: States) -> None:
        """Take in states of files, by sorted keys, in the place of what was known of them."""
        for held, known in self._levels:
            at, is_here = places(held, keys)
            known[at[is_here]] = rows[is_here]
            keys, rows = keys[~is_here], rows[~is_here]
        while self._levels and len(self._levels[-1][0]) < 2 * len(keys):
            held, known = self._levels.pop()
            keys, rows = _sorted(np.concatenate([held, keys]), [known, rows])
        if len(keys):
            self._levels.append((keys, rows))


def summarise(batches: Iterable[pa.RecordBatch]) -> tuple[Keys, States]:
    """What rows of one archive, model and mode, of the columns STATE, say of each path: its key, sorted, and state.

    With `arrived_at` and `scored_at` they tell the night, too.
    """
    keys, rows = [np.empty(0, np.int64)], [np.empty(0, ROW)]
    for batch in batches:
        of_batch = _folded(path_keys(batch["path"]), _rows(batch))
        keys.append(of_batch[0])
        rows.append(of_batch[1])
    return _folded(*_sorted(np.concatenate(keys), rows))


def is_same(files: Files, states: States) -> Mask:
    """Which of the files are, by size and times, what states of the same length say of them."""
    # Older rows have no change time, nor has a file system that is not trusted to keep one.
    size, mtime_ns, ctime_ns = files.numbers.T
    has_no_ctime = (states["ctime_ns"] == NONE) | (ctime_ns == NONE)
    same: Mask = (states["bytes"] == size) & (states["mtime_ns"] == mtime_ns)
    same &= has_no_ctime | (states["ctime_ns"] == ctime_ns)
    return same


def _rows(batch: pa.RecordBatch) -> States:
    rows = np.zeros(len(batch), ROW)
    statuses = batch["status"].dictionary_encode()
    STATUSES.extend(name for name in statuses.dictionary.to_pylist() if name not in STATUSES)
    codes = np.array([STATUSES.index(name) for name in statuses.dictionary.to_pylist()], np.uint8)
    rows["status"] = codes[statuses.indices.to_numpy()]
    rows["faces"] = rows["status"] == STATUSES.index("ok")
    for name in NUMBERS:
        rows[name] = batch[name].fill_null(NONE).to_numpy()
    is_read = pc.is_valid(batch["content_hash"])
    rows["is_read"] = is_read.to_numpy(zero_copy_only=False)
    rows["content"][rows["is_read"]] = hash_keys(batch["content_hash"].filter(is_read))
    rows["is_gone"] = pc.is_valid(batch["gone_at"]).to_numpy(zero_copy_only=False)
    if "arrived_at" in batch.schema.names:
        when = pc.coalesce(batch["arrived_at"], batch["scored_at"])
        rows["night"] = pc.cast(pc.cast(when, pa.date32()), pa.int32()).to_numpy()
    return rows


def _sorted(keys: Keys, parts: list[States]) -> tuple[Keys, States]:
    """Sort rows, which are let go of as they are taken, by their keys; of equal keys the order stays."""
    order = np.argsort(keys, kind="stable")
    rows = np.concatenate(parts)
    parts.clear()
    return keys[order], rows.take(order)


def _folded(keys: Keys, rows: States) -> tuple[Keys, States]:
    """Make one of rows with the same key that follow each other: the last, with the faces of all."""
    is_last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
    if is_last.all():
        return keys, rows
    first = np.flatnonzero(np.append(True, is_last[:-1]))
    faces = np.add.reduceat(rows["faces"], first)
    rows = rows[is_last]
    rows["faces"] = faces
    return keys[is_last], rows
