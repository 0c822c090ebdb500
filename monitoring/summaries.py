"""What arrived, night by night: sums of every measure by folder and capture day, enough for every test.

They are computed once for each data file of the predictions table, which never changes once it is written, and kept
beside the table as a cache: deleted, it comes back equal.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from agewatch.errors import REFUSAL_CODES, TableError
from agewatch.files import replacing
from agewatch.scoring import predictions
from agewatch.scoring.beside import SUMMARIES, folder_of
from agewatch.scoring.predictions import Key, open_table, plain
from monitoring.evidence import Floats

MEASURES = ("age", "age_interval", "face_score", "brightness", "contrast", "sharpness")
"""What is known of a face. Sharpness counts in doublings (base-2 logarithms): it spans three orders of magnitude."""
AGE_EDGES = tuple(range(10, 85, 5))
"""Years; of each night it is known how many faces are estimated to be younger."""
SIZE_EDGES = (64, 128, 256)
"""Pixels; of each band of face heights between them it is known how many faces there are, and the sum of their ages."""
CELL = ("night", "folder", "day", "camera")
"""What a sum is of: the UTC date of arrival, the folder, and where known the UTC date of capture and the camera."""
_FENCES = {"age": (0.0, 120.0), "age_interval": (0.0, 120.0), "sharpness": (2.0**-20, 2.0**6)}
_ANY_FENCE = (0.0, 1.0)
_WHOSE = ("model", "mode")
_BANDS = range(len(SIZE_EDGES) + 1)
_COUNTS = (
    "files", "refused", *REFUSAL_CODES, "no_face", "faces",
    *(f"under_{edge}" for edge in AGE_EDGES), *(f"size_{band}_n" for band in _BANDS),
)  # fmt: skip
_SUMS = (
    *(f"{name}_{what}" for name in MEASURES for what in ("n", "sum", "squares")),
    *(f"size_{band}_sum" for band in _BANDS),
)
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("file", *_WHOSE)),
        ("night", pa.date32()), ("folder", pa.string()), ("day", pa.date32()), ("camera", pa.string()),
        *((name, pa.int32()) for name in _COUNTS),
        *((name, pa.float64()) for name in _SUMS),
    ]
)  # fmt: skip
_BATCH_ROWS = 131_072
COLUMNS = (
    "path", "face", "status", "model", "mode", "scored_at", "arrived_at", "captured_at",
    "age", "age_low", "age_high", "face_score", "brightness", "contrast", "sharpness", "box_h", "camera",
)  # fmt: skip
"""Columns of the predictions table that are summed up."""
BOX = ("box_x", "box_y", "box_w", "box_h")
"""Those of a face's box, of which only the height is summed up."""


def read(table: Path, key: Key) -> pd.DataFrame:
    """The sums of an archive, model and mode: one row a cell (CELL), with counts of files and faces, and for each
    measure `NAME_n`, `NAME_sum` and `NAME_squares` over the faces that have it. Values beyond what a measure can be
    count as its limit.

    Raises TableError where the table can't be read. A cache that can't be read or written is done without.
    """
    cache, wanted = folder_of(table, key.archive) / SUMMARIES, _data_files(table, key.archive)
    ours = _cached(cache, wanted, key)
    return _together(_renewed(table, key, cache, wanted) if ours is None else ours)


def _renewed(table: Path, key: Key, cache: Path, wanted: set[str]) -> pa.Table:
    """Sum up the data files that the cache lacks, and forget those that the table no longer has."""
    known = _all_cached(cache)
    held = set(pc.unique(known["file"]).to_pylist())
    fresh = [_of_file(sums, name) for name in sorted(wanted - held) for sums in _sums(table, name, key)]
    every = pa.concat_tables([known.filter(pc.is_in(known["file"], pa.array(sorted(wanted), pa.string()))), *fresh])
    _keep(cache, every)
    return every.filter((pc.field("model") == key.model) & (pc.field("mode") == key.mode))


def of_rows(rows: pa.Table) -> pd.DataFrame:
    """The sums of rows of the predictions table that belong together, as `read` gives them."""
    return _together(_summed(rows))


def values(rows: pa.Table) -> dict[str, Floats]:
    """The measures of faces in rows of the predictions table, each of shape (rows,), NaN where a row has none.

    A measure that no row has is left out.
    """
    ok = pc.equal(rows["status"], "ok")
    found = {name: pc.cast(_values(name, rows, ok), pa.float64()).to_numpy() for name in MEASURES}
    return {name: some for name, some in found.items() if np.isfinite(some).any()}


def _together(sums: pa.Table) -> pd.DataFrame:
    """Sums of one model and mode as one row a cell, sorted; Arrow holds half of what pandas would on the way."""
    columns = _grouped(sums, CELL).sort_by([(name, "ascending") for name in CELL]).columns
    del sums
    for place, name in enumerate((*CELL, *_COUNTS)):
        if name in _COUNTS:  # in place, and in 32 bits: there are many cells, and none has two thousand million files
            columns[place] = columns[place].cast(pa.int32())
    grouped = pa.table(columns, names=[*CELL, *_COUNTS, *_SUMS])
    del columns
    together: pd.DataFrame = grouped.to_pandas(date_as_object=False, use_threads=False, self_destruct=True)
    return together


def _grouped(rows: pa.Table, by: Sequence[str]) -> pa.Table:
    wanted = rows.select([*by, *_COUNTS, *_SUMS])
    sums = wanted.group_by(list(by), use_threads=False).aggregate([(name, "sum") for name in (*_COUNTS, *_SUMS)])
    return sums.select([*by, *(f"{name}_sum" for name in (*_COUNTS, *_SUMS))]).rename_columns([*by, *_COUNTS, *_SUMS])


