"""Training runs: the newest are kept whole, of those that a model came from the records, of the others nothing."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from agewatch.errors import ModelError
from agewatch.estimator.mar import read
from agewatch.upkeep.backup import record_files
from agewatch.upkeep.clearing import Cleared, age, folders

WHOLE = 2
"""The newest runs, 261 MB each with their checkpoints: one to package or look into, and the one before."""
UNFINISHED = timedelta(days=7)
"""A run that was interrupted may be continued so long after it last wrote."""
AT_WORK = timedelta(days=1)
"""Whatever wrote so lately may be at work still, or about to be packaged."""

Origin = tuple[str, str]
"""What a model came from: the hash of its training data, and all that was measured of it."""


def clear_runs(train: Path, store: Path, now: datetime) -> Cleared:
    """Delete what is large of runs that a model of the store came from, and the others, but for the newest.

    Raises ModelError where a model of the store can't be read, and OSError.
    """
    cleared = Cleared()
    cleared.left(train)
    known = _origins(store)
    runs = sorted(filter(_is_run, folders(train)), key=lambda run: (run / "config.json").stat().st_mtime)
    for run in runs[:-WHOLE]:
        quiet = min((age(path, now) for path in (run, *run.rglob("*"))), default=timedelta(0))
        origin = (
            _origin((run / "model" / "model.json").read_bytes()) if (run / "model" / "model.json").exists() else None
        )
        if known is None or quiet <= (AT_WORK if origin else UNFINISHED):
            continue
        if origin in known:
            _shorten(run, cleared)
        else:
            cleared.folder(run)
    return cleared


def _shorten(run: Path, cleared: Cleared) -> None:
    """Delete all of a run but its small records."""
    kept = set(record_files(run))
    for path in sorted(run.rglob("*"), reverse=True):
        if path.is_symlink() or path.is_file():
            if path not in kept:
                cleared.file(path)
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _is_run(folder: Path) -> bool:
    """Tell whether a folder is one that `train` made, by its configuration."""
    try:
        content = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"config", "data_hash", "members"} <= content.keys()


def _origins(store: Path) -> set[Origin | None]:
    """What the models of a store came from. Raises ModelError where one can't be read, as its run is not known then."""
    found: set[Origin | None] = set()
    for file in store.glob("*.mar"):
        if (origin := _origin(read(file, "model.json"))) is None:
            raise ModelError(f"The model {file} can't be read: its model.json is damaged.")
        found.add(origin)
    return found


def _origin(model_json: bytes) -> Origin | None:
    """None where it can't be read."""
    try:
        content: dict[str, Any] = json.loads(model_json)
        measured = {name: value for name, value in content["metrics"].items() if name != "recalibrated"}
        return content["data_hash"], json.dumps(measured, sort_keys=True)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
