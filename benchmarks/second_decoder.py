"""What a second decoder makes of the same pictures: size, turn and colours of each beside ours.

    python benchmarks/second_decoder.py FOLDER...

The second is ImageMagick, a development tool that agewatch itself never needs (`apt-get install imagemagick`, with
libheif). COMMAND turns its picture upright, to sRGB and onto white, as `decode` does.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms
from results import table, write_section
from second_decoder_kept import KEPT

from agewatch.errors import ImageError
from agewatch.estimator.images import RGB, decode
from agewatch.sources import door
from agewatch.sources.source import FileRef

COMMAND = (
    "convert {file}[0] -auto-orient -profile {srgb} -colorspace sRGB -background white -alpha remove -alpha off"
    " -type TrueColor -depth 8 ppm:-"
)
SECONDS = 120
SIDE = 64
ALIKE = 3.0
"""Levels of 0..255, on average over copies of SIDE x SIDE: more is a difference."""
CLASSES = ("alike", "different", "agewatch alone", "the second alone", "neither")


@dataclass(frozen=True)
class Compared:
    """A file, which of CLASSES it is in, and what each decoder made of it."""

    path: str
    kind: str
    ours: str
    theirs: str


def main() -> None:
    """Compare, print, and write the section of RESULTS.md."""
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/second_decoder.py FOLDER...")
    compared, ignored = [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        srgb = Path(folder) / "srgb.icc"
        srgb.write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        for root in map(Path, sys.argv[1:]):
            listing = door.find(door.at(root))
            ignored.update(listing.ignored)
            compared += [_compare(file, root, srgb) for file in listing.files]
    write_section("A second decoder", _told(compared, ignored))


def _compare(file: FileRef, root: Path, srgb: Path) -> Compared:
    data, _ = door.at(root).read(file)
    try:
        ours: RGB | str = decode(data).rgb
    except ImageError as refusal:
        ours = refusal.code
    theirs = _second(data, Path(file.path).suffix, srgb)
    name = Path(file.path).name
    if isinstance(ours, str) or isinstance(theirs, str):
        alone = (isinstance(ours, str), isinstance(theirs, str))
        kind = {(True, True): "neither", (False, True): "agewatch alone", (True, False): "the second alone"}[alone]
        return Compared(name, kind, _size(ours), _size(theirs))
    apart = _apart(ours, theirs)
    is_alike = ours.shape == theirs.shape and apart <= ALIKE
    return Compared(name, "alike" if is_alike else "different", _size(ours), f"{_size(theirs)}, {_how(ours, theirs)}")


def _second(data: bytes, suffix: str, srgb: Path) -> RGB | str:
    """The second decoder's picture, or `refused`; it sees a plain file name of the same suffix."""
    file = srgb.with_name(f"picture{suffix}")
    file.write_bytes(data)
    command = [part.format(file=file, srgb=srgb) for part in COMMAND.split()]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        with Image.open(BytesIO(done.stdout), formats=["PPM"]) as image:
            return np.asarray(image.convert("RGB"))
    except (subprocess.TimeoutExpired, OSError):
        return "refused"
    finally:
        file.unlink()


def _small(rgb: RGB) -> RGB:
    return np.asarray(cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def _apart(ours: RGB, theirs: RGB) -> float:
    return float(np.abs(_small(ours).astype(int) - _small(theirs)).mean())


def _how(ours: RGB, theirs: RGB) -> str:
    """How far apart two pictures are, and whether a turn or a mirror brings them together."""
    apart = _apart(ours, theirs)
    turns = [np.ascontiguousarray(np.rot90(side, turn)) for side in (theirs, theirs[:, ::-1]) for turn in range(4)]
    nearest = min(_apart(ours, turned) for turned in turns)
    if apart > ALIKE and nearest < apart / 2:
        return f"turned (levels apart: {apart:.1f}, {nearest:.1f} if turned)"
    return f"{apart:.1f} levels apart"


def _size(found: RGB | str) -> str:
    return found if isinstance(found, str) else f"{found.shape[1]}x{found.shape[0]}"


def _told(compared: Sequence[Compared], ignored: Counter[str]) -> str:
    suffixes = sorted({_suffix(each) for each in compared})
    groups = {suffix: [each for each in compared if _suffix(each) == suffix] for suffix in suffixes}
    rows = [
        [name, *(str(sum(each.kind == kind for each in group)) for kind in CLASSES)]
        for name, group in (groups | {"all": list(compared)}).items()
    ]
    apart = [
        [each.path, each.ours, each.theirs, KEPT.get(each.path, "NOT EXPLAINED")]
        for each in compared
        if each.kind not in ("alike", "neither")
    ]
    refused = Counter(each.ours for each in compared if each.kind == "neither")
    said = ", ".join(f"{count} {status}" for status, count in refused.most_common())
    roots = ", ".join(Path(folder).resolve().name for folder in sys.argv[1:])
    passed_over = ", ".join(f"{count} {suffix or 'without'}" for suffix, count in ignored.most_common())
    version = subprocess.run(["convert", "-version"], capture_output=True, text=True, check=True).stdout
    second = version.removeprefix("Version: ").split(" http")[0]
    return (
        f"Written by `python benchmarks/second_decoder.py FOLDER...` over {len(compared):,} files of {roots}. The"
        f" second is {second}, a development tool that agewatch does not need, by"
        f"\n\n    {COMMAND}\n\nAlike: the same size, and at most {ALIKE:g} levels of 255 apart on average in copies of"
        f" {SIDE}x{SIDE} pixels. Of those that neither reads agewatch says: {said}.\n\n"
        f"{table(['suffix', *CLASSES], rows)}\n\n{table(['file', 'agewatch', 'the second', 'why that is kept'], apart)}"
        f"\n\nPassed over by suffix: {passed_over}."
    )


def _suffix(each: Compared) -> str:
    return os.path.splitext(each.path)[1].lower() or "none"


if __name__ == "__main__":
    if shutil.which("convert") is None:
        sys.exit("There is no `convert`: apt-get install imagemagick.")
    main()
