"""Faces of one archive -> XMP sidecars with MWG regions, which digiKam, darktable, Immich and ExifTool read.

After the Metadata Working Group's Guidelines for Handling Image Metadata 2.0, section 5.9: areas are shares of the
stored image, before its orientation is applied; x and y are of an area's centre. A region's Name is the name of a
person to all who read it, so there is none: digiKam lists such faces as unknown. Ages stand in words in the region's
Description, and as numbers in its Extensions, in a namespace of our own: the IPTC's Model Age is the true one.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from agewatch.errors import ImageError, UsageError
from agewatch.estimator import jpeg2000, tiff
from agewatch.estimator.pixels import ON_ITS_SIDE
from agewatch.exports.export import chosen
from agewatch.exports.megadetector import ESTIMATES, inside
from agewatch.files import replacing
from agewatch.scoring import archives, predictions
from agewatch.scoring.scorer import one_pictures_misfortune
from agewatch.sources import door
from agewatch.sources.source import FileRef, Source, decode_path

OURS = b'x:xmptk="agewatch"'
"""In each sidecar of ours, and gone from one that another program has written to since."""
_HEAD_BYTES = 512
_NAME_BYTES = 244  # of 255, as it is written under a longer name first
_COLUMNS = (
    "path", "face", "content_hash", "width", "height", "box_x", "box_y", "box_w", "box_h", "age", "age_low", "age_high",
    "model",
)  # fmt: skip
_ORIENTATION = 0x0112
_ALREADY_UPRIGHT = ("HEIF", "AVIF")
"""Formats whose container turns the picture, so that every reader has it upright; EXIF has no say in them."""

_template = Environment(
    loader=PackageLoader("agewatch.exports", ""), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
).get_template("sidecar.xmp.jinja")


@dataclass
class Written:
    """So many sidecars and faces; paths that have another program's, and why others got none."""

    out: Path
    sidecars: int = 0
    faces: int = 0
    kept: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def write(
    table: Path, out: Path, *, model: str, archive: str | None = None, into_archive: bool = False,
    with_gone: bool = False,
) -> Written:  # fmt: skip
    """Write OUT/FOLDER/NAME.EXT.xmp for each picture with a face, with the folders of the archive.

    A sidecar that another program wrote, or wrote to, is left as it is; ours is replaced. A picture that is gone, or
    another than was scored, gets none, as its orientation can't be known. Raises UsageError where OUT lies in an
    archive and `into_archive` does not say so, and what `export` raises; OSError where OUT can't be written.
    """
    archive = archives.meant(table, archive)
    where = chosen(table, archive, model, ["ok"], with_gone)
    source = door.at(predictions.archives(table)[archive])
    target = out.resolve()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{out} is no folder.")
    for name in archives.around(table, out):
        if not (into_archive and name == archive):
            raise UsageError(
                f"{out} lies in the archive '{name}': sidecars are written there only where --into-archive says so."
            )
    rows = predictions.read(table, where, _COLUMNS).sort_by([("path", "ascending"), ("face", "ascending")])
    written = Written(out)
    for path, faces in groupby((row for batch in rows.to_batches(4096) for row in batch.to_pylist()), _path):
        _one(source, target, path, list(faces), written)
    return written


def _path(row: dict[str, Any]) -> str:
    return str(row["path"])


def _one(source: Source, out: Path, path: str, faces: Sequence[dict[str, Any]], written: Written) -> None:
    """Write one picture's sidecar, or note why not."""
    file = out / os.fsdecode(decode_path(path) + b".xmp")
    if len(os.fsencode(file.name)) > _NAME_BYTES:
        written.left_out[path] = "The sidecar's name would be too long."
        return
    if _is_of_others(file):
        written.kept.append(path)
        return
    try:
        data, _ = source.read(FileRef(path))
        if hashlib.blake2b(data, digest_size=32).hexdigest() != faces[0]["content_hash"]:
            raise ImageError("vanished", "The file holds another picture than was scored.")
        with one_pictures_misfortune():
            orientation = stored_as(data)
    except ImageError as refusal:
        written.left_out[path] = str(refusal)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as aside:
        aside.write_text(sidecar(faces, orientation), encoding="utf-8")
    written.sidecars += 1
    written.faces += len(faces)


def sidecar(faces: Sequence[dict[str, Any]], orientation: int) -> str:
    """The XMP of a picture by its rows, whose boxes are upright, and how it is stored, 1..8 as in EXIF."""
    first = faces[0]
    size = (first["width"], first["height"])
    width, height = size[::-1] if orientation in ON_ITS_SIDE else size
    return _template.render(
        model=first["model"], note=ESTIMATES, width=width, height=height,
        faces=[
            {
                "area": _stored(inside(face), orientation),
                "words": "about {age:.0f} years, estimated ({age_low:.0f} to {age_high:.0f})".format(**face),
                "age": f"{face['age']:.1f}", "low": f"{face['age_low']:.1f}", "high": f"{face['age_high']:.1f}",
            }
            for face in faces
        ],
    )  # fmt: skip


def stored_as(data: bytes) -> int:
    """How a scored picture is stored, 1..8 as in EXIF, for those who read it. Damaged bytes raise anything."""
    if data.startswith(tiff.SIGNATURES) and (found := tiff.read(data, lambda *_: None)) is not None:
        return found.orientation
    with Image.open(BytesIO(data)) as image:
        if data.startswith(jpeg2000.SIGNATURES) and (told := jpeg2000.read(data).exif):
            image.info["exif"] = told
        if image.format in _ALREADY_UPRIGHT:
            return 1
        orientation = image.getexif().get(_ORIENTATION, 1)
    return int(orientation) if orientation in range(1, 9) else 1


def _stored(box: Sequence[float], orientation: int) -> tuple[float, ...]:
    """An upright box, left, top, width and height, as the area of the stored picture: its centre, width and height."""
    left, top, width, height = box
    x, y = left + width / 2, top + height / 2
    if orientation in ON_ITS_SIDE:
        x, y, width, height = y, x, height, width
    # What is left is to mirror: across, down, or both.
    across, down = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
    return tuple(round(value, 6) for value in (1 - x if across else x, 1 - y if down else y, width, height))


def _is_of_others(file: Path) -> bool:
    """Tell whether there is something that this program did not write, or that another has written to since."""
    try:
        with file.open("rb") as held:
            return OURS not in held.read(_HEAD_BYTES)
    except FileNotFoundError:
        return False
    except OSError:  # a folder, or nothing that this user may read
        return True
