"""Merging the small files that commits leave in a table, each row some six times in all, however large the table is."""

import shutil
from pathlib import Path
from typing import Any

from deltalake import CommitProperties, DeltaTable

from agewatch.errors import TableError
from agewatch.scoring.predictions import is_remote

COMMITS = 100
"""So many commits apart a table's small files are merged."""
LARGE_BYTES = 256 * 2**20
"""Files of a table that are not merged any more."""
_SMALL_BYTES = 4 * 2**20
_STEP = 10
_SPARE_BYTES = 2**20  # what a commit writes beyond its rows: footers, log, checkpoint


def due(version: int) -> int:
    """Files of fewer bytes than this are to be merged at a version of the table, 0 for none.

    Small ones at each hundredth, larger ones at each thousandth and so on: all of them each time would write a table
    of a million rows twenty times.
    """
    turns, below = version // COMMITS, _SMALL_BYTES
    if version % COMMITS or not turns:
        return 0
    while turns % _STEP == 0:
        turns //= _STEP
        below *= _STEP
    return min(below, LARGE_BYTES)


def merge(table: DeltaTable, folder: Path, below: int) -> dict[str, Any]:
    """Merge files of fewer bytes than this, and return delta-rs's own account of it.

    Who reads the table, or an older version of it, goes on, as the files stay until they are cleared away. Raises
    CommitFailedError where another run commits first, TableError where the disk has no room.
    """
    sizes = table.get_add_actions()["size_bytes"].to_pylist()
    require_room(folder, sum(size for size in sizes if size < below))
    return table.optimize.compact(
        target_size=below, max_concurrent_tasks=1, commit_properties=CommitProperties(max_commit_retries=0)
    )


def require_room(folder: Path, needed: int) -> None:
    """Raise TableError where the disk of a table has no room for so many bytes more."""
    # Asked first, as delta-rs, which meets a full disk on its way, prints a panic before it raises.
    if is_remote(folder):
        return
    needed += _SPARE_BYTES
    if (room := shutil.disk_usage(folder).free) < needed:
        raise TableError(
            f"The disk that holds {folder} is full: {room / 1e6:.1f} MB are free and the next commit may need"
            f" {needed / 1e6:.1f} MB. Rows committed before are kept; make room and run again."
        )
