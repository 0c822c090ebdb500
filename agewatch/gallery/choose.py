"""Rows of the table -> what a gallery shows, in its order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from agewatch.errors import TableError, UsageError
from agewatch.scoring import predictions
from agewatch.scoring.archives import meant
from agewatch.scoring.predictions import Key, Rows

Sort = Literal["age", "uncertainty", "size", "newest", "difference"]
"""Youngest, widest interval, largest box, latest arrival or largest difference between two models first."""
MOST_FACES = 10_000
"""Faces of one gallery: what a browser shows at once without a wait."""
MOST_OTHERS = 2_000
"""Files without a face, and refused ones, of one gallery."""
COLUMNS = (
    "path", "face", "status", "error", "content_hash", "bytes", "width", "height", "box_x", "box_y", "box_w", "box_h",
    "face_score", "age", "age_low", "age_high", "model", "arrived_at", "scored_at",
)  # fmt: skip
_SAME = ["path", "content_hash", "face"]
_BOX = ["box_x", "box_y", "box_w", "box_h"]
_AGES = ["age", "age_low", "age_high"]
_OVERLAP = 0.5
"""Boxes of two models that share less of their union are of two faces."""


@dataclass(frozen=True)
class Chosen:
    """The rows that are shown, faces first, and of how many faces, files without a face and refused files.

    Each row has COLUMNS; compared with another model, also its ages, as `other_age` and so on.
    """

    rows: Rows
    faces: int
    faceless: int
    refused: int
    sort: Sort

    @property
    def faces_shown(self) -> int:
        """So many of the rows are faces."""
        return sum(row["status"] == "ok" for row in self.rows)


def keys_of(table: Path, archive: str | None, model: str | None, other: str | None = None) -> list[Key]:
    """The rows that a gallery shows: of a model id, of all the archive's models where that is None, and of another.

    Of each the mode scored last; of `other`, that of the first. Raises UsageError where the table has no such archive
    or other model, TableError where the first has no rows.
    """
    archive = meant(table, archive)
    known = sorted(pc.unique(predictions.read(table, pc.field("archive") == archive, ["model"])["model"]).to_pylist())
    if other is not None and other not in known:
        raise UsageError(f"'{archive}' has no rows of the model {other} to compare with; it has {', '.join(known)}.")
    keys = []
    for name in known if model is None else [model]:
        mode = predictions.latest_mode(table, archive=archive, model=name)
        if mode is None:
            raise TableError(f"'{archive}' has no rows of the model {name} yet: run `agewatch score` first.")
        keys.append(Key(archive, name, mode))
    return keys if other is None else [*keys, Key(archive, other, keys[0].mode)]


def choose(rows: pa.Table, sort: Sort, *, other: pa.Table | None = None) -> Chosen:
    """Choose from rows of COLUMNS the first by `sort`, at most MOST_FACES faces and MOST_OTHERS other files.

    With `other`, the rows of a second model, only faces are shown that both found. Raises TableError where nothing is
    left to show.
    """
    is_face = pc.equal(rows["status"], "ok")
    faces, rest = rows.filter(is_face), rows.filter(pc.invert(is_face))
    if other is not None:
        faces, rest = _both(faces, other.filter(pc.equal(other["status"], "ok"))), rest.slice(0, 0)
    if not len(faces) + len(rest):
        raise TableError("There is nothing to show: no row of the table is meant.")
    faceless = pc.sum(pc.equal(rest["status"], "no_face")).as_py() or 0
    shown = _first(faces, sort, MOST_FACES) + _first(rest, "newest", MOST_OTHERS)
    return Chosen(shown, len(faces), faceless, len(rest) - faceless, sort)


def _first(rows: pa.Table, sort: Sort, most: int) -> Rows:
    """The first rows by what is sorted by, and of equal ones by path."""
    by = {
        "age": lambda: rows["age"],
        "uncertainty": lambda: pc.subtract(rows["age_low"], rows["age_high"]),
        "size": lambda: pc.negate(rows["box_h"]),
        "newest": lambda: pc.negate(pc.cast(pc.coalesce(rows["arrived_at"], rows["scored_at"]), pa.int64())),
        "difference": lambda: pc.negate(pc.abs(pc.subtract(rows["other_age"], rows["age"]))),
    }[sort]()
    keyed = rows.append_column("by", by)
    order = pc.sort_indices(keyed, [("by", "ascending"), ("path", "ascending"), ("face", "ascending")])
    found: Rows = rows.take(order[:most]).to_pylist()
    return found


def _both(faces: pa.Table, other: pa.Table) -> pa.Table:
    """Faces that two models' rows tell of, by their file, content and place."""
    theirs = other.select([*_SAME, *_BOX, *_AGES]).to_pandas()
    both = faces.to_pandas().merge(theirs.rename(columns={name: f"other_{name}" for name in [*_BOX, *_AGES]}), on=_SAME)
    ours, theirs_too = both[_BOX].to_numpy(), both[[f"other_{name}" for name in _BOX]].to_numpy()
    low = np.maximum(ours[:, :2], theirs_too[:, :2])
    high = np.minimum(ours[:, :2] + ours[:, 2:], theirs_too[:, :2] + theirs_too[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    union = ours[:, 2:].prod(axis=1) + theirs_too[:, 2:].prod(axis=1) - shared
    kept = both[shared > _OVERLAP * union].drop(columns=[f"other_{name}" for name in _BOX])
    return pa.Table.from_pandas(kept, preserve_index=False)


def where_status(statuses: Sequence[str], with_gone: bool) -> ds.Expression:
    """The condition that keeps some statuses, or all, and files that are gone only where asked for."""
    kept = pc.field("status").isin(list(statuses)) if statuses else ds.scalar(True)
    return kept if with_gone else kept & pc.field("gone_at").is_null()
