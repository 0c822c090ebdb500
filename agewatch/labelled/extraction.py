"""Labelled pictures -> what can be measured in them: features and chips, extracted once and kept in a cache."""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from agewatch.errors import AgewatchError, ImageError
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.images import RGB, decode, quality
from agewatch.estimator.spec import PREPROCESSING_REVISION, Mode
from agewatch.labelled.sources import Labelled
from agewatch.scoring.archive import decode_path
from agewatch.scoring.scorer import one_pictures_misfortune

COLUMNS = (
    "mode", "reason", "content_hash", "width", "height", "box_x", "box_y", "box_w", "box_h", "landmarks", "face_score",
    "brightness", "contrast", "sharpness", "difference_hash",
)  # fmt: skip
"""What is extracted of each picture. `reason` is a refusal code or `no_face` where there is no chip, else null."""
_SAMPLE = 200
_MODE_COVERAGE = 0.8
_CHUNK = 64
_REPORT_EVERY = 2000 // _CHUNK * _CHUNK  # records come by chunks
_DAY_SECONDS = 24 * 3600
_TABLE, _CHIPS = "extracted.parquet", "chips.npy"
_TORN = (OSError, ValueError, EOFError, pa.ArrowException)  # what reading half a folder raises


def extract(
    labelled: Sequence[Labelled],
    *,
    size: int,
    chip_scale: float,
    workers: int,
    cache: Path,
    progress: Callable[[int, int], None] | None,
) -> tuple[pd.DataFrame, RGB]:
    """Return the table of COLUMNS, a row a labelled picture, and the chips, uint8 (n, size, size, 3).

    Both are kept in a folder below `cache` that is found again while no picture changed in size or time of change;
    labels play no part. A torn folder is built anew, and after a build other folders older than a day are deleted.
    The chips are a read-only memory map: they need as much disk as n, size and size say, but no memory. `progress` is
    called with the numbers of pictures done and of all. Raises AgewatchError where the disk has too little room or a
    worker process dies.
    """
    folder = cache / f"chips-{_key(labelled, size, chip_scale)}"
    shape = (len(labelled), size, size, 3)
    try:
        return _load(folder, shape)
    except _TORN:
        _build(folder, labelled, shape, chip_scale, workers, progress)
    return _load(folder, shape)


