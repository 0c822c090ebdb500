"""Memory of decoding: by kind of picture, beside what `estimator.memory` charges; and of whole runs at the limit."""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import numpy as np
import psutil
import tifffile
from heics import TILE, tiled
from PIL import Image, ImageCms
from results import table, write_section

from agewatch import api
from agewatch.estimator.images import decode
from agewatch.estimator.memory import BANDS_BYTES, BUDGET_GB, Room
from agewatch.scoring import pool
from agewatch.scoring.predictions import Key
from agewatch.scoring.room import SharedRoom
from agewatch.scoring.scorer import Execution, Job
from agewatch.sources import door

SIDE = 5_000
"""Pictures of SIDE x SIDE pixels are measured."""
AT_ONCE, WORKERS = 8, 2
SHARE = 0.97
"""So much of the room the largest pictures are charged: their files' bytes are not known before."""
MOST = {"WEBP": 16_383**2 * 3 // 4, "AVIF": 16_384**2 * 3 // 4}
"""Pixels: limits of the formats, for pictures of 3:4."""
_SAMPLE_SECONDS = 0.05

Save = Callable[[Image.Image, Path], object]


class Note(Room):
    """Notes what it was asked for, and refuses nothing."""

    def __init__(self) -> None:
        super().__init__(2**62)
        self.asked = 0

    def take(self, size: tuple[int, int], need: int) -> None:
        """Note it."""
        super().take(size, need)
        self.asked = max(self.asked, need)


def main() -> None:
    """Measure each kind in a process of its own, then runs over the largest of each; write the section of RESULTS.md.

    Raises ValueError where a kind costs more than it is charged, or a run more than the budget.
    """
    if len(sys.argv) == 2:
        print(*_measured(Path(sys.argv[1])))
        return
    if len(sys.argv) == 5:
        _make(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        charged, rows = _by_kind(Path(folder))
        largest = _largest(Path(folder), charged)
    write_section(
        "Memory of decoding",
        f"Written by `make bench`: pictures of {SIDE}x{SIDE} pixels, peak memory above a process that has decoded"
        f" nothing, the file's bytes included; and what the budget is charged for them.\n\n"
        + table(["kind", "bytes a pixel", "charged", "limit of 2 workers, megapixels"], rows)
        + f"\n\n{AT_ONCE} of the largest allowed at once on {WORKERS} workers, faces looked for: peak"
        f" memory (PSS) of all processes, of a budget of {BUDGET_GB:g} GB. What takes more than"
        f" {pool.ITEM_SECONDS:.0f} seconds of a core is given up (`decoder_failed`).\n\n"
        + table(["kind", "megapixels each", "statuses", "peak GB", "seconds"], largest),
    )
    if over := [row[0] for row in rows if float(row[1]) > float(row[2])]:
        raise ValueError(f"These cost more than they are charged: {over}.")
    if over := [row[0] for row in largest if float(row[3]) > BUDGET_GB]:
        raise ValueError(f"Runs over these took more than the budget: {over}.")


def _by_kind(folder: Path) -> tuple[dict[str, float], list[list[str]]]:
    charged, rows = {}, []
    path = folder / "picture"
    for name in kinds():
        subprocess.run([sys.executable, __file__, name, str(SIDE), str(SIDE), path], check=True)
        done = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, check=True)
        measured, asked, pixels = map(float, done.stdout.split())
        charged[name] = asked - BANDS_BYTES / pixels
        most = (SharedRoom(BUDGET_GB, WORKERS).total - BANDS_BYTES) / charged[name]
        most = min(most, MOST.get(name.split(",")[0].upper(), most))
        rows.append([name, f"{measured:.1f}", f"{asked:.1f}", f"{most / 1e6:.0f}"])
        print(rows[-1], flush=True)
    return charged, rows


def _largest(folder: Path, charged: dict[str, float]) -> list[list[str]]:
    rows = []
    for name in AT_THE_LIMIT:
        pixels = SHARE * SharedRoom(BUDGET_GB, WORKERS).total / charged[name]
        pixels = min(pixels, MOST.get(name.split(",")[0].upper(), pixels))
        width = int((pixels * 3 / 4) ** 0.5)
        height = int(pixels / width)
        archive = folder / "archive"
        archive.mkdir()
        first = archive / "0"
        subprocess.run([sys.executable, __file__, name, str(width), str(height), first], check=True)
        for number in range(1, AT_ONCE):  # different bytes, else they would share one row
            (archive / str(number)).write_bytes(first.read_bytes() + b"\0\0\0\x0cfree" + number.to_bytes(4))
        started = perf_counter()
        with _Watched() as watched:
            statuses = _scored(archive, folder / "cache")
        told = ", ".join(f"{count} {status}" for status, count in statuses.items())
        seconds = f"{perf_counter() - started:.0f}"
        rows.append([name, f"{width * height / 1e6:.0f}", told, f"{watched.peak / 1e9:.2f}", seconds])
        print(rows[-1], flush=True)
        for path in archive.iterdir():
            path.unlink()
        archive.rmdir()
    return rows


def _scored(archive: Path, cache: Path) -> Counter[str]:
    """Score an archive as `agewatch score` does, but for a file a shard, and count the statuses."""
    how, model = Execution(cache, WORKERS), api.model_file(None)
    job = Job(door.at(archive), Key("largest", "model", "detect"), "run", model, cache, "auto", "f32", room=how.room())
    answers = pool.run(job, pool.shards(door.find(door.at(archive)).files, 1), WORKERS)
    return Counter(row["status"] for answer in answers for row in answer.rows)


class _Watched:
    """The largest sum of the proportional set sizes (PSS) of this process and its children meanwhile, bytes."""

    def __enter__(self) -> "_Watched":
        self.peak, self._over = 0, Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._over.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(map(_pss, [me.pid, *(child.pid for child in me.children(recursive=True))])))


