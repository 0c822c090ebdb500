"""Labelled pictures -> faces to train on: extraction (cached), validation of labels, leak-safe split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agewatch.errors import LabelError
from agewatch.estimator.images import RGB
from agewatch.estimator.model import read_splits
from agewatch.estimator.spec import Cut, Mode
from agewatch.labelled.extraction import Progress, extract
from agewatch.labelled.sources import Labelled
from agewatch.scoring.content import hash_key

SPLITS = {"train": 0.76, "validation": 0.06, "calibration": 0.09, "test": 0.09}
"""Shares of the faces. Validation chooses the epoch, calibration sets the intervals, test is only reported.

In this order: of the splits that a group of pictures had in earlier trainings, the first one here wins.
"""
OLDEST = 122
"""Longest documented human life in years (Robine & Allard, 1998); labels above are impossible."""
NEAR_DUPLICATE_BITS = 6
"""Faces whose 128-bit difference hashes differ in at most so many bits are kept in one split."""
NEAR_DUPLICATE_YEARS = 5
"""Ages of near-duplicates that lie further apart are pointed out: of one photograph, at most one can be right."""
_SPLIT_SALT = 0  # never the recipe's seed: a picture must stay in its split from one training to the next

Pairs = npt.NDArray[np.intp]
"""Places of pictures that belong together, shape (n, 2)."""


@dataclass(frozen=True)
class Faces:
    """Training data: one table row a labelled picture, and for row i with `reason` null the chip `chips[i]`.

    Table columns: source, path, age, sex, ethnicity, subject, mode, reason, content_hash, width, height, box_x, box_y,
    box_w, box_h, landmarks (x, y of five points), face_score, brightness, contrast, sharpness, difference_hash (32 hex
    digits), near_duplicate_ages_differ (ages within a group of near-duplicates lie more than NEAR_DUPLICATE_YEARS
    apart), group, split. `reason` says why a row was dropped: a refusal code, `no_face`, `impossible_age`,
    `conflicting_age` (equal bytes, different ages) or `duplicate`; group is -1 and split null there. chips: uint8
    (n, size, size, 3), a read-only memory map.
    """

    table: pd.DataFrame
    chips: RGB

    def rows(self, split: str) -> npt.NDArray[np.intp]:
        """Row numbers of a split."""
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def ages(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Labels of rows, years."""
        return self.table["age"].to_numpy(dtype=np.float32)[rows]

    def true(self, split: str) -> npt.NDArray[np.float32]:
        """Labels of a split, years."""
        return self.ages(self.rows(split))

    def modes(self, split: str) -> list[Mode]:
        """How the faces of a split were found."""
        modes: list[Mode] = self.table["mode"].iloc[self.rows(split)].to_list()
        return modes

    def batches(self, split: str) -> Iterator[RGB]:
        """The chips of a split in order, up to 64 at once."""
        rows = self.rows(split)
        return (self.chips[rows[start : start + 64]] for start in range(0, len(rows), 64))

    def counts(self, column: str) -> dict[str, int]:
        """How many rows have each value of a column, most first; rows without one are not counted."""
        return {str(value): int(n) for value, n in self.table[column].value_counts().items()}


def prepare(
    labelled: Sequence[Labelled],
    cut: Cut,
    *,
    workers: int,
    cache: Path,
    earlier: Mapping[int, str] = MappingProxyType({}),
    progress: Progress | None = None,
) -> Faces:
    """Extract faces, features and chips, drop what can't be trained on (with the reason), and split without leaks.

    What was extracted is kept below `cache` and used again while the pictures are the same, whatever their labels.
    `earlier` maps the `hash_key` of a picture's content to the split that it had in the training that this one starts
    from: it stays there, and so does what must not be parted from it. Raises LabelError where no face is left to train
    on, AgewatchError where the disk has no room for the chips.
    """
    extracted, chips = extract(labelled, cut, workers=workers, cache=cache, progress=progress)
    labels = [(i.source.name, i.file.path, i.age, i.sex, i.ethnicity, i.subject) for i in labelled]
    table = pd.DataFrame(labels, columns=["source", "path", "age", "sex", "ethnicity", "subject"]).join(extracted)
    drop_bad_labels(table)
    faces = Faces(table, chips)
    if not table["reason"].isna().any():
        raise LabelError(f"No face is left to train on: {faces.counts('reason')}.")
    _group(table)
    table["split"] = _split(table, earlier)
    require_no_leaks(table)
    return faces


def known_splits(model_path: Path) -> dict[int, str]:
    """The split of every picture that a model knows, by `hash_key`; empty for a model that does not say."""
    if (data := read_splits(model_path)) is None:
        return {}
    table = pq.read_table(pa.BufferReader(data))
    return dict(zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True))


def require_no_leaks(table: pd.DataFrame) -> None:
    """Raise LabelError where pictures lie in different splits that must not be parted.

    These are pictures of equal content_hash, of one group, and of one subject of one source. Rows without a split are
    used for nothing, and not looked at.
    """
    used = table[table["split"].notna()]
    for what, columns in (
        ("copies of one picture", ["content_hash"]),
        ("near-duplicates", ["group"]),
        ("pictures of one person", ["source", "subject"]),
    ):
        parted = used[used.groupby(columns)["split"].transform("nunique") > 1]
        if len(parted):
            example = parted.merge(parted[columns].head(1)).drop_duplicates("split").head(2)
            named = (example["source"] + "/" + example["path"] + " (" + example["split"] + ")").str.cat(sep=" and ")
            raise LabelError(f"The splits leak: {len(parted)} pictures have {what} in another split, such as {named}.")