def mode_of(source: Path, labelled: Sequence[Labelled]) -> Mode:
    """How to take a source, by a look at up to about 400 of its pictures, evenly drawn.

    Crops are recognised by faces that fill the picture; where few faces are found, crops are assumed.
    """
    detector, coverage, read = YuNet(), [], 0
    sample = [item for item in labelled if item.source == source]
    for item in sample[:: max(1, len(sample) // _SAMPLE)]:
        try:
            with one_pictures_misfortune():
                rgb = decode(item.file.read(source)[0]).rgb
                faces = detector(rgb)
        except ImageError:
            continue
        read += 1
        if faces:
            coverage.append(faces[0].box[3] / min(rgb.shape[:2]))
    most_have_faces = len(coverage) > read / 2
    return "detect" if most_have_faces and float(np.median(coverage)) < _MODE_COVERAGE else "crop"


def _key(labelled: Sequence[Labelled], size: int, chip_scale: float) -> str:
    digest = blake2b(f"{size} {chip_scale} {PREPROCESSING_REVISION}\0".encode(), digest_size=16)
    for item in labelled:
        path = os.path.join(os.fsencode(item.source), decode_path(item.file.path))
        try:
            stat = Path(os.fsdecode(path)).stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:  # a missing picture is refused when it is read
            state = "-"
        digest.update(path + f"\0{state}\0".encode())
    return digest.hexdigest()


def _load(folder: Path, shape: tuple[int, ...]) -> tuple[pd.DataFrame, RGB]:
    table = pd.read_parquet(folder / _TABLE)
    chips: RGB = np.load(folder / _CHIPS, mmap_mode="r")
    if tuple(table.columns) != COLUMNS or len(table) != shape[0] or chips.shape != shape:
        raise ValueError(f"{folder} holds something else")
    return table, chips


def _build(
    folder: Path,
    labelled: Sequence[Labelled],
    shape: tuple[int, ...],
    chip_scale: float,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Extract all pictures into `folder`, which appears whole or not at all."""
    modes = {source: mode_of(source, labelled) for source in dict.fromkeys(item.source for item in labelled)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="building-", dir=folder.parent) as building:
        aside = Path(building, folder.name)
        aside.mkdir()
        _reserve(aside / _CHIPS, shape)
        tasks = [(index, item, modes[item.source], chip_scale) for index, item in enumerate(labelled)]
        records = []
        try:
            with ProcessPoolExecutor(workers, get_context("spawn"), _start, (aside / _CHIPS,)) as pool:
                for record in pool.map(_extract, tasks, chunksize=_CHUNK):
                    records.append(record)
                    if progress and (len(records) % _REPORT_EVERY == 0 or len(records) == len(tasks)):
                        progress(len(records), len(tasks))
        except BrokenProcessPool as error:
            raise AgewatchError(
                f"A process that reads the pictures died after {len(records)} of {len(tasks)}: it crashed, was killed,"
                " or ran out of memory."
            ) from error
        pd.DataFrame(records).to_parquet(aside / _TABLE)
        _publish(aside, folder, shape)
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


def _publish(aside: Path, folder: Path, shape: tuple[int, ...]) -> None:
    """Move a whole folder to its place, unless another training was faster; a torn one there makes room."""
    try:
        aside.rename(folder)
    except OSError:
        try:
            _load(folder, shape)
        except _TORN:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)


def _delete_old(kept: Path) -> None:
    """Delete the cache's other folders that are older than a day: each is gigabytes, and built again when needed."""
    for folder in (*kept.parent.glob("chips-*"), *kept.parent.glob("building-*")):
        with suppress(FileNotFoundError):  # another training deletes too
            if folder != kept and time() - folder.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


_detector: YuNet  # one a worker process, as the chips, which all workers write
_chips: RGB


def _start(chips: Path) -> None:
    global _detector, _chips
    _detector, _chips = YuNet(), np.load(chips, mmap_mode="r+")


def _extract(task: tuple[int, Labelled, Mode, float]) -> dict[str, object]:
    """Write a picture's chip to its place and return its columns."""
    index, item, mode, chip_scale = task
    size = _chips.shape[1]
    record: dict[str, object] = dict.fromkeys(COLUMNS) | {"mode": mode}
    try:
        data, _ = item.file.read(item.source)
        record["content_hash"] = blake2b(data, digest_size=32).hexdigest()
        with one_pictures_misfortune():
            seen = look(data, _detector, scale=chip_scale, size=size)
            whole = seen if mode == "detect" else look(data, None, scale=chip_scale, size=size)
    except ImageError as refusal:
        return record | {"reason": refusal.code}
    record |= {"width": seen.width, "height": seen.height}
    if seen.faces:
        face = seen.faces[0]
        record |= zip(("box_x", "box_y", "box_w", "box_h"), face.box, strict=True)
        points = [value for point in face.landmarks or () for value in point]
        record |= {"face_score": face.score, "landmarks": points}
    if not whole.chips:
        return record | {"reason": "no_face"}
    chip = _chips[index] = whole.chips[0]
    return record | asdict(quality(chip)) | {"difference_hash": _difference_hash(chip)}


def _difference_hash(chip: RGB) -> str:
    """128 bits as hex: is each of 8 x 8 cells brighter than its right, and its lower, neighbour."""
    luma = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    across = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    down = cv2.resize(luma, (8, 9), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.concatenate([np.diff(across, axis=1).ravel() > 0, np.diff(down, axis=0).ravel() > 0])
    return np.packbits(bits).tobytes().hex()
