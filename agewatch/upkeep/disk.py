"""Is there room on the disk for a night?"""

import os
import shutil
import tempfile
from pathlib import Path

from agewatch.errors import AgewatchError, TableError
from agewatch.scoring import predictions
from agewatch.settings import Settings

FLOOR_BYTES = 10**9
"""What a night may need beside its rows: a report, a converted network, the merging of small files, logs."""
FLOOR_SHARE = 0.05
"""Of a disk that is too small for that, this share: a small disk has a small archive."""
TEMPORARY_BYTES = 10**8
"""What Prefect and the libraries put into the system's temporary folder."""
ROWS_A_FILE = 4
"""Faces of a picture, on the safe side of most archives."""
ROW_BYTES = 400
"""At least, of a row on the disk: 134 were seen in commits of 16 files; errors and long paths take more."""
COPIES = 2
"""A row is written once more when small files are merged."""
_FILES = 1_000  # a disk may run out of these first


def room_for_a_night(settings: Settings, files: int = 0) -> None:
    """Raise AgewatchError where a night that reads so many files may fill the disk; its sentence names no path.

    What is needed is the files' rows, at the size that the table's have, and FLOOR_BYTES or FLOOR_SHARE of the disk,
    whichever is less. `files` 0 is a usual night, whose rows the floor covers: a million have some 0.4 GB. A quota of
    the user's is not seen. A table that can't be read is left for the night to tell.
    """
    home = existing(settings.home)
    total, _, free = shutil.disk_usage(home)
    need = min(FLOOR_BYTES, FLOOR_SHARE * total) + files * ROWS_A_FILE * COPIES * _row_bytes(settings.predictions)
    _require(free, need, "the disk that holds the rows and reports (AGEWATCH_HOME)")
    state = os.statvfs(home)
    if state.f_files and state.f_favail < _FILES:
        raise AgewatchError(
            f"The disk of AGEWATCH_HOME has room for {state.f_favail:,} more files, and a night may need {_FILES:,}:"
            " delete some, then run again."
        )
    temporary = Path(tempfile.gettempdir())
    if temporary.stat().st_dev != home.stat().st_dev:
        total, _, free = shutil.disk_usage(temporary)
        _require(free, min(TEMPORARY_BYTES, FLOOR_SHARE * total), "the disk of temporary files (TMPDIR)")


def _require(free: int, need: float, where: str) -> None:
    if free < need:
        raise AgewatchError(
            f"A night needs about {_size(need)} on {where}, where {_size(free)} are free. Nothing was"
            " begun; make room, and the next night makes up for this one."
        )


def _size(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _row_bytes(table: Path) -> float:
    """Bytes a row of the table, at least ROW_BYTES, as fuller files have smaller rows than a night's commits."""
    try:
        actions = predictions.open_table(table).get_add_actions(flatten=True)
    except TableError:
        return ROW_BYTES
    rows = sum(actions["num_records"].to_pylist()) if actions.num_rows else 0
    return max(ROW_BYTES, sum(actions["size_bytes"].to_pylist()) / rows) if rows else ROW_BYTES


def existing(folder: Path) -> Path:
    """A folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())
