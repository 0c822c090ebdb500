"""Labelled faces for training: layouts, extracted features, validation of labels, leak-safe split."""

import csv
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agewatch import archive
from agewatch.archive import FileRef
from agewatch.errors import ImageError, LabelError, UsageError
from agewatch.faces import Face, YuNet, look
from agewatch.images import RGB, decode, quality

SPLITS = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}
"""Shares of the faces. Validation chooses the epoch, calibration sets the intervals, test is only reported."""
OLDEST = 122
"""Longest documented human life in years (Robine & Allard, 1998); labels above are impossible."""
NEAR_DUPLICATE_BITS = 6
"""Faces whose 128-bit difference hashes differ in at most so many bits are kept in one split."""
_SAMPLE = 200
_SPLIT_SALT = 0  # never the recipe's seed: a picture must stay in its split from one training to the next
_EXTRACTED = (
    "content_hash", "width", "height", "box_x", "box_y", "box_w", "box_h", "landmarks", "face_score",
    "brightness", "contrast", "sharpness",
)  # fmt: skip
_MODE_COVERAGE = 0.8


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled picture: source folder, path in it (as in the predictions table), age in years, slices."""

    source: Path
    file: FileRef
    age: int
    sex: str | None = None
    ethnicity: str | None = None


@dataclass(frozen=True)
class Faces:
    """Training data: one table row a labelled picture, and for row i with `reason` null the chip `chips[i]`.

    Table columns: source, path, age, sex, ethnicity, mode, content_hash, width, height, box_x, box_y, box_w, box_h,
    landmarks (x, y of five points), face_score, brightness, contrast, sharpness, group, split, reason. chips: uint8
    (n, size, size, 3).
    """

    table: pd.DataFrame
    chips: RGB

    def rows(self, split: str) -> npt.NDArray[np.intp]:
        """Row numbers of a split."""
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def ages(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Labels of rows, years."""
        return self.table["age"].to_numpy(dtype=np.float32)[rows]


def read_sources(sources: Sequence[Path]) -> list[Labelled]:
    """List labelled pictures from several sources, each a folder with one subfolder an age, or a CSV file.

    A CSV has columns path and age, optionally sex and ethnicity; paths are relative to the folder of the CSV's own
    name without suffix where that exists, else to the CSV's folder. Where such a CSV lies beside a folder, it is
    read in the folder's place. Raises UsageError (nothing there, equal names) or LabelError (no labels in it).
    """
    labelled: list[Labelled] = []
    roots: dict[str, Path] = {}
    for source in map(Path.resolve, sources):
        table = source if source.suffix.lower() == ".csv" else source.with_name(source.name + ".csv")
        if table.is_file():
            found = list(_read_csv(table))
        elif source.is_dir():
            found = list(_read_age_folders(source))
        else:
            raise UsageError(f"There is no folder or CSV file {source}.")
        for item in found:
            if roots.setdefault(item.source.name, item.source) != item.source:
                raise UsageError(
                    f"Two sources are named {item.source.name}: rename one, their pictures would be mixed up."
                )
        labelled += found
    if not labelled:
        raise LabelError("The sources hold no labelled pictures.")
    return labelled


def prepare(labelled: Sequence[Labelled], *, size: int, chip_scale: float, workers: int) -> Faces:
    """Extract faces, features and chips, drop what can't be trained on (with the reason), and split without leaks.

    A source is taken as crops (the picture is the face) or as pictures to detect faces in by a look at its first
    pictures. Raises LabelError where no face is left to train on.
    """
    modes = {source: _mode_of(source, labelled) for source in dict.fromkeys(item.source for item in labelled)}
    tasks = [(item, modes[item.source], size, chip_scale) for item in labelled]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        extracted = list(pool.map(_extract, tasks, chunksize=64))
    table = pd.DataFrame([record for record, _ in extracted])
    chips = np.zeros((len(table), size, size, 3), np.uint8)
    for index, (_, chip) in enumerate(extracted):
        if chip is not None:
            chips[index] = chip
    _drop_bad_labels(table)
    if not table["reason"].isna().any():
        reasons = table["reason"].value_counts().to_dict()
        raise LabelError(f"No face is left to train on: {reasons}.")
    table["group"] = _groups(table, chips)
    table["split"] = _split(table)
    return Faces(table, chips)


def _read_csv(table: Path) -> Iterable[Labelled]:
    folder = table.with_suffix("")
    root = (folder if folder.is_dir() else table.parent).resolve()
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"path", "age"} <= set(reader.fieldnames or ()):
                raise LabelError(f"{table} needs the columns path and age.")
            for line, row in enumerate(reader, start=2):
                yield _labelled(root, row, f"{table}, line {line}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table} can't be read as a CSV file in UTF-8: {error}.") from error


def _labelled(root: Path, row: dict[str, str | None], where: str) -> Labelled:
    try:
        age = int(np.floor(float(row["age"] or "")))
    except (ValueError, OverflowError) as error:
        raise LabelError(f"{where}: '{row['age']}' is no age.") from error
    if not row["path"]:
        raise LabelError(f"{where}: the path is empty.")
    file = FileRef(archive.encode_path(os.fsencode(row["path"])), None, None)
    return Labelled(root, file, age, row.get("sex") or None, row.get("ethnicity") or None)


def _read_age_folders(source: Path) -> Iterable[Labelled]:
    for file in archive.find(source).files:
        folder = file.path.split("/")[0]
        if folder.isdecimal():
            yield Labelled(source, file, int(folder))


