"""A shard of files -> rows of the predictions table: what a worker process does."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from agewatch.errors import ImageError
from agewatch.estimator.engine import EngineName, Precision, open_engine
from agewatch.estimator.faces import Face, Seen, YuNet, look
from agewatch.estimator.images import RGB, quality
from agewatch.estimator.memory import Room
from agewatch.estimator.model import AgeModel
from agewatch.progress import Progress, unwatched
from agewatch.remote import Server
from agewatch.scoring import pool
from agewatch.scoring.content import SharedKeys, hash_key
from agewatch.scoring.pool import Run, Task
from agewatch.scoring.predictions import Key, Rows
from agewatch.scoring.room import SharedRoom
from agewatch.settings import Settings
from agewatch.sources.source import FileRef, Read, Source

BATCH_CHIPS = 32
"""Chips that go through the network at once, whatever files they come from."""
_REMEMBERED = 10_000


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Execution:
    """How a model is run over pictures, which changes no row beyond rounding.

    `cache` is the folder for converted networks, `workers` the number of processes, `memory_gb` what all of them on one
    machine may take together; a picture that alone needs more is `too_large`. `run` has shards worked on. With a
    `server` that runs the network, not this machine.
    """

    cache: Path
    workers: int = field(default_factory=cores)
    engine: EngineName = "auto"
    precision: Precision = "auto"
    progress: Progress = unwatched
    memory_gb: float = field(default_factory=lambda: Settings().memory_gb)
    run: Run = pool.run
    server: Server | None = None

    def room(self) -> Room:
        """What the workers' pictures may take."""
        return SharedRoom(self.memory_gb, self.workers)


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer for a shard: rows of `files` files, and files whose content hash the table seems to hold."""

    files: int
    rows: Rows
    same: list[tuple[FileRef, str]]


@dataclass(frozen=True)
class Scoring(Task[FileRef, Scored]):
    """Scoring files of an archive, wherever the network runs. `known` is content whose rows the table holds already."""

    source: Source
    key: Key
    run_id: str
    known: SharedKeys | None = field(default=None, kw_only=True)

    def is_known(self, digest: str) -> bool:
        """Whether the table seems to hold rows of a content."""
        return self.known is not None and hash_key(digest) in self.known

    def give_up(self, item: FileRef, why: str) -> Scored:
        """One row that says `decoder_failed`."""
        digest = None
        with suppress(ImageError):  # with its hash it counts as scored, so that it is not tried every night
            digest = blake2b(self.source.read(item)[0], digest_size=32).hexdigest()
        row = self.row(item, "none") | {"content_hash": digest, "status": "decoder_failed"}
        return Scored(1, [row | {"error": f"The process that read the picture {why}."}], [])

    def row(self, file: FileRef, engine: str) -> dict[str, Any]:
        """What every row of a file has."""
        provenance = {"engine": engine, "run_id": self.run_id, "scored_at": datetime.now(UTC)}
        return asdict(file) | asdict(self.key) | provenance


@dataclass(frozen=True)
class Job(Scoring):
    """Scoring with a model on this machine; `room` is what pictures may take."""

    model_path: Path
    cache: Path
    engine: EngineName
    precision: Precision
    room: Room = field(default_factory=Room, kw_only=True)

    def open(self) -> Callable[[Sequence[FileRef], Callable[[], None]], Scored]:
        """Open the model, and in detect mode the detector. Raises ModelError."""
        return Scorer(self).score


class Repeats:
    """Rows of this worker by content hash: archives repeat themselves, and equal content is looked at once."""

    def __init__(self) -> None:
        self._rows: dict[str, Rows] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._rows

    def expect(self, digest: str) -> None:
        """Rows of a content are about to come."""
        self._rows[digest] = []

    def copies(self, rows: Rows, repeated: Sequence[dict[str, Any]]) -> Rows:
        """Remember the rows of a shard by content, and copy them for files that repeat it."""
        for row in rows:
            if row.get("content_hash") in self._rows:
                self._rows[row["content_hash"]].append(row)
        copies = [found | row for row in repeated for found in self._rows[row["content_hash"]]]
        if len(self._rows) > _REMEMBERED:
            self._rows.clear()
        return copies


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
        self._engine = open_engine(model, cache=job.cache, engine=job.engine, precision=job.precision)
        self._detector = YuNet() if job.key.mode == "detect" else None
        self._done = Repeats()

    def score(self, files: Sequence[FileRef], starts: Callable[[], None] = lambda: None) -> Scored:
        """Score a shard: one row a face, one row for any other file; equal content runs through the network once.

        `starts` is called before each file.
        """
        rows: Rows = []
        same: list[tuple[FileRef, str]] = []
        repeated: list[dict[str, Any]] = []
        waiting: list[tuple[dict[str, Any], RGB]] = []
        for file, read in self._job.source.reads(files):
            starts()
            row = self._job.row(file, self._engine.name)
            try:
                file, digest, seen = self._look(file, read, row, starts)
            except ImageError as refusal:
                rows.append(row | {"status": refusal.code, "error": str(refusal)})
                continue
            if seen is None and digest in self._done:
                repeated.append(row)
                continue
            if seen is None:
                same.append((file, digest))
                continue
            self._done.expect(digest)
            row |= {"width": seen.width, "height": seen.height, "captured_at": seen.captured_at, "camera": seen.camera}
            row |= {"rendition": seen.rendition, "turn": 0}
            if not seen.faces:
                rows.append(row | {"status": "no_face"})
            for index, (face, chip) in enumerate(zip(seen.faces, seen.chips, strict=True)):
                waiting.append((row | {"status": "ok", "face": index} | _face_columns(face, chip), chip))
            while len(waiting) >= BATCH_CHIPS:
                rows += self._with_ages(waiting[:BATCH_CHIPS])
                waiting = waiting[BATCH_CHIPS:]
        rows += self._with_ages(waiting)
        return Scored(len(files), rows + self._done.copies(rows, repeated), same)

    def _look(
        self, file: FileRef, read: Read, row: dict[str, Any], starts: Callable[[], None]
    ) -> tuple[FileRef, str, Seen | None]:
        """Read a file, whose row is of what was read, and look at its picture, unless its content is known already.

        The file's bytes end with this call, as does its share of the room.
        """
        room = self._job.room
        with room.picture(starts):
            room.expect(file.bytes or 0)
            data, file = read()
            digest = blake2b(data, digest_size=32).hexdigest()
            row |= asdict(file) | {"content_hash": digest}
            if self._job.is_known(digest) or digest in self._done:
                return file, digest, None
            with one_pictures_misfortune():
                return file, digest, look(data, self._detector, self._model.spec.cut, room)

    def _with_ages(self, waiting: Sequence[tuple[dict[str, Any], RGB]]) -> Rows:
        if not waiting:
            return []
        distributions = self._engine(np.stack([chip for _, chip in waiting]))
        ages = self._model.estimate(distributions, [self._job.key.mode] * len(waiting))
        return [
            row | {"age": float(age), "age_low": float(low), "age_high": float(high)}
            for (row, _), age, low, high in zip(waiting, ages.age, ages.low, ages.high, strict=True)
        ]


def _face_columns(face: Face, chip: RGB) -> dict[str, Any]:
    measured = quality(chip)
    box = dict(zip(("box_x", "box_y", "box_w", "box_h"), face.box, strict=True))
    return box | {
        "face_score": face.score,
        "brightness": measured.brightness,
        "contrast": measured.contrast,
        "sharpness": measured.sharpness,
    }