def drop_bad_labels(table: pd.DataFrame) -> None:
    """Set `reason` for impossible ages, equal pictures with different ages, and repeated pictures.

    `table` has columns age, content_hash, and reason, which is null for pictures that are still in use.
    """
    table.loc[table["reason"].isna() & ~table["age"].between(0, OLDEST), "reason"] = "impossible_age"
    used = table[table["reason"].isna()]
    conflicting = used.groupby("content_hash")["age"].transform("nunique") > 1
    table.loc[used.index[conflicting], "reason"] = "conflicting_age"
    table.loc[used.index[~conflicting & used.duplicated("content_hash")], "reason"] = "duplicate"


def _group(table: pd.DataFrame) -> None:
    """Number the groups of pictures that must not be parted, and point out those of near-duplicates whose ages differ.

    A picture without a near-duplicate or another picture of its subject is a group of its own.
    """
    used = table[table["reason"].isna()]
    near = _near_duplicates(used["difference_hash"])
    ages = used["age"].groupby(_components(near, len(used)))
    differ = ages.transform("max") - ages.transform("min") > NEAR_DUPLICATE_YEARS
    table["near_duplicate_ages_differ"] = differ.reindex(table.index, fill_value=False)
    together = np.concatenate([near, _same_subjects(used)])
    table["group"] = pd.Series(_components(together, len(used)), used.index).reindex(table.index, fill_value=-1)


def _near_duplicates(difference_hashes: "pd.Series[str]") -> Pairs:
    """Pairs of places whose hashes differ in at most NEAR_DUPLICATE_BITS bits, enough of them to join all that do.

    Exact, without comparing all pairs: as at most 6 of 8 bands can differ, two bands of such hashes are equal. Takes
    0.03 s for 17,000 faces and 0.2 s for 100,000; all pairs would take 10 s and 6 minutes.
    """
    hashes = np.frombuffer(bytes.fromhex("".join(difference_hashes)), np.uint64).reshape(-1, 2)
    different, first, which = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    bands = different.view(np.uint16).astype(np.uint32)
    pairs = [np.stack([np.arange(len(hashes)), first[which.ravel()]], axis=1)]
    for one, other in combinations(range(bands.shape[1]), 2):
        key = bands[:, one] << 16 | bands[:, other]
        order = np.argsort(key)
        key = key[order]
        at, step = np.arange(len(key)), 0
        while len(at):  # the places in order whose key stands again `step` places on
            step += 1
            at = at[at + step < len(key)]
            at = at[key[at] == key[at + step]]
            left, right = order[at], order[at + step]
            near = np.bitwise_count(different[left] ^ different[right]).sum(axis=1) <= NEAR_DUPLICATE_BITS
            pairs.append(np.stack([first[left[near]], first[right[near]]], axis=1))
    return np.concatenate(pairs)


def _same_subjects(used: pd.DataFrame) -> Pairs:
    """Pairs of places: each picture of a subject, and the first one of that subject in that source."""
    places = pd.Series(np.arange(len(used)), used.index)
    first = places.groupby([used["source"], used["subject"]]).transform("first").dropna().astype(np.intp)
    return np.stack([places[first.index], first], axis=1)


def _components(pairs: Pairs, n: int) -> npt.NDArray[np.intp]:
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    found: npt.NDArray[np.intp] = connected_components(graph, directed=False)[1].astype(np.intp)
    return found


def _split(table: pd.DataFrame, earlier: Mapping[int, str]) -> list[str | None]:
    """Give whole groups to splits, stratified by source and decade, by a hash that does not depend on order.

    Groups with pictures known from earlier keep their split; the others get what the splits lack of their shares.
    """
    names = list(SPLITS)
    usable = table[table["reason"].isna()]
    number = {split: place for place, split in enumerate(names)}
    known = [number.get(earlier.get(hash_key(content), ""), np.nan) for content in usable["content_hash"]]
    groups = usable.assign(known=known).groupby("group").agg(
        key=("content_hash", "min"), source=("source", "min"), age=("age", "min"), pictures=("age", "size"),
        known=("known", "min"),
    )  # fmt: skip
    groups["rank"] = [blake2b(f"{_SPLIT_SALT}:{key}".encode()).hexdigest() for key in groups["key"]]
    split_of: dict[Any, int] = groups["known"].dropna().astype(int).to_dict()
    for _, stratum in groups.sort_values("rank").groupby(["source", groups["age"] // 10]):
        split_of |= _deal(stratum)
    return [names[split_of[group]] if group in split_of else None for group in table["group"]]


def _deal(stratum: pd.DataFrame) -> dict[int, int]:
    """Give the new groups of a stratum, in their order, to what its splits lack of their shares of its pictures."""
    new = stratum[stratum["known"].isna()]
    wanted = np.array(list(SPLITS.values())) * stratum["pictures"].sum()
    held = stratum.groupby("known")["pictures"].sum().reindex(range(len(SPLITS)), fill_value=0).to_numpy()
    lacking = (wanted - held).clip(min=0)
    # Each group stands at its middle on the line of all new pictures, which is stretched over what is lacking.
    middle = (new["pictures"].cumsum() - new["pictures"] / 2) / new["pictures"].sum() * lacking.sum()
    places = np.searchsorted(np.cumsum(lacking), middle.to_numpy()).clip(max=len(SPLITS) - 1)
    return dict(zip(new.index, places.tolist(), strict=True))