def _mode_of(source: Path, labelled: Sequence[Labelled]) -> Literal["crop", "detect"]:
    """Crops are recognised by faces that fill the picture; where few faces are found, crops are assumed."""
    detector, coverage, read = YuNet(), [], 0
    sample = [item for item in labelled if item.source == source]
    for item in sample[:: max(1, len(sample) // _SAMPLE)]:
        try:
            rgb = decode(item.file.read(source)).rgb
        except ImageError:
            continue
        read += 1
        if faces := detector(rgb):
            coverage.append(faces[0].box[3] / min(rgb.shape[:2]))
    most_have_faces = len(coverage) > read / 2
    return "detect" if most_have_faces and float(np.median(coverage)) < _MODE_COVERAGE else "crop"


_detector: YuNet | None = None  # one a worker process


def _extract(task: tuple[Labelled, str, int, float]) -> tuple[dict[str, object], RGB | None]:
    global _detector
    _detector = _detector or YuNet()
    item, mode, size, chip_scale = task
    record: dict[str, object] = {
        "source": item.source.name, "path": item.file.path, "age": item.age, "sex": item.sex,
        "ethnicity": item.ethnicity, "mode": mode, "reason": None,
    } | dict.fromkeys(_EXTRACTED)  # fmt: skip
    try:
        data = item.file.read(item.source)
        record["content_hash"] = blake2b(data, digest_size=32).hexdigest()
        seen = look(data, _detector, scale=chip_scale, size=size)
        whole = seen if mode == "detect" else look(data, None, scale=chip_scale, size=size)
    except ImageError as refusal:
        return record | {"reason": refusal.code}, None
    record |= {"width": seen.width, "height": seen.height}
    if seen.faces:
        record |= _found_columns(seen.faces[0])
    if not whole.chips:
        return record | {"reason": "no_face"}, None
    chip = whole.chips[0]
    measured = quality(chip)
    record |= {name: getattr(measured, name) for name in ("brightness", "contrast", "sharpness")}
    return record, chip


def _found_columns(face: Face) -> dict[str, object]:
    box = dict(zip(("box_x", "box_y", "box_w", "box_h"), face.box, strict=True))
    points = [value for point in face.landmarks or () for value in point]
    return box | {"face_score": face.score, "landmarks": points}


def _drop_bad_labels(table: pd.DataFrame) -> None:
    """Set `reason` for impossible ages, equal pictures with different ages, and repeated pictures."""
    usable = table["reason"].isna()
    table.loc[usable & ~table["age"].between(0, OLDEST), "reason"] = "impossible_age"
    usable = table["reason"].isna()
    ages = table[usable].groupby("content_hash")["age"].transform("nunique")
    table.loc[ages.index[ages > 1], "reason"] = "conflicting_age"
    usable = table["reason"].isna()
    repeated = table[usable].duplicated("content_hash")
    table.loc[repeated.index[repeated], "reason"] = "duplicate"


def _groups(table: pd.DataFrame, chips: RGB) -> npt.NDArray[np.int64]:
    """Number the groups of near-duplicates; a face without a double is a group of its own."""
    usable = np.flatnonzero(table["reason"].isna().to_numpy())
    hashes = np.stack([_difference_hash(chips[index]) for index in usable])
    pairs: list[npt.NDArray[np.intp]] = []
    for start in range(0, len(usable), 1024):
        bits = np.bitwise_count(hashes[start : start + 1024, None, :] ^ hashes[None, :, :]).sum(axis=2)
        pairs.append(np.argwhere(bits <= NEAR_DUPLICATE_BITS) + np.array([start, 0]))
    near = np.concatenate(pairs)
    graph = coo_array((np.ones(len(near), np.int8), (near[:, 0], near[:, 1])), shape=(len(usable), len(usable)))
    groups = np.full(len(table), -1, np.int64)
    groups[usable] = connected_components(graph, directed=False)[1]
    return groups


def _difference_hash(chip: RGB) -> npt.NDArray[np.uint64]:
    """128 bits: is each of 8 x 8 cells brighter than its right, and its lower, neighbour."""
    luma = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    across = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    down = cv2.resize(luma, (8, 9), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.concatenate([np.diff(across, axis=1).ravel() > 0, np.diff(down, axis=0).ravel() > 0])
    return np.packbits(bits).view(np.uint64)


def _split(table: pd.DataFrame) -> list[str | None]:
    """Give whole groups to splits, stratified by source and decade, by a hash that does not depend on order."""
    usable = table[table["reason"].isna()]
    groups = usable.groupby("group").agg(
        key=("content_hash", "min"), source=("source", "first"), age=("age", "min"), size=("age", "size")
    )
    groups["rank"] = [blake2b(f"{_SPLIT_SALT}:{key}".encode()).hexdigest() for key in groups["key"]]
    split_of: dict[int, str] = {}
    bounds = np.cumsum(list(SPLITS.values()))
    for _, stratum in groups.sort_values("rank").groupby(["source", groups["age"] // 10]):
        middle = (stratum["size"].cumsum() - stratum["size"] / 2) / stratum["size"].sum()
        places = np.searchsorted(bounds, middle.to_numpy()).clip(max=len(SPLITS) - 1)
        split_of |= dict(zip(stratum.index, np.array(list(SPLITS))[places], strict=True))
    return [split_of.get(group) for group in table["group"]]
