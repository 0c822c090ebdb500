"""Labelled pictures -> what can be measured in them: features and chips, extracted once and kept in a cache."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from agewatch.errors import AgewatchError, ImageError
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.images import RGB, decode, quality
from agewatch.estimator.memory import Room
from agewatch.estimator.spec import PREPROCESSING_REVISION, Cut, Mode
from agewatch.labelled.sources import Labelled
from agewatch.scoring import pool
from agewatch.scoring.room import SharedRoom
from agewatch.scoring.scorer import one_pictures_misfortune
from agewatch.settings import Settings
from agewatch.sources.source import decode_path

COLUMNS = (
    "mode", "reason", "content_hash", "width", "height", "box_x", "box_y", "box_w", "box_h", "landmarks", "face_score",
    "brightness", "contrast", "sharpness", "difference_hash",
)  # fmt: skip
"""What is extracted of each picture. `reason` is a refusal code or `no_face` where there is no chip, else null."""
_SAMPLE = 200
_MODE_COVERAGE = 0.8
_SHARD = 64
_REPORT_EVERY = 2000
_DAY_SECONDS = 24 * 3600
_TABLE, _CHIPS = "extracted.parquet", "chips.npy"
_TORN = (OSError, ValueError, EOFError, pa.ArrowException)  # what reading half a folder raises


Record = dict[str, Any]
"""What is extracted of one picture, by the names of COLUMNS."""
Progress = Callable[[int, int], None]
"""Called with the numbers of pictures done and of all."""


def extract(
    labelled: Sequence[Labelled], cut: Cut, *, workers: int, cache: Path, progress: Progress | None
) -> tuple[pd.DataFrame, RGB]:
    """Return the table of COLUMNS, a row a labelled picture, and the chips, uint8 (n, size, size, 3).

    Both are kept in a folder below `cache` that is found again while no picture changed in size or time of change;
    labels play no part. A torn folder is built anew, and after a build other folders older than a day are deleted.
    The chips are a read-only memory map: they need as much disk as their shape says, but no memory. A picture that
    crashes its reader, or hangs it, gets the reason `decoder_failed`. Raises AgewatchError where the disk has too
    little room or no worker process can start.
    """
    folder = cache / f"chips-{_key(labelled, cut)}"
    try:
        return _load(folder, len(labelled), cut)
    except _TORN:
        _build(folder, labelled, cut, workers, progress)
    return _load(folder, len(labelled), cut)


def modes_of(labelled: Sequence[Labelled], workers: int) -> dict[Path, Mode]:
    """How to take each source, by a look at up to about 400 of its pictures, evenly drawn.

    Crops are recognised by faces that fill the picture; where few faces are found, crops are assumed.
    """
    by_source: dict[Path, list[Labelled]] = {}
    for item in labelled:
        by_source.setdefault(item.source, []).append(item)
    sample = [item for items in by_source.values() for item in items[:: max(1, len(items) // _SAMPLE)]]
    filled: dict[Path, list[float]] = {source: [] for source in by_source}
    for found in pool.run(Filling(_room(workers)), pool.shards(sample, _SHARD), workers):
        for source, share in found:
            filled[source].append(share)
    return {source: _mode(shares) for source, shares in filled.items()}


def _room(workers: int) -> Room:
    return SharedRoom(Settings().memory_gb, workers)


def _mode(shares: Sequence[float]) -> Mode:
    with_face = [share for share in shares if share]
    most_have_faces = len(with_face) > len(shares) / 2
    return "detect" if most_have_faces and float(np.median(with_face)) < _MODE_COVERAGE else "crop"


@dataclass(frozen=True)
class Filling(pool.Task[Labelled, list[tuple[Path, float]]]):
    """How much of its picture's shorter side the largest face is high, 0 where there is none; of those readable."""

    room: Room

    def open(self) -> pool.Work[Labelled, list[tuple[Path, float]]]:
        """Open the detector."""
        detector = YuNet()

        def work(items: Sequence[Labelled], starts: Callable[[], None]) -> list[tuple[Path, float]]:
            found = []
            for item in items:
                starts()
                with suppress(ImageError), self.room.picture(starts), one_pictures_misfortune():
                    self.room.expect(item.file.bytes or 0)
                    rgb = decode(item.read(), room=self.room).rgb
                    faces = detector(rgb)
                    found.append((item.source, faces[0].box[3] / min(rgb.shape[:2]) if faces else 0.0))
            return found

        return work

    def give_up(self, item: Labelled, why: str) -> list[tuple[Path, float]]:  # noqa: ARG002
        """Nothing is known of it."""
        return []


def _key(labelled: Sequence[Labelled], cut: Cut) -> str:
    digest = blake2b(f"{cut.size} {cut.scale} {PREPROCESSING_REVISION}\0".encode(), digest_size=16)
    for item in labelled:
        path = os.path.join(os.fsencode(item.source), decode_path(item.file.path))
        try:
            place = Path(os.fsdecode(path))
            stat = (item.source if item.source.is_file() else place).stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:  # a missing picture is refused when it is read
            state = "-"
        digest.update(path + f"\0{state}\0".encode())
    return digest.hexdigest()


def _load(folder: Path, n: int, cut: Cut) -> tuple[pd.DataFrame, RGB]:
    table = pd.read_parquet(folder / _TABLE)
    chips: RGB = np.load(folder / _CHIPS, mmap_mode="r")
    if tuple(table.columns) != COLUMNS or len(table) != n or chips.shape != (n, *cut.shape):
        raise ValueError(f"{folder} holds something else")
    return table, chips


