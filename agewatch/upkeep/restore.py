"""A backup -> a home, whole or not at all.

Everything is written to a folder of its own in the home, checked against the manifest, and moved: model files first,
then the pointer, the ledger, and last the table, by which a home counts as restored. What a killed restore left is
cleared by the next one.
"""

import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from pydantic import ValidationError

from agewatch.errors import AgewatchError, UsageError
from agewatch.files import lock
from agewatch.release import store
from agewatch.release.store import POINTER_FILE
from agewatch.scoring import predictions
from agewatch.settings import Settings
from agewatch.sources.storage import url_of
from agewatch.upkeep.backup import (
    FORMAT,
    HEAD,
    LEDGER,
    MANIFEST,
    SCHEDULE,
    STORE,
    TABLE,
    TRAIN,
    Hashing,
    Head,
    Manifest,
    aside,
    sweep,
)

STAGE = ".restoring"
"""In a home: what is being restored, or what a killed restore left."""
_WHOLE = (HEAD, MANIFEST, LEDGER, SCHEDULE)
_BELOW = (f"{TABLE}/", f"{STORE}/", f"{TRAIN}/")
_SPARE_BYTES = 2**20
_ELSEWHERE = "Nothing is overwritten: set AGEWATCH_{} to another folder."


@dataclass(frozen=True)
class Restored:
    """What was restored: where to, from when (UTC), which archives, how many files; `notes` are for a person."""

    home: str
    made_at: str
    archives: list[str]
    files: int
    notes: list[str] = field(default_factory=list)


def restore(settings: Settings, file: Path, schedule: Path) -> Restored:
    """Make the home and model store of the settings, and the schedule, from what `backup` wrote.

    Raises UsageError where the file is no backup, or the home holds a table or the store another model of a name or a
    promotion that the backup does not know; AgewatchError where the backup is damaged or of a newer form, or can't be
    written here. Then nothing has changed but that model files of the backup may be in the store.
    """
    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    with _stage(settings.home) as stage:
        _require_unused(settings.home)
        try:
            head, manifest = _unpacked(file, stage)
            notes = _placed(settings, stage, manifest, schedule)
        except OSError as error:
            told = error.strerror or str(error)
            raise AgewatchError(f"The backup can't be restored to {settings.home}: {told}.") from error
    roots = predictions.archives(settings.predictions)
    for name, root in sorted(roots.items()):
        if url_of(root) is None and not Path(root).exists():
            notes.append(f"The archive '{name}' is not at {root}: run `agewatch archives move {name} FOLDER`.")
    return Restored(str(settings.home), head.made_at, sorted(roots), len(manifest.files), notes)


@contextmanager
def _stage(home: Path) -> Iterator[Path]:
    """An empty folder in a home, which is made where there is none; both go again where the body raises."""
    stage = home / STAGE
    try:
        is_new = not home.exists()
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        stage.mkdir(exist_ok=True, mode=0o700)
        held = lock(stage / ".lock", exclusive=True)
    except OSError as error:
        raise UsageError(f"{home} can't be a home: {error.strerror}.") from error
    content = stage / "content"
    try:
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir(mode=0o700)
        yield content
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if held is not None:
            held.close()
        if is_new:
            with suppress(OSError):  # holds what was restored
                home.rmdir()


def _require_unused(home: Path) -> None:
    table = home / TABLE
    if os.path.lexists(table) and not (table.is_dir() and not any(table.iterdir())):
        raise UsageError(f"{home} holds a predictions table already. {_ELSEWHERE.format('HOME')}")


def _unpacked(file: Path, stage: Path) -> tuple[Head, Manifest]:
    """Unpack a backup into an empty folder and check that it is whole and opens."""
    found: dict[str, tuple[int, str]] = {}
    texts: dict[str, bytes] = {}
    try:
        with tarfile.open(file, mode="r:") as tar:
            head = _head(tar, file)
            _require_room(file, stage)
            for member in tar:
                if member.name == MANIFEST:
                    texts[MANIFEST] = cast(BinaryIO, tar.extractfile(member)).read()
                elif member.name != HEAD:
                    found[member.name] = _extract(tar, member, stage, file)
    except tarfile.FilterError as error:
        raise UsageError(f"{file} is no backup that agewatch made: {error}.") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise AgewatchError(f"{file} is torn, or no backup ({error}). Nothing was restored.") from error
    try:
        manifest = Manifest.model_validate_json(texts.get(MANIFEST, b""))
    except ValidationError:
        raise AgewatchError(f"{file} is torn: its end is missing. Nothing was restored.") from None
    if manifest.files != found:
        wrong = sorted(name for name in manifest.files.keys() | found if manifest.files.get(name) != found.get(name))
        raise AgewatchError(f"{file} is damaged: {wrong[0]} is not what was backed up. Nothing was restored.")
    table = predictions.open_table(stage / TABLE)
    names = table.get_add_actions()["path"].to_pylist()
    if table.version() != manifest.table_version or not all((stage / TABLE / name).is_file() for name in names):
        raise AgewatchError(f"{file} is damaged: its table is not whole. Nothing was restored.")
    return head, manifest


