"""Peak memory a pixel of decoding, by kind of picture: what the limits on pixels stand for."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageCms
from results import table, write_section

from agewatch.estimator.images import decode, max_pixels

DEEP = {"TIFF, floats": 4, "TIFF, RGB of 16 bits": 6, "TIFF, RGB of floats": 12}
"""Bytes of a stored pixel of TIFFs of more than 8 bits."""
SIDE = 5_000
"""Pictures of SIDE x SIDE pixels."""


def main() -> None:
    """Measure each kind in a process of its own, print, and write the section of RESULTS.md."""
    if len(sys.argv) == 2:
        print(_bytes_a_pixel(Path(sys.argv[1])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, save in _kinds().items():
            path = Path(folder) / name.replace(" ", "-").replace(",", "")
            save(path)
            done = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, check=True)
            most = max_pixels(name.split(",")[0].upper(), DEEP.get(name, 0))
            measured = float(done.stdout)
            rows.append([name, f"{measured:.1f}", f"{most / 1e6:.0f}", f"{measured * most / 1e9:.1f}"])
            path.unlink()
    write_section(
        "Memory of decoding",
        f"Written by `make bench`: pictures of {SIDE}x{SIDE} pixels, peak memory above a process that has decoded"
        f" nothing, the file's bytes included.\n\n"
        + table(["kind", "bytes a pixel", "limit, megapixels", "GB at the limit"], rows),
    )


def _kinds() -> dict[str, Callable[[Path], object]]:
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    grey = Image.fromarray(np.broadcast_to(ramp, (SIDE, SIDE)).copy())
    rgb = Image.merge("RGB", [grey] * 3)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    pale = Image.merge("RGBA", [grey] * 4)
    return {
        "JPEG, 8 bits": lambda path: rgb.save(path, "JPEG"),
        "JPEG, 8 bits, turned, with a profile": lambda path: rgb.save(path, "JPEG", exif=sideways, icc_profile=profile),
        "JPEG, CMYK": lambda path: rgb.convert("CMYK").save(path, "JPEG"),
        "PNG, 8 bits": lambda path: rgb.save(path, "PNG", compress_level=1),
        "PNG, palette": lambda path: rgb.quantize(64).save(path, "PNG", compress_level=1),
        "PNG, palette, transparent, turned, with a profile": lambda path: rgb.quantize(64).save(
            path, "PNG", compress_level=1, transparency=3, exif=sideways, icc_profile=profile
        ),
        "PNG, grey of 8 bits, turned, with a profile": lambda path: grey.save(
            path, "PNG", compress_level=1, exif=sideways, icc_profile=profile
        ),
        "TIFF, black and white, G4": lambda path: grey.convert("1").save(path, "TIFF", compression="group4"),
        "TIFF, RGB of 16 bits": lambda path: tifffile.imwrite(
            path, np.asarray(rgb).astype(np.uint16), photometric="rgb", compression="deflate"
        ),
        "TIFF, RGB of floats": lambda path: tifffile.imwrite(
            path, np.asarray(rgb).astype(np.float32), photometric="rgb", compression="deflate"
        ),
        "PNG, grey of 16 bits": lambda path: deep.save(path, "PNG", compress_level=1),
        "PNG, alpha": lambda path: pale.save(path, "PNG", compress_level=1),
        "PNG, alpha, turned, with a profile": lambda path: pale.save(
            path, "PNG", compress_level=1, exif=sideways, icc_profile=profile
        ),
        "TIFF, floats": lambda path: grey.convert("F").save(path, "TIFF"),
        "HEIF": lambda path: rgb.save(path, "HEIF"),
        "HEIF, with a profile": lambda path: rgb.save(path, "HEIF", icc_profile=profile),
        "AVIF, alpha": lambda path: pale.save(path, "AVIF", speed=10),
        "WebP, alpha": lambda path: pale.save(path, "WEBP", lossless=True, method=0),
    }


def _bytes_a_pixel(path: Path) -> float:
    before = _peak()
    decode(path.read_bytes())
    return (_peak() - before) / SIDE**2


def _peak() -> int:
    """Peak memory of this process in bytes; unlike getrusage's, free of what its parent held."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


if __name__ == "__main__":
    main()