def _pss(pid: int) -> int:
    try:
        [kilobytes] = re.findall(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # it has ended
        return 0
    return 1024 * int(kilobytes)


def _make(name: str, width: str, height: str, path: str) -> None:
    ramp = np.linspace(0, 255, int(width), dtype=np.uint8)
    grey = Image.fromarray(np.broadcast_to(ramp, (int(height), int(width))).copy())
    kinds()[name](grey, Path(path))


def kinds() -> dict[str, Save]:
    """How a grey picture is written as one of each kind."""
    sideways = Image.Exif()
    sideways[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    odd = {"exif": sideways, "icc_profile": profile}

    def rgb(grey: Image.Image) -> Image.Image:
        return Image.merge("RGB", [grey] * 3)

    def pale(grey: Image.Image) -> Image.Image:
        return Image.merge("RGBA", [grey] * 4)

    def samples(grey: Image.Image, kind: type) -> np.ndarray:
        return np.asarray(rgb(grey)).astype(kind)

    fast = {"compress_level": 1}
    return {
        "JPEG": lambda grey, path: rgb(grey).save(path, "JPEG", **odd),
        "JPEG, progressive": lambda grey, path: rgb(grey).save(path, "JPEG", progressive=True, subsampling=0, **odd),
        "JPEG, CMYK": lambda grey, path: rgb(grey).convert("CMYK").save(path, "JPEG"),
        "PNG": lambda grey, path: rgb(grey).save(path, "PNG", **fast),
        "PNG, palette, transparent": lambda grey, path: grey.quantize(64).save(
            path, "PNG", transparency=3, **fast, **odd
        ),
        "PNG, grey": lambda grey, path: grey.save(path, "PNG", **fast, **odd),
        "PNG, grey of 16 bits": lambda grey, path: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(
            path, "PNG", **fast
        ),
        "PNG, alpha": lambda grey, path: pale(grey).save(path, "PNG", **fast, **odd),
        "GIF": lambda grey, path: grey.quantize(64).save(path, "GIF"),
        "BMP": lambda grey, path: rgb(grey).save(path, "BMP"),
        "TIFF, black and white, G4": lambda grey, path: grey.convert("1").save(path, "TIFF", compression="group4"),
        "TIFF, grey": lambda grey, path: grey.save(path, "TIFF", compression="tiff_lzw"),
        "TIFF": lambda grey, path: rgb(grey).save(path, "TIFF", compression="tiff_lzw"),
        "TIFF, RGB of 16 bits": lambda grey, path: tifffile.imwrite(
            path, samples(grey, np.uint16), photometric="rgb", compression="deflate"
        ),
        "TIFF, RGB of floats": lambda grey, path: tifffile.imwrite(
            path, samples(grey, np.float32), photometric="rgb", compression="deflate"
        ),
        "TIFF, grey of floats": lambda grey, path: tifffile.imwrite(path, np.asarray(grey).astype(np.float32)),
        "HEIF": lambda grey, path: rgb(grey).save(path, "HEIF", quality=10, icc_profile=profile, exif=sideways),
        "HEIF, tiles": lambda grey, path: path.write_bytes(tiled(rgb(grey), grey.width // TILE, grey.height // TILE)),
        "AVIF, alpha": lambda grey, path: pale(grey).save(path, "AVIF", speed=10, icc_profile=profile),
        "WebP, alpha": lambda grey, path: pale(grey).save(path, "WEBP", lossless=True, method=0, icc_profile=profile),
        "JPEG2000": lambda grey, path: rgb(grey).save(path, "JPEG2000", tile_size=(1024, 1024)),
        "JPEG2000, alpha": lambda grey, path: pale(grey).save(path, "JPEG2000", tile_size=(1024, 1024)),
    }


AT_THE_LIMIT = (
    "JPEG", "JPEG, progressive", "PNG", "PNG, grey", "TIFF, black and white, G4", "TIFF, RGB of 16 bits", "HEIF, tiles",
    "AVIF, alpha", "WebP, alpha", "JPEG2000",
)  # fmt: skip
"""The kinds of which the largest are scored."""


def _measured(path: Path) -> tuple[float, float, int]:
    """Peak bytes a pixel of decoding a picture, what is charged, and its pixels."""
    note, before = Note(), _peak()
    picture = decode(path.read_bytes(), room=note)
    pixels = picture.width * picture.height
    return (_peak() - before) / pixels, note.asked / pixels, pixels


def _peak() -> int:
    """Peak memory of this process in bytes; unlike getrusage's, free of what its parent held."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


if __name__ == "__main__":
    main()