def _head(tar: tarfile.TarFile, file: Path) -> Head:
    member = tar.next()
    content = tar.extractfile(member) if member is not None and member.name == HEAD else None
    try:
        head = Head.model_validate_json(content.read() if content else b"")
    except ValidationError:
        raise UsageError(f"{file} is no backup that agewatch made.") from None
    if head.format > FORMAT:
        raise AgewatchError(f"{file} was made by agewatch {head.agewatch}, which is newer: restore it with that.")
    return head


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, stage: Path, file: Path) -> tuple[int, str]:
    """Unpack one member that may be in a backup, privately; returns its size and hash."""
    tarfile.data_filter(member, str(stage))  # raises where it would lie outside
    if not (member.isreg() and (member.name in _WHOLE or member.name.startswith(_BELOW))):
        raise UsageError(f"{file} is no backup that agewatch made: it holds {member.name!r}.")
    target = stage / member.name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = Hashing(cast(BinaryIO, tar.extractfile(member)))
    target.touch(0o600, exist_ok=False)
    with target.open("wb") as written:
        shutil.copyfileobj(source, written, 2**20)
    os.utime(target, (member.mtime, member.mtime))  # the table's log is kept by it
    return target.stat().st_size, source.digest.hexdigest()


def _require_room(file: Path, stage: Path) -> None:
    need, free = file.stat().st_size + _SPARE_BYTES, shutil.disk_usage(stage).free
    if free < need:
        raise AgewatchError(
            f"The backup needs {need / 1e6:.0f} MB in {stage.parents[1]}, where {free / 1e6:.0f} MB are free."
            " Nothing was restored."
        )


def _placed(settings: Settings, stage: Path, manifest: Manifest, schedule: Path) -> list[str]:
    """Move what was unpacked to its places, the table last; returns notes. Raises UsageError before the first."""
    notes: list[str] = []
    _require_store_fits(settings.model_store, stage / STORE)
    ledger = settings.home / LEDGER
    if ledger.exists() and (stage / LEDGER).exists() and not _same(ledger, stage / LEDGER):
        raise UsageError(
            f"{ledger} holds nights already, and nothing is overwritten: set AGEWATCH_HOME to another folder."
        )
    os.sync()
    ours = sorted(name.removeprefix(f"{STORE}/") for name in manifest.files if name.startswith(f"{STORE}/"))
    for name in sorted(ours, key=lambda name: name == POINTER_FILE):
        target = settings.model_store / name
        if name == POINTER_FILE or not target.exists():
            _copy(stage / STORE / name, target)
        elif not _same(target, stage / STORE / name):
            notes.append(f"{target} is another than in the backup and was left as it is.")
    if (stage / SCHEDULE).exists():
        if not schedule.exists():
            _copy(stage / SCHEDULE, schedule)
        elif not _same(schedule, stage / SCHEDULE):
            notes.append(f"{schedule} is another than in the backup and was left as it is.")
    for run in sorted((stage / TRAIN).glob("*")):
        if not (settings.home / TRAIN / run.name).exists():
            (settings.home / TRAIN).mkdir(exist_ok=True, mode=0o700)
            run.rename(settings.home / TRAIN / run.name)
    if (stage / LEDGER).exists():
        ledger.parent.mkdir(exist_ok=True, mode=0o700)
        (stage / LEDGER).replace(ledger)
    (stage / TABLE).rename(settings.home / TABLE)
    return notes


def _require_store_fits(folder: Path, backed_up: Path) -> None:
    """Raise UsageError where a store holds another model of a name, or a promotion that the backup does not know."""
    for file in backed_up.glob("*.mar"):
        if (there := folder / file.name).exists() and not _same(there, file):
            told = f"{there} is another model than the backup's of this name."
            raise UsageError(f"{told} {_ELSEWHERE.format('MODEL_STORE')}")
    held, earlier, known = store.read_pointer(folder), store.read_pointer(backed_up), set()
    while earlier is not None:
        known.add(earlier.sha256)
        earlier = earlier.previous
    # One that replaced none is the starter's, which came with the checkout.
    if held is not None and held.previous is not None and held.sha256 not in known:
        told = f"In {folder} a model was promoted that the backup does not know, {held.model}."
        raise UsageError(f"{told} {_ELSEWHERE.format('MODEL_STORE')}")


def _same(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(2**20):
            if block != second.read(2**20):
                return False
    return True


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    with source.open("rb") as content, aside(target) as copy:
        shutil.copyfileobj(content, copy, 2**20)