def _build(folder: Path, labelled: Sequence[Labelled], cut: Cut, workers: int, progress: Progress | None) -> None:
    """Extract all pictures into `folder`, which appears whole or not at all."""
    modes = modes_of(labelled, workers)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="building-", dir=folder.parent) as building:
        aside = Path(building, folder.name)
        aside.mkdir()
        _reserve(aside / _CHIPS, (len(labelled), *cut.shape))
        places = [Place(index, item, modes[item.source]) for index, item in enumerate(labelled)]
        records: dict[int, Record] = {}
        for found in pool.run(Extraction(aside / _CHIPS, cut, _room(workers)), pool.shards(places, _SHARD), workers):
            before = len(records) // _REPORT_EVERY
            records |= found
            if progress and (len(records) // _REPORT_EVERY > before or len(records) == len(places)):
                progress(len(records), len(places))
        pd.DataFrame([records[index] for index in range(len(places))]).to_parquet(aside / _TABLE)
        _publish(aside, folder, len(labelled), cut)
    _delete_old(folder)


def _reserve(chips: Path, shape: tuple[int, ...]) -> None:
    """Write an array file of zeros that has its room on the disk: a full one would end the workers by a signal."""
    need, free = int(np.prod(shape)), shutil.disk_usage(chips.parent).free
    try:
        if need > free:  # asked first, as some file systems fill up before they say no
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with chips.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            os.posix_fallocate(file.fileno(), file.tell(), need)
    except OSError as error:
        raise AgewatchError(
            f"The chips need {need / 1e9:.1f} GB in {chips.parents[2]}, where {free / 1e9:.1f} GB are free:"
            f" {error.strerror}."
        ) from error


def _publish(aside: Path, folder: Path, n: int, cut: Cut) -> None:
    """Move a whole folder to its place, unless another training was faster; a torn one there makes room."""
    try:
        aside.rename(folder)
    except OSError:
        try:
            _load(folder, n, cut)
        except _TORN:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)


def _delete_old(kept: Path) -> None:
    """Delete the cache's other folders that are older than a day: each is gigabytes, and built again when needed."""
    for folder in (*kept.parent.glob("chips-*"), *kept.parent.glob("building-*")):
        with suppress(FileNotFoundError):  # another training deletes too
            if folder != kept and time() - folder.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Place:
    """A labelled picture, how its face is found, and its number: where its chip goes."""

    index: int
    item: Labelled
    mode: Mode


@dataclass(frozen=True)
class Extraction(pool.Task[Place, Mapping[int, Record]]):
    """Looking at labelled pictures: chips go into the array file `chips`, the columns are the answer, by number."""

    chips: Path
    cut: Cut
    room: Room

    def open(self) -> pool.Work[Place, Mapping[int, Record]]:
        """Open the detector and the array, which all workers write."""
        detector, chips = YuNet(), np.load(self.chips, mmap_mode="r+")

        def work(places: Sequence[Place], starts: Callable[[], None]) -> Mapping[int, Record]:
            found: dict[int, Record] = {}
            for place in places:
                starts()
                with self.room.picture(starts):
                    found[place.index], chip = _extract(place, detector, self.cut, self.room)
                if chip is not None:
                    chips[place.index] = chip
            return found

        return work

    def give_up(self, item: Place, why: str) -> Mapping[int, Record]:  # noqa: ARG002  the table has no sentences
        """A picture that crashed its reader, or hung it, is left out as `decoder_failed`."""
        record = _blank(item.mode) | {"reason": "decoder_failed"}
        with suppress(ImageError):
            record["content_hash"] = blake2b(item.item.read(), digest_size=32).hexdigest()
        return {item.index: record}


def _extract(place: Place, detector: YuNet, cut: Cut, room: Room) -> tuple[Record, RGB | None]:
    """The columns of a picture, and its chip where it has one."""
    record = _blank(place.mode)
    try:
        room.expect(place.item.file.bytes or 0)
        data = place.item.read()
        record["content_hash"] = blake2b(data, digest_size=32).hexdigest()
        with one_pictures_misfortune():
            seen = look(data, detector, cut, room)
            whole = seen if place.mode == "detect" else look(data, None, cut, room)
    except ImageError as refusal:
        return record | {"reason": refusal.code}, None
    record |= {"width": seen.width, "height": seen.height}
    if seen.faces:
        face = seen.faces[0]
        record |= zip(("box_x", "box_y", "box_w", "box_h"), face.box, strict=True)
        points = [value for point in face.landmarks or () for value in point]
        record |= {"face_score": face.score, "landmarks": points}
    if not whole.chips:
        return record | {"reason": "no_face"}, None
    chip = whole.chips[0]
    return record | asdict(quality(chip)) | {"difference_hash": _difference_hash(chip)}, chip


def _blank(mode: Mode) -> Record:
    return dict.fromkeys(COLUMNS) | {"mode": mode}


def _difference_hash(chip: RGB) -> str:
    """128 bits as hex: is each of 8 x 8 cells brighter than its right, and its lower, neighbour."""
    luma = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    across = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    down = cv2.resize(luma, (8, 9), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.concatenate([np.diff(across, axis=1).ravel() > 0, np.diff(down, axis=0).ravel() > 0])
    return np.packbits(bits).tobytes().hex()
