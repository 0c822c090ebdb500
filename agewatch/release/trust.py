"""Whose code may run: TorchServe runs what a model file holds, so its SHA-256 must be on record.

On record is what was packaged here, what came with agewatch or was promoted, and what a person trusted. Scoring reads
weights and JSON alone and asks nobody.
"""

import json
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

from agewatch.errors import ModelError
from agewatch.estimator import mar
from agewatch.estimator.model import AgeModel
from agewatch.release import package, records, store

MANIFEST = "MAR-INF/MANIFEST.json"
_DATA = ("model.json", "model.safetensors", "reference.parquet", "splits.parquet")
_PICTURE = re.compile(r"smoke/[^/]+\.(png|json)")
_LOCAL = struct.Struct("<4s5H3L2H")
"""What stands before each member: signature, version, flags, method, time, date, CRC, two sizes, two lengths."""
_UTF8 = 0x800
_BLOCK = 2**20


def require(folder: Path, file: Path, copy: Path | None = None) -> None:
    """Raise ModelError where a model file's code may not run, by what is on record in a store.

    It names what differs from the code of this agewatch. What runs a file makes a copy of its own first, which is
    looked at and run in its place, as the file may change meanwhile.
    """
    copy = copy or file
    if not copy.is_file():
        raise ModelError(f"A server takes a .mar file; {file} is none.")
    if not _is_on_record(folder, store.sha256(copy)):
        raise ModelError(
            f"{file} is not on record in the store {folder}: it was not packaged here, and a server would run its code."
            f" {_told(differences(copy))} If you trust it, add --trust-code."
        )


def trust(folder: Path, file: Path) -> str:
    """Put a model file on record as one whose code a person trusts; returns a sentence that says what differs.

    Raises ModelError where it is no model, or unsound, OSError where the record can't be written.
    """
    with tempfile.TemporaryDirectory() as private:
        copy = Path(private, file.name)
        try:
            shutil.copyfile(file, copy)  # what is hashed is what is looked at
        except OSError as error:
            raise ModelError(f"The model {file} can't be read: {error.strerror}.") from error
        found = differences(copy)
        code = records.Code.of(copy, "trusted", found)
    if not _is_on_record(folder, code.sha256):
        records.keep(folder, code)
    return f"{file.name} is trusted. {_told(found)}"


def differences(file: Path) -> list[str]:
    """Names of what a model file holds, beside data, that is not in this agewatch, or otherwise; missing ones too.

    Raises ModelError where it is no model, unsound, or a zip that TorchServe would unpack to something else.
    """
    AgeModel.load(file)
    with mar.opened(file) as archive:
        _require_plain(file, archive)
        held = {
            name: archive.read(name)
            for name in archive.namelist()
            if not (name in _DATA or _PICTURE.fullmatch(name) or name.endswith("/"))
        }
    ours = {name: source.read_bytes() for name, source in package.code().items()}
    named = {name for name in held.keys() | ours if name != MANIFEST and held.get(name) != ours.get(name)}
    return sorted(named if _is_usual(held.get(MANIFEST, b"")) else named | {MANIFEST})


def _is_on_record(folder: Path, digest: str) -> bool:
    if records.may_run(folder, digest):
        return True
    for place in (folder, *store.carried_stores()):
        pointer = store.read_pointer(place)
        while pointer is not None:
            if pointer.sha256 == digest:
                return True
            pointer = pointer.previous
    return False


def _told(differs: list[str]) -> str:
    if not differs:
        return "Its code is that of this agewatch."
    more = f" and {len(differs) - 8} more" if len(differs) > 8 else ""
    return f"Its code differs from this agewatch's in {', '.join(differs[:8])}{more}."


def _is_usual(manifest: bytes) -> bool:
    """Whether a manifest names the handler and its configuration, and nothing else that runs or is installed."""
    try:
        model = dict(json.loads(manifest)["model"])
    except (ValueError, KeyError, TypeError):
        return False
    fixed = {"modelName": "agewatch", "handler": "age_handler.py", "configFile": "model-config.yaml"}
    return {name: told for name, told in model.items() if name != "modelVersion"} == fixed


def _require_plain(file: Path, archive: zipfile.ZipFile) -> None:
    """Raise ModelError where reading from the front, as Java does, finds other members than the directory names."""
    content, place = archive.fp, 0
    assert content is not None
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        content.seek(place)
        head = content.read(_LOCAL.size)
        told = _LOCAL.unpack(head) if len(head) == _LOCAL.size else ()
        packing = (member.flag_bits, member.compress_type)
        lengths = (member.CRC, member.compress_size, member.file_size)
        if not told or member.header_offset != place or (told[2:4], told[6:9]) != (packing, lengths):
            raise _otherwise(file, member)
        name = content.read(told[9]).decode("utf-8" if member.flag_bits & _UTF8 else "cp437")
        place += _LOCAL.size + told[9] + told[10]
        content.seek(place)
        if name != member.orig_filename or not _is_whole(content.read(member.compress_size), member):
            raise _otherwise(file, member)
        place += member.compress_size
    if place != archive.start_dir:
        raise ModelError(f"The model {file} is refused: something is hidden behind its last member.")


def _is_whole(packed: bytes, member: zipfile.ZipInfo) -> bool:
    """Whether what is packed is the member: it neither ends before the packed bytes do, nor grows beyond its size."""
    if member.compress_type == zipfile.ZIP_STORED:
        return member.file_size == len(packed) == member.compress_size
    inflating, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflating.eof:
        block = inflating.decompress(packed, _BLOCK)
        packed, size = inflating.unconsumed_tail, size + len(block)
        if size > member.file_size or not (block or packed or inflating.eof):
            return False
    return size == member.file_size and not inflating.unused_data


def _otherwise(file: Path, member: zipfile.ZipInfo) -> ModelError:
    return ModelError(
        f"The model {file} is refused: around its member {member.orig_filename!r} TorchServe would unpack something"
        " else than what its directory names."
    )
