"""Shard + engine -> rows: the main path of batch scoring.

Workers are spawned processes of one thread each; a worker turns a shard of files into rows, and this process alone
writes them, one commit a shard.
"""

import os
import signal
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from agewatch import archive, predictions
from agewatch.archive import FileRef
from agewatch.engine import Engine, EngineName, Precision, open_engine
from agewatch.errors import AgewatchError, ImageError, UsageError
from agewatch.faces import Detector, Face, cut_chip, whole_picture
from agewatch.images import Picture, decode, quality
from agewatch.model import AgeModel
from agewatch.predictions import Rows, Stored

Mode = Literal["detect", "crop"]

SHARD_FILES = 256
"""Files a commit: small enough to lose little when killed, large enough that commits cost little."""
BATCH_CHIPS = 32


@dataclass(frozen=True, slots=True)
class Job:
    """How to score, in a form that travels to worker processes."""

    root: Path
    archive: str
    model_path: Path
    mode: Mode
    engine: EngineName
    precision: Precision
    cache: Path
    run_id: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A worker's answer for a shard: rows, and files whose bytes are what the table already holds."""

    files: int
    rows: Rows
    unchanged: Sequence[FileRef]


@dataclass
class Summary:
    """State of one archive for one model and mode after a run; counts are over all files found.

    `scored` files went through this run, `skipped` ones had rows already; `faces_per_s` is of this run.
    """

    archive: str
    run_id: str
    model: str
    mode: Mode
    engine: str | None
    found: int
    ignored: int
    skipped: int
    scored: int
    faces: int
    no_face: int
    refused: dict[str, int]
    disappeared: int
    seconds: float
    faces_per_s: float
    predictions: str
    exit_code: int
    unlisted: list[str] = field(default_factory=list)

    @property
    def refused_share(self) -> float:
        """Refused files over files found, 0..1."""
        return sum(self.refused.values()) / max(self.found, 1)


Progress = Callable[[int, int, Counter[str]], None]
"""Called with files done, files to do, and counts by status (`ok` counts faces)."""


def unwatched(_done: int, _total: int, _counts: Counter[str]) -> None:
    """Show nothing."""


def score_archive(
    root: Path,
    *,
    model_path: Path,
    table: Path,
    cache: Path,
    mode: Mode = "detect",
    engine: EngineName = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    max_refused: float = 0.05,
    name: str | None = None,
    rescore: bool = False,
    progress: Progress = unwatched,
) -> Summary:
    """Score every picture below `root` that the table does not hold yet, and return the archive's state.

    `exit_code` of the summary is 3 where the refused share of all files found exceeds `max_refused`, else 0; rows
    are committed whatever it is. Raises UsageError (no such folder, archive name taken), ModelError, TableError, or
    AgewatchError where a worker process died; what was committed before stays.
    """
    started = perf_counter()
    root = root.resolve()
    name = name or root.name
    if not name or "/" in name or not name.isprintable():
        raise UsageError(f"An archive's name is printable text without '/', not {name!r}: choose one with --archive.")
    listing = archive.find(root)
    model = AgeModel.load(model_path)
    job = Job(root, name, model_path, mode, engine, precision, cache, _run_id())
    writer = predictions.Writer(table, archive=job.archive, root=root, model=model.id, mode=mode)
    known = writer.stored.copy()
    pending = [file for file in listing.files if rescore or not is_scored(file, known.get(file.path))]
    counts: Counter[str] = Counter()
    done, engine_name = 0, None
    progress(0, len(pending), counts)
    for scored in _score_all(job, pending, {} if rescore else known, workers or len(os.sched_getaffinity(0))):
        writer.write(scored.rows + _touched(writer, scored.unchanged))
        counts.update(row["status"] for row in scored.rows)
        done += scored.files
        engine_name = scored.rows[0]["engine"] if scored.rows else engine_name
        progress(done, len(pending), counts)
    state = [writer.stored[file.path] for file in listing.files if file.path in writer.stored]
    statuses = Counter(stored.status for stored in state)
    refused = {code: n for code, n in sorted(statuses.items()) if code not in ("ok", "no_face")}
    seconds = perf_counter() - started
    summary = Summary(
        archive=job.archive,
        run_id=job.run_id,
        model=model.id,
        mode=mode,
        engine=engine_name,
        found=len(listing.files),
        ignored=listing.ignored,
        skipped=len(listing.files) - len(pending),
        scored=len(pending),
        faces=sum(stored.faces for stored in state),
        no_face=statuses["no_face"],
        refused=refused,
        disappeared=len(writer.stored.keys() - {file.path for file in listing.files}),
        seconds=round(seconds, 3),
        faces_per_s=round(counts["ok"] / seconds, 1),
        predictions=str(table.resolve()),
        exit_code=0,
        unlisted=listing.unlisted,
    )
    summary.exit_code = 3 if summary.refused_share > max_refused else 0
    return summary


