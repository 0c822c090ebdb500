"""One run of the scoring driver alone, over files that a listing makes up or a folder holds; prints what it cost.

`python driver.py FOLDER TABLE MODEL [SYNTHETIC FILES] [SHARD FILES]`: workers are stood in for by a function that makes
rows at once. Memory is the process's own peak, by /proc.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from agewatch.scoring import pending, pool, score
from agewatch.scoring.scorer import Execution, Scored
from agewatch.sources import door
from agewatch.sources.source import FileRef, Sieve, Source


class Sparse(Source):
    """So many files that are nowhere, with paths of some 40 characters."""

    def __init__(self, folder: Path, files: int) -> None:
        self.root, self.name, self._files = str(folder.resolve()), folder.name, files

    def require_there(self) -> None:
        """It is there."""

    def walk(self, sieve: Sieve) -> Iterator[FileRef]:
        """Yield them, in order."""
        for number in range(self._files):
            path = f"2019/holidays/{number // 1000:06}/IMG_20190714_{number:09}.jpg"
            if sieve.keeps_at(path):
                yield FileRef(path, 3_000_000 + number, 1_563_000_000_000_000_000 + number, None)

    def read(self, file: FileRef) -> tuple[bytes, FileRef]:
        """Nobody reads them."""
        raise NotImplementedError


class Instant:
    """Stands in for the pool: a row a file, at once; notes when the first shard came."""

    first: float | None = None

    def __call__(self, task: Any, shards: Iterable[Sequence[FileRef]], _: int) -> Iterator[Scored]:
        """Answer shards."""
        for shard in shards:
            if self.first is None and shard:
                self.first = time.perf_counter()
            yield Scored(len(shard), [self._row(task, file) for file in shard], [])

    def _row(self, task: Any, file: FileRef) -> dict[str, Any]:
        digest = blake2b(file.path.encode(), digest_size=32).hexdigest()
        told = {"status": "ok", "face": 0, "content_hash": digest, "width": 64, "height": 64, "camera": "none"}
        number = int(digest[:4], 16)
        boxes = dict.fromkeys(("box_x", "box_y", "box_w", "box_h", "face_score", "sharpness"), number / 7)
        ages = {"age": number / 900, "age_low": number / 1000, "age_high": number / 800, "brightness": number / 9e4}
        return {**task.row(file, "none"), **told, **boxes, **ages}


def peak_mb() -> float:
    """The largest memory that this process had so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    """Run, and print a line of JSON."""
    folder, table, model = map(Path, sys.argv[1:4])
    files = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    if files:
        source = Sparse(folder, files)
        door.at = lambda _: source  # type: ignore[assignment]
    if len(sys.argv) > 5:
        pending.SHARD_FILES = int(sys.argv[5])
    instant = Instant()
    pool.run = Instant()  # type: ignore[assignment]  # of the canaries
    started, cpu = time.perf_counter(), time.process_time()
    how = Execution(table.parent / "cache", 2, run=instant)  # type: ignore[arg-type]  # it makes rows alone
    summary = score.score_archive(folder, model_path=model, table=table, how=how, mode="crop")
    first = None if instant.first is None else instant.first - started
    print(json.dumps({
        "found": summary.found, "scored": summary.scored, "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu, "peak_mb": peak_mb(), "first_shard": first,
    }))  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
