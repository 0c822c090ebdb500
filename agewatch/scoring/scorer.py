"""A shard of files -> rows of the predictions table: what a worker process does."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

from agewatch.errors import ImageError
from agewatch.estimator.engine import EngineName, Precision, open_engine
from agewatch.estimator.faces import Face, YuNet, look
from agewatch.estimator.images import RGB, quality
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Mode
from agewatch.scoring.archive import FileRef
from agewatch.scoring.predictions import Rows

BATCH_CHIPS = 32
"""Chips that go through the network at once, whatever files they come from."""
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Job:
    """How to score, in a form that travels to worker processes.

    `known` names a .npy file of sorted `hash_key`s: content whose rows the table holds already.
    """

    root: Path
    archive: str
    model_path: Path
    mode: Mode
    engine: EngineName
    precision: Precision
    cache: Path
    run_id: str
    known: Path | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer for a shard: rows of `files` files, and files whose content hash the table seems to hold."""

    files: int
    rows: Rows
    same: list[tuple[FileRef, str]]


def hash_key(content_hash: str) -> int:
    """The first 64 bits of a content hash: enough to guess that it is known, the table tells for certain."""
    return int(content_hash[:16], 16)


@contextmanager
def known_content(keys: Iterable[int]) -> Iterator[Path | None]:
    """Yield a file of sorted `hash_key`s for `Job.known`, which workers map instead of holding a copy each."""
    known = np.sort(np.fromiter(keys, np.uint64))
    if not len(known):
        yield None
        return
    with TemporaryFile() as file:  # without a name, it is gone with this process, however that ends
        np.save(file, known)
        file.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")


@contextmanager
def one_pictures_misfortune() -> Iterator[None]:
    """Turn what the detector or cv2 raises over a picture into an ImageError: it is not the run's misfortune."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("decoder_failed", f"The picture can't be worked on ({type(error).__name__}).") from error


class Scorer:
    """Turns files into rows. Holds one engine and, in detect mode, one detector; not thread-safe."""

    def __init__(self, job: Job) -> None:
        model = AgeModel.load(job.model_path)
        self._job = job
        self._model = model
        self._model_id = model.id
        self._engine = open_engine(model, cache=job.cache, engine=job.engine, precision=job.precision)
        self._detector = YuNet() if job.mode == "detect" else None
        self._known: npt.NDArray[np.uint64] = np.load(job.known, mmap_mode="r") if job.known else np.empty(0, np.uint64)
        self._done: dict[str, Rows] = {}  # of this worker, by content hash: archives repeat themselves

    def score(self, files: Sequence[FileRef], starts: Callable[[], None] = lambda: None) -> Scored:
        """Score a shard: one row a face, one row for any other file; equal content runs through the network once.

        `starts` is called before each file.
        """
        rows: Rows = []
        same: list[tuple[FileRef, str]] = []
        repeated: list[dict[str, Any]] = []
        waiting: list[tuple[dict[str, Any], RGB]] = []
        spec = self._model.spec
        for file in files:
            starts()
            row = self._row(file)
            try:
                data, file = file.read(self._job.root)  # its row is of what was read
                row |= {"bytes": file.bytes, "mtime_ns": file.mtime_ns}
                row["content_hash"] = digest = blake2b(data, digest_size=32).hexdigest()
                if self._is_known(digest):
                    same.append((file, digest))
                    continue
                if digest in self._done:
                    repeated.append(row)
                    continue
                with one_pictures_misfortune():
                    seen = look(data, self._detector, scale=spec.preprocessing.chip_scale, size=spec.image_size)
            except ImageError as refusal:
                rows.append(row | {"status": refusal.code, "error": str(refusal)})
                continue
            self._done[digest] = []
            row |= {"width": seen.width, "height": seen.height, "captured_at": seen.captured_at}
            if not seen.faces:
                rows.append(row | {"status": "no_face"})
            for index, (face, chip) in enumerate(zip(seen.faces, seen.chips, strict=True)):
                waiting.append((row | {"status": "ok", "face": index} | _face_columns(face, chip), chip))
            while len(waiting) >= BATCH_CHIPS:
                rows += self._with_ages(waiting[:BATCH_CHIPS])
                waiting = waiting[BATCH_CHIPS:]
        rows += self._with_ages(waiting)
        return Scored(len(files), rows + self._repeat(rows, repeated), same)

    def _row(self, file: FileRef) -> dict[str, Any]:
        return {
            "archive": self._job.archive,
            "path": file.path,
            "bytes": file.bytes,
            "mtime_ns": file.mtime_ns,
            "model": self._model_id,
            "mode": self._job.mode,
            "engine": self._engine.name,
            "run_id": self._job.run_id,
            "scored_at": datetime.now(UTC),
        }

    def _is_known(self, content_hash: str) -> bool:
        key = np.uint64(hash_key(content_hash))
        place = int(np.searchsorted(self._known, key))
        return place < len(self._known) and self._known[place] == key

    def _with_ages(self, waiting: Sequence[tuple[dict[str, Any], RGB]]) -> Rows:
        if not waiting:
            return []
        distributions = self._engine(np.stack([chip for _, chip in waiting]))
        ages = self._model.estimate(distributions, [self._job.mode] * len(waiting))
        return [
            row | {"age": float(age), "age_low": float(low), "age_high": float(high)}
            for (row, _), age, low, high in zip(waiting, ages.age, ages.low, ages.high, strict=True)
        ]

    def _repeat(self, rows: Rows, repeated: Sequence[dict[str, Any]]) -> Rows:
        """Remember the rows of this shard by content, and copy them for files that repeat it."""
        for row in rows:
            if row.get("content_hash") in self._done:
                self._done[row["content_hash"]].append(row)
        copies = [found | row for row in repeated for found in self._done[row["content_hash"]]]
        if len(self._done) > _REMEMBERED:
            self._done.clear()
        return copies


def _face_columns(face: Face, chip: RGB) -> dict[str, Any]:
    measured = quality(chip)
    box = dict(zip(("box_x", "box_y", "box_w", "box_h"), face.box, strict=True))
    return box | {
        "face_score": face.score,
        "brightness": measured.brightness,
        "contrast": measured.contrast,
        "sharpness": measured.sharpness,
    }
