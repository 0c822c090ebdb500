"""Checks of what agewatch keeps: room, locks, permissions, the table, the model, the archives of the schedule."""

import fcntl
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from agewatch.errors import AgewatchError, ModelError
from agewatch.estimator.model import AgeModel
from agewatch.nights import schedule
from agewatch.release import store
from agewatch.scoring import predictions
from agewatch.settings import Settings
from agewatch.sources.storage import url_of
from agewatch.upkeep.disk import existing, room_for_a_night
from agewatch.upkeep.finding import Finding

_MOST_LOOKED_AT = 50_000
_OTHERS = 0o077


def disk(settings: Settings) -> Iterator[Finding]:
    """Is there room for a night?"""
    try:
        room_for_a_night(settings)
    except AgewatchError as error:
        yield Finding("disk", "wrong", str(error), f"du -sh {_quoted(settings.home)}/*")
        return
    home = existing(settings.home)
    yield Finding("disk", "ok", f"{shutil.disk_usage(home).free / 1e9:,.1f} GB are free.")


def locks(settings: Settings) -> Iterator[Finding]:
    """Does the file system of the home keep locks, and rename in one step?"""
    home = existing(settings.home)
    if not os.access(home, os.W_OK | os.X_OK):
        return  # `permissions` tells
    with tempfile.TemporaryDirectory(dir=home, prefix=".doctor-") as folder:
        asked = {"locks (flock)": _locks, "renaming in one step": _renames}
        lacking = [what for what, has in asked.items() if not has(folder)]
    if lacking:
        told = f"The file system of AGEWATCH_HOME lacks {' and '.join(lacking)}, which nights need: use a local disk."
        yield Finding("locks", "wrong", told, "export AGEWATCH_HOME=/var/lib/agewatch")
    else:
        yield Finding("locks", "ok", "The file system keeps locks and renames in one step.")


def _locks(folder: str) -> bool:
    """Tell whether a lock keeps another one out."""
    file = Path(folder, "locked")
    with file.open("a") as held, file.open("a") as other:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _renames(folder: str) -> bool:
    """Tell whether a file takes another one's place."""
    file, aside = Path(folder, "file"), Path(folder, "aside")
    file.write_text("old")
    aside.write_text("new")
    try:
        aside.replace(file)
        return file.read_text() == "new"
    except OSError:
        return False


def permissions(settings: Settings) -> Iterator[Finding]:
    """May this user write to the home, and nobody else look into it?"""
    home, place = settings.home, _quoted(settings.home)
    if not home.is_dir():
        if os.access(existing(home), os.W_OK | os.X_OK):
            yield Finding("permissions", "ok", f"{home} is made when something is first written.")
        else:
            told = f"{home} is not there, and this user may not make it."
            yield Finding("permissions", "wrong", told, f"sudo install -d -m 700 -o $USER {place}")
        return
    if not os.access(home, os.W_OK | os.X_OK):
        yield Finding("permissions", "wrong", f"{home} can't be written by this user.", f"sudo chown -R $USER {place}")
        return
    mend = f"chmod -R go= {place}"
    if home.stat().st_mode & _OTHERS:
        yield Finding("permissions", "wrong", f"Others may look into {home}, which holds what is known of faces.", mend)
    elif loose := _loose(home):
        told = f"{loose:,} files or folders in {home} are not this user's alone, though nobody else gets to them there."
        yield Finding("permissions", "warn", told, mend)
    else:
        yield Finding("permissions", "ok", f"{home} is this user's alone.")


def table(settings: Settings) -> Iterator[Finding]:
    """Does the predictions table open, with all its files?"""
    folder = settings.predictions
    if not folder.exists():
        yield Finding("table", "ok", "There is no predictions table yet.", "agewatch score ARCHIVE")
        return
    held = predictions.open_table(folder)
    actions = held.get_add_actions()
    lost = sum(not (folder / name).is_file() for name in actions["path"].to_pylist())
    if lost:
        told = f"{lost:,} of the {actions.num_rows:,} files of the predictions table are missing."
        yield Finding("table", "wrong", told, "AGEWATCH_HOME=FOLDER agewatch restore FILE")
        return
    rows = sum(actions["num_records"].to_pylist())
    yield Finding("table", "ok", f"The predictions table opens: {rows:,} rows, version {held.version():,}.")


def model(settings: Settings) -> Iterator[Finding]:
    """Does the model open that is used from now on, and do the others of the store?"""
    try:
        used = AgeModel.load(store.resolve(None, settings.model_store)).id
        _, damaged = store.entries(settings.model_store)
    except ModelError as error:
        yield Finding("model", "wrong", str(error), "agewatch models rollback")
        return
    for file in damaged:
        told = f"{file.name} in the model store can't be opened; it is not used."
        yield Finding("model", "warn", told, f"rm {_quoted(file)}")
    yield Finding("model", "ok", f"{used} opens.")


def nights(_settings: Settings) -> Iterator[Finding]:
    """Are the folders there that `prefect.yaml` names, and can they be read?"""
    if not schedule.FILE.exists():
        told = f"There is no {schedule.FILE} here, so no nights are planned."
        yield Finding("schedule", "warn", told, "agewatch init ARCHIVE...")
        return
    for planned in schedule.read():
        if planned.flow == schedule.NIGHT:
            if url_of(planned.folder) is None and not Path(planned.folder).is_file():
                yield _folder(planned.archive, Path(planned.folder))
        else:
            sources = planned.parameters.get("sources") or ()
            on_disk = [str(source) for source in sources if not str(source).startswith("labels:")]
            for source in [source for source in on_disk if not os.access(source, os.R_OK)]:
                told = f"The labelled pictures {source} of {planned.deployment} are not there, or can't be read."
                yield Finding("schedule", "wrong", told, f"ls -ld {_quoted(Path(source))}")


def _folder(name: str, folder: Path) -> Finding:
    look, where = f"ls -ld {_quoted(folder)}", f"The folder of {name}, {folder},"
    if not folder.is_dir():
        return Finding("schedule", "wrong", f"{where} is not there: is a disk not mounted?", look)
    try:
        with os.scandir(folder) as entries:
            is_empty = next(entries, None) is None
    except OSError as error:
        return Finding("schedule", "wrong", f"{where} can't be listed: {error.strerror}.", look)
    if is_empty:
        return Finding("schedule", "warn", f"{where} is empty: is a disk not mounted?", look)
    return Finding("schedule", "ok", f"The folder of {name} is there.")


def _loose(home: Path) -> int:
    """How many files and folders others have rights to, among the first that are looked at; links have none."""
    loose = 0
    for path in islice(home.rglob("*"), _MOST_LOOKED_AT):
        try:
            mode = path.lstat().st_mode
        except OSError:  # gone meanwhile
            continue
        loose += bool(mode & _OTHERS) and not stat.S_ISLNK(mode)
    return loose


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
