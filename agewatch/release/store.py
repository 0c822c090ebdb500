"""The model store: a folder of `agewatch-VERSION.mar` files and the pointer to the current one."""

import dataclasses
import getpass
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as record

from agewatch.errors import ModelError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.files import now, write_json

POINTER_FILE = "current.json"


@record(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Pointer:
    """What `current.json` holds; `previous` is the whole pointer it replaced, so roll backs can repeat.

    `by` is who made the model current, and `forced` whether against the gate; `rolled_back` is the model that a roll
    back to this one left.
    """

    file: str
    model: str
    sha256: str
    promoted_at: str
    previous: "Pointer | None" = None
    by: str | None = None
    forced: bool = False
    rolled_back: str | None = None


_POINTER = TypeAdapter(Pointer)


@dataclass(frozen=True)
class Entry:
    """A model file of a store: its path, the model's id, its size in bytes, and whether it is the current."""

    file: Path
    model: str
    bytes: int
    current: bool


def entries(store: Path) -> tuple[list[Entry], dict[Path, str]]:
    """List the models of a store, oldest version first, and say of each file that can't be opened why.

    Raises ModelError where `current.json` is damaged.
    """
    pointer = read_pointer(store)
    current = pointer.file if pointer else None
    found: list[Entry] = []
    damaged: dict[Path, str] = {}
    for file in _files(store):
        try:
            found.append(Entry(file, AgeModel.load(file).id, file.stat().st_size, file.name == current))
        except ModelError as error:
            damaged[file] = str(error)
    return found, damaged


def next_version(store: Path) -> str:
    """Return the next whole number that no version of the store has reached; "1" for an empty store."""
    numbers = [int(version) for version in map(_version, _files(store)) if version.isdecimal()]
    return str(max(numbers, default=0) + 1)


def resolve(model: Path | None, store: Path) -> Path:
    """Find the model file to use: the given one, else the store's current one, else the starter model.

    Raises UsageError where the given file is missing, ModelError where the current one is missing or is not the one
    that was promoted.
    """
    if model is not None:
        if not model.exists():
            raise UsageError(f"There is no model at {model}.")
        return model
    return current(store) or _starter()


def current(store: Path) -> Path | None:
    """Return the store's current model file, None where none was promoted.

    Raises ModelError where that file is missing or has changed since.
    """
    pointer = read_pointer(store)
    return None if pointer is None else _checked(store, pointer)


def promote(store: Path, file: Path, *, by: str | None = None, forced: bool = False) -> Pointer:
    """Make a model of the store the current one; one that is current already stays so, with its history.

    `by` says who does it, by default the user of this process. Raises UsageError where the file is not in the store,
    ModelError where it is no model.
    """
    require_inside(store, file)
    before = read_pointer(store)
    digest = sha256(file)
    if before is not None and (before.file, before.sha256) == (file.name, digest):
        return before
    pointer = Pointer(file.name, AgeModel.load(file).id, digest, now(), before, by or user(), forced)
    write_json(store / POINTER_FILE, dataclasses.asdict(pointer))
    return pointer


def require_inside(store: Path, file: Path) -> None:
    """Raise UsageError where a file is not in the store."""
    if file.resolve().parent != store.resolve() or not file.is_file():
        raise UsageError(f"{file} is not in the model store {store}.")


def rollback(store: Path) -> Pointer:
    """Make the model current that was so before the last promotion.

    Raises UsageError where there is none, ModelError where its file is missing or has changed.
    """
    pointer = read_pointer(store)
    if pointer is None or pointer.previous is None:
        raise UsageError(f"The model store {store} has no earlier model to roll back to.")
    _checked(store, pointer.previous)
    back = dataclasses.replace(pointer.previous, promoted_at=now(), by=user(), rolled_back=pointer.model)
    write_json(store / POINTER_FILE, dataclasses.asdict(back))
    return back


def read_pointer(store: Path) -> Pointer | None:
    """Read `current.json`, None where there is none. Raises ModelError where it is damaged."""
    file = store / POINTER_FILE
    try:
        return _POINTER.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's is a ValueError
        raise ModelError(f"{file} can't be read: {error!r}.") from error


def _checked(store: Path, pointer: Pointer) -> Path:
    file = store / pointer.file
    if not file.is_file():
        raise ModelError(f"The promoted model {file} is missing.")
    if sha256(file) != pointer.sha256:
        raise ModelError(f"The file {file} is not the model that was promoted (its SHA-256 differs).")
    return file


def carried_stores() -> tuple[Path, Path]:
    """Where a starter model may have come with this code: in the wheel, and in a checkout."""
    code = Path(__file__).parents[1]
    return code / "starter", code.parent / "model_store"


def _starter() -> Path:
    """The starter that the wheel carries as a store of its own; a checkout's own store stands in for it."""
    for carried in carried_stores():
        found = current(carried) or next(iter(_files(carried)), None)
        if found is not None:
            return found
    raise ModelError("There is no model yet: train and package one, or name one with --model.")


def _files(store: Path) -> list[Path]:
    """The models of a store: versions that are numbers by their number, then the others by name."""

    def order(file: Path) -> tuple[float, str]:
        version = _version(file)
        return (int(version) if version.isdecimal() else math.inf, version)

    return sorted(store.glob("agewatch-*.mar"), key=order)


def _version(file: Path) -> str:
    return file.stem.removeprefix("agewatch-")


def user() -> str | None:
    """Who runs this process; None for a number without a name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def sha256(file: Path) -> str:
    """The SHA-256 of a file, hexadecimal. Raises OSError."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
