"""What decoding a picture costs in memory, and the room that there is for it.

The figures are measured by benchmarks/decode_memory.py, which also holds that they are not too low.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from agewatch.errors import ImageError

BUDGET_GB = 6.0
"""For all workers together, with what they take before any picture; `AGEWATCH_MEMORY_GB` is another."""
PROCESS_BYTES = 400_000_000
"""What a process takes beside large pictures: Python, its libraries, the networks, and `OWN_BYTES`."""
OWN_BYTES = 128_000_000
"""So much a worker's picture may cost without asking: ordinary photographs never wait."""
DECODERS = {"JPEG": 5, "MPO": 5, "JPEG2000": 18, "WEBP": 10, "HEIF": 4, "AVIF": 6, "GIF": 2}
"""Bytes a pixel of what a decoder holds beside the picture that it gives out, by Pillow's name of the format.

A TIFF's may hold the whole picture once more, as its only strip.
"""
BANDS_BYTES = 32_000_000
"""Of `pixels`, however large the picture."""
_RASTER = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # bytes a pixel that Pillow keeps; others have 4
_RGB = 3


def cost(form: str | None, mode: str, size: tuple[int, int], file_bytes: int) -> int:
    """Peak memory in bytes of decoding a picture of a format and mode, by Pillow's names; the file's bytes twice."""
    raster = _RASTER.get(mode, 4)
    decoder = raster if form == "TIFF" else DECODERS.get(form or "", 0)
    return size[0] * size[1] * (decoder + raster + _RGB) + 2 * file_bytes + BANDS_BYTES


def cost_of_deep(size: tuple[int, int], stored: int, colours: int, file_bytes: int) -> int:
    """The same of a TIFF that is decoded to samples first, with the bytes of a stored pixel and its colours."""
    return size[0] * size[1] * (2 * stored + colours + 4 + _RGB) + 2 * file_bytes + BANDS_BYTES


class Room:
    """Memory in bytes for the pictures of one process, which has it to itself and holds one picture at a time."""

    def __init__(self, total: int = int(BUDGET_GB * 1e9)) -> None:
        self.total = total

    def take(self, size: tuple[int, int], need: int) -> None:
        """Take room for a picture of so many pixels. Raises ImageError where it alone is more than there is."""
        if need > self.total:
            raise ImageError(
                "too_large",
                f"The picture claims {size[0]} x {size[1]} pixels, which take {need / 1e9:.1f} GB of memory to decode;"
                f" {self.total / 1e9:.1f} GB are allowed.",
            )

    def expect(self, file_bytes: int) -> None:
        """Take room for a file's bytes before they are read. Raises ImageError where they are more than there is."""
        if file_bytes > self.total:
            raise ImageError(
                "too_large",
                f"The file has {file_bytes:,} bytes; {self.total / 1e9:.1f} GB of memory are allowed for a picture.",
            )

    def picture(self, waiting: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:  # noqa: ARG002
        """Give back afterwards what was taken for a picture meanwhile; `waiting` is called as long as it must wait."""
        return nullcontext()


def room_of_one(budget_gb: float) -> Room:
    """The room of one process that has a budget to itself, or its fixed part of one."""
    return Room(for_pictures(budget_gb, 1))


def for_pictures(budget_gb: float, processes: int) -> int:
    """What a budget leaves for pictures, bytes: at least half of it, as so many processes may take it all."""
    total = int(budget_gb * 1e9)
    return max(total // 2, total - processes * PROCESS_BYTES)