def _data_files(table: Path, archive: str) -> set[str]:
    """The table's files that may hold rows of an archive, by their own statistics."""
    actions = open_table(table).get_add_actions(flatten=True)
    if not actions.num_rows:
        return set()
    columns = [actions[name].to_pylist() for name in ("path", "min.archive", "max.archive")]
    return {
        name for name, least, most in zip(*columns, strict=True) if None in (least, most) or least <= archive <= most
    }


def _sums(table: Path, name: str, key: Key) -> Iterator[pa.Table]:
    files = predictions.file_system(table)
    source = ds.dataset([name], schema=predictions.SCHEMA, format="parquet", filesystem=files)
    try:
        for batch in source.to_batches(
            columns=list(COLUMNS), filter=pc.field("archive") == key.archive, batch_size=_BATCH_ROWS, use_threads=False
        ):
            if len(batch):
                yield _summed(pa.Table.from_batches([batch]))
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"The predictions table can't be read: {plain(error)}.") from error


def _summed(rows: pa.Table) -> pa.Table:
    status = rows["status"]
    ok, faceless = pc.equal(status, "ok"), pc.equal(status, "no_face")
    first = pc.fill_null(pc.equal(rows["face"], 0), True)  # of a file's rows
    columns = {
        "model": rows["model"],
        "mode": rows["mode"],
        "night": pc.cast(pc.coalesce(rows["arrived_at"], rows["scored_at"]), pa.date32()),
        "folder": pc.replace_substring_regex(rows["path"], "/?[^/]*$", ""),
        "day": pc.cast(rows["captured_at"], pa.date32()),
        "camera": pc.fill_null(rows["camera"], ""),
        "files": first,
        "refused": pc.invert(pc.or_(ok, faceless)),
        **{code: pc.equal(status, code) for code in REFUSAL_CODES},
        "no_face": faceless,
        "faces": ok,
    }
    for name in MEASURES:
        columns |= _moments(name, _values(name, rows, ok))
    age = _values("age", rows, ok)
    columns |= {f"under_{edge}": pc.fill_null(pc.less(age, edge), False) for edge in AGE_EDGES}
    columns |= _by_size(rows["box_h"], age)
    known = {name: columns[name] for name in (*_WHOSE, *CELL)}
    counted = {name: pc.cast(columns[name], pa.int32()) for name in _COUNTS}
    # A sum of no value at all is 0.
    summed = {name: pc.fill_null(pc.cast(columns[name], pa.float64()), 0.0) for name in _SUMS}
    return _grouped(pa.table({**known, **counted, **summed}), (*_WHOSE, *CELL))


def _by_size(height: pa.ChunkedArray, age: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    found: dict[str, pa.ChunkedArray] = {}
    known = pc.is_valid(age)
    for band, (low, high) in enumerate(zip((0, *SIZE_EDGES), (*SIZE_EDGES, float("inf")), strict=True)):
        within = pc.fill_null(pc.and_(pc.greater_equal(height, low), pc.less(height, high)), False)
        counts = pc.and_(within, known)
        found |= {f"size_{band}_n": counts, f"size_{band}_sum": pc.if_else(counts, age, None)}
    return found


def _values(name: str, rows: pa.Table, ok: pa.ChunkedArray) -> pa.ChunkedArray:
    """A measure of the faces, null in other rows and where it is no number, within its limits."""
    if name == "age_interval":
        raw = pc.subtract(pc.cast(rows["age_high"], pa.float64()), pc.cast(rows["age_low"], pa.float64()))
    else:
        raw = pc.cast(rows[name], pa.float64())
    low, high = _FENCES.get(name, _ANY_FENCE)
    within = pc.max_element_wise(pc.min_element_wise(raw, high, skip_nulls=False), low, skip_nulls=False)
    kept = pc.if_else(pc.and_(ok, pc.fill_null(pc.invert(pc.is_nan(raw)), False)), within, None)
    return pc.log2(kept) if name == "sharpness" else kept


def _moments(name: str, values: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    return {
        f"{name}_n": pc.is_valid(values),
        f"{name}_sum": values,
        f"{name}_squares": pc.multiply(values, values),
    }


def _of_file(sums: pa.Table, name: str) -> pa.Table:
    return sums.add_column(0, "file", pa.array([name] * len(sums), pa.string())).cast(_SCHEMA)


def _cached(cache: Path, wanted: set[str], key: Key) -> pa.Table | None:
    """The sums of some rows where the cache is of just these data files, else None."""
    try:
        if not pq.read_schema(cache).equals(_SCHEMA):
            return None  # of an earlier agewatch
        if set(pc.unique(pq.read_table(cache, columns=["file"], use_threads=False)["file"]).to_pylist()) != wanted:
            return None
        ours = [("model", "=", key.model), ("mode", "=", key.mode)]
        return pq.read_table(cache, columns=[*CELL, *_COUNTS, *_SUMS], filters=ours, use_threads=False)
    except (OSError, pa.ArrowException):
        return None


def _all_cached(cache: Path) -> pa.Table:
    try:
        found = pq.read_table(cache, use_threads=False)
    except (OSError, pa.ArrowException):
        return _SCHEMA.empty_table()
    return found if found.schema.equals(_SCHEMA) else _SCHEMA.empty_table()


def _keep(cache: Path, sums: pa.Table) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(cache) as aside:
            pq.write_table(sums, aside)
            aside.chmod(0o600)
    except OSError:
        return  # another night tries again
