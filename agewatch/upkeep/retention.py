"""What is cleared away after a while, and what never is.

Every limit stands here, but the table's (`table`). Pictures, labels, canaries, models and current rows are never
touched, nor is anything that is not known to be ours by its name and what it holds. The table's log is cleared by
delta-rs itself, at each hundredth commit, of what is older than 30 days.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from agewatch.errors import AgewatchError, TableError
from agewatch.files import lock
from agewatch.nights.ledger import Ledger
from agewatch.release import store
from agewatch.scoring import predictions
from agewatch.scoring.beside import FOLDER, SUMMARIES, name_of
from agewatch.settings import Settings
from agewatch.upkeep.clearing import Cleared, age, folders
from agewatch.upkeep.restore import STAGE
from agewatch.upkeep.table import clear_versions
from agewatch.upkeep.training_runs import clear_runs

REPORTS = 90
"""Reports of an archive that are kept whole: a quarter of nights, some 4 MB each, and 0.2 MB of each in Evidently's
workspace. Older ones stay only where a drift began, as that is what one comes back to, or where a person put a file
named `keep` beside them."""
NETWORKS = timedelta(days=30)
"""A converted network of a model that the store does not hold; it is made again in seconds when it is wanted."""
CHIPS = timedelta(days=7)
"""Faces cut out for a training, gigabytes; one that was interrupted so long ago cuts them again."""
LEFT_BEHIND = timedelta(days=1)
"""What a killed process left half made."""
LOG_BYTES = 5 * 2**20
"""A log that is larger keeps so much of its end as NAME.1 and begins anew."""
SERVER_LOGS = timedelta(days=30)
"""Logs of a TorchServe that has ended."""
LEDGER = timedelta(days=3 * 365)
"""Rows of nights: some 300 bytes each, so that a year can be laid beside the year before."""
KEEP = "keep"
"""A report that holds a file of this name is never cleared away."""

_RUN = re.compile(r"\d{8}T\d{6}\.\d{6}Z")
_NETWORK = re.compile(r"([0-9a-f]{12})-openvino-.+")


@dataclass
class Tidied:
    """What went, by kind; `problems` are sentences, without paths, about what could not be cleared away."""

    reports: Cleared = field(default_factory=Cleared)
    versions: Cleared = field(default_factory=Cleared)
    training: Cleared = field(default_factory=Cleared)
    caches: Cleared = field(default_factory=Cleared)
    logs: Cleared = field(default_factory=Cleared)
    nights: Cleared = field(default_factory=Cleared)
    problems: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """All together."""
        return sum(kind.bytes for kind in vars(self).values() if isinstance(kind, Cleared))


def tidy(settings: Settings, now: datetime) -> Tidied:
    """Clear away what is older, or more, than the limits of this file, and say what went.

    Nights may run meanwhile. Where another tidying runs, nothing is done. Raises nothing that a night could fail by:
    what one part can't clear away is told in `problems`, and the others go on.
    """
    tidied = Tidied()
    if not settings.home.is_dir():
        return tidied
    try:
        held = lock(settings.home / ".tidy-lock", exclusive=True)
    except TableError:
        return tidied
    parts: dict[str, tuple[str, Callable[[], Cleared]]] = {
        "reports": ("reports", lambda: _reports(settings.reports, settings.evidently)),
        "versions": ("versions of the table", lambda: clear_versions(settings.predictions, now)),
        "training": ("training runs", lambda: clear_runs(settings.home / "train", settings.model_store, now)),
        "caches": ("caches", lambda: _caches(settings, now)),
        "logs": ("logs", lambda: _logs(settings.home, now)),
        "nights": ("rows of nights", lambda: _nights(settings.home, now)),
    }
    try:
        for name, (words, part) in parts.items():
            try:
                setattr(tidied, name, part())
            except Exception as error:  # whatever it is, the night's work is done and the other parts go on
                tidied.problems.append(f"Old {words} could not be cleared away ({type(error).__name__}).")
    finally:
        if held is not None:
            held.close()
    return tidied


def _reports(folder: Path, workspace: Path) -> Cleared:
    """Delete reports beyond the newest REPORTS of each archive but those in which a drift began.

    Of Evidently's snapshots of an archive as many stay; they are named by UUIDs of version 7, which sort by time.
    """
    cleared = Cleared()
    for archive in folders(folder):
        cleared.left(archive)
        runs = [run for run in folders(archive) if _RUN.fullmatch(run.name) and (run / "drift.json").is_file()]
        drifted = False
        for run in runs:  # the oldest first, by their names
            was, drifted = drifted, _says_drift(run)
            # Noted, as the report before it may be gone when the next tidying comes.
            if drifted and not was and not (run / KEEP).exists():
                (run / KEEP).touch()
        for run in runs[:-REPORTS]:
            if not (run / KEEP).exists():
                cleared.folder(run)
    for project in folders(workspace):
        for snapshot in sorted((project / "snapshots").glob("*.json"))[:-REPORTS]:
            cleared.file(snapshot)
    return cleared


def _says_drift(run: Path) -> bool:
    try:
        content = json.loads((run / "drift.json").read_bytes())
        return bool(content["verdict"] == "drift")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _caches(settings: Settings, now: datetime) -> Cleared:
    """Delete converted networks of models that are in no store, cut faces, and sums of archives that are gone."""
    cleared = Cleared()
    cleared.left(settings.cache)
    known = _model_hashes(settings)
    if age(settings.home / STAGE, now) > LEFT_BEHIND:
        cleared.folder(settings.home / STAGE)
    for folder in folders(settings.cache):
        unused, network = age(folder, now), _NETWORK.fullmatch(folder.name)
        is_old = (
            (network and known is not None and network[1] not in known and unused > NETWORKS)
            or (folder.name.startswith(("chips-", "building-")) and unused > CHIPS)
            or (folder.name.startswith(".converting-") and unused > LEFT_BEHIND)
        )
        if is_old:
            cleared.folder(folder)
    with suppress(TableError):
        names = {name_of(name) for name in predictions.archives(settings.predictions)}
        for folder in folders(settings.predictions / FOLDER):
            if folder.name not in names:
                cleared.file(folder / SUMMARIES)
    return cleared


def _model_hashes(settings: Settings) -> set[str] | None:
    """Hashes of the models in the store, and of the one in use; None where a model can't be read."""
    try:
        found, damaged = store.entries(settings.model_store)
        in_use = store.entries(store.resolve(None, settings.model_store).parent)[0]
    except AgewatchError:
        return None
    return None if damaged else {entry.model.rpartition("@")[2] for entry in (*found, *in_use)}


def _logs(home: Path, now: datetime) -> Cleared:
    """Shorten long logs, also of processes that write to them: these append, so they go on at the new beginning."""
    cleared = Cleared()
    for log in (home / "error.log", *(home / "nights" / "logs").glob("*.log")):
        with suppress(FileNotFoundError):
            if (size := log.stat().st_size) > LOG_BYTES:
                older = log.with_name(f"{log.name}.1")
                before = older.stat().st_size if older.exists() else 0
                with log.open("rb") as source, older.open("wb") as end:
                    source.seek(-LOG_BYTES, os.SEEK_END)
                    shutil.copyfileobj(source, end)
                os.truncate(log, 0)
                cleared.n += 1
                cleared.bytes += max(0, size + before - older.stat().st_size)
    for folder in (home / "serve").glob("*/logs.previous"):
        if age(folder, now) > SERVER_LOGS:
            cleared.folder(folder)
    return cleared


def _nights(home: Path, now: datetime) -> Cleared:
    """Delete rows of the ledger that are older than LEDGER; a home without nights gets no ledger by this."""
    return Cleared(Ledger(home).forget(now - LEDGER)) if (home / "nights").is_dir() else Cleared()