def is_scored(file: FileRef, stored: Stored | None) -> bool:
    """Tell whether the table's rows stand for this state of the file, by size and modification time."""
    if stored is None or stored.status in predictions.RETRIED_STATUSES:
        return False
    return (stored.bytes, stored.mtime_ns) == (file.bytes, file.mtime_ns)


class Scorer:
    """Turns files into rows. Holds one engine and, in detect mode, one detector; not thread-safe."""

    def __init__(self, job: Job) -> None:
        model = AgeModel.load(job.model_path)
        self._job = job
        self._model = model
        self._model_id = model.id
        self._engine: Engine = open_engine(model, cache=job.cache, engine=job.engine, precision=job.precision)
        self._detector = Detector() if job.mode == "detect" else None

    def score(self, files: Sequence[FileRef], hashes: dict[str, str]) -> Scored:
        """Score a shard. `hashes` maps paths to the content hash that the table holds; equal bytes are not rerun."""
        rows: Rows = []
        unchanged: list[FileRef] = []
        waiting: list[tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.uint8]]]] = []
        for file in files:
            row = self._row(file)
            try:
                data = file.read(self._job.root)
                row["content_hash"] = blake2b(data, digest_size=32).hexdigest()
                if hashes.get(file.path) == row["content_hash"]:
                    unchanged.append(file)
                    continue
                picture = decode(data)
            except ImageError as refusal:
                rows.append(row | {"status": refusal.code, "error": str(refusal)})
                continue
            row |= _picture_columns(picture)
            faces = self._detector(picture.rgb) if self._detector else [whole_picture(picture.rgb)]
            if not faces:
                rows.append(row | {"status": "no_face"})
            for index, face in enumerate(faces):
                chip = self._chip(picture, face)
                waiting.append((row | {"status": "ok", "face": index} | _face_columns(face, chip), chip))
            while len(waiting) >= BATCH_CHIPS:
                rows += self._with_ages(waiting[:BATCH_CHIPS])
                waiting = waiting[BATCH_CHIPS:]
        rows += self._with_ages(waiting)
        return Scored(len(files), rows, unchanged)

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

    def _chip(self, picture: Picture, face: Face) -> np.ndarray[Any, np.dtype[np.uint8]]:
        spec = self._model.spec
        return cut_chip(picture.rgb, face, scale=spec.preprocessing.chip_scale, size=spec.image_size)

    def _with_ages(self, waiting: Sequence[tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.uint8]]]]) -> Rows:
        if not waiting:
            return []
        ages = self._model.estimate(self._engine(np.stack([chip for _, chip in waiting])))
        return [
            row | {"age": float(age), "age_low": float(low), "age_high": float(high)}
            for (row, _), age, low, high in zip(waiting, ages.age, ages.low, ages.high, strict=True)
        ]


def _picture_columns(picture: Picture) -> dict[str, Any]:
    height, width = picture.rgb.shape[:2]
    return {"width": width, "height": height, "captured_at": picture.captured_at}


def _face_columns(face: Face, chip: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    measured = quality(chip)
    box = dict(zip(("box_x", "box_y", "box_w", "box_h"), face.box, strict=True))
    return box | {
        "face_score": face.score,
        "brightness": measured.brightness,
        "contrast": measured.contrast,
        "sharpness": measured.sharpness,
    }


def _touched(writer: predictions.Writer, files: Sequence[FileRef]) -> Rows:
    """The stored rows of files whose bytes did not change, with the new modification time."""
    if not files:
        return []
    mtimes = {file.path: file.mtime_ns for file in files}
    return [row | {"mtime_ns": mtimes[row["path"]]} for row in writer.rows_of(list(mtimes))]


_scorer: Scorer | None = None  # one a worker process


def _start_worker(job: Job) -> None:
    global _scorer
    _scorer = Scorer(job)


def _work(files: Sequence[FileRef], hashes: dict[str, str]) -> Scored:
    assert _scorer is not None
    return _scorer.score(files, hashes)


def _score_all(job: Job, pending: Sequence[FileRef], known: dict[str, Stored], workers: int) -> Iterator[Scored]:
    """Score shards in worker processes and yield the answers in order, a bounded number under way."""
    if not pending:
        return
    size = max(8, min(SHARD_FILES, len(pending) // (workers * 2) + 1))
    under_way: deque[Future[Scored]] = deque()
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            for shard in archive.shards(pending, size):
                hashes = {
                    file.path: digest
                    for file in shard
                    if (stored := known.get(file.path)) and (digest := stored.content_hash)
                }
                with _uninterrupted():
                    under_way.append(pool.submit(_work, shard, hashes))
                if len(under_way) > workers * 2:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise AgewatchError(
                "A worker process died. Rows written so far are kept; run the command again."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block SIGINT meanwhile: workers, which start here and inherit it, leave Ctrl-C to this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_id() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-") + uuid.uuid4().hex[:6]
